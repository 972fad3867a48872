"""Whether a model fits the data it is said to be trained on, and whether a fulfilment cost too much of that.

Both compare accuracies on retained and on unseen samples. They need no minimum number of forgotten samples, so they
also hold where an audit has too few of them for a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.api.prepare import pick_device
from expunge.core.errors import DataError
from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.training.inference import predict

if TYPE_CHECKING:
    from expunge.requests.workspace import Settings

SAMPLES = 2000
"""Samples of each split that are looked at; a seeded draw where there are more."""


@dataclass(frozen=True)
class Fit:
    """How well a model answers its training data and unseen data.

    Attributes:
        train, test: accuracies in [0, 1].
        balanced: mean over classes of the accuracy on training samples, in [0, 1]; a model that always answers the
            most frequent class has 1 / classes.
        classes: number of classes among the training samples.
        samples: training samples that were looked at.
    """

    train: float
    test: float
    balanced: float
    classes: int
    samples: int

    @property
    def near_chance(self) -> bool:
        """Whether the balanced accuracy on training data is within 5 points or two standard errors of guessing."""
        chance = 1 / self.classes
        noise = 2 * math.sqrt(chance * (1 - chance) / max(self.samples, 1))
        return self.classes > 1 and self.balanced < chance + max(0.05, noise)

    def sentence(self) -> str:
        """The accuracies in words."""
        return f"the model answers {self.train:.1%} of its training data and {self.test:.1%} of unseen data correctly"

    def causes(self) -> str:
        """What usually is wrong where a trained model is near chance."""
        return (
            "the usual causes are a normalisation that the training program applied outside the model "
            "(`--data-set normalise=...`), another order of the classes (`--data-set classes=...`), or other data or "
            "another checkpoint than intended; `expunge inspect` shows how the data were read."
        )


def measure_fit(
    model: nn.Module, train: Split, test: Split, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Fit:
    """Accuracies of `model` on at most `SAMPLES` samples of its training data and of unseen data, both labelled."""
    seen = _some(train, seed)
    correct = _correct(model, seen, device)
    labels = seen.y
    per_class = [float(correct[labels == label].mean()) for label in labels.unique()]
    unseen = _some(test, seed)
    return Fit(
        train=float(correct.mean()),
        test=float(_correct(model, unseen, device).mean()),
        balanced=sum(per_class) / len(per_class),
        classes=len(per_class),
        samples=len(seen),
    )


def check_fitness(model: nn.Module, train: Split, test: Split, settings: Settings, say: Callable[[str], None]) -> None:
    """Say how well a model answers the data. Raises `DataError` near chance, unless `settings.any_accuracy`."""
    if not (train.has_labels and test.has_labels):
        return
    fit = measure_fit(model, train, test, device=pick_device(settings.device))
    say(f"{fit.sentence()}.")
    if fit.near_chance and not settings.any_accuracy:
        raise DataError(
            f"{fit.sentence()}, which is near chance for {fit.classes} classes: {fit.causes()} "
            "`--any-accuracy true` takes the model all the same."
        )


def utility_losses(
    before: Mapping[str, float], after: Mapping[str, float], samples: Mapping[str, int], max_drop: float
) -> list[str]:
    """Sentences about accuracies that fell by more than `max_drop`, beyond noise; empty if none did.

    Args:
        before, after: statistics of the model before and after; `retain accuracy` and `test accuracy` are read.
        samples: number of samples behind each of them.
        max_drop: largest drop that is accepted, in [0, 1].
    """
    sentences = []
    for name, where in (("retain accuracy", "retained samples"), ("test accuracy", "unseen samples")):
        if name not in before or name not in after:
            continue
        old, new, count = before[name], after[name], max(samples.get(name, 1), 1)
        noise = 2 * math.sqrt((old * (1 - old) + new * (1 - new)) / count)
        if old - new > max_drop and old - new > noise:
            sentences.append(
                f"accuracy on {where} fell from {old:.1%} to {new:.1%}, more than the {max_drop * 100:g} points that "
                "`max_drop` allows."
            )
    return sentences


def _some(split: Split, seed: int) -> Split:
    if len(split) <= SAMPLES:
        return split
    order = torch.randperm(len(split), generator=torch_generator(seed, "fit"))[:SAMPLES]
    return split.take(split.index[order.sort().values])


def _correct(model: nn.Module, split: Split, device: torch.device | str) -> Tensor:
    """Float64 (len(split),), 1 where the answer is the label."""
    home = next((p.device for p in model.parameters()), torch.device(device))
    try:
        logits = predict(model.to(device), split, device)
    finally:
        model.to(home)
    return (logits.argmax(1).cpu() == split.y).double()
