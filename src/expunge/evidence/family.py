"""The family of hypotheses: all statistics of the unlearned model that are compared with retrained models.

Notation   phi = log(p_y / (1 - p_y)); model c, retrained models j = 1..N, S_j: all retrained models but j
Standard   z(c | S) = (phi_c - mean over S of phi) / (s sqrt(1 + 1/|S|)), per sample; s^2 is the variance over S, shrunk
           to the mean over samples with the weight of `PRIOR` models (few models estimate a variance poorly)
Fair       what is measured against S_j for a retrained model j is measured against the same S_j for the audited model
           and averaged over j: if it is a retrained model too, it and j are exchangeable given S_j, so the expected
           difference is exactly zero for any number of models

utility             retain accuracy; test accuracy (retained classes)
answers             forget accuracy; AUC of attacks by loss, entropy, modified entropy and largest probability against
                    unseen samples of the same classes, weighted to the same shares
single samples      z minus the model's mean z on unseen samples of the same classes: its mean, mean square, and shares
                    above 3 and below -3; AUC of z against unseen samples, an attack calibrated by retrained models
                    (offline LiRA, Carlini et al., 2022); mean JSD of the outputs to the mean output over S_j; mean z at
                    inputs near the samples, a tenth of each replaced by another forgotten sample's (residual
                    knowledge, arXiv:2601.22359)
unseen samples      mean squared z on unseen samples: did outputs change that are unrelated to the request?
representation      the four statistics of `feature_audit`

The spread of a mean over samples has a floor (see `equivalence`), from the variance of each sample over the retrained
models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.evidence.equivalence import Comparison, compare, detectable
from expunge.evidence.signals import SIGNALS, confidence
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.numerics.statistics import holm, placements

Array = np.ndarray
Kind = Literal["utility", "answers", "single samples", "unseen samples", "representation"]
FEWEST_REFERENCES = 3  # fewer leave no spread once one is left out
FEWEST_SAMPLES = 5  # forget samples, or unseen ones of their classes, that an attack needs
PRIOR = 4.0
TAIL = 3.0
CLIP = 25.0  # of squared z, so that a few samples cannot decide alone
FEATURE_SAMPLES = 512  # forget samples of the feature-level audit (`FeatureSettings.samples`)
NEAR = "near"  # name of the split of inputs near the forget samples
UNSEEN = "unseen"  # name of the test split with the label confusion of the forget set, where that has one
KINDS: Mapping[str, Kind] = {
    "retain accuracy": "utility",
    "test accuracy": "utility",
    "forget accuracy": "answers",
    "concept accuracy": "answers",
    "loss attack AUC": "answers",
    "entropy attack AUC": "answers",
    "modified entropy attack AUC": "answers",
    "largest probability attack AUC": "answers",
    "mean z": "single samples",
    "mean squared z": "single samples",
    "share of z above 3": "single samples",
    "share of z below -3": "single samples",
    "calibrated attack AUC": "single samples",
    "output distance": "single samples",
    "mean z near the samples": "single samples",
    "mean squared z on unseen samples": "unseen samples",
    "probe confidence": "representation",
    "misalignment": "representation",
    "relearn accuracy": "representation",
    "layer CKA gap": "representation",
}
ONE_SIDED = (  # only values above those of retrained models are evidence
    "mean squared z", "share of z above 3", "share of z below -3", "output distance",
    "mean squared z on unseen samples", "misalignment",
)  # fmt: skip
ATTACKS = {name: f"{name} attack AUC" for name in ("loss", "entropy", "modified entropy", "largest probability")}


@dataclass(frozen=True)
class Quantity:
    """One statistic of the audited model, the original and N retrained models.

    floor, resolution and left_out: see `equivalence.compare`.
    """

    name: str
    value: float
    original: float
    retrained: tuple[float, ...]
    floor: float = 0.0
    resolution: float = 0.0
    left_out: bool = False


@dataclass(frozen=True)
class Family:
    """The measured quantities, and (what, why) of everything that could not be measured."""

    quantities: list[Quantity]
    unmeasured: list[tuple[str, str]]

    def names(self) -> list[str]:
        """Names of the measured quantities."""
        return [quantity.name for quantity in self.quantities]

    def numbers(self, model: Literal["original", "unlearned"]) -> dict[str, float]:
        """Name -> value of one of the two models."""
        return {
            quantity.name: quantity.original if model == "original" else quantity.value for quantity in self.quantities
        }

    def without(self, *kinds: Kind) -> Family:
        """The family without the quantities of some kinds."""
        return replace(self, quantities=[quantity for quantity in self.quantities if KINDS[quantity.name] not in kinds])


def unseen_labels(evaluation: Evaluation) -> Tensor:
    """Labels of the test samples that are compared with the forget samples, long (len(test),).

    They are the test labels, unless the forget set is known to be mislabelled: then those of the split `UNSEEN`, the
    same samples with the same confusion of labels.
    """
    return evaluation.labels(UNSEEN if UNSEEN in evaluation.splits else "test")


def judge_family(family: Family, margin: Callable[[str], float], more: Sequence[Comparison] = ()) -> list[Comparison]:
    """Compare every quantity with the retrained models; p values are corrected over the family.

    Args:
        family: The quantities.
        margin: Equivalence margin by the name of the statistic.
        more: Further hypotheses of the same family, without a value of the original.

    Returns:
        One comparison per hypothesis, with the corrected p values of the audited model and of the original.
    """
    comparisons: list[Comparison] = []
    anchors: list[Comparison] = []
    for item in family.quantities:
        for side, value in ((comparisons, item.value), (anchors, item.original)):
            side.append(
                compare(
                    item.name,
                    value,
                    item.retrained,
                    margin(item.name),
                    resolution=item.resolution,
                    floor=item.floor,
                    left_out=item.left_out,
                )
            )
    comparisons += more
    anchors += [replace(item, value=np.nan, p_difference=np.nan) for item in more]
    share = 1 / len(comparisons)
    corrected, before = (holm(np.array([_sided(item) for item in side])) for side in (comparisons, anchors))
    return [
        replace(
            item, p_corrected=float(p), p_original=float(q), original=anchor.value, share=share,
            detectable=detectable(item.error, item.freedom, share) if item.error > 0 else 0.0,
        )
        for item, anchor, p, q in zip(comparisons, anchors, corrected, before, strict=True)
    ]  # fmt: skip


def _sided(comparison: Comparison) -> float:
    """The p value; 1 if a one-sided statistic differs in the direction that is no evidence."""
    return 1.0 if comparison.name in ONE_SIDED and comparison.difference <= 0 else comparison.p_difference


def measure_family(
    evaluation: Evaluation,
    retrained: Sequence[str],
    *,
    original: str = "original",
    unlearned: str = "unlearned",
    representation: Mapping[str, Mapping[str, float]] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
    concept: bool = False,
) -> Family:
    """Measure all statistics of two models and of at least two retrained ones.

    Args:
        evaluation: With all models and the splits.
        retrained: Names of the retrained models in `evaluation`.
        original: Name of the original model.
        unlearned: Name of the unlearned model.
        representation: Model -> statistic -> value, from the feature-level audit; None if that was switched off.
        left_out: (what, why) of its parts that could not be measured.
        concept: Whether the classes of the forget set are to be removed as a whole (the goal "unlearn"): then accuracy
            on unseen samples of these classes is a statistic, too.
    """
    unmeasured = list(left_out)
    models = _Models(evaluation, unlearned, original, list(retrained))
    quantities = [*_utility(models), _forget_accuracy(models)]
    if concept:
        rows = torch.isin(evaluation.labels("test"), evaluation.labels("forget").unique())
        if bool(rows.any()):
            quantities.append(
                models.of("concept accuracy", lambda m: evaluation.correct(m, "test")[rows].double().numpy(), True)
            )
        else:
            unmeasured.append(("concept accuracy", "no unseen sample has a class of the samples to forget"))
    unseen, reason = _unseen(evaluation)
    if reason:
        unmeasured.append(("attacks against unseen samples", reason))
    if unseen is not None:
        quantities += _attacks(models, unseen)
    if len(retrained) < FEWEST_REFERENCES:
        text = f"{len(retrained)} retrained models have no spread without one of them; pass {FEWEST_REFERENCES} or more"
        unmeasured.append(("single samples", text))
    else:
        quantities += _single_samples(models, unseen)
    if representation is None:
        unmeasured.append(("representation", "it was switched off (features=False)"))
    else:
        names = [name for name, kind in KINDS.items() if kind == "representation" and name in representation[unlearned]]
        for name in names:
            values = tuple(representation[model][name] for model in retrained)
            value, original_value = representation[unlearned][name], representation[original][name]
            quantities.append(
                Quantity(name, value, original_value, values, resolution=_resolved(name, values, evaluation))
            )
    return Family(quantities, unmeasured)


@dataclass(frozen=True)
class _Models:
    evaluation: Evaluation
    unlearned: str
    original: str
    retrained: list[str]

    def of(self, name: str, values: Callable[[str], Array], resolution: bool = False) -> Quantity:
        """The mean over samples of `values` (n,) of each model."""
        references = np.stack([values(model) for model in self.retrained])
        return self.made(name, values(self.unlearned), values(self.original), references, resolution)

    def made(
        self,
        name: str,
        values: Array,
        original_values: Array,
        references: Array,
        resolution: bool = False,
        scale: float = 0.0,
    ) -> Quantity:
        """A quantity from values (n,) of the two models and (N, n) of the references.

        scale: above 0 for a distance to the other models (see `left_out`): the factor of its floor.
        """
        size = references.shape[1]
        floor = (scale or 1.0) * float(np.sqrt(references.var(0, ddof=1).mean() / size))
        means = tuple(float(value) for value in references.mean(1))
        return Quantity(name, float(values.mean()), float(original_values.mean()), means, floor,
                        1 / size if resolution else 0.0, scale > 0)  # fmt: skip

    def scores(self, split: str, rows: Array | None = None) -> tuple[Array, Array, Array]:
        """Scores phi of the unlearned and the original model (n,), and of the retrained ones (N, n)."""
        scores = [self._phi(model, split, rows) for model in (self.unlearned, self.original, *self.retrained)]
        return scores[0], scores[1], np.stack(scores[2:])

    def _phi(self, model: str, split: str, rows: Array | None) -> Array:
        logits = self.evaluation.logits(model, split)
        labels = unseen_labels(self.evaluation) if split == "test" else self.evaluation.labels(split)
        if rows is not None:
            logits, labels = logits[torch.from_numpy(rows)], labels[torch.from_numpy(rows)]
        return confidence(logits, labels).numpy()


@dataclass(frozen=True)
class Unseen:
    """Test samples of the classes to forget.

    rows (m,) of the test split with weights (m,); covered: rows of the forget split whose class occurs among them.
    """

    rows: Array
    weights: Array
    covered: Array


def _unseen(evaluation: Evaluation) -> tuple[Unseen | None, str]:
    """Test samples of the classes to forget, and why some or all are missing ("" if none are)."""
    labels, unseen = evaluation.labels("forget").numpy(), unseen_labels(evaluation).numpy()
    covered = np.flatnonzero(np.isin(labels, unseen))
    rows = np.flatnonzero(np.isin(unseen, labels))
    lacking = len(labels) - len(covered)
    if min(len(covered), len(rows)) < FEWEST_SAMPLES:
        few = f"{len(covered)} samples to forget and {len(rows)} unseen ones share a class, {FEWEST_SAMPLES} are needed"
        return None, few
    reason = f"{lacking} of {len(labels)} samples to forget have a class that no unseen sample has" if lacking else ""
    return Unseen(rows, histogram_weights(unseen[rows], labels[covered]), covered), reason


def _resolved(name: str, values: Sequence[float], evaluation: Evaluation) -> float:
    """The smallest spread of a feature statistic: the resolution of one sample, or the chance of rare events."""
    size = min(len(evaluation.splits["forget"]), FEATURE_SAMPLES)
    if name == "misalignment":
        share = float(np.mean(values))
        return float(np.sqrt(max(share * (1 - share), 1 / size) / size))
    return {"relearn accuracy": 2 / size, "probe confidence": 0.5 / size, "layer CKA gap": 0.005}[name]


def _utility(models: _Models) -> list[Quantity]:
    evaluation, quantities = models.evaluation, []
    if "retain" in evaluation.splits:
        quantities.append(
            models.of("retain accuracy", lambda m: evaluation.correct(m, "retain").double().numpy(), True)
        )
    remaining = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    if bool(remaining.any()):
        quantities.append(
            models.of("test accuracy", lambda m: evaluation.correct(m, "test")[remaining].double().numpy(), True)
        )
    return quantities


def _forget_accuracy(models: _Models) -> Quantity:
    return models.of("forget accuracy", lambda m: models.evaluation.correct(m, "forget").double().numpy(), True)


def _attacks(models: _Models, unseen: Unseen) -> list[Quantity]:
    evaluation = models.evaluation

    def shares(signal: str) -> Callable[[str], Array]:
        def of(model: str) -> Array:
            sides = []
            for split, rows in (("forget", unseen.covered), ("test", unseen.rows)):
                at = torch.from_numpy(rows)
                labels = unseen_labels(evaluation) if split == "test" else evaluation.labels(split)
                sides.append(SIGNALS[signal](evaluation.logits(model, split)[at], labels[at]).numpy())
            return placements(sides[0], sides[1], unseen.weights)

        return of

    return [models.of(name, shares(signal)) for signal, name in ATTACKS.items()]


def standardised(phi: Array, references: Array) -> Array:
    """Standardise phi (n,) by references (M, n), M >= 2, into z (n,); see the module."""
    count = len(references)
    sample_variance = references.var(0, ddof=1)
    variance = ((count - 1) * sample_variance + PRIOR * sample_variance.mean()) / (count - 1 + PRIOR)
    z: Array = (phi - references.mean(0)) / np.sqrt(np.maximum(variance, 1e-24) * (1 + 1 / count))
    return z


@dataclass(frozen=True)
class _Standard:
    """z against each S_j, each (N, n): of the audited model, of the original, and of retrained model j."""

    unlearned: Array
    original: Array
    retrained: Array

    @classmethod
    def of(cls, unlearned: Array, original: Array, retrained: Array) -> _Standard:
        without = [np.delete(retrained, j, axis=0) for j in range(len(retrained))]
        return cls(
            np.stack([standardised(unlearned, others) for others in without]),
            np.stack([standardised(original, others) for others in without]),
            np.stack([standardised(phi, others) for phi, others in zip(retrained, without, strict=True)]),
        )

    @property
    def sides(self) -> tuple[Array, Array, Array]:
        return self.unlearned, self.original, self.retrained

    def less(self, levels: Sequence[Array]) -> _Standard:
        """These z minus the level (N,) of the model on other samples."""
        return _Standard(*(side - level[:, None] for side, level in zip(self.sides, levels, strict=True)))

    def each(self, statistic: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
        """statistic(z) per sample: the first two averaged over j (n,), the third per retrained model (N, n)."""
        return statistic(self.unlearned).mean(0), statistic(self.original).mean(0), statistic(self.retrained)


def _single_samples(models: _Models, unseen: Unseen | None) -> list[Quantity]:
    forget_z = _Standard.of(*models.scores("forget"))
    if unseen is None:
        return [
            *_shape(models, forget_z, 1.0),
            replace(models.made("output distance", *_distances(models)), floor=0.0),
            *_near(models, [], 1.0),
        ]
    unseen_z = _Standard.of(*models.scores("test", unseen.rows))
    share = unseen.weights / unseen.weights.sum()
    levels = [side @ share for side in unseen_z.sides]  # (N,) of each model: its confidence on unseen samples
    scale = float(np.sqrt(1 + forget_z.unlearned.shape[1] * np.square(share).sum()))
    places = [
        np.stack([placements(a[unseen.covered], b, unseen.weights) for a, b in zip(*sides, strict=True)])
        for sides in zip(forget_z.sides, unseen_z.sides, strict=True)
    ]
    squares = unseen_z.less(levels).each(lambda z: np.minimum(z**2, CLIP) @ share[:, None])
    return [
        *_shape(models, forget_z.less(levels), scale),
        models.made("calibrated attack AUC", places[0].mean(0), places[1].mean(0), places[2], scale=scale),
        replace(models.made("output distance", *_distances(models)), floor=0.0),
        *_near(models, levels, scale),
        replace(models.made("mean squared z on unseen samples", *squares), floor=0.0),
    ]


def _shape(models: _Models, forget_z: _Standard, scale: float) -> list[Quantity]:
    return [
        models.made("mean z", *forget_z.each(lambda z: z), scale=scale),
        models.made("mean squared z", *forget_z.each(lambda z: np.minimum(z**2, CLIP))),
        models.made("share of z above 3", *forget_z.each(lambda z: (z > TAIL) * 1.0), True),
        models.made("share of z below -3", *forget_z.each(lambda z: (z < -TAIL) * 1.0), True),
    ]


def _near(models: _Models, levels: list[Array], scale: float) -> list[Quantity]:
    """Mean z at inputs near the samples; [] if inputs cannot be mixed (see `inputs.near_split`)."""
    if NEAR not in models.evaluation.splits:
        return []
    near_z = _Standard.of(*models.scores(NEAR))
    near_z = near_z.less(levels) if levels else near_z
    return [models.made("mean z near the samples", *near_z.each(lambda z: z), scale=scale)]


def _distances(models: _Models) -> tuple[Array, Array, Array]:
    """JSD in bits to the mean output of S_j per sample: two models averaged over j (n,), retrained ones (N, n)."""
    outputs = {
        name: models.evaluation.logits(name, "forget").double().softmax(1).numpy()
        for name in (models.unlearned, models.original, *models.retrained)
    }
    references = np.stack([outputs[name] for name in models.retrained])
    count = len(references)
    rows: list[list[Array]] = [[], [], []]
    for j in range(count):
        centre = (references.sum(0) - references[j]) / (count - 1)
        for row, p in zip(rows, (outputs[models.unlearned], outputs[models.original], references[j]), strict=True):
            row.append(_jsd(p, centre))
    return np.mean(rows[0], axis=0), np.mean(rows[1], axis=0), np.stack(rows[2])


def _jsd(p: Array, q: Array) -> Array:
    from scipy.special import xlogy

    def entropy(r: Array) -> Array:
        bits: Array = -xlogy(r, r).sum(1) / np.log(2)
        return bits

    return np.clip(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0, 1)


__all__ = ["Family", "Quantity", "judge_family", "measure_family", "standardised"]
