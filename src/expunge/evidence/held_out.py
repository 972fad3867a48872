"""The verdict without retrained models: forget samples against unseen ones. Weaker: it never says "forgotten".

Comparable   unseen samples of the same classes are weighted to the same class shares. Whether they come from the same
             distribution is checked on the inputs, without a model: both must agree in label with their nearest
             retained samples (Euclidean), and be as far from them. If not, the comparison is refused. If the right
             labels of mislabelled samples are known, the unseen samples get the same confusion of labels.
Damaged      accuracy on retained or unseen samples fell below the original's by more than the threshold, and the
             paired 95 % interval by half of it
Attack       the 95 % interval of the AUC of the loss attack, or of a label-free one, lies beyond 0.5 +- the margin
Band         a forget set that was drawn uniformly at random: retraining's accuracy on it lies within e of its accuracy
             on unseen samples with a probability of at least 1 - 2 exp(-2 n e^2) (Hoeffding; "Ascent fails to forget",
             NeurIPS 2025, arXiv:2509.26427). Below the band a model over-forgot, above it remembers
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.api.effect import THRESHOLDS
from expunge.core.seeds import numpy_generator
from expunge.data.split import Split
from expunge.evidence.enough import held_out_for
from expunge.evidence.equivalence import ALPHA, Comparison
from expunge.evidence.explain import FAILED, INDISTINGUISHABLE, OPEN
from expunge.evidence.rates import Separation
from expunge.evidence.shadow_audit import U_LIRA
from expunge.evidence.small import SMALL, exact_beside_unseen
from expunge.evidence.verdict import Margins
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.numerics.statistics import auc_interval

NEIGHBOURS = 5
RETAIN_SAMPLES, FORGET_SAMPLES = 4000, 1000  # most samples between which distances are taken
LABEL_GAIN = 0.15  # by which neighbours must predict labels better than chance, so that wrong labels show
NEEDED = 3  # retrained models that would be stronger evidence


@dataclass(frozen=True)
class Comparability:
    """Whether unseen samples are comparable with the forget samples.

    Attributes:
        holds: Whether they are.
        reason: Why not.
        labels: Whether nearest neighbours predict labels, so that wrong labels in the forget set would have shown.
    """

    holds: bool
    reason: str = ""
    labels: bool = False


def matching(splits: Mapping[str, Split], seed: int) -> Comparability:
    """Whether test samples are comparable with forget samples, by inputs and labels alone; see the module."""
    if "retain" not in splits:
        return Comparability(
            False, "there are no retained samples to compare the samples to forget and the unseen ones with"
        )
    forget, retain, test = (splits[name] for name in ("forget", "retain", "test"))
    rng = numpy_generator(seed, "audit", "matching")
    same_class = torch.isin(test.y, forget.y.unique())
    if not bool(torch.isin(forget.y.unique(), test.y.unique()).all()):
        return Comparability(False, "some classes of the samples to forget do not occur among the unseen ones")
    forget_sample = _some(forget, FORGET_SAMPLES, rng)
    test_sample = _some(test.take(test.index[same_class]), FORGET_SAMPLES, rng)
    retain_sample = _some(retain, RETAIN_SAMPLES, rng)
    points = [_flat(split) for split in (forget_sample, test_sample, retain_sample)]
    if any(points_of is None for points_of in points):
        return Comparability(False, "inputs that are no single tensor cannot be compared")
    a, b, c = (points_of for points_of in points if points_of is not None)
    spread = c.std(0) + 1e-9
    near = [
        _nearest(points_of / spread, c / spread, split.y, retain_sample.y)
        for points_of, split in ((a, forget_sample), (b, test_sample))
    ]
    weights = histogram_weights(test_sample.y.numpy(), forget_sample.y.numpy())
    for what, first, second in zip(("agree in label with", "lie as close to"), near[0], near[1], strict=True):
        interval = auc_interval(first, second, weights)
        if interval.low > 0.5 + THRESHOLDS.attack or interval.high < 0.5 - THRESHOLDS.attack:
            return Comparability(
                False,
                f"samples to forget do not {what} their nearest retained samples as unseen ones do (AUC "
                f"{interval.value:.2f}): they come from another distribution, or their labels are wrong",
            )
    labels_readable = (
        float(near[1][0].mean()) > float((retain_sample.y.bincount() / len(retain_sample)).square().sum()) + LABEL_GAIN
    )
    return Comparability(True, labels=labels_readable)


def _some(split: Split, most: int, rng: np.random.Generator) -> Split:
    if len(split) <= most:
        return split
    return split.take(split.index[torch.from_numpy(np.sort(rng.permutation(len(split))[:most]))])


def _flat(split: Split) -> Tensor | None:
    x: object = split.inputs()
    return x.float().flatten(1) if isinstance(x, Tensor) else None


def _nearest(
    points: Tensor, retained: Tensor, labels: Tensor, retained_labels: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the nearest retained samples with the same label, and minus the distance to the nearest, each (n,)."""
    distance, rows = torch.cdist(points, retained).topk(min(NEIGHBOURS, len(retained)), largest=False)
    agree = (retained_labels[rows] == labels[:, None]).double().mean(1)
    return agree.numpy(), -distance[:, 0].double().numpy()


@dataclass(frozen=True)
class AccuracyChange:
    """Change of the accuracy on a split: before, after, and the paired 95 % interval of after - before."""

    before: float
    after: float
    low: float
    high: float

    @property
    def damaged(self) -> bool:
        """Whether it fell by more than the threshold."""
        return self.after - self.before < -THRESHOLDS.damaged and self.high < -THRESHOLDS.damaged / 2


def utility(evaluation: Evaluation) -> dict[str, AccuracyChange]:
    """Change of retain and test accuracy (retained classes) from the original to the unlearned model."""
    remaining = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    changes = {}
    for split in evaluation.present(("retain", "test")):
        rows = remaining if split == "test" else slice(None)
        right = [evaluation.correct(model, split)[rows].double() for model in ("original", "unlearned")]
        if not len(right[0]):
            continue
        change = right[1] - right[0]
        half = 1.96 * float(change.std(correction=0)) / math.sqrt(len(change))
        d = float(change.mean())
        changes[f"{split} accuracy"] = AccuracyChange(
            float(right[0].mean()), float(right[1].mean()), d - half, d + half
        )
    return changes


def band(samples: int, unseen: int, alpha: float = ALPHA) -> float:
    """Half width e of Hoeffding's band around the accuracy on unseen samples; each of the two means gets alpha / 2.

    Args:
        samples: Number of forget samples, drawn uniformly at random.
        unseen: Number of unseen samples from the same distribution.
        alpha: Probability that a retrained model lies outside, in (0, 1).
    """
    return sum(math.sqrt(math.log(4 / alpha) / (2 * size)) for size in (samples, unseen))


def against_held_out(
    evaluation: Evaluation,
    attacks: Mapping[str, Mapping[str, Separation]],
    comparable: Comparability,
    margins: Margins,
    *,
    random: bool = False,
    shadows: Comparison | None = None,
    side: str = "not forgotten",
) -> tuple[str, list[str]]:
    """The label and its reasons without retrained models.

    Args:
        evaluation: Of the original and the unlearned model.
        attacks: Model -> signal -> separation; {} if none could be measured.
        comparable: Whether test samples are comparable with forget samples.
        margins: Equivalence margins.
        random: Whether the forget set was drawn uniformly at random.
        shadows: The test of U-LiRA; None without shadow models.
        side: The label that a significant difference of U-LiRA supports.
    """
    outcomes: list[tuple[str, str]] = []
    for name, loss in utility(evaluation).items():
        if loss.damaged:
            interval = f"{loss.low:+.3f} .. {loss.high:+.3f}"
            outcomes.append(("damaged", f"{name} fell from {loss.before:.3f} to {loss.after:.3f} ({interval})."))
    if shadows is not None and shadows.low > margins.auc:
        outcomes.append((side, f"{U_LIRA} is {shadows.value:.3f}; chance is 0.5 (p {shadows.p_difference:.3g})."))
    if random:
        outcomes += _by_band(evaluation)
    unlearned_attacks, original_attacks = attacks.get("unlearned", {}), attacks.get("original", {})
    if comparable.holds:
        by_attack = [
            outcome
            for signal in _TESTED
            if signal in unlearned_attacks
            for outcome in _by_attack(signal, unlearned_attacks[signal], margins)
            if len(evaluation.splits["forget"]) >= SMALL
            or exact_beside_unseen(evaluation, "unlearned", signal) < ALPHA / len(_TESTED)
        ]
        # Wrong labels make samples hard; if they could not be detected, only "too easy" is evidence.
        outcomes += [outcome for outcome in by_attack if comparable.labels or random or outcome[0] != "over-forgotten"]
    if outcomes:
        outcomes.sort(key=lambda pair: FAILED.index(pair[0]))
        return outcomes[0][0], [f"{label}: {text}" for label, text in outcomes]
    if not comparable.holds and not random:
        text = f"unseen samples are not comparable with the samples to forget: {comparable.reason}"
        return OPEN, [f"{text}; {NEEDED} or more retrained models would decide."]
    if "loss" not in unlearned_attacks:
        return OPEN, [
            f"too few samples to forget, or unseen ones of their classes; {NEEDED} retrained models would decide."
        ]
    if not any(
        _by_attack(signal, original_attacks[signal], margins) for signal in _TESTED if signal in original_attacks
    ):
        auc = original_attacks["loss"].auc
        text = f"the untouched original passes the same tests (AUC {auc.value:.3f}, {auc.low:.3f} .. {auc.high:.3f})"
        return INDISTINGUISHABLE, [f"{text}, so passing them shows nothing; {NEEDED} retrained models could show more."]
    return OPEN, [_nothing_seen(evaluation, unlearned_attacks["loss"], margins)]


_TESTED = ("loss", "entropy", "modified entropy", "largest probability")


def _by_attack(signal: str, result: Separation, margins: Margins) -> list[tuple[str, str]]:
    auc = result.auc
    auc_text = f"AUC {auc.value:.3f} ({auc.low:.3f} .. {auc.high:.3f})"
    if auc.low > 0.5 + margins.auc:
        return [
            ("not forgotten", f"an attack by {signal} separates the samples to forget from unseen ones: {auc_text}.")
        ]
    if signal == "loss" and auc.high < 0.5 - THRESHOLDS.attack and auc.value < 0.5 - THRESHOLDS.over:
        return [
            ("over-forgotten", f"the samples to forget are harder than unseen ones, so they stand out: {auc_text}.")
        ]
    return []


def _by_band(evaluation: Evaluation) -> list[tuple[str, str]]:
    accuracy = float(evaluation.correct("unlearned", "forget").double().mean())
    unseen = float(evaluation.correct("unlearned", "test").double().mean())
    sizes = len(evaluation.splits["forget"]), len(evaluation.splits["test"])
    width = band(*sizes)
    text = (
        f"forget accuracy is {accuracy:.3f}; of a model retrained without these {sizes[0]} samples, drawn at random, "
        f"it lies within {width:.3f} of its accuracy on unseen samples, {unseen:.3f}, with at least 95 % probability "
        "(Hoeffding)."
    )
    if accuracy > unseen + width:
        return [("not forgotten", text)]
    return [("over-forgotten", text)] if accuracy < unseen - width else []


def _nothing_seen(evaluation: Evaluation, loss: Separation, margins: Margins) -> str:
    half, samples = (loss.auc.high - loss.auc.low) / 2, len(evaluation.splits["forget"])
    auc_text = f"AUC {loss.auc.value:.3f} ({loss.auc.low:.3f} .. {loss.auc.high:.3f})"
    if half > margins.auc:
        needed = held_out_for(half, margins.auc, samples)
        return (
            f"the interval of the attack is too wide: {auc_text}, the margin is 0.5 +- {margins.auc:g}; about "
            f"{needed:,} samples to forget would be enough (there are {samples}), or {NEEDED} retrained models."
        )
    return (
        f"the loss does not separate the samples to forget from unseen ones: {auc_text}. What the features still hold "
        f"only shows in comparison with retrained models: {NEEDED} or more are needed to conclude 'forgotten'."
    )


__all__ = ["Comparability", "against_held_out", "band", "matching", "utility"]
