"""The retrained reference: what it is trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.methods import references
from expunge.testing.toys import ToyNet, toy_images
from expunge.training.recipe import Recipe


def test_refilling_keeps_the_size_of_the_training_set_not_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = toy_images(120, seed=0)
    store = ResidentStore(images, labels)
    forget, retain = Split.whole(store).take(torch.arange(10)), Split.whole(store).take(torch.arange(10, 50))
    seen: list[Tensor] = []
    train = references.train_cached

    def spy(model: nn.Module, split: Split, recipe: Recipe, run: Run, purpose: str) -> nn.Module:
        seen.append(split.index)
        return train(model, split, recipe, run, purpose=purpose)

    monkeypatch.setattr(references, "train_cached", spy)
    how = {"method": "retrain", "retain": retain, "recipe": {"epochs": 1}, "device": "cpu"}
    expunge.unlearn(ToyNet(), forget=forget, refill=True, **how)
    assert len(seen[0]) == 50
    assert torch.equal(seen[0][:40], torch.arange(40))  # rows of what it is handed: the retained samples
    assert set(seen[0][40:].tolist()) <= set(range(40))
    expunge.unlearn(ToyNet(), forget=forget, **how)
    assert torch.equal(seen[1], torch.arange(40))
    with pytest.raises(UsageError, match="how many samples are forgotten"):
        expunge.unlearn(ToyNet(), refill=True, **how)
