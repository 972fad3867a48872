"""The verdict and its reasons, from tests whose rules are fixed beforehand.

With retrained models one family of hypotheses is tested (see `family`) with Holm's correction at 5 %. The first label
that applies:

    damaged              retain or test accuracy is lower than after retraining and than the original's, by more than
                         the margin (as low as the original's: the harm that the samples did is not undone)
    not forgotten        the answers, or single samples, differ towards the original model
    over-forgotten       they differ in the other direction: the samples stand out
    suppressed           the answers are like a retrained model's but the features are not: the representation differs
                         towards the original, or is the original's, or outputs changed on samples unrelated to the
                         request
    not enough evidence  something could not be measured, or differs in a way that has no label above
    indistinguishable from the start   the untouched original passes the same tests, so nothing can be shown
    not enough evidence  a loss of accuracy beyond the margin cannot be excluded
    forgotten            everything was measured, nothing differs, and the same tests detect the original; the reasons
                         say how much a model could have kept without being detected

Without retrained models see `held_out`, which never says "forgotten". A model of an exact method for exactly these
samples is "forgotten by construction", whatever was measured; the reasons state the measured verdict.

The thresholds of `damaged` and of accuracies are those of the effect of a result (`api.effect`).
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
from expunge.evidence.explain import (
    BY_CONSTRUCTION,
    FAILED,
    FEATURE_MEANINGS,
    FORGOTTEN,
    INDISTINGUISHABLE,
    OPEN,
    STATISTIC_MEANINGS,
)
from expunge.evidence.family import KINDS, ONE_SIDED
from expunge.evidence.persample import SampleAttack
from expunge.evidence.rates import Separation
from expunge.evidence.reporting import Reported, plain
from expunge.evidence.shadow_audit import U_LIRA
from expunge.evidence.signals import LABEL_FREE
from expunge.numerics.statistics import holm

if TYPE_CHECKING:
    from expunge.evidence.feature_audit import FeatureAudit

LABELS = (FORGOTTEN, BY_CONSTRUCTION, *FAILED, INDISTINGUISHABLE, OPEN)
FORGETTING = ("forget accuracy", "loss attack AUC")
UTILITY = ("retain accuracy", "test accuracy")
WIDE = 4.0  # standard deviations of retrained models that count as no loss of accuracy if they exceed the margin
Goal = Literal["untrain", "unlearn", "repair"]


@options
class Margins:
    """Equivalence margins: upper limits of a difference that counts as none."""

    accuracy: float = Field(0.05, gt=0, lt=0.5, description="equivalence margin of accuracies")
    auc: float = Field(0.05, gt=0, lt=0.5, description="equivalence margin of the AUC of an attack")

    def of(self, statistic: str) -> float:
        """The margin of a statistic, in its own unit."""
        if statistic.endswith("AUC"):
            return self.auc
        if statistic.endswith("accuracy") or statistic in ("misalignment", "probe confidence"):
            return self.accuracy
        return _UNITS.get(statistic, self.accuracy)


_UNITS = {"mean z": 0.25, "mean z near the samples": 0.25, "mean squared z": 0.5,
          "mean squared z on unseen samples": 0.5, "layer CKA gap": 0.01}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """The result of an audit.

    Attributes:
        label: The verdict, one of `LABELS`; `word` is its older name.
        basis: What it was compared with: "retrained" models or "held-out" samples.
        reasons: Sentences, the most important first.
        comparisons: One per statistic of the family; without retrained models only U-LiRA.
        attacks: Model -> signal -> AUC and TPR of the attack.
        details: Further numbers: statistics, margins, sample counts, distances.
        per_sample: "model: attack" -> attack calibrated by shadow models.
        features: The feature-level audit; None if it was switched off. `residue` is its older name.
        flags: Sentences on what rules out "forgotten".
        unmeasured: (what, why) of everything that could not be measured.
        goal: The question that was asked.
        reported: Numbers that stand beside those of retrained models and are not tested (`evidence.reported`).
        not_reported: (what, why) of those that could not be measured.
    """

    label: str
    basis: Literal["retrained", "held-out"]
    reasons: list[str]
    comparisons: list[Comparison]
    attacks: Mapping[str, Mapping[str, Separation]]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_sample: Mapping[str, SampleAttack] = field(default_factory=dict)
    features: FeatureAudit | None = None
    flags: Sequence[str] = ()
    unmeasured: Sequence[tuple[str, str]] = ()
    goal: Goal = "untrain"
    reported: Sequence[Reported] = ()
    not_reported: Sequence[tuple[str, str]] = ()

    @property
    def word(self) -> str:
        """Older name of `label`."""
        return self.label

    @property
    def residue(self) -> FeatureAudit | None:
        """Older name of `features`."""
        return self.features

    def frame(self) -> pd.DataFrame:
        """One row per (model, signal): AUC and TPR at low FPR with 95 % intervals; NaN if there are too few samples."""
        rows = []
        for model, signals in self.attacks.items():
            for signal, separation in signals.items():
                row: dict[str, Any] = {"model": model, "signal": signal, "label_free": signal in LABEL_FREE}
                row |= _interval("auc", separation.auc)
                for rate, value in separation.tpr.items():
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
        """One row per tested statistic: unlearned model, original, retrained models, and p values."""
        return pd.DataFrame(
            [{"kind": KINDS.get(comparison.name, "answers"), **vars(comparison), "equivalent": comparison.equivalent,
              "differs": comparison.differs} for comparison in self.comparisons]
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """The verdict as JSON: label, reasons, and all numbers except those of single samples; null if not finite.

        Records of version 0.1 have "word" for "label" and "residue" for "features"; `explain.verdict_label` reads both.
        """
        record: dict[str, Any] = {
            "label": self.label,
            "basis": self.basis,
            "goal": self.goal,
            "reasons": self.reasons,
            "flags": list(self.flags),
            "unmeasured": [f"{what}: {why}" for what, why in self.unmeasured],
            "tests": self.tests().to_dict("records"),
            "attacks": self.frame().to_dict("records"),
            "reported": [plain(number) for number in self.reported],
            "not_reported": [f"{what}: {why}" for what, why in self.not_reported],
            **self.details,
        }
        record = record if self.features is None else {**record, "features": self.features.details()}
        return dict(_finite(record))

    def __repr__(self) -> str:
        """The verdict and its first reasons; `str` and `reasons` give all of them."""
        more = len(self.reasons) - _SHOWN
        lines = str(self).splitlines()[: len(str(self).splitlines()) - max(more, 0)]
        return "\n".join([*lines, f"and {more} more in .reasons"] if more > 0 else lines)

    def _repr_html_(self) -> str:
        against = f"against {self.basis} {_NOUN[self.basis]}"
        return display.as_html(f"{self.word} ({against})", [("", reason) for reason in self.reasons])

    def __str__(self) -> str:
        first = f"{self.label} (against {self.basis} {_NOUN[self.basis]})"
        return "\n".join([first, *self.questions, *(f"- {reason}" for reason in self.reasons)])

    @property
    def questions(self) -> list[str]:
        """What was asked, and what another goal would ask of the same samples (`evidence.goals`)."""
        asked = list(self.details.get("questions", ()))
        return [f"asked: {' '.join(asked)}"] if asked else []


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_SHOWN = 7  # reasons in `repr`, which fits ten lines with the label, what was asked and the rest
_NOUN = {"retrained": "models", "held-out": "samples"}


def _interval(name: str, interval: Any) -> dict[str, float]:
    if interval is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


@dataclass(frozen=True)
class Findings:
    """What the rules are applied to.

    Attributes:
        comparisons: All tests of the family.
        flags: Sentences on what shows that the samples are only hidden.
        unmeasured: (what, why) of everything that could not be measured.
        samples: Number of samples to forget.
        references: Number of retrained models.
        reference_phrase: Begins the text about them, "8 retrained models have".
        sides: Statistic -> the label that a difference supports, for statistics whose sign does not tell.
    """

    comparisons: Sequence[Comparison]
    flags: Sequence[str] = ()
    unmeasured: Sequence[tuple[str, str]] = ()
    samples: int = 0
    references: int = 0
    reference_phrase: str = "retrained models have"
    sides: Mapping[str, str] = field(default_factory=dict)


def decide(findings: Findings, margins: Margins) -> tuple[str, list[str]]:
    """The label and its reasons, by the rules of this module."""
    outcomes: dict[str, list[str]] = {}
    for label, comparison in _differences(findings):
        outcomes.setdefault(label, []).append(_difference(comparison, findings.reference_phrase))
    for flag in findings.flags:
        outcomes.setdefault("suppressed", []).append(flag)
    first = next((label for label in FAILED if label in outcomes), None)
    missing = [f"{what} could not be measured: {why}." for what, why in findings.unmeasured]
    if first is not None:
        remaining = [label for label in (*FAILED, "") if label in outcomes and label != first]
        more = [f"{_ALSO[label]}: {text}" for label in remaining for text in outcomes[label]]
        return first, [*(f"{first}: {text}" for text in outcomes[first]), *more, *missing]
    if missing or "" in outcomes:
        return OPEN, [*outcomes.get("", []), *missing]
    return _clean(findings, margins)


_ALSO = {"not forgotten": "also not forgotten", "over-forgotten": "also over-forgotten", "": "also",
         "suppressed": "in the features"}  # fmt: skip


def _clean(findings: Findings, margins: Margins) -> tuple[str, list[str]]:
    """The label if nothing differs and everything was measured: do the tests have power?"""
    telling = [
        comparison
        for comparison in findings.comparisons
        if KINDS.get(comparison.name, "answers") not in ("utility", "unseen samples")
    ]
    family = len(findings.comparisons)
    telling_original = [comparison for comparison in telling if comparison.tells_original]
    if not telling_original:
        text = "the untouched original passes the same tests, so passing them shows nothing"
        return INDISTINGUISHABLE, [f"{text}; {advice(telling, findings.samples, findings.references)}"]
    loose = [
        comparison
        for comparison in findings.comparisons
        if comparison.name in UTILITY and comparison.low < -_room(comparison, margins)
    ]
    if loose:
        return OPEN, [
            f"{comparison.name} may be as much as {-comparison.low:.3f} below retraining; the margin is "
            f"{_room(comparison, margins):.3f}. More retrained models narrow this."
            for comparison in loose
        ]
    sharp = min(telling_original, key=_blind)
    return FORGOTTEN, [
        f"none of {family} statistics differs from the variation among {findings.references} retrained models.",
        f"a model that kept {_blind(sharp):.0%} of what the original knows would have been detected with a probability "
        f"of {POWER:.0%}, by {sharp.name}; {len(telling_original)} of {len(telling)} statistics tell the original from "
        "retraining.",
    ]


def _room(comparison: Comparison, margins: Margins) -> float:
    """How far below retraining an accuracy may be: the margin, or the wider spread of retrained models up to damage."""
    return max(margins.of(comparison.name), min(WIDE * comparison.spread, THRESHOLDS.damaged))


def _blind(comparison: Comparison) -> float:
    """The smallest difference that the test detects, as a share of the original's distance from retraining."""
    distance = abs(comparison.original - comparison.reference)
    return comparison.detectable / distance if distance > 0 else float("inf")


def _differences(findings: Findings) -> list[tuple[str, Comparison]]:
    """All significant differences, each with the label it supports ("" for none), the smallest p first."""
    different = sorted(
        (comparison for comparison in findings.comparisons if comparison.differs),
        key=lambda comparison: comparison.p_corrected,
    )
    altered = any(KINDS.get(comparison.name) == "unseen samples" for comparison in different)
    sides = {comparison.name: findings.sides.get(comparison.name) or _side(comparison) for comparison in different}
    directed = [side for name, side in sides.items() if name not in ONE_SIDED and side in FAILED[1:3]]
    outcomes = []
    for comparison in different:
        label = sides[comparison.name]
        if comparison.name in ONE_SIDED and label == "not forgotten":  # the direction comes from the other statistics
            label = "over-forgotten" if directed and "not forgotten" not in directed else label
        if altered and KINDS.get(comparison.name) == "single samples" and comparison.name != "calibrated attack AUC":
            label = "suppressed"  # outputs changed everywhere: only the order of z is informative, not its size
        outcomes.append((label, comparison))
    return outcomes


def _side(comparison: Comparison) -> str:
    """The label that a significant difference supports."""
    kind = KINDS.get(comparison.name, "answers")
    if kind == "utility":
        if -comparison.difference <= THRESHOLDS.accuracy:
            return ""
        if comparison.original - comparison.value > THRESHOLDS.accuracy / 2:
            return "damaged"
        return "not forgotten" if comparison.tells_original else ""  # the harm that the samples did is still there
    if kind == "unseen samples":
        return "suppressed"
    if kind == "representation":
        side = 1.0 if comparison.name == "misalignment" else float(np.sign(comparison.original - comparison.reference))
        return "suppressed" if (comparison.tells_original or comparison.name == "misalignment") and (
            np.sign(comparison.difference) == side
        ) else ""  # fmt: skip
    if comparison.name in ONE_SIDED:
        return "not forgotten"
    side = float(np.sign(comparison.original - comparison.reference)) if comparison.tells_original else 1.0
    return "not forgotten" if np.sign(comparison.difference) == side else "over-forgotten"


def _difference(comparison: Comparison, reference_phrase: str) -> str:
    meaning = STATISTIC_MEANINGS.get(comparison.name) or FEATURE_MEANINGS.get(comparison.name, "")
    before = "" if np.isnan(comparison.original) else f", the original {comparison.original:.3f}"
    return (
        f"{comparison.name} is {comparison.value:.3f}; {reference_phrase} {comparison.reference:.3f} +- "
        f"{comparison.spread:.3f}{before} (p {comparison.p_corrected:.3g} after Holm): {meaning}."
    )


def over_seeds(
    original: Sequence[Mapping[str, float]],
    unlearned: Sequence[Mapping[str, float]],
    retrained: Sequence[Mapping[str, float]],
    margins: Margins | None = None,
    resolution: Mapping[str, float] | None = None,
) -> tuple[str, list[str], list[Comparison]]:
    """The verdict on a *method*, from paired tests over seeds (>= 2).

    Every seed has its own data, original, unlearned and retrained model. If nothing differs, all statistics must be
    shown to be equivalent, and the original must differ in one of them.

    Args:
        original: Statistics of the original model, one mapping per seed.
        unlearned: Of the unlearned model of each seed.
        retrained: Of the retrained model of each seed.
        margins: Equivalence margins.
        resolution: Statistic -> lower bound of the spread of its differences.

    Returns:
        The label, its reasons, and the comparisons.
    """
    limits, fine = margins or build(Margins, {}, "margins"), resolution or {}
    names = [name for name in (*FORGETTING, *UTILITY) if all(name in item for item in (*unlearned, *retrained))]

    def paired(models: Sequence[Mapping[str, float]], name: str) -> Comparison:
        method_values, retrained_values = [seed[name] for seed in models], [seed[name] for seed in retrained]
        return compare_paired(name, method_values, retrained_values, limits.of(name), resolution=fine.get(name, 0.0))

    comparisons, anchors = [paired(unlearned, name) for name in names], [paired(original, name) for name in names]
    corrected, before = (holm(np.array([item.p_difference for item in side])) for side in (comparisons, anchors))
    comparisons = [
        replace(item, p_corrected=float(p), original=anchor.value, p_original=float(q))
        for item, anchor, p, q in zip(comparisons, anchors, corrected, before, strict=True)
    ]
    counting = [item if not item.equivalent else replace(item, p_corrected=1.0) for item in comparisons]
    reference_phrase = "retrained models of the same seeds have"
    if any(item.differs for item in counting):
        return (*decide(Findings(counting, reference_phrase=reference_phrase), limits), comparisons)
    open_comparisons = [item for item in comparisons if not item.equivalent]
    if open_comparisons:
        reasons = [
            f"{item.name}: the difference to retraining lies in {item.low:+.3f} .. {item.high:+.3f}, neither "
            f"within {item.delta:g} nor clearly beyond it."
            for item in open_comparisons
        ]
        return OPEN, [*reasons, "More seeds would decide."], comparisons
    if not any(item.tells_original for item in comparisons if item.name in FORGETTING):
        return INDISTINGUISHABLE, ["the original is as close to retraining as the method's models are."], comparisons
    texts = [
        f"{item.name} is within {item.delta:g} of retraining ({item.low:+.3f} .. {item.high:+.3f})."
        for item in comparisons
    ]
    return FORGOTTEN, texts, comparisons


__all__ = [
    "ALPHA", "FAILED", "LABELS", "U_LIRA", "Findings", "Margins", "Verdict", "decide", "over_seeds",
]  # fmt: skip
