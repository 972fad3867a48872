"""A verdict in one word, with its reasons, from tests whose rules are fixed beforehand.

With retrained models one family of hypotheses is tested (see `family`), corrected together by Holm at 5 %. The first
word that applies:

    damaged              retain or test accuracy is lower than after retraining and than the original's, by more than
                         counts as none (as low as the original's: the harm that the samples did is not undone)
    not forgotten        the answers, or single samples, differ on the side of the original model
    over-forgotten       they differ on the other side: the samples stick out
    suppressed           the answers are like a retrained model's, and what lies below them is not: the representation
                         differs on the side of the original, or is the original's, or the outputs are altered on
                         samples that have nothing to do with the request
    not enough evidence  something could not be measured, or differs in a way that has no name above
    indistinguishable from the start   the untouched original passes the same tests, so nothing can be shown
    not enough evidence  a loss of accuracy beyond the margin could have passed as well
    forgotten            all was measured, nothing differs, and the same tests find the original; the reasons say how
                         much of what it knows a model could have kept without being found

Without retrained models see `held_out`: never "forgotten". A model that an exact method made for these very samples is
"forgotten by construction", whatever was measured; the reasons say what was seen.

`damaged`, and what counts as no difference of accuracies, are the thresholds of the effect of a result (`api.effect`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from expunge.api.effect import THRESHOLDS
from expunge.core import display
from expunge.core.options import Field, build, options
from expunge.evidence.enough import advice
from expunge.evidence.equivalence import ALPHA, POWER, Comparison, compare_paired
from expunge.evidence.explain import BY_CONSTRUCTION, FAILED, FORGOTTEN, INDISTINGUISHABLE, OPEN, RESIDUE, STATISTICS
from expunge.evidence.family import KINDS, ONE_SIDED
from expunge.evidence.persample import PerSample
from expunge.evidence.rates import Separation
from expunge.evidence.shadow_audit import U_LIRA
from expunge.evidence.signals import LABEL_FREE
from expunge.numerics.statistics import holm

if TYPE_CHECKING:
    from expunge.evidence.residue import Residue

WORDS = (FORGOTTEN, BY_CONSTRUCTION, *FAILED, INDISTINGUISHABLE, OPEN)
FORGETTING = ("forget accuracy", "loss attack AUC")
UTILITY = ("retain accuracy", "test accuracy")
WIDE = 4.0  # deviations of retrained models that counts as no loss of accuracy where they exceed the margin
Goal = Literal["untrain", "unlearn", "repair"]


@options
class Margins:
    """Upper limits of a difference that still counts as none; what retrained models show narrows them."""

    accuracy: float = Field(0.05, gt=0, lt=0.5, description="of accuracies")
    auc: float = Field(0.05, gt=0, lt=0.5, description="of the AUC of an attack")

    def of(self, statistic: str) -> float:
        """The limit of a statistic; those that are neither accuracy nor AUC are in units of their own."""
        if statistic.endswith("AUC"):
            return self.auc
        if statistic.endswith("accuracy") or statistic in ("misalignment", "probe confidence"):
            return self.accuracy
        return _UNITS.get(statistic, self.accuracy)


_UNITS = {"mean z": 0.25, "mean z near the samples": 0.25, "mean squared z": 0.5,
          "mean squared z on unseen samples": 0.5, "layer CKA gap": 0.01}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """word: see the module. basis: "retrained" or "held-out". reasons: sentences, the most important first.

    attacks: model -> signal -> how well it separates; comparisons: one per statistic of the family; empty for
    "held-out", but for U-LiRA. per_sample: attacks calibrated by shadow models, by "model: attack"; empty without.
    residue: what lies below the answers; None where it was not looked at. flags: what makes "forgotten" impossible, and
    unmeasured: (what, why) of what could not be measured. goal: the question that was asked.
    """

    word: str
    basis: Literal["retrained", "held-out"]
    reasons: list[str]
    comparisons: list[Comparison]
    attacks: Mapping[str, Mapping[str, Separation]]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_sample: Mapping[str, PerSample] = field(default_factory=dict)
    residue: Residue | None = None
    flags: Sequence[str] = ()
    unmeasured: Sequence[tuple[str, str]] = ()
    goal: Goal = "untrain"

    def frame(self) -> pd.DataFrame:
        """One row per (model, signal): AUC and TPR at low FPR with 95 % intervals; NaN where too few samples."""
        rows = []
        for model, signals in self.attacks.items():
            for signal, found in signals.items():
                row: dict[str, Any] = {"model": model, "signal": signal, "label_free": signal in LABEL_FREE}
                row |= _interval("auc", found.auc)
                for rate, value in found.tpr.items():
                    row |= _interval(f"tpr_at_{rate:g}", value)
                rows.append(row)
        for name, attack in self.per_sample.items():
            model, _, signal = name.partition(": ")
            row = {"model": model, "signal": signal, "label_free": False, **_interval("auc", attack.auc)}
            for rate, value in attack.separation.tpr.items():
                row |= _interval(f"tpr_at_{rate:g}", value)
            row |= {"balanced_accuracy": attack.balanced_accuracy, "accuracy_at_zero": attack.at_zero}
            rows.append(row | {"epsilon_at_least": attack.epsilon, "epsilon_resolved": attack.largest})
        return pd.DataFrame(rows)

    def tests(self) -> pd.DataFrame:
        """One row per statistic that was tested: the unlearned model, the original, the retrained ones, and p."""
        return pd.DataFrame(
            [{"kind": KINDS.get(one.name, "answers"), **vars(one), "equivalent": one.equivalent, "differs": one.differs}
             for one in self.comparisons]
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """JSON-ready: the word, its reasons, every number but those of single samples; null for what is not finite."""
        found: dict[str, Any] = {
            "word": self.word,
            "basis": self.basis,
            "goal": self.goal,
            "reasons": self.reasons,
            "flags": list(self.flags),
            "unmeasured": [f"{what}: {why}" for what, why in self.unmeasured],
            "tests": self.tests().to_dict("records"),
            "attacks": self.frame().to_dict("records"),
            **self.details,
        }
        found = found if self.residue is None else {**found, "residue": self.residue.details()}
        return dict(_finite(found))

    def __repr__(self) -> str:
        """The verdict and its first reasons; `str` and `reasons` give all of them."""
        more = len(self.reasons) - _SHOWN
        lines = str(self).splitlines()[: 1 + _SHOWN]
        return "\n".join([*lines, f"and {more} more in .reasons"] if more > 0 else lines)

    def _repr_html_(self) -> str:
        against = f"against {self.basis} {_NOUN[self.basis]}"
        return display.as_html(f"{self.word} ({against})", [("", reason) for reason in self.reasons])

    def __str__(self) -> str:
        return "\n".join([f"{self.word} (against {self.basis} {_NOUN[self.basis]})", *(f"- {r}" for r in self.reasons)])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_SHOWN = 8  # reasons in `repr`
_NOUN = {"retrained": "models", "held-out": "samples"}


def _interval(name: str, found: Any) -> dict[str, float]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


@dataclass(frozen=True)
class Findings:
    """What the rules are applied to. flags: sentences of what shows that something is hidden; unmeasured: (what, why).

    samples: to forget; references: retrained models; theirs: begins the words about them, "8 retrained models have".
    sides: statistic -> the word that a difference speaks for, where the statistic does not tell by its sign.
    """

    comparisons: Sequence[Comparison]
    flags: Sequence[str] = ()
    unmeasured: Sequence[tuple[str, str]] = ()
    samples: int = 0
    references: int = 0
    theirs: str = "retrained models have"
    sides: Mapping[str, str] = field(default_factory=dict)


def decide(found: Findings, margins: Margins) -> tuple[str, list[str]]:
    """The word and its reasons, by the rules of this module."""
    words: dict[str, list[str]] = {}
    for word, one in _differences(found):
        words.setdefault(word, []).append(_difference(one, found.theirs))
    for flag in found.flags:
        words.setdefault("suppressed", []).append(flag)
    first = next((word for word in FAILED if word in words), None)
    missing = [f"{what} could not be measured: {why}." for what, why in found.unmeasured]
    if first is not None:
        others = [word for word in (*FAILED, "") if word in words and word != first]
        more = [f"{_ALSO[word]}: {text}" for word in others for text in words[word]]
        return first, [*(f"{first}: {text}" for text in words[first]), *more, *missing]
    if missing or "" in words:
        return OPEN, [*words.get("", []), *missing]
    return _clean(found, margins)


_ALSO = {"not forgotten": "also not forgotten", "over-forgotten": "also over-forgotten", "": "also",
         "suppressed": "below the answers"}  # fmt: skip


def _clean(found: Findings, margins: Margins) -> tuple[str, list[str]]:
    """Nothing differs and all was measured: does that say anything?"""
    telling = [one for one in found.comparisons if KINDS.get(one.name, "answers") not in ("utility", "unseen samples")]
    family = len(found.comparisons)
    told = [one for one in telling if one.tells_original]
    if not told:
        text = "the untouched original passes the same tests, so passing them shows nothing"
        return INDISTINGUISHABLE, [f"{text}; {advice(telling, found.samples, found.references, family)}"]
    loose = [one for one in found.comparisons if one.name in UTILITY and one.low < -_room(one, margins)]
    if loose:
        return OPEN, [
            f"{one.name} may be as much as {-one.low:.3f} below retraining, and {_room(one, margins):.3f} counts as "
            "none; more retrained models narrow this."
            for one in loose
        ]
    sharp = min(told, key=_blind)
    return FORGOTTEN, [
        f"none of {family} statistics differs from what {found.references} retrained models show among themselves.",
        f"a model that kept {_blind(sharp):.0%} of what the original knows would have been found with a probability of "
        f"{POWER:.0%}, by {sharp.name}; {len(told)} of {len(telling)} statistics tell the original from retraining.",
    ]


def _room(one: Comparison, margins: Margins) -> float:
    """How far below retraining an accuracy may be: the margin, or, up to what counts as damage, what models show."""
    return max(margins.of(one.name), min(WIDE * one.spread, THRESHOLDS.damaged))


def _blind(one: Comparison) -> float:
    """The smallest difference that the test finds, as a share of the original's distance from retraining."""
    distance = abs(one.original - one.reference)
    return one.detectable / distance if distance > 0 else float("inf")


def _differences(findings: Findings) -> list[tuple[str, Comparison]]:
    """What differs, with the word it speaks for ("" where it speaks for none), the clearest first."""
    apart = sorted((one for one in findings.comparisons if one.differs), key=lambda one: one.p_corrected)
    altered = any(KINDS.get(one.name) == "unseen samples" for one in apart)
    sides = {one.name: findings.sides.get(one.name) or _side(one) for one in apart}
    directed = [side for name, side in sides.items() if name not in ONE_SIDED and side in FAILED[1:3]]
    found = []
    for one in apart:
        word = sides[one.name]
        if one.name in ONE_SIDED and word == "not forgotten":  # single samples differ, in which direction says the rest
            word = "over-forgotten" if directed and "not forgotten" not in directed else word
        if altered and KINDS.get(one.name) == "single samples" and one.name != "calibrated attack AUC":
            word = "suppressed"  # outputs are altered everywhere: the size of z means nothing, its order does
        found.append((word, one))
    return found


def _side(one: Comparison) -> str:
    """The word that a clear difference speaks for."""
    kind = KINDS.get(one.name, "answers")
    if kind == "utility":
        if -one.difference <= THRESHOLDS.accuracy:
            return ""
        if one.original - one.value > THRESHOLDS.accuracy / 2:
            return "damaged"
        return "not forgotten" if one.tells_original else ""  # the harm that the samples did is still there
    if kind == "unseen samples":
        return "suppressed"
    if kind == "representation":
        side = 1.0 if one.name == "misalignment" else float(np.sign(one.original - one.reference))
        return "suppressed" if (one.tells_original or one.name == "misalignment") and (
            np.sign(one.difference) == side
        ) else ""  # fmt: skip
    if one.name in ONE_SIDED:
        return "not forgotten"
    side = float(np.sign(one.original - one.reference)) if one.tells_original else 1.0
    return "not forgotten" if np.sign(one.difference) == side else "over-forgotten"


def _difference(one: Comparison, theirs: str) -> str:
    meaning = STATISTICS.get(one.name) or RESIDUE.get(one.name, "")
    before = "" if np.isnan(one.original) else f", the original {one.original:.3f}"
    return (
        f"{one.name} is {one.value:.3f}; {theirs} {one.reference:.3f} +- {one.spread:.3f}{before} (p "
        f"{one.p_corrected:.3g} after Holm): {meaning}."
    )


def over_seeds(
    original: Sequence[Mapping[str, float]],
    unlearned: Sequence[Mapping[str, float]],
    retrained: Sequence[Mapping[str, float]],
    margins: Margins | None = None,
    resolution: Mapping[str, float] | None = None,
) -> tuple[str, list[str], list[Comparison]]:
    """A word about a *method*: statistics of its models and of retrained ones, a pair for every seed (>= 2).

    Every seed has its own data, original, unlearned and retrained model, so the differences within a pair are tested.
    Where nothing differs, all statistics must be shown to be equivalent, and the original must differ in one of them.
    """
    limits, fine = margins or build(Margins, {}, "margins"), resolution or {}
    names = [name for name in (*FORGETTING, *UTILITY) if all(name in one for one in (*unlearned, *retrained))]

    def paired(models: Sequence[Mapping[str, float]], name: str) -> Comparison:
        mine, theirs = [one[name] for one in models], [one[name] for one in retrained]
        return compare_paired(name, mine, theirs, limits.of(name), resolution=fine.get(name, 0.0))

    found, anchors = [paired(unlearned, name) for name in names], [paired(original, name) for name in names]
    corrected, before = (holm(np.array([one.p_difference for one in side])) for side in (found, anchors))
    found = [
        replace(one, p_corrected=float(p), original=anchor.value, p_original=float(q))
        for one, anchor, p, q in zip(found, anchors, corrected, before, strict=True)
    ]
    counting = [one if not one.equivalent else replace(one, p_corrected=1.0) for one in found]
    theirs = "retrained models of the same seeds have"
    if any(one.differs for one in counting):
        return (*decide(Findings(counting, theirs=theirs), limits), found)
    open_ones = [one for one in found if not one.equivalent]
    if open_ones:
        reasons = [
            f"{one.name}: the difference to retraining lies in {one.low:+.3f} .. {one.high:+.3f}, which neither stays "
            f"within {one.delta:g} nor is clearly beyond it."
            for one in open_ones
        ]
        return OPEN, [*reasons, "More seeds would tell."], found
    if not any(one.tells_original for one in found if one.name in FORGETTING):
        return INDISTINGUISHABLE, ["the original is as close to retraining as the method's models are."], found
    texts = [f"{one.name} is within {one.delta:g} of retraining ({one.low:+.3f} .. {one.high:+.3f})." for one in found]
    return FORGOTTEN, texts, found


__all__ = ["ALPHA", "FAILED", "U_LIRA", "WORDS", "Findings", "Margins", "Verdict", "decide", "over_seeds"]
