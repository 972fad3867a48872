"""The verdict without retrained models: samples to forget against unseen ones. Weaker: it never says "forgotten".

Matched      unseen samples of the same classes, weighted to the same shares. What a model that never saw the forgotten
             samples does with them then differs by chance only, if they are alike. That is checked on the inputs, where
             no model has learnt anything: with their nearest retained samples (Euclidean) both must agree in label, and
             be as far from them, as often. If not, the basis is refused. Wrong labels whose right ones are known are
             given to the unseen samples as well, with the same confusion.
Damaged      the accuracy on retained or unseen samples fell below the original's by more than the threshold: estimate
             and, by half of it, the paired 95 % interval
Attack       the 95 % interval of the loss attack's AUC lies beyond one half +- the margin; the label-free attacks too
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
from expunge.evidence.verdict import Margins
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.numerics.statistics import auc_interval

NEIGHBOURS = 5
MOST_KEPT, MOST_LOOKED_AT = 4000, 1000  # samples between which distances are taken
TOLD = 0.15  # by which neighbours must tell labels better than chance, so that wrong ones show
NEEDED = 3  # retrained models that would be stronger evidence


@dataclass(frozen=True)
class Match:
    """Whether unseen samples can stand for samples that were forgotten; reason: why not.

    labels: whether nearest neighbours tell labels at all, so that wrong ones among the forgotten would have shown.
    """

    holds: bool
    reason: str = ""
    labels: bool = False


def relabelled(test: Split, forget: Split, seed: int) -> Split:
    """Test samples with the confusion of the forget set's labels, where its store knows the right ones.

    A test sample of class c is called y as often as a sample to forget that is c is called y; c that does not occur
    among them keeps its label. Returns `test` where no label was changed, or where nobody knows.
    """
    truth = forget.store.labels[forget.index]
    if torch.equal(truth, forget.y):
        return test
    labels = test.store.labels.clone()
    rng = numpy_generator(seed, "audit", "confusion")
    for c in truth.unique().tolist():
        called = forget.y[truth == c].numpy()
        rows = test.index[test.y == c]
        labels[rows] = torch.from_numpy(rng.choice(called, len(rows)))
    return test.with_labels(labels)


def matching(splits: Mapping[str, Split], seed: int) -> Match:
    """Are unseen samples like the samples to forget? Compared on inputs and labels alone; see the module."""
    if "retain" not in splits:
        return Match(False, "there are no retained samples to compare the samples to forget and the unseen ones with")
    forget, retain, test = (splits[name] for name in ("forget", "retain", "test"))
    rng = numpy_generator(seed, "audit", "matching")
    alike = torch.isin(test.y, forget.y.unique())
    if not bool(torch.isin(forget.y.unique(), test.y.unique()).all()):
        return Match(False, "some classes of the samples to forget do not occur among the unseen ones")
    mine = _some(forget, MOST_LOOKED_AT, rng)
    theirs = _some(test.take(test.index[alike]), MOST_LOOKED_AT, rng)
    kept = _some(retain, MOST_KEPT, rng)
    points = [_flat(split) for split in (mine, theirs, kept)]
    if any(one is None for one in points):
        return Match(False, "inputs that are no single tensor cannot be compared")
    a, b, c = (one for one in points if one is not None)
    spread = c.std(0) + 1e-9
    near = [_nearest(one / spread, c / spread, split.y, kept.y) for one, split in ((a, mine), (b, theirs))]
    weights = histogram_weights(theirs.y.numpy(), mine.y.numpy())
    for what, first, second in zip(("agree in label with", "are as near to"), near[0], near[1], strict=True):
        found = auc_interval(first, second, weights)
        if found.low > 0.5 + THRESHOLDS.attack or found.high < 0.5 - THRESHOLDS.attack:
            return Match(
                False,
                f"samples to forget do not {what} their nearest retained samples as unseen ones do (AUC "
                f"{found.value:.2f}): they are another kind of samples, or their labels are wrong",
            )
    told = float(near[1][0].mean()) > float((kept.y.bincount() / len(kept)).square().sum()) + TOLD
    return Match(True, labels=told)


def _some(split: Split, most: int, rng: np.random.Generator) -> Split:
    if len(split) <= most:
        return split
    return split.take(split.index[torch.from_numpy(np.sort(rng.permutation(len(split))[:most]))])


def _flat(split: Split) -> Tensor | None:
    x: object = split.inputs()
    return x.float().flatten(1) if isinstance(x, Tensor) else None


def _nearest(points: Tensor, kept: Tensor, labels: Tensor, kept_labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Share of the nearest retained samples with the label, and minus the distance to the nearest one, each (n,)."""
    distance, rows = torch.cdist(points, kept).topk(min(NEIGHBOURS, len(kept)), largest=False)
    agree = (kept_labels[rows] == labels[:, None]).double().mean(1)
    return agree.numpy(), -distance[:, 0].double().numpy()


@dataclass(frozen=True)
class Loss:
    """Accuracy that a split lost: before, after, and the paired 95 % interval of after - before."""

    before: float
    after: float
    low: float
    high: float

    @property
    def damaged(self) -> bool:
        return self.after - self.before < -THRESHOLDS.damaged and self.high < -THRESHOLDS.damaged / 2


def utility(evaluation: Evaluation) -> dict[str, Loss]:
    """retain and test accuracy (classes that stay) of the original and the unlearned model, with paired intervals."""
    kept = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    found = {}
    for split in evaluation.present(("retain", "test")):
        rows = kept if split == "test" else slice(None)
        right = [evaluation.correct(model, split)[rows].double() for model in ("original", "unlearned")]
        if not len(right[0]):
            continue
        change = right[1] - right[0]
        half = 1.96 * float(change.std(correction=0)) / math.sqrt(len(change))
        d = float(change.mean())
        found[f"{split} accuracy"] = Loss(float(right[0].mean()), float(right[1].mean()), d - half, d + half)
    return found


def band(samples: int, unseen: int, alpha: float = ALPHA) -> float:
    """Half width e of the band around the accuracy on unseen samples; each of the two means has half of alpha.

    samples: drawn at random and forgotten; unseen: drawn from the same source.
    """
    return sum(math.sqrt(math.log(4 / alpha) / (2 * size)) for size in (samples, unseen))


def against_held_out(
    evaluation: Evaluation,
    attacks: Mapping[str, Mapping[str, Separation]],
    match: Match,
    margins: Margins,
    *,
    random: bool = False,
    shadows: Comparison | None = None,
    side: str = "not forgotten",
) -> tuple[str, list[str]]:
    """The word and its reasons without retrained models.

    attacks: model -> signal -> separation, empty where none could be measured. random: the forget set was drawn
    uniformly at random. shadows, side: U-LiRA, and what a clear difference of it means.
    """
    words: list[tuple[str, str]] = []
    for name, loss in utility(evaluation).items():
        if loss.damaged:
            interval = f"{loss.low:+.3f} .. {loss.high:+.3f}"
            words.append(("damaged", f"{name} fell from {loss.before:.3f} to {loss.after:.3f} ({interval})."))
    if shadows is not None and shadows.low > margins.auc:
        words.append((side, f"{U_LIRA} is {shadows.value:.3f}, guessing is 0.5 (p {shadows.p_difference:.3g})."))
    if random:
        words += _by_band(evaluation)
    mine, before = attacks.get("unlearned", {}), attacks.get("original", {})
    if match.holds:
        found = [one for signal in _TESTED if signal in mine for one in _by_attack(signal, mine[signal], margins)]
        # Wrong labels make samples hard; where they could not show, only "too easy" means something.
        words += [one for one in found if match.labels or random or one[0] != "over-forgotten"]
    if words:
        words.sort(key=lambda pair: FAILED.index(pair[0]))
        return words[0][0], [f"{word}: {text}" for word, text in words]
    if not match.holds and not random:
        text = f"unseen samples cannot stand for the samples to forget: {match.reason}"
        return OPEN, [f"{text}; {NEEDED} or more retrained models would tell."]
    if "loss" not in mine:
        return OPEN, [
            f"too few samples to forget, or unseen ones of their classes; {NEEDED} retrained models would tell."
        ]
    if not any(_by_attack(signal, before[signal], margins) for signal in _TESTED if signal in before):
        auc = before["loss"].auc
        text = f"the untouched original passes the same tests (AUC {auc.value:.3f}, {auc.low:.3f} .. {auc.high:.3f})"
        return INDISTINGUISHABLE, [f"{text}, so passing them shows nothing; {NEEDED} retrained models could tell more."]
    return OPEN, [_nothing_seen(evaluation, mine["loss"], margins)]


_TESTED = ("loss", "entropy", "modified entropy", "largest probability")


def _by_attack(signal: str, found: Separation, margins: Margins) -> list[tuple[str, str]]:
    auc = found.auc
    shown = f"AUC {auc.value:.3f} ({auc.low:.3f} .. {auc.high:.3f})"
    if auc.low > 0.5 + margins.auc:
        return [("not forgotten", f"an attack by {signal} tells the samples to forget from unseen ones: {shown}.")]
    if signal == "loss" and auc.high < 0.5 - THRESHOLDS.attack and auc.value < 0.5 - THRESHOLDS.over:
        return [("over-forgotten", f"the samples to forget are harder than unseen ones, so they stick out: {shown}.")]
    return []


def _by_band(evaluation: Evaluation) -> list[tuple[str, str]]:
    mine = float(evaluation.correct("unlearned", "forget").double().mean())
    unseen = float(evaluation.correct("unlearned", "test").double().mean())
    sizes = len(evaluation.splits["forget"]), len(evaluation.splits["test"])
    width = band(*sizes)
    text = (
        f"forget accuracy is {mine:.3f}; of a model retrained without these {sizes[0]} samples, drawn at random, "
        f"it lies within {width:.3f} of its accuracy on unseen samples, {unseen:.3f}, in 95 % of draws (Hoeffding)."
    )
    if mine > unseen + width:
        return [("not forgotten", text)]
    return [("over-forgotten", text)] if mine < unseen - width else []


def _nothing_seen(evaluation: Evaluation, loss: Separation, margins: Margins) -> str:
    half, samples = (loss.auc.high - loss.auc.low) / 2, len(evaluation.splits["forget"])
    shown = f"AUC {loss.auc.value:.3f} ({loss.auc.low:.3f} .. {loss.auc.high:.3f})"
    if half > margins.auc:
        wanted = held_out_for(half, margins.auc, samples)
        return (
            f"the interval of the attack is too wide: {shown}, one half +- {margins.auc:g} counts as none; about "
            f"{wanted:,} samples to forget would do (there are {samples}), or {NEEDED} retrained models."
        )
    return (
        f"the loss does not tell the samples to forget from unseen ones: {shown}. What is hidden below the answers "
        f"only shows beside retrained models: {NEEDED} or more are needed to say that the samples are forgotten."
    )


__all__ = ["Match", "against_held_out", "band", "matching", "relabelled", "utility"]
