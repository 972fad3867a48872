"""What a method is handed, and what cannot be reached from it."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.core.errors import AccessError
from expunge.core.needs import Needs
from expunge.core.opaque import resolve
from expunge.core.run import Run
from expunge.data.join import joined
from expunge.data.split import ResidentStore, Split, StreamingStore
from expunge.methods.problem import Problem, restrict
from expunge.testing.reachable import leaks, reachable
from expunge.testing.toys import ToyNet, toy_images
from expunge.training.recipe import Recipe

X, Y = toy_images(40, seed=0)
Y = torch.randint(4, (40,), generator=torch.Generator().manual_seed(0))  # in no order that a part could repeat
IDS = np.array([f"class-{label}/{row}" for row, label in enumerate(Y.tolist())])


class Items(Dataset[tuple[Tensor, int]]):
    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return X[row], int(Y[row])

    def __len__(self) -> int:
        return len(X)


def splits(kind: str) -> dict[str, Split]:
    common = {"classes": list("abcd"), "ids": IDS, "columns": {"file": IDS.copy()}}
    store = ResidentStore(X.clone(), Y, **common) if kind == "resident" else StreamingStore(Items(), Y, **common)
    whole = Split.whole(store)
    return {"forget": whole.take([7, 1, 30], "forget"), "retain": whole.take(range(10, 20), "retain")}


def problem(kind: str, **needs: object) -> Problem:
    return restrict(ToyNet(), splits(kind), Needs(**needs), 4, Recipe(), None, 0)


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_a_sealed_split_has_the_same_samples_labels_ids_and_content_hash(kind: str) -> None:
    forget = splits(kind)["forget"]
    sealed = forget.sealed()
    assert len(sealed.store) == 3
    assert torch.equal(sealed.inputs(), forget.inputs())
    assert torch.equal(sealed.y, forget.y)
    assert sealed.ids.tolist() == forget.ids.tolist() == IDS[[7, 1, 30]].tolist()
    assert sealed.store.columns["file"].tolist() == sealed.ids.tolist()
    assert sealed.content_hash() == sealed.sealed().content_hash() == forget.content_hash()
    assert sealed.take([1]).content_hash() != forget.content_hash()
    for one, other in zip(
        sealed.batches(2, shuffle=True, seed=3), forget.batches(2, shuffle=True, seed=3), strict=True
    ):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.index, other.index)


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_nothing_beyond_what_is_declared_can_be_reached(kind: str) -> None:
    everything = {"samples": X, "labels": Y, "ids": IDS}
    assert leaks([splits(kind)["forget"]], everything) == (
        ["ids", "labels", "samples"] if kind == "resident" else ["ids", "labels"]
    )
    made = problem(kind, forget="inputs", retain="labels")
    run = Run(progress=lambda _: splits(kind))
    rest = [row for row in range(40) if row not in {7, 1, 30}]
    undeclared = [row for row in rest if row not in range(10, 20)]
    secret = {"samples": X[undeclared], "labels": Y[[7, 1, 30]], "all labels": Y, "ids": IDS[[*undeclared, 7, 1, 30]]}
    assert leaks([made, run], secret) == []
    assert not [item for item in reachable(made, run) if isinstance(item, Items)]
    if kind == "streaming":
        assert made.forget.store.dataset[0].shape == (1, 8, 8)  # the sample alone: its label is not handed on
        with pytest.raises(IndexError):
            made.forget.store.dataset[3]


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_withheld_labels_take_ids_and_columns_along(kind: str) -> None:
    forget = problem(kind, forget="inputs").forget
    assert not forget.has_labels
    assert forget.store.columns == {}
    for read in (lambda: forget.y, lambda: forget.ids, lambda: forget.store.labels):
        with pytest.raises(AccessError):
            read()


def test_a_whole_data_set_is_shared_and_a_part_of_a_larger_tensor_is_not() -> None:
    whole = Split.whole(ResidentStore(X.clone(), Y))
    assert whole.sealed().store.samples is whole.store.samples
    view = Split.whole(ResidentStore(X[:20], Y[:20]))
    assert leaks([view.sealed()], {"rest": X[20:]}) == []


def test_integers_reach_the_model_as_integers_and_pixels_as_numbers() -> None:
    tokens = torch.randint(1000, (6, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(6, dtype=torch.long)
    for dtype in (torch.int64, torch.int32):
        seen = Split.whole(ResidentStore(tokens.to(dtype), labels)).sealed().inputs()
        assert torch.equal(seen, tokens.to(dtype))
        assert seen.dtype == dtype
    pixels = Split.whole(ResidentStore((tokens % 256).to(torch.uint8), labels)).inputs()
    assert pixels.dtype == torch.float32
    assert float(pixels.max()) <= 1


def test_streams_that_are_handed_apart_are_joined_again() -> None:
    made = problem("streaming", forget="labels", retain="labels")
    both = joined([made.retain, made.forget], "train")
    assert torch.equal(both.inputs(), X[[*range(10, 20), 7, 1, 30]])
    assert torch.equal(both.y, Y[[*range(10, 20), 7, 1, 30]])
    assert both.ids.tolist() == IDS[[*range(10, 20), 7, 1, 30]].tolist()


def test_a_handle_keeps_its_target_alive_no_longer_than_itself_and_pickles_with_it() -> None:
    made = problem("streaming", forget="inputs")
    again = pickle.loads(pickle.dumps(made.forget.store.dataset))
    assert torch.equal(again[2], X[30])
    source = weakref.ref(resolve(made.forget.store.dataset._source))
    assert source() is not None
    del made
    gc.collect()
    assert source() is None
