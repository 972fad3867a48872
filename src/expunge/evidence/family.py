"""The family of hypotheses: everything about the unlearned model that is compared with retrained models, in one list.

Notation   phi = log(p_y / (1 - p_y)); model c, retrained models j = 1..N, S_j: all retrained models but j
Standard   z(c | S) = (phi_c - mean over S of phi) / (s sqrt(1 + 1/|S|)), per sample; s^2 is the variance over S, shrunk
           to the mean over samples with the weight of `PRIOR` models (few models make a bad variance)
Fair       what is measured against S_j for a retrained model j is measured against the same S_j for the model under
           audit, and averaged over j: if it is a retrained model, too, then it and j are exchangeable given S_j, so the
           expected difference is exactly zero, however few models there are

utility             retain accuracy; test accuracy (classes that stay)
answers             forget accuracy; AUC of attacks by loss, entropy, modified entropy and largest probability against
                    unseen samples of the same classes, weighted to the same shares
single samples      z less the model's mean z on unseen samples of the same classes: its mean, mean square, and shares
                    above 3 and below -3; AUC of z against unseen samples, an attack that retrained models calibrate
                    (offline LiRA, Carlini et al., 2022); mean JSD of the outputs to the mean output over S_j; mean z at
                    inputs near the samples, a tenth of each replaced by another forgotten sample's (residual
                    knowledge, arXiv:2601.22359)
unseen samples      mean squared z on unseen samples: are outputs changed that have nothing to do with the request?
representation      the four statistics of `residue`

A statistic that is a mean over samples has a floor of its spread (see `equivalence`), from the variance of each sample
over the retrained models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from expunge.evidence.equivalence import Comparison, compare, detectable
from expunge.evidence.signals import SIGNALS, confidence
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.numerics.statistics import holm, placements

Array = np.ndarray
Kind = Literal["utility", "answers", "single samples", "unseen samples", "representation"]
FEWEST_REFERENCES = 3  # below it no sample can be held against the spread of the others
FEWEST_SAMPLES = 5  # to forget, or unseen ones of their classes, below which no attack is measured
PRIOR = 4.0
TAIL = 3.0
CLIP = 25.0  # of squared z: a few samples must not decide alone
MOST_LOOKED_AT = 512  # samples to forget whose representation is looked at (`depth.Depth.samples`)
NEAR = "near"  # the split of inputs near the samples to forget
KINDS: Mapping[str, Kind] = {
    "retain accuracy": "utility",
    "test accuracy": "utility",
    "forget accuracy": "answers",
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
ONE_SIDED = (  # only a value above that of retrained models means something
    "mean squared z", "share of z above 3", "share of z below -3", "output distance",
    "mean squared z on unseen samples", "misalignment",
)  # fmt: skip
ATTACKS = {name: f"{name} attack AUC" for name in ("loss", "entropy", "modified entropy", "largest probability")}


@dataclass(frozen=True)
class Quantity:
    """One statistic of the model under audit, of the original and of N retrained models; floor, resolution, left_out:
    see `equivalence`."""

    name: str
    value: float
    original: float
    retrained: tuple[float, ...]
    floor: float = 0.0
    resolution: float = 0.0
    left_out: bool = False


@dataclass(frozen=True)
class Family:
    """quantities: what was measured. unmeasured: (what, why) of everything that could not be."""

    quantities: list[Quantity]
    unmeasured: list[tuple[str, str]]

    def names(self) -> list[str]:
        return [one.name for one in self.quantities]

    def numbers(self, model: Literal["original", "unlearned"]) -> dict[str, float]:
        """name -> value of one of the two models."""
        return {one.name: one.original if model == "original" else one.value for one in self.quantities}

    def without(self, *kinds: Kind) -> Family:
        return replace(self, quantities=[one for one in self.quantities if KINDS[one.name] not in kinds])


def judge_family(family: Family, margin: Callable[[str], float], more: Sequence[Comparison] = ()) -> list[Comparison]:
    """One comparison per quantity; p corrected over the family, for the model under audit and for the original alike.

    margin: upper limit of what counts as no difference, by the name of the statistic. more: hypotheses of the same
    family that have no value in the original.
    """
    found: list[Comparison] = []
    anchors: list[Comparison] = []
    for one in family.quantities:
        for side, value in ((found, one.value), (anchors, one.original)):
            side.append(
                compare(
                    one.name,
                    value,
                    one.retrained,
                    margin(one.name),
                    resolution=one.resolution,
                    floor=one.floor,
                    left_out=one.left_out,
                )
            )
    found += more
    anchors += [replace(one, value=np.nan, p_difference=np.nan) for one in more]
    corrected, before = (holm(np.array([_sided(one) for one in side])) for side in (found, anchors))
    count = len(found)
    return [
        replace(
            one, p_corrected=float(p), p_original=float(q), original=anchor.value,
            detectable=detectable(one.error, one.freedom, count) if one.error > 0 else 0.0,
        )
        for one, anchor, p, q in zip(found, anchors, corrected, before, strict=True)
    ]  # fmt: skip


def _sided(one: Comparison) -> float:
    """The p value, 1 where a one-sided statistic is on the side that means nothing."""
    return 1.0 if one.name in ONE_SIDED and one.difference <= 0 else one.p_difference


def measure_family(
    evaluation: Evaluation,
    retrained: Sequence[str],
    *,
    original: str = "original",
    unlearned: str = "unlearned",
    representation: Mapping[str, Mapping[str, float]] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
) -> Family:
    """All statistics of two models and of at least two retrained ones, by their names in `evaluation`.

    representation: model -> statistic -> value, from `residue`; None: not looked at. left_out: (what, why) of the parts
    of it that could not be measured.
    """
    unmeasured = list(left_out)
    models = _Models(evaluation, unlearned, original, list(retrained))
    quantities = [*_utility(models), _forget_accuracy(models)]
    unseen, reason = _alike(evaluation)
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
        unmeasured.append(("representation", "it was not looked at (residue=False)"))
    else:
        names = [name for name, kind in KINDS.items() if kind == "representation" and name in representation[unlearned]]
        for name in names:
            values = tuple(representation[model][name] for model in retrained)
            mine, before = representation[unlearned][name], representation[original][name]
            quantities.append(Quantity(name, mine, before, values, resolution=_resolved(name, values, evaluation)))
    return Family(quantities, unmeasured)


@dataclass(frozen=True)
class _Models:
    evaluation: Evaluation
    unlearned: str
    original: str
    retrained: list[str]

    def of(self, name: str, values: Callable[[str], Array], resolution: bool = False) -> Quantity:
        """A mean over samples of what `values` gives for each model (n,)."""
        theirs = np.stack([values(model) for model in self.retrained])
        return self.made(name, values(self.unlearned), values(self.original), theirs, resolution)

    def made(
        self, name: str, mine: Array, before: Array, theirs: Array, resolution: bool = False, scale: float = 0.0
    ) -> Quantity:
        """mine, before (n,); theirs (N, n). scale: given for a distance to the other models (see `left_out`), and the
        factor of its floor, above 1 for a difference of means."""
        size = theirs.shape[1]
        floor = (scale or 1.0) * float(np.sqrt(theirs.var(0, ddof=1).mean() / size))
        means = tuple(float(value) for value in theirs.mean(1))
        return Quantity(name, float(mine.mean()), float(before.mean()), means, floor, 1 / size if resolution else 0.0,
                        scale > 0)  # fmt: skip

    def scores(self, split: str, rows: Array | None = None) -> tuple[Array, Array, Array]:
        """phi of the two models (n,), and of the retrained ones (N, n)."""
        found = [self._phi(model, split, rows) for model in (self.unlearned, self.original, *self.retrained)]
        return found[0], found[1], np.stack(found[2:])

    def _phi(self, model: str, split: str, rows: Array | None) -> Array:
        logits, labels = self.evaluation.logits(model, split), self.evaluation.labels(split)
        if rows is not None:
            logits, labels = logits[torch.from_numpy(rows)], labels[torch.from_numpy(rows)]
        return confidence(logits, labels).numpy()


@dataclass(frozen=True)
class Unseen:
    """Unseen samples like those to forget. rows: of the test split (m,); weights (m,); covered: of the forget split,
    the samples whose class occurs among them."""

    rows: Array
    weights: Array
    covered: Array


def _alike(evaluation: Evaluation) -> tuple[Unseen | None, str]:
    """Unseen samples of the classes to forget, and why they are missing, wholly or in part ("" where they are not)."""
    labels, unseen = evaluation.labels("forget").numpy(), evaluation.labels("test").numpy()
    covered = np.flatnonzero(np.isin(labels, unseen))
    rows = np.flatnonzero(np.isin(unseen, labels))
    lacking = len(labels) - len(covered)
    if min(len(covered), len(rows)) < FEWEST_SAMPLES:
        few = f"{len(covered)} samples to forget and {len(rows)} unseen ones share a class, {FEWEST_SAMPLES} are needed"
        return None, few
    reason = f"{lacking} of {len(labels)} samples to forget have a class that no unseen sample has" if lacking else ""
    return Unseen(rows, histogram_weights(unseen[rows], labels[covered]), covered), reason


def _resolved(name: str, values: Sequence[float], evaluation: Evaluation) -> float:
    """The smallest spread of a statistic of the representation: of one sample, or what rare events show by chance."""
    size = min(len(evaluation.splits["forget"]), MOST_LOOKED_AT)
    if name == "misalignment":
        share = float(np.mean(values))
        return float(np.sqrt(max(share * (1 - share), 1 / size) / size))
    return {"relearn accuracy": 2 / size, "probe confidence": 0.5 / size, "layer CKA gap": 0.005}[name]


def _utility(models: _Models) -> list[Quantity]:
    evaluation, found = models.evaluation, []
    if "retain" in evaluation.splits:
        found.append(models.of("retain accuracy", lambda m: evaluation.correct(m, "retain").double().numpy(), True))
    kept = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    if bool(kept.any()):
        found.append(models.of("test accuracy", lambda m: evaluation.correct(m, "test")[kept].double().numpy(), True))
    return found


def _forget_accuracy(models: _Models) -> Quantity:
    return models.of("forget accuracy", lambda m: models.evaluation.correct(m, "forget").double().numpy(), True)


def _attacks(models: _Models, unseen: Unseen) -> list[Quantity]:
    evaluation = models.evaluation

    def shares(signal: str) -> Callable[[str], Array]:
        def of(model: str) -> Array:
            sides = []
            for split, rows in (("forget", unseen.covered), ("test", unseen.rows)):
                at = torch.from_numpy(rows)
                sides.append(SIGNALS[signal](evaluation.logits(model, split)[at], evaluation.labels(split)[at]).numpy())
            return placements(sides[0], sides[1], unseen.weights)

        return of

    return [models.of(name, shares(signal)) for signal, name in ATTACKS.items()]


def standardised(phi: Array, references: Array) -> Array:
    """z of phi (n,) against references (M, n), M >= 2; see the module."""
    count = len(references)
    own = references.var(0, ddof=1)
    variance = ((count - 1) * own + PRIOR * own.mean()) / (count - 1 + PRIOR)
    z: Array = (phi - references.mean(0)) / np.sqrt(np.maximum(variance, 1e-24) * (1 + 1 / count))
    return z


@dataclass(frozen=True)
class _Standard:
    """z against each S_j: of the model under audit and of the original (N, n), and of retrained model j (N, n)."""

    mine: Array
    before: Array
    theirs: Array

    @classmethod
    def of(cls, mine: Array, before: Array, theirs: Array) -> _Standard:
        without = [np.delete(theirs, j, axis=0) for j in range(len(theirs))]
        return cls(
            np.stack([standardised(mine, rest) for rest in without]),
            np.stack([standardised(before, rest) for rest in without]),
            np.stack([standardised(phi, rest) for phi, rest in zip(theirs, without, strict=True)]),
        )

    @property
    def sides(self) -> tuple[Array, Array, Array]:
        return self.mine, self.before, self.theirs

    def less(self, levels: Sequence[Array]) -> _Standard:
        """z less the level of the model (N,) on other samples."""
        return _Standard(*(side - level[:, None] for side, level in zip(self.sides, levels, strict=True)))

    def each(self, how: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
        """how(z) per sample: the first two averaged over j (n,), the third per retrained model (N, n)."""
        return how(self.mine).mean(0), how(self.before).mean(0), how(self.theirs)


def _single_samples(models: _Models, unseen: Unseen | None) -> list[Quantity]:
    known = _Standard.of(*models.scores("forget"))
    if unseen is None:
        return [
            *_shape(models, known, 1.0),
            replace(models.made("output distance", *_distances(models)), floor=0.0),
            *_near(models, [], 1.0),
        ]
    others = _Standard.of(*models.scores("test", unseen.rows))
    share = unseen.weights / unseen.weights.sum()
    levels = [side @ share for side in others.sides]  # of each model, (N,): how sure it is of anything
    scale = float(np.sqrt(1 + known.mine.shape[1] * np.square(share).sum()))
    places = [
        np.stack([placements(a[unseen.covered], b, unseen.weights) for a, b in zip(*sides, strict=True)])
        for sides in zip(known.sides, others.sides, strict=True)
    ]
    squares = others.less(levels).each(lambda z: np.minimum(z**2, CLIP) @ share[:, None])
    return [
        *_shape(models, known.less(levels), scale),
        models.made("calibrated attack AUC", places[0].mean(0), places[1].mean(0), places[2], scale=scale),
        replace(models.made("output distance", *_distances(models)), floor=0.0),
        *_near(models, levels, scale),
        replace(models.made("mean squared z on unseen samples", *squares), floor=0.0),
    ]


def _shape(models: _Models, known: _Standard, scale: float) -> list[Quantity]:
    return [
        models.made("mean z", *known.each(lambda z: z), scale=scale),
        models.made("mean squared z", *known.each(lambda z: np.minimum(z**2, CLIP))),
        models.made("share of z above 3", *known.each(lambda z: (z > TAIL) * 1.0), True),
        models.made("share of z below -3", *known.each(lambda z: (z < -TAIL) * 1.0), True),
    ]


def _near(models: _Models, levels: list[Array], scale: float) -> list[Quantity]:
    """Mean z at inputs near the samples; nothing where inputs cannot be mixed (see `inputs.near`)."""
    if NEAR not in models.evaluation.splits:
        return []
    beside = _Standard.of(*models.scores(NEAR))
    beside = beside.less(levels) if levels else beside
    return [models.made("mean z near the samples", *beside.each(lambda z: z), scale=scale)]


def _distances(models: _Models) -> tuple[Array, Array, Array]:
    """JSD in bits to the mean output of S_j, per sample: two models averaged over j (n,), retrained ones (N, n)."""
    outputs = {
        name: models.evaluation.logits(name, "forget").double().softmax(1).numpy()
        for name in (models.unlearned, models.original, *models.retrained)
    }
    theirs = np.stack([outputs[name] for name in models.retrained])
    count = len(theirs)
    rows: list[list[Array]] = [[], [], []]
    for j in range(count):
        centre = (theirs.sum(0) - theirs[j]) / (count - 1)
        for row, p in zip(rows, (outputs[models.unlearned], outputs[models.original], theirs[j]), strict=True):
            row.append(_jsd(p, centre))
    return np.mean(rows[0], axis=0), np.mean(rows[1], axis=0), np.stack(rows[2])


def _jsd(p: Array, q: Array) -> Array:
    from scipy.special import xlogy

    def entropy(r: Array) -> Array:
        found: Array = -xlogy(r, r).sum(1) / np.log(2)
        return found

    return np.clip(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0, 1)


__all__ = ["Family", "Quantity", "judge_family", "measure_family", "standardised"]
