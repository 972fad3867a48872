"""A verdict in one word, with its reasons, from tests whose rules are fixed beforehand.

With at least two retrained models (see `equivalence`):
    forgotten            every statistic is shown to be equivalent to retraining
    not forgotten        a statistic of the forget set differs, on the side of the original model
    over-forgotten       a statistic of the forget set differs, on the other side: it sticks out
    damaged              accuracy on retained or unseen samples is lower
    not enough evidence  neither is shown; more retrained models, or more samples to forget, are what helps
Differences count at 5 %, by Holm over all statistics, and only where equivalence was not shown. The first word that
applies, in the order not forgotten, over-forgotten, damaged, is the verdict; all that apply are among the reasons.
With shadow models the AUC of U-LiRA is one more statistic, against one half; its direction says which of the two it is.

Without retrained models the forget set is held against unseen samples of the same classes (`basis` is "held-out"): by
the 95 % interval of the loss attack's AUC, within or outside one half +- delta. That is weaker: unseen samples may be
harder or easier than the forgotten ones, so it is labelled, and never says more than "forgotten (weak)".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from expunge.core import display
from expunge.core.options import Field, build, options
from expunge.evidence.equivalence import ALPHA, Comparison, compare, compare_paired, holm
from expunge.evidence.explain import STATISTICS
from expunge.evidence.persample import PerSample
from expunge.evidence.rates import Separation
from expunge.evidence.shadow_audit import U_LIRA, ShadowFindings
from expunge.evidence.signals import LABEL_FREE

if TYPE_CHECKING:
    from expunge.evidence.residue import Residue

WORDS = ("not forgotten", "over-forgotten", "damaged")
FORGETTING = ("forget accuracy", "loss attack AUC")
UTILITY = ("retain accuracy", "test accuracy")


@options
class Margins:
    """How large a difference still counts as none."""

    accuracy: float = Field(0.05, gt=0, lt=0.5, description="of accuracies")
    auc: float = Field(0.05, gt=0, lt=0.5, description="of the AUC of an attack")

    def of(self, statistic: str) -> float:
        return self.auc if statistic.endswith("AUC") else self.accuracy


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """word: see the module. basis: "retrained" or "held-out". reasons: sentences, the most important first.

    attacks: model -> signal -> how well it separates; comparisons: one per statistic, for "held-out" of U-LiRA alone.
    per_sample: attacks calibrated by shadow models, by "model: attack"; empty without.
    residue: what lies below the answers, where it was asked for; its flags stand among the reasons and leave the word.
    """

    word: str
    basis: Literal["retrained", "held-out"]
    reasons: list[str]
    comparisons: list[Comparison]
    attacks: Mapping[str, Mapping[str, Separation]]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_sample: Mapping[str, PerSample] = field(default_factory=dict)
    residue: Residue | None = None

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
        """One row per statistic that was tested against the retrained models."""
        return pd.DataFrame([{**vars(one), "equivalent": one.equivalent} for one in self.comparisons])

    def record(self) -> dict[str, Any]:
        """JSON-ready but for NaN and infinity: the word, its reasons, and every number but those of single samples."""
        found: dict[str, Any] = {
            "word": self.word,
            "basis": self.basis,
            "reasons": self.reasons,
            "tests": self.tests().to_dict("records"),
            "attacks": self.frame().to_dict("records"),
            **self.details,
        }
        return found if self.residue is None else {**found, "residue": self.residue.details()}

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


_SHOWN = 8  # reasons in `repr`
_NOUN = {"retrained": "models", "held-out": "samples"}


def _interval(name: str, found: Any) -> dict[str, float]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def against_retrained(
    original: Mapping[str, float],
    unlearned: Mapping[str, float],
    retrained: Sequence[Mapping[str, float]],
    margins: Margins,
    shadows: ShadowFindings | None = None,
    resolution: Mapping[str, float] | None = None,
) -> tuple[str, list[str], list[Comparison]]:
    """Word, reasons and comparisons from statistics by name; `retrained` holds at least two.

    resolution: of each statistic, see `equivalence`.
    """
    names = [name for name in (*FORGETTING, *UTILITY) if name in unlearned]
    fine = resolution or {}
    found = [
        compare(n, unlearned[n], [one[n] for one in retrained], margins.of(n), resolution=fine.get(n, 0.0))
        for n in names
    ]
    if shadows is not None:
        found.append(shadows.comparison(margins.auc))
    return (*decide(found, original, f"{len(retrained)} retrained models have", shadows), found)


def over_seeds(
    original: Sequence[Mapping[str, float]],
    unlearned: Sequence[Mapping[str, float]],
    retrained: Sequence[Mapping[str, float]],
    margins: Margins | None = None,
    resolution: Mapping[str, float] | None = None,
) -> tuple[str, list[str], list[Comparison]]:
    """The same words about a *method*: statistics of its models and of retrained ones, a pair for every seed (>= 2).

    Every seed has its own data, original, unlearned and retrained model, so the differences within a pair are tested.
    """
    limits, fine = margins or build(Margins, {}, "margins"), resolution or {}
    names = [name for name in (*FORGETTING, *UTILITY) if all(name in one for one in (*unlearned, *retrained))]
    found = [
        compare_paired(
            name, [one[name] for one in unlearned], [one[name] for one in retrained], limits.of(name),
            resolution=fine.get(name, 0.0),
        )
        for name in names
    ]  # fmt: skip
    before = {name: float(np.mean([one[name] for one in original])) for name in names}
    return (*decide(found, before, "retrained models of the same seeds have"), found)


def decide(
    found: Sequence[Comparison], original: Mapping[str, float], theirs: str, shadows: ShadowFindings | None = None
) -> tuple[str, list[str]]:
    """The rules of this module. theirs: begins the words about the reference, e.g. "8 retrained models have"."""
    adjusted = holm(np.array([one.p_difference for one in found]))
    words: dict[str, list[str]] = {}
    for one, p in zip(found, adjusted, strict=True):
        if one.equivalent or p >= ALPHA:
            continue
        if one.name == U_LIRA and shadows is not None:
            words.setdefault(shadows.side, []).append(_found_by_shadows(one, float(p)))
            continue
        word = _side(one, original[one.name])
        if word:
            words.setdefault(word, []).append(
                f"{one.name} is {one.value:.3f}; {theirs} {one.reference:.3f} +- {one.spread:.3f} (p {p:.3g} "
                f"after Holm): {STATISTICS[one.name]}."
            )
    if words:
        first = next(word for word in WORDS if word in words)
        return first, [f"{word}: {text}" for word in WORDS for text in words.get(word, ())]
    open_ones = [one for one in found if not one.equivalent]
    if not open_ones:
        texts = [
            f"{one.name} is within {one.delta:g} of retraining ({one.low:+.3f} .. {one.high:+.3f})" for one in found
        ]
        return "forgotten", [f"{text}." for text in texts]
    reasons = [
        f"{one.name}: the difference to retraining lies in {one.low:+.3f} .. {one.high:+.3f}, which neither stays "
        f"within {one.delta:g} nor is clearly beyond what retrained models show among themselves."
        for one in open_ones
    ]
    return "not enough evidence", [*reasons, "More retrained models would tell."]


def against_held_out(
    original: Mapping[str, float],
    unlearned: Mapping[str, float],
    attack: Separation,
    margins: Margins,
    shadows: ShadowFindings | None = None,
) -> tuple[str, list[str], list[Comparison]]:
    """Word, reasons and the comparison of U-LiRA, without a retrained model."""
    auc = attack.auc
    shown = f"AUC {auc.value:.3f} ({auc.low:.3f} .. {auc.high:.3f})"
    words: list[tuple[str, str]] = []
    if auc.low > 0.5 + margins.auc:
        words.append(("not forgotten", f"the loss tells the samples to forget from unseen ones: {shown}."))
    elif auc.high < 0.5 - margins.auc:
        text = f"the samples to forget are harder than unseen ones, so they stick out: {shown}."
        words.append(("over-forgotten", text))
    found = [] if shadows is None else [shadows.comparison(margins.auc)]
    if shadows is not None and found[0].low > margins.auc:
        words.append((shadows.side, _found_by_shadows(found[0], found[0].p_difference)))
    for name in UTILITY:
        if name in unlearned and unlearned[name] < original[name] - margins.accuracy:
            words.append(("damaged", f"{name} fell from {original[name]:.3f} to {unlearned[name]:.3f}."))
    if words:
        words.sort(key=lambda pair: WORDS.index(pair[0]))
        return words[0][0], [f"{word}: {text}" for word, text in words], found
    calm = auc.low >= 0.5 - margins.auc and auc.high <= 0.5 + margins.auc
    if calm and all(one.equivalent for one in found):
        more = "" if not found else f" Nor does U-LiRA: AUC {found[0].value:.3f}."
        text = f"the loss does not tell the samples to forget from unseen ones: {shown}.{more}"
        return "forgotten (weak)", [text], found
    open_ones = (
        [] if calm else [f"the interval of the attack is too wide: {shown}; one half +- {margins.auc:g} is none."]
    )
    for one in found:
        if not one.equivalent:
            open_ones.append(
                f"U-LiRA's AUC less one half lies in {one.low:+.3f} .. {one.high:+.3f}, not within {one.delta:g}: more "
                "samples to forget, or more shadow models, would tell."
            )
    return "not enough evidence", open_ones, found


def _found_by_shadows(one: Comparison, p: float) -> str:
    return f"{one.name} is {one.value:.3f}, guessing is 0.5 (p {p:.3g}): {STATISTICS[U_LIRA]}."


def _side(one: Comparison, original: float) -> str:
    """What a clear difference means."""
    if one.name in UTILITY:
        return "damaged" if one.difference < 0 else ""
    toward = np.sign(original - one.reference)
    return "not forgotten" if toward != 0 and np.sign(one.difference) == toward else "over-forgotten"
