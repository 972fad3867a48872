"""Splits: partition, order, hidden labels, the two backends, per-sample caches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import AccessError, DataError, UsageError
from expunge.data.augment import crop_flip
from expunge.data.split import Normalisation, PerSample, ResidentStore, Split, StreamingStore


def images(count: int = 23) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


class Items(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, samples: torch.Tensor) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.samples[position]


def both(count: int = 23) -> tuple[Split, Split]:
    samples, labels = images(count), torch.arange(count) % 4
    norm = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return (
        Split.whole(ResidentStore(samples, labels, normalisation=norm)),
        Split.whole(StreamingStore(Items(samples), labels, normalisation=norm)),
    )


@given(
    st.lists(st.integers(0, 49), unique=True, min_size=1, max_size=50),
    st.integers(1, 60),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_every_index_comes_exactly_once_and_the_seed_fixes_the_order(positions, size, shuffle, seed):
    store = ResidentStore(torch.arange(50.0)[:, None], torch.arange(50) % 3)
    split = Split.whole(store).take(positions)

    def run() -> list[int]:
        seen = []
        for batch in split.batches(size, shuffle=shuffle, seed=seed):
            rows = split.index[batch.index]
            assert torch.equal(batch.x[:, 0].long(), rows)  # the sample belongs to its row
            assert torch.equal(batch.y, rows % 3)
            assert len(batch) <= size
            seen += rows.tolist()
        return seen

    first = run()
    assert sorted(first) == sorted(positions)
    assert first == run()
    if not shuffle:
        assert first == positions


def test_another_seed_is_another_order():
    split = both()[0]
    orders = [torch.cat([b.index for b in split.batches(4, shuffle=True, seed=s)]).tolist() for s in range(3)]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("augment", [None, crop_flip(2)])
def test_streaming_equals_resident_batch_by_batch(augment):
    resident, streaming = both()
    assert resident.input_shape == streaming.input_shape == (3, 6, 6)
    options = {"shuffle": True, "seed": 5, "augment": augment}
    for a, b in zip(resident.batches(7, **options), streaming.batches(7, **options), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.index, b.index)


def test_prepare_scales_then_normalises():
    split = both()[0]
    x = next(split.batches(2)).x
    expected = (images()[:2].double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(x.double(), expected, atol=1e-6, rtol=1e-5)


def test_resize_is_part_of_the_evaluation_view():
    for split in both():
        before = split.content_hash()
        split.store.resize = 12
        assert split.input_shape == (3, 12, 12)
        assert split.without_labels().input_shape == (3, 12, 12)
        assert next(split.batches(5)).x.shape == (5, 3, 12, 12)
        assert next(split.without_labels().batches(5)).x.shape == (5, 3, 12, 12)
        assert split.content_hash() != before


def test_drop_last():
    assert [len(b) for b in both()[0].batches(10, drop_last=True)] == [10, 10]


def test_hidden_labels_cannot_be_reached():
    split = both()[0].without_labels()
    batch = next(split.batches(3))
    for read in (
        lambda: split.y,
        lambda: batch.y,
        lambda: split.store.labels,
        lambda: split.ids,
        lambda: list(batch),
    ):
        with pytest.raises(AccessError):
            read()
    assert not split.has_labels


def test_per_sample_looks_values_up_by_index():
    split = both()[0].take([9, 2, 17, 4])
    cache = PerSample(split, torch.tensor([90.0, 20.0, 170.0, 40.0]))
    for batch in split.batches(2, shuffle=True, seed=1):
        assert torch.equal(cache[batch.index], split.index[batch.index] * 10.0)
    with pytest.raises(UsageError, match="3 cached values"):
        PerSample(split, torch.zeros(3))


def test_content_hash_changes_with_a_sample_a_label_and_the_order():
    samples, labels = images(), torch.arange(23) % 4
    base = Split.whole(ResidentStore(samples, labels))
    other = samples.clone()
    other[3, 0, 0, 0] ^= 1
    hashes = {
        base.content_hash(),
        Split.whole(ResidentStore(other, labels)).content_hash(),
        base.with_labels((labels + 1) % 4).content_hash(),
        base.take(torch.arange(23).flip(0)).content_hash(),
        Split.whole(ResidentStore(samples, labels, normalisation=Normalisation((0.5,), (0.5,)))).content_hash(),
    }
    assert len(hashes) == 5
    assert Split.whole(ResidentStore(samples.clone(), labels.clone())).content_hash() == base.content_hash()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), "expected 3 labels"),
        (torch.tensor([0, -1, 1]), "must be >= 0"),
        (torch.tensor([0, 0.5, 1]), "whole class numbers"),
        (torch.tensor([0, float("nan"), 1]), "whole class numbers"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(DataError, match=message):
        ResidentStore(torch.zeros(3, 2), labels)


def test_bad_batch_size_and_repeated_ids():
    with pytest.raises(UsageError, match="batch size"):
        next(both()[0].batches(0))
    with pytest.raises(DataError, match="`a` occurs 2 times"):
        ResidentStore(torch.zeros(3, 2), torch.zeros(3), ids=["a", "b", "a"])


def test_content_ids_are_stable_and_distinct():
    samples = torch.stack([torch.zeros(2), torch.ones(2), torch.zeros(2)])
    ids = ResidentStore(samples, torch.zeros(3)).ids.tolist()
    assert ids[2] == f"{ids[0]}-2"
    assert len(set(ids)) == 3
    assert ResidentStore(samples.clone(), torch.ones(3)).ids.tolist() == ids


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_a_rest_of_one_sample_joins_the_batch_before_it(count: int, size: int, sizes: list[int]) -> None:
    split = Split.whole(ResidentStore(torch.rand(count, 2), torch.zeros(count).long()))
    batches = list(split.batches(size, shuffle=True, seed=3))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(count))
    assert [len(b) for b in split.batches(4)] == [len(part) for part in torch.arange(count).split(4)]
