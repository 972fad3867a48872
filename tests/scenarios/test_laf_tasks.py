"""The LAF authors' sets, sample for sample: hashes of the specification (section 2), measured on real MNIST."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import expunge
from expunge.core.errors import UsageError
from expunge.data.convert import as_split
from expunge.data.known import KNOWN
from expunge.data.sources import load_data
from expunge.data.split import ResidentStore, Split


def digest(values: object) -> str:
    return hashlib.sha256(np.asarray(values, dtype="<i8").tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def mnist(real_data: Path) -> Split:
    return load_data(real_data / "mnist")


@pytest.fixture(scope="module")
def fashion(real_data: Path) -> Split:
    if not (real_data / "fashion-mnist").is_dir():
        pytest.skip(f"Fashion-MNIST is not in {real_data}")
    return load_data(real_data / "fashion-mnist")


@pytest.mark.parametrize(
    ("task", "size", "first", "forget", "members", "labels"),
    [
        ("random", 11760, [35062, 38313, 3705], "f1cee23536c34fe9", "714bb0f376e625a4", None),
        ("class", 5923, [32097, 35107, 3492], "3570ba97bc218354", "53f95bde640de41c", None),
        ("noise", 18355, [32097, 35107, 3492], "4c96872139d75f91", "442c45caf87ae221", "34b31641742f19e7"),
    ],
)
def test_the_authors_sets(mnist: Split, task, size, first, forget, members, labels) -> None:
    check(mnist, task, size, first, forget, members, labels)


@pytest.mark.parametrize(
    ("task", "size", "first", "forget", "members", "labels"),
    [
        ("random", 12000, [31156, 34080, 3296], "4d7441611df785cf", "ae7f4bd536c4ac7d", None),
        ("class", 6000, [32037, 34802, 3553], "5d149527f3c7f61e", "6865b24347aeed3d", None),
        ("noise", 18000, [32037, 34802, 3553], "ec82eb20279f3289", "56f98de6eaf22ecd", "be38cd7d2ec159a1"),
    ],
)
def test_the_authors_sets_of_fashion(fashion: Split, task, size, first, forget, members, labels) -> None:
    check(fashion, task, size, first, forget, members, labels)


def check(data: Split, task, size, first, forget, members, labels) -> None:
    split = expunge.scenario("laf-task", data, task=task, seed=0)
    positions = split.forget.index
    assert (len(positions), positions[:3].tolist(), digest(positions)) == (size, first, forget)
    assert digest(split.sample) == members
    if labels is None:
        assert torch.equal(split.forget.y, data.labels[positions])
    else:
        assert digest(split.forget.y) == labels
        assert not bool((split.forget.y == 9).any())
        assert not bool((split.forget.y == split.true_labels[positions]).any())
        assert torch.equal(split.retain.y, data.labels[split.retain.index])


CIFAR10 = (5000,) * 10
SVHN = next(known for known in KNOWN if known.name == "svhn").train_counts


def of_sizes(counts: tuple[int, ...]) -> Split:
    """Labels alone, shuffled; the sizes of the sets do not depend on their order."""
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return Split.whole(ResidentStore(torch.zeros(len(labels), 1), labels, classes=[str(c) for c in range(10)]))


# Specification, sections 2 and 7: |D_f|, of which class how many, batches of 32 an epoch, the last one's size.
@pytest.mark.parametrize(
    ("counts", "task", "per_class", "batches", "last"),
    [
        (CIFAR10, "random", {5: 2000, 6: 2000, 7: 2000, 8: 2000, 9: 2000}, 313, 16),
        (CIFAR10, "class", {0: 5000}, 157, 8),
        (CIFAR10, "noise", {0: 3000, 1: 3000, 2: 3000, 3: 3000, 4: 3000}, 469, 24),
        (SVHN, "random", {5: 2752, 6: 2290, 7: 2238, 8: 2018, 9: 1863}, 349, 25),
        (SVHN, "class", {0: 4948}, 155, 20),
        (SVHN, "noise", {0: 2968, 1: 8316, 2: 6351, 3: 5098, 4: 4474}, 851, 7),
    ],
)
def test_sizes_on_cifar10_and_svhn(counts, task, per_class, batches, last) -> None:
    data = of_sizes(counts)
    split = expunge.scenario("laf-task", data, task=task, seed=0)
    truth = split.true_labels[split.forget.index]
    assert dict(zip(*(part.tolist() for part in truth.unique(return_counts=True)), strict=True)) == per_class
    sizes = [len(batch) for batch in split.forget.batches(32)]
    assert (len(sizes), sizes[-1]) == (batches, last)
    assert len(split.sample) == len(split.forget)
    assert len(split.forget) + len(split.retain) == sum(counts)


def test_other_data_need_ten_classes() -> None:
    with pytest.raises(UsageError, match="needs 10 classes"):
        expunge.scenario("laf-task", as_split((torch.rand(30, 2), torch.arange(30) % 3)))
