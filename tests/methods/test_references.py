"""The retrained reference: what it is trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import expunge
from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.methods import references
from expunge.testing.toys import ToyNet, toy_images


def test_refilling_keeps_the_size_of_the_training_set_not_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = toy_images(120, seed=0)
    store = ResidentStore(images, labels)
    forget, retain = Split.whole(store).take(torch.arange(10)), Split.whole(store).take(torch.arange(10, 50))
    seen: list[Tensor] = []
    train = references.train_cached

    def spy(model: object, split: Split, *rest: object, **more: object) -> object:
        seen.append(split.index)
        return train(model, split, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(references, "train_cached", spy)
    how = {"method": "retrain", "retain": retain, "recipe": {"epochs": 1}, "device": "cpu"}
    expunge.unlearn(ToyNet(), forget=forget, refill=True, **how)
    assert len(seen[0]) == 50
    assert torch.equal(seen[0][:40], retain.index)
    assert set(seen[0][40:].tolist()) <= set(retain.index.tolist())
    expunge.unlearn(ToyNet(), forget=forget, **how)
    assert torch.equal(seen[1], retain.index)
    with pytest.raises(UsageError, match="how many samples are forgotten"):
        expunge.unlearn(ToyNet(), refill=True, **how)
