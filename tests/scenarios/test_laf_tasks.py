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
from expunge.data.sources import load_data
from expunge.data.split import Split


def digest(values: object) -> str:
    return hashlib.sha256(np.asarray(values, dtype="<i8").tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def mnist(real_data: Path) -> Split:
    return load_data(real_data / "mnist")


@pytest.mark.parametrize(
    ("task", "size", "first", "forget", "members", "labels"),
    [
        ("random", 11760, [35062, 38313, 3705], "f1cee23536c34fe9", "714bb0f376e625a4", None),
        ("class", 5923, [32097, 35107, 3492], "3570ba97bc218354", "53f95bde640de41c", None),
        ("noise", 18355, [32097, 35107, 3492], "4c96872139d75f91", "442c45caf87ae221", "34b31641742f19e7"),
    ],
)
def test_the_authors_sets(mnist: Split, task, size, first, forget, members, labels) -> None:
    split = expunge.scenario("laf-task", mnist, task=task, seed=0)
    positions = split.forget.index
    assert (len(positions), positions[:3].tolist(), digest(positions)) == (size, first, forget)
    assert digest(split.sample) == members
    if labels is None:
        assert torch.equal(split.forget.y, mnist.labels[positions])
    else:
        assert digest(split.forget.y) == labels
        assert not bool((split.forget.y == 9).any())
        assert not bool((split.forget.y == split.true_labels[positions]).any())
        assert torch.equal(split.retain.y, mnist.labels[split.retain.index])


def test_other_data_need_ten_classes() -> None:
    with pytest.raises(UsageError, match="needs 10 classes"):
        expunge.scenario("laf-task", as_split((torch.rand(30, 2), torch.arange(30) % 3)))
