"""Exact copies of samples: found by content, reported, and forgotten on request."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import expunge
from expunge.core.errors import UsageError
from expunge.data import duplicates
from expunge.data.duplicates import copies_among, repeated_in
from expunge.data.hashing import content_ids, row_hashes
from expunge.data.split import ResidentStore, Split, StreamingStore
from expunge.scenarios.base import parse_scenario


def whole(samples: torch.Tensor) -> Split:
    ids = [f"s{row}" for row in range(len(samples))]
    return Split.whole(ResidentStore(samples, torch.arange(len(samples)) % 2, ids=ids), "train")


def by_bytes(split: Split, of: Split) -> list[bool]:
    known = {row.numpy().tobytes() for row in of.store.samples[of.index]}
    return [row.numpy().tobytes() in known for row in split.store.samples[split.index]]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=4, max_size=30),
    kind=st.sampled_from([torch.uint8, torch.float32]),
    collide=st.booleans(),
)
def test_copies_are_those_that_a_plain_loop_finds(rows: list[list[int]], kind: torch.dtype, collide: bool) -> None:
    split = whole(torch.tensor(rows, dtype=kind))
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # hashes that tell nearly nothing
            patch.setattr(duplicates, "row_hashes", lambda samples: row_hashes(samples) % np.uint64(2))
        first, rest = split.take(split.index[:3]), split.take(split.index[3:])
        assert copies_among(rest, first).tolist() == by_bytes(rest, first)
        if not collide:
            assert repeated_in(split) == len(rows) - len(set(map(tuple, rows)))


def test_hashes_tell_samples_apart_that_differ_in_one_byte_or_in_order() -> None:
    base = np.zeros((600, 24), dtype=np.uint8)
    for row in range(1, 600):
        base[row, row % 24] = 1 + row // 24
    base = np.concatenate([base, base[:, ::-1][[1, 5]] + np.eye(2, 24, 7, dtype=np.uint8)])
    assert len(np.unique(row_hashes(base))) == len(base)
    top = np.zeros((2, 16), dtype=np.uint8)
    top[1, [7, 15]] = 128  # the highest bits of two words
    assert len(np.unique(row_hashes(top))) == 2
    assert (
        len(
            np.unique(row_hashes(np.zeros((1, 3), np.uint8)).tolist() + row_hashes(np.zeros((1, 4), np.uint8)).tolist())
        )
        == 2
    )


def test_the_hash_is_the_same_for_ever() -> None:
    assert content_ids(np.arange(12, dtype=np.uint8).reshape(2, 6)).tolist() == PINNED
    assert content_ids(np.empty((0, 3), dtype=np.float32)).tolist() == []


PINNED = ["d87d0a1d73371259", "4c52ed313df329ec"]


def test_ids_by_content_number_repeated_samples() -> None:
    ids = content_ids(np.array([[1.0], [2.0], [1.0], [1.0]], dtype=np.float32)).tolist()
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert len(set(ids)) == 4
    assert len(ids[0]) == 16


def test_a_million_rows_take_seconds() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (100_000, 64), dtype=np.uint8)
    began = time.process_time()
    content_ids(samples)
    assert time.process_time() - began < 1.0  # a tenth of a million; measured: below 0.1 s


def test_what_cannot_be_compared_has_no_copies() -> None:
    pixels, numbers = whole(torch.zeros(3, 2, dtype=torch.uint8)), whole(torch.zeros(3, 2))
    assert not bool(copies_among(pixels, numbers).any())
    assert not bool(copies_among(numbers, whole(torch.zeros(3, 4))).any())
    stream = Split.whole(StreamingStore([(torch.zeros(2), 0)] * 3, torch.zeros(3)))  # type: ignore[arg-type]
    assert not bool(copies_among(stream, numbers).any())
    assert repeated_in(stream) == 0
    assert repeated_in(numbers) == 2


def with_doubles() -> Split:
    samples = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    samples[20] = samples[30] = samples[5]
    return whole(samples)


def test_copies_that_stay_are_reported_and_can_be_forgotten() -> None:
    train = with_doubles()
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    split = parse_scenario("ids:s5").split(train, 0)
    result = expunge.unlearn(model, forget=split.forget, retain=split.retain, method="finetune", epochs=1, device="cpu")
    (note,) = [note for note in result.notes if "duplicates" in note]
    assert "2 samples of the retain set are duplicates of samples to forget, byte for byte (first: s20)" in note
    asked = note.rpartition("--forget ")[2].rstrip(".")
    split = parse_scenario(asked).split(train, 0)
    assert split.forget.ids.tolist() == ["s5", "s20", "s30"]
    result = expunge.unlearn(model, forget=split.forget, retain=split.retain, method="finetune", epochs=1, device="cpu")
    assert not [note for note in result.notes if "duplicate" in note]


def test_copies_are_not_offered_where_labels_are_changed() -> None:
    with pytest.raises(UsageError, match="noisy changes labels, so `with_copies` is not supported"):
        parse_scenario("noisy:0.2,with_copies=true").split(with_doubles(), 0)
    assert len(parse_scenario("ids:s5,s20,with_copies=true").split(with_doubles(), 0).forget) == 3
