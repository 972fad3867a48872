"""The confusion scenario swaps exactly what it says, and nothing else."""

from __future__ import annotations

import pytest
import torch

from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.scenarios.base import parse_scenario


def data() -> Split:
    return Split.whole(ResidentStore(torch.arange(60.0).reshape(-1, 1), torch.arange(60) % 3, classes=["a", "b", "c"]))


@pytest.mark.parametrize("text", ["confusion:10", "confusion:0.25"])
def test_half_of_either_class_is_swapped(text: str) -> None:
    found = parse_scenario(text).split(data(), seed=3)
    true, shown = data().labels[found.forget.index], found.forget.y
    assert sorted(true.tolist()) == [0] * 5 + [1] * 5
    assert torch.equal(true + shown, torch.ones_like(true))
    assert torch.equal(found.train.y[found.retain.index], data().y[found.retain.index])
    assert torch.equal(found.true_labels, data().labels)


def test_impossible_swaps_are_refused() -> None:
    from expunge.scenarios.confusion import Confusion

    with pytest.raises(UsageError, match="even"):
        Confusion(amount=5).split(data())
    with pytest.raises(UsageError, match="twice"):
        Confusion(classes=(1, 1)).split(data())
    with pytest.raises(UsageError, match="only 20"):
        Confusion(amount=60).split(data())
