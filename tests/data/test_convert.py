"""Callers' own data as splits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from expunge.core.errors import DataError
from expunge.data.convert import as_split, harmonise_classes
from expunge.data.split import Normalisation, ResidentStore, Split, StreamingStore


class Own(Dataset):
    """A user's data set: PIL images with an optional transform, `targets` as torchvision has them."""

    def __init__(self, count: int = 20, transform=None) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)
        self.data = [Image.fromarray(p) for p in pixels]
        self.targets = [i % 3 for i in range(count)]
        self.transform = transform
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int):
        self.reads += 1
        image = self.data[position]
        return (self.transform(image) if self.transform else image), self.targets[position]


def to_float(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32)) / 255


def random_flip(image: Image.Image) -> torch.Tensor:
    x = to_float(image)
    return x.flip(2) if torch.rand(()) < 0.5 else x


@pytest.mark.parametrize("kind", ["tuple", "list", "tensors", "dataset", "subset", "lists"])
def test_arrays_of_every_kind(kind):
    x = np.random.default_rng(1).normal(size=(6, 3))
    y = np.array([0, 1, 2, 0, 1, 2])
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    data = {
        "tuple": (x, y),
        "list": [x, y.tolist()],
        "tensors": (tx.requires_grad_(), ty.float()),
        "dataset": TensorDataset(tx, ty),
        "subset": Subset(TensorDataset(tx, ty), range(6)),
        "lists": (x.tolist(), y.tolist()),
    }[kind]
    split = as_split(data, name="mine")
    assert split.name == "mine"
    assert split.store.samples.dtype == torch.float32
    assert split.y.tolist() == y.tolist()
    np.testing.assert_allclose(split.inputs().numpy(), x.astype(np.float32))


def test_subset_keeps_its_order():
    split = as_split(Subset(TensorDataset(torch.arange(9.0)[:, None], torch.arange(9) % 2), [7, 0, 3]))
    assert split.inputs()[:, 0].tolist() == [7, 0, 3]


def test_pixels_are_scaled_and_normalised():
    x = np.full((2, 1, 4, 4), 255, dtype=np.uint8)
    x.flags.writeable = False
    split = as_split((x, [0, 1]), normalisation=Normalisation((0.5,), (0.25,)))
    assert split.inputs().unique().tolist() == [2.0]


def test_splits_and_stores_pass():
    split = as_split((np.zeros((2, 2)), [0, 1]))
    assert as_split(split) is split
    assert as_split(split.store).store is split.store


def test_own_dataset_is_read_into_memory_once():
    own = Own()
    split = as_split(own)
    assert isinstance(split.store, ResidentStore)
    assert split.input_shape == (3, 5, 4)
    assert split.y.tolist() == own.targets
    before = own.reads
    x = split.inputs()
    assert own.reads == before
    torch.testing.assert_close(x, torch.stack([to_float(image) for image in own.data]))
    assert as_split(Subset(own, [4, 1])).y.tolist() == [1, 1]


def test_own_transforms_are_not_normalised_again():
    split = as_split(Own(transform=to_float), normalisation=Normalisation((0.5,) * 3, (0.5,) * 3))
    assert split.store.normalisation is None
    assert float(split.inputs().max()) <= 1.0
    assert float(split.inputs().min()) >= 0.0


def test_random_transforms_are_streamed_and_the_global_generators_untouched():
    own = Own(transform=random_flip)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    split = as_split(Subset(own, list(range(10))))
    assert isinstance(split.store, StreamingStore)
    assert split.y.tolist() == own.targets[:10]
    assert own.reads < 60  # labels come from `targets`, not from all items
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_wrong_targets_are_not_believed(monkeypatch):
    monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "0")
    own = Own()
    true = list(own.targets)

    class Shifted(Own):
        def __getitem__(self, position: int):
            return self.data[position], true[position]

    shifted = Shifted()
    shifted.targets = [(t + 1) % 3 for t in true]
    split = as_split(shifted)
    assert isinstance(split.store, StreamingStore)
    assert split.y.tolist() == true


def test_streams_refuse_nan_when_read(monkeypatch):
    monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "0")

    class Holes(Own):
        def __getitem__(self, position: int):
            return torch.full((2,), float("nan") if position == 13 else 1.0), 0

    with pytest.raises(DataError, match="item 13: the sample holds NaN"):
        as_split(Holes()).inputs(size=4)


class Texts(Own):
    def __getitem__(self, position: int):
        return torch.zeros(2), "cat"


class Lonely(Own):
    def __getitem__(self, position: int):
        return torch.zeros(2)


class Negative(Own):
    def __getitem__(self, position: int):
        return torch.zeros(2), -1


class Ragged(Own):
    def __getitem__(self, position: int):
        return torch.zeros(2 + position % 2), 0


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


BAD = np.zeros((5, 2))
BAD[3, 1] = np.nan


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((BAD, [0] * 5), "row 3: the sample holds NaN"),
        ((np.full((2, 2), 1e300), [0, 1]), "row 0: the sample holds NaN or infinite"),
        ((np.zeros((5, 2)), [0] * 4), "5 samples and y 4 labels"),
        ((np.zeros(5), [0] * 5), r"shape \(N, \.\.\.\)"),
        ((np.zeros((2, 2)), ["a", "b"]), "whole class numbers, got 'a'"),
        ((np.zeros((2, 2)), [0.5, 1]), "whole class numbers"),
        ((np.zeros((2, 2)), [0, -1]), "must be >= 0"),
        ((np.zeros((2, 2)), np.ones((2, 2))), "no one-hot rows"),
        (([[1, 2], [3]], [0, 1]), "all samples must have one shape"),
        ((np.array([["a"], ["b"]]), [0, 1]), "samples must be numbers"),
        (TensorDataset(torch.zeros(2, 2)), "got 1 tensors"),
        (Texts(), "item 0 has the label 'cat'"),
        (Lonely(), r"items must be \(sample, label\) pairs"),
        (Negative(), "unlabelled"),
        (Ragged(), "differ in shape"),
        (Endless(), "IterableDataset has no positions"),
        (7, "cannot read data from int"),
        ({"x": 1}, "cannot read data from dict"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(DataError, match=message):
        as_split(data, name="forget")


def test_class_counts_are_made_to_agree():
    whole = as_split((np.zeros((4, 2)), [0, 1, 2, 3]))
    forget, retain = whole.take([0, 1], "forget"), whole.take([2, 3], "retain")
    other = as_split((np.zeros((2, 2)), [0, 7]))
    a, b, c = harmonise_classes([forget, retain, other])
    assert a.num_classes == b.num_classes == c.num_classes == 8
    assert a.store is b.store  # overlap checks compare stores
    assert c is other
    assert whole.num_classes == 4
    assert as_split((np.zeros((2, 2)), [0, 1]), num_classes=5).num_classes == 5
    hidden, _ = harmonise_classes([forget.without_labels(), other])
    assert hidden.num_classes == 8
    assert not hidden.has_labels


def test_different_class_names_are_refused():
    def named(*names: str) -> Split:
        return Split.whole(ResidentStore(torch.zeros(1, 1), torch.zeros(1), classes=names))

    with pytest.raises(DataError, match="class 0 is `dog`"):
        harmonise_classes([named("cat", "dog"), named("dog", "cat", "fox")])
    assert harmonise_classes([named("cat", "dog"), named("cat", "dog", "fox")])[0].store.classes[2] == "fox"
