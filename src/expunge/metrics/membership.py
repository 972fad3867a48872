"""Membership inference on losses: can the forget set be distinguished from samples the model never saw?

Paper      Kurmanji et al., NeurIPS 2023, arXiv:2302.09880 ("basic MIA", section 4 and appendix)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from expunge.core.options import Field
from expunge.core.seeds import numpy_generator
from expunge.metrics.base import Evaluation, Metric, Value, metric, missing
from expunge.numerics.statistics import auc_interval

_TOO_FEW = 10  # per side: the published attack's test folds of 10 % would be empty


def unseen_like_forget(evaluation: Evaluation) -> torch.Tensor:
    """Bool (len(test),): test samples of the classes that occur in the forget split."""
    return torch.isin(evaluation.labels("test"), evaluation.labels("forget").unique())


@metric("mia")
class BasicAttack(Metric):
    """Accuracy of a logistic regression on the loss, as published; 0.5 is ideal.

    Members: the forget split. Non-members: test samples of its classes. The larger side is subsampled to the size of
    the smaller, losses are clipped to [-clip, clip], and accuracy is the mean over 5 stratified splits with 10 % held
    out. Noisy by construction: with 100 samples per side a fold scores 20 (compare `mia_auc`).
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "test")
    clip: float = Field(100.0, gt=0, description="losses are clipped to [-clip, clip]")
    splits: int = Field(5, ge=1, description="random stratified splits")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of each split that is scored")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        members = evaluation.losses(model, "forget").numpy()
        others = evaluation.losses(model, "test")[unseen_like_forget(evaluation)].numpy()
        scores = basic_attack(members, others, evaluation.seed, self.clip, self.splits, self.held_out)
        if scores is None:
            yield from missing(_few(len(members), len(others)), "fraction", "half", "mia_accuracy")
        else:
            yield Value("mia_accuracy", float(scores.mean()), "fraction", "half")


@metric("mia-repeated")
class RepeatedAttack(Metric):
    """The basic attack repeated on `repeats` class-matched draws of non-members; 0.5 is ideal.

    Ours, not the paper's: the same classifier and feature, with less noise than five small folds, and without counting
    the difficulty of classes as membership. The interval is the central 95 % of the repeats: the noise of splitting,
    not of the sample.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "test")
    repeats: int = Field(20, ge=2, description="draws of non-members, each with its own split")
    held_out: float = Field(0.3, gt=0, lt=1, description="share of each split that is scored")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        rng = numpy_generator(evaluation.seed, "repeated attack")
        members, others = evaluation.losses(model, "forget").numpy(), evaluation.losses(model, "test").numpy()
        classes = evaluation.labels("forget").numpy(), evaluation.labels("test").numpy()
        scores: list[float] = []
        for _ in range(self.repeats):
            member_rows, other_rows = matched(*classes, rng)
            seed = int(rng.integers(2**31))
            accuracies = basic_attack(members[member_rows], others[other_rows], seed, splits=1, held_out=self.held_out)
            scores += [] if accuracies is None else accuracies.tolist()
        if not scores:
            most = int(sum(min(np.sum(classes[0] == c), np.sum(classes[1] == c)) for c in np.unique(classes[0])))
            yield from missing(_few(most, most), "fraction", "half", "mia_repeated")
        else:
            low, high = np.quantile(scores, [0.025, 0.975])
            yield Value("mia_repeated", float(np.mean(scores)), "fraction", "half", float(low), float(high))


def _few(members: int, others: int) -> str:
    return (
        f"the attack needs {_TOO_FEW} samples on either side; there are {members} forgotten and {others} test samples "
        "of their classes"
    )


def matched(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random rows of two label arrays (n,) and (m,) without replacement, equally many of each class in both."""
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in np.unique(first):
        rows = [np.flatnonzero(labels == label) for labels in (first, second)]
        count = min(len(p) for p in rows)
        for parts, positions in zip(chosen, rows, strict=True):
            parts.append(rng.choice(positions, count, replace=False))
    return np.concatenate(chosen[0]), np.concatenate(chosen[1])


def basic_attack(
    members: np.ndarray, others: np.ndarray, seed: int, clip: float = 100.0, splits: int = 5, held_out: float = 0.1
) -> np.ndarray | None:
    """The basic membership attack.

    Args:
        members: losses (n,) of the forget set.
        others: losses (m,) of unseen samples.
        seed: of subsampling and splitting.
        clip: losses are clipped to [-clip, clip].
        splits: number of stratified splits.
        held_out: share of each split that is scored, in (0, 1).

    Returns:
        Accuracy per split (splits,); None if a side has fewer than 10 samples.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    size = min(len(members), len(others))
    if size < _TOO_FEW:
        return None
    rng = numpy_generator(seed, "basic attack")
    sides = [rng.choice(side, size, replace=False) if len(side) > size else side for side in (members, others)]
    features = np.nan_to_num(np.concatenate(sides), nan=clip, posinf=clip).clip(-clip, clip).reshape(-1, 1)
    truth = np.repeat([1, 0], size)
    folds = StratifiedShuffleSplit(n_splits=splits, test_size=held_out, random_state=seed % 2**32)
    classifier = LogisticRegression()
    with config_context(skip_parameter_validation=True, assume_finite=True):  # most of the time of so small a fit
        return np.array(
            [
                classifier.fit(features[fit], truth[fit]).score(features[held], truth[held])
                for fit, held in folds.split(features, truth)
            ]
        )


@metric("mia-auc")
class LossAUC(Metric):
    """Area under the ROC of "low loss means member", in [0, 1]; 0.5: forget and unseen samples cannot be separated.

    Above 0.5 the forget set still has lower losses; below, it is unusually hard (over-forgetting). Unseen
    samples are weighted to the class histogram of the forget split, so class difficulty does not count as
    membership. 95 % interval over the samples of both sides, in closed form (DeLong et al., 1988).
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "test")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        chosen = unseen_like_forget(evaluation)
        if not bool(chosen.any()):
            why = "the test split has no sample of the classes of the forget split"
            yield from missing(why, "fraction", "half", "mia_auc")
            return
        members = -evaluation.losses(model, "forget").numpy()
        others = -evaluation.losses(model, "test")[chosen].numpy()
        weights = histogram_weights(evaluation.labels("test")[chosen].numpy(), evaluation.labels("forget").numpy())
        auc = auc_interval(members, others, weights)
        yield Value("mia_auc", auc.value, "fraction", "half", auc.low, auc.high)


def histogram_weights(labels: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Weights (n,) under which `labels` (n,) has the class shares of `like` (m,); 0 for classes missing there."""
    size = int(max(labels.max(initial=0), like.max(initial=0))) + 1
    counts, target_counts = np.bincount(labels, minlength=size), np.bincount(like, minlength=size)
    return (target_counts / np.maximum(counts, 1))[labels].astype(float)
