"""Accuracy, error and loss on every split, per class, and their gap to the retrained reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from expunge.core.options import Field
from expunge.core.seeds import derive
from expunge.data.augment import make_augment
from expunge.metrics.base import REFERENCE, Direction, Evaluation, Metric, Value, metric
from expunge.numerics.statistics import wilson

_GOOD: dict[str, Direction] = {"forget": "reference", "retain": "higher", "test": "higher", "validation": "higher"}
_BAD: dict[str, Direction] = {"forget": "reference", "retain": "lower", "test": "lower", "validation": "lower"}


def accuracies(evaluation: Evaluation, model: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, correct (n,)) per split; if classes are removed, also of the test split's retained and removed classes."""
    removed = evaluation.removed_classes()
    for split in evaluation.present():
        correct = evaluation.correct(model, split)
        yield split, correct
        if split == "test" and len(removed):
            is_removed = torch.isin(evaluation.labels("test"), removed)
            if bool((~is_removed).any()):
                yield "test_retained", correct[~is_removed]
            if bool(is_removed.any()):
                yield "test_removed", correct[is_removed]


def _direction(name: str, table: dict[str, Direction]) -> Direction:
    return "reference" if name == "test_removed" else table[name.split("_")[0]]


@metric("accuracy")
class Accuracy(Metric):
    """Share of correct predictions, in [0, 1], with a 95 % Wilson interval over the samples.

    `test_retained` and `test_removed`: the test split on retained classes and on classes that are forgotten entirely
    (LAF calls them TestR and TestF). `forget_true_accuracy`: agreement with the true labels, if the scenario changed
    labels of the forget set; `forget_accuracy` is agreement with the changed ones. With `augment` also
    `forget_augmented_accuracy` and `retain_augmented_accuracy`, on one random view of each sample: what the LAF authors
    report for training samples of CIFAR-10 and SVHN (their evaluation iterates over the training loader).
    """

    later: ClassVar[tuple[str, ...]] = ("augment",)
    augment: str = Field("none", description="also score augmented forget and retain samples, e.g. `rrc-flip-224`")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for name, correct in accuracies(evaluation, model):
            yield _accuracy(name, correct, _direction(name, _GOOD))
        truth = evaluation.true_labels("forget") if "forget" in evaluation.splits else None
        if truth is not None:
            yield _accuracy("forget_true", evaluation.logits(model, "forget").argmax(1) == truth, "reference")
        augment = make_augment(self.augment)
        if augment is None:
            return
        for name in evaluation.present(("forget", "retain")):
            seed = derive(evaluation.seed, "accuracy", "augment", name)
            predictions = evaluation.augmented(model, name, augment, seed).argmax(1)
            yield _accuracy(f"{name}_augmented", predictions == evaluation.labels(name), _GOOD[name])


def _accuracy(name: str, correct: torch.Tensor, direction: Direction) -> Value:
    low, high = wilson(int(correct.sum()), len(correct))
    return Value(f"{name}_accuracy", float(correct.double().mean()), "fraction", direction, low, high)


@metric("error")
class ErrorRate(Metric):
    """1 - accuracy, in [0, 1], with a 95 % Wilson interval over the samples."""

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for name, correct in accuracies(evaluation, model):
            low, high = wilson(int((~correct).sum()), len(correct))
            share = float((~correct).double().mean())
            yield Value(f"{name}_error", share, "fraction", _direction(name, _BAD), low, high)


@metric("loss")
class MeanLoss(Metric):
    """Mean cross-entropy in nats, with a 95 % normal interval of the mean."""

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for split in evaluation.present():
            losses = evaluation.losses(model, split)
            mean = float(losses.mean())
            half = 1.96 * float(losses.std(unbiased=False)) / max(len(losses), 1) ** 0.5
            yield Value(f"{split}_loss", mean, "nats", _BAD[split], mean - half, mean + half)


@metric("class-accuracy")
class ClassAccuracy(Metric):
    """Accuracy on the test split per class; `group` is the class name."""

    requires: ClassVar[tuple[str, ...]] = ("test",)

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        labels, correct = evaluation.labels("test"), evaluation.correct(model, "test")
        removed = set(evaluation.removed_classes().tolist())
        for number, name in enumerate(evaluation.splits["test"].store.classes):
            members = correct[labels == number]
            if len(members):
                low, high = wilson(int(members.sum()), len(members))
                direction: Direction = "reference" if number in removed else "higher"
                yield Value("class_accuracy", float(members.double().mean()), "fraction", direction, low, high, name)


@metric("gap")
class Gap(Metric):
    """|accuracy - accuracy of the retrained model| per split, and `average_gap`, their mean; in [0, 1]."""

    requires_reference: ClassVar[bool] = True

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        gaps = []
        for split in evaluation.present(("forget", "retain", "test")):
            accuracy = evaluation.correct(model, split).double().mean()
            reference = evaluation.correct(REFERENCE, split).double().mean()
            gaps.append(abs(float(accuracy - reference)))
            yield Value(f"{split}_gap", gaps[-1], "fraction", "lower")
        if gaps:
            yield Value("average_gap", sum(gaps) / len(gaps), "fraction", "lower")
