"""How well a trained model answers the data that it is said to be trained on.

A model that was trained elsewhere says nothing about its preprocessing. Pixels that the training program left in
[0, 1] and that are normalised here, or the other way round, ruin every number that follows without an error; the
accuracy on the training data tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.api.prepare import as_classifier
from expunge.core.seeds import torch_generator
from expunge.data.known import IMAGENET_MEAN, IMAGENET_STD
from expunge.data.split import Normalisation, Split
from expunge.training.inference import predict

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


def settle_normalisation(
    model: nn.Module, train: Split, others: Iterable[Split | None] = (), *, device: torch.device | str = "cpu"
) -> tuple[str, str]:
    """Read pixels as a model that was trained elsewhere wants them, where its training accuracy clearly tells.

    The model is tried on training samples with the constants of the data, and with the other common choices: none
    (pixels in [0, 1]), `half` (0.5 and 0.5), ImageNet's. Where another one is clearly better (by 5 points and two
    standard errors), all splits take it, in place. Only training samples decide.

    Args:
        model: trained elsewhere, with unknown preprocessing.
        train: what it was trained on, with labels.
        others: test and held-out splits, which are read in the same way.
        device: where to try it.

    Returns:
        The value of `normalise` that was taken, and a sentence that says why; two empty texts if nothing was changed.

    Raises:
        DataError: If the model refuses the samples, or returns no logits.
    """
    model, _ = as_classifier(model, {"train": train}, torch.device(device))
    store, sample = train.store, _some(train, 0)
    present = store.normalisation
    if present is None or not train.has_labels or len(sample) < 2:
        return "", ""
    as_read = _correct(model, sample, device)
    tried = {}
    for name, constants in _choices(train).items():
        store.normalisation = constants
        tried[name] = _correct(model, sample, device)
    best = max(tried, key=lambda name: float(tried[name].mean()))
    difference = tried[best] - as_read
    noise = 2 * float(difference.std()) / math.sqrt(len(sample))
    if float(difference.mean()) < max(0.05, noise):
        store.normalisation = present
        return "", ""
    for split in (train, *others):
        if split is not None:
            split.store.normalisation = _choices(train)[best]
    return best, (
        f"pixels are read with `normalise={best}`: so the model answers {float(tried[best].mean()):.1%} of its "
        f"training data correctly, and {float(as_read.mean()):.1%} with the constants of the data; "
        "`--data-set normalise=...` decides otherwise."
    )


def _choices(split: Split) -> dict[str, Normalisation | None]:
    """Common preprocessing of images by the names of `normalise`."""
    channels = split.input_shape[0] if len(split.input_shape) == 3 else 1
    choices: dict[str, Normalisation | None] = {
        "none": None,
        "half": Normalisation((0.5,) * channels, (0.5,) * channels),
    }
    if channels == 3:
        choices["imagenet"] = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    return choices


def accuracy_on(
    model: nn.Module, split: Split, *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[int, float]:
    """How many samples of a labelled split were looked at, at most `SAMPLES`, and the accuracy on them in [0, 1]."""
    seen = _some(split, seed)
    return len(seen), float(_correct(model, seen, device).mean())


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
