"""One page about one audit: the word, its reasons, everything that was tested in one picture, numbers, attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from expunge.api.result import write_text
from expunge.core.version import __version__
from expunge.evidence import explain
from expunge.evidence.equivalence import POWER, Comparison
from expunge.evidence.family import KINDS
from expunge.evidence.verdict import Verdict
from expunge.report.environment import environment, stylesheet
from expunge.report.plots import COLOURS, INK, PICTURE_STYLE, svg

_MODELS = {"original": ("#888888", "s", 0.12), "unlearned": (COLOURS[0], "o", -0.12)}
_TONE = {
    **dict.fromkeys(("forgotten", "forgotten by construction", *explain.RETIRED_MEANINGS), "good"),
    **dict.fromkeys(("not enough evidence", "indistinguishable from the start"), "open"),
}


def build_audit_page(verdict: Verdict, out: Path, *, title: str, facts: Sequence[tuple[str, str]] = ()) -> Path:
    """Write the page. facts: (label, value) of what was audited, shown on top."""
    frame = verdict.frame()
    html = (
        environment()
        .get_template("audit.html")
        .render(
            title=title,
            label=verdict.label,
            tone=tone(verdict.label),
            meaning=explain.meaning(verdict.label),
            basis=f"{explain.BASIS_MEANINGS[verdict.basis]} An audit gives evidence, not proof.",
            reasons=verdict.reasons,
            facts=facts,
            goal=explain.GOAL_MEANINGS[verdict.goal],
            questions=verdict.details.get("questions", ()),
            groups=_groups(verdict),
            tested=_drawn(family_picture(verdict)) if verdict.comparisons else None,
            unmeasured=[f"{what}: {why}" for what, why in verdict.unmeasured],
            attacks=_drawn(attack_intervals(frame)) if not frame.empty else None,
            attack_texts=[(name, explain.ATTACK_MEANINGS[name]) for name in dict.fromkeys(frame.get("signal", ()))],
            roc=_drawn(roc_curves(verdict)) if verdict.per_sample else None,
            samples=[_sample(name, attack) for name, attack in verdict.per_sample.items()],
            distances=distances(verdict.details),
            features=_below(verdict),
            reported=_reported(verdict),
            not_reported=[f"{what}: {why}" for what, why in verdict.not_reported],
            version=__version__,
            style=stylesheet(),
        )
    )
    write_text(out, html)
    return out


def tone(label: str) -> str:
    """The colour of a verdict: good, open or bad."""
    return _TONE.get(label, "bad")


LIMIT = 4.0  # of the picture, in units of the smallest difference that counts


def family_picture(verdict: Verdict) -> str:
    """Every statistic of the family as a distance from retraining, where 1 is the smallest that is called a difference.

    Band: not a difference. Ticks: the retrained models. What lies further out than the picture is drawn at its edge.
    """
    comparisons = [comparison for comparison in verdict.comparisons if comparison.error > 0]
    numbers = verdict.details.get("statistics", {})
    references = [name for name in numbers if name.startswith("retrained")]
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 0.3 * len(comparisons)))
        axes = figure.add_subplot()
        axes.axvspan(-1, 1, color=COLOURS[2], alpha=0.16, linewidth=0, label="no difference")
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        labelled: set[str] = set()
        for row, comparison in enumerate(reversed(comparisons)):
            limit = critical(comparison)
            for name in references:
                if comparison.name in numbers[name]:
                    at = (numbers[name][comparison.name] - comparison.reference) / limit
                    axes.plot(
                        _inside(at), row, "|", color=COLOURS[2], markersize=9, label=_once("trained again", labelled)
                    )
            for value, name in ((comparison.original, "original"), (comparison.value, "unlearned")):
                if np.isnan(value):
                    continue
                colour, marker, shift = _MODELS[name]
                colour = COLOURS[4] if name == "unlearned" and comparison.differs else colour
                label = "unlearned, differs" if name == "unlearned" and comparison.differs else name
                at = (value - comparison.reference) / limit
                axes.plot(_inside(at), row + shift, marker, color=colour, label=_once(label, labelled))
                if abs(at) > LIMIT:
                    axes.annotate(
                        f"{at:+.0f}", (_inside(at), row + shift), textcoords="offset points", fontsize=7,
                        xytext=(-9 if at > 0 else 9, 0), ha="right" if at > 0 else "left", va="center",
                    )  # fmt: skip
        axes.set_yticks(range(len(comparisons)), [comparison.name for comparison in reversed(comparisons)])
        axes.set_xlim(-LIMIT - 0.25, LIMIT + 0.25)
        axes.set_xlabel("distance from models trained again; beyond 1 it is called a difference")
        axes.legend(loc="upper center", bbox_to_anchor=(0.35, -0.9 / figure.get_figheight() - 0.02), ncols=3)
        return svg(figure, "Every tested number of the original and the unlearned model beside models trained again")


def critical(comparison: Comparison) -> float:
    """The smallest difference that the test calls one, at the level of Holm's first step."""
    from scipy.stats import norm

    return comparison.detectable - float(norm.ppf(POWER)) * comparison.error


def _inside(at: float) -> float:
    return float(np.clip(at, -LIMIT, LIMIT))


def attack_intervals(frame: pd.DataFrame) -> str:
    """`attack_figure` as SVG."""
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = attack_figure(frame)
        return svg(figure, "AUC of every attack on the original, the unlearned and retrained models, with intervals")


def attack_figure(frame: pd.DataFrame) -> Figure:
    """AUC of every attack with its interval; the span of the retrained models behind it.

    Args:
        frame: One row per attack and model: signal, model, auc, auc_low, auc_high.
    """
    signals = list(dict.fromkeys(frame["signal"]))
    is_reference = frame["model"].str.startswith("retrained")
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.38 * len(signals)))
        axes = figure.add_subplot()
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        labelled: set[str] = set()
        for row, signal in enumerate(reversed(signals)):
            rows = frame[frame["signal"] == signal]
            reference_aucs = rows[is_reference.loc[rows.index]]["auc"]
            if not reference_aucs.empty:
                axes.plot(
                    [reference_aucs.min(), reference_aucs.max()], [row, row], linewidth=9, alpha=0.3, color=COLOURS[2],
                    solid_capstyle="butt", label=_once("trained again", labelled),
                )  # fmt: skip
            for model, (colour, marker, shift) in _MODELS.items():
                for point in rows[rows["model"] == model].itertuples():
                    error = [[point.auc - point.auc_low], [point.auc_high - point.auc]]
                    axes.errorbar(
                        point.auc, row + shift, xerr=error, color=colour, marker=marker, linestyle="none",
                        elinewidth=1.2, label=_once(model, labelled),
                    )  # fmt: skip
        axes.set_yticks(range(len(signals)), list(reversed(signals)))
        axes.set_xlabel("AUC: left of one half the samples stick out, right of it they still look known")
        axes.set_xlim(0, 1)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def roc_curves(verdict: Verdict) -> str:
    """True against false positives of the attacks on single samples, both axes logarithmic."""
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(5.6, 4.6))
        axes = figure.add_subplot()
        floor = 1.0
        for number, (name, attack) in enumerate(verdict.per_sample.items()):
            fpr, tpr = attack.roc()
            floor = min(floor, 0.5 / max(1, int((~attack.member).sum())))
            axes.step(
                fpr, tpr, where="post", label=name, color=COLOURS[number], linestyle=("-", "--", "-.")[number % 3]
            )
        ends = np.array([floor, 1.0])
        axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle=":", label="guessing")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(floor, 1)
        axes.set_ylim(floor, 1.05)
        axes.set_xlabel("unseen samples taken for members")
        axes.set_ylabel("samples to forget that are found")
        axes.legend(loc="lower right")
        return svg(figure, "Receiver operating characteristic of the attacks on single samples, logarithmic axes")


def distances(details: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, sentence) of every distance that was measured."""
    rows = []
    for split, divergence in details.get("jsd", {}).items():
        value = f"{divergence['unlearned']:.4f} (among retrained {divergence['among retrained']:.4f})"
        rows.append((f"JSD, {split} samples", value, explain.DISTANCE_MEANINGS["jsd"]))
    if "tow" in details:
        rows.append(("ToW", f"{details['tow']:.3f}", explain.DISTANCE_MEANINGS["tow"]))
    ignorance = details.get("zrf", {})
    if ignorance:
        reference_values = [value for name, value in ignorance.items() if name.startswith("retrained")]
        reference_text = f", retrained {np.mean(reference_values):.3f}" if reference_values else ""
        value = f"{ignorance['unlearned']:.3f} (original {ignorance['original']:.3f}{reference_text})"
        rows.append(("ZRF", value, explain.DISTANCE_MEANINGS["zrf"]))
    shadows = details.get("shadows", {})
    for key, name, mean in (("forgetting_score", "forgetting score", "score"), ("klom", "klom", "mean")):
        if key in shadows:
            value = f"{shadows[key][mean]:.3f} (by chance {shadows[key]['by chance']:.3f})"
            rows.append((name, value, explain.DISTANCE_MEANINGS[name]))
    return rows


def relearning_curves(frame: pd.DataFrame) -> str | None:
    """Accuracy on the forgotten samples that are not taught, after each training step on the others."""
    rows = frame[(frame["statistic"] == "relearn accuracy") & (frame["part"] == "held out") & frame["step"].notna()]
    if rows.empty:
        return None
    curves = rows.pivot_table(index="step", columns="model", values="value")
    references = [name for name in curves.columns if name.startswith("retrained")]
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(5.6, 3.4))
        axes = figure.add_subplot()
        steps = curves.index.to_numpy(dtype=float)
        if references:
            low, high = curves[references].min(axis=1).to_numpy(), curves[references].max(axis=1).to_numpy()
            axes.fill_between(steps, low, high, color=COLOURS[2], alpha=0.3, linewidth=0, label="trained again")
        for model, (colour, marker, _) in _MODELS.items():
            axes.plot(steps, curves[model], color=colour, marker=marker, markersize=4, label=model)
        axes.set_xlabel("training steps on one half of the samples to forget")
        axes.set_ylabel("accuracy on the other half")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(loc="best")
        return svg(figure, "Accuracy on forgotten samples that are not taught, while the others are taught again")


def _below(verdict: Verdict) -> dict[str, Any] | None:
    audit = verdict.features
    if audit is None:
        return None
    picture = relearning_curves(audit.frame())
    numbers = audit.numbers()
    return {
        "numbers": [
            (name, *(f"{numbers[model].get(name, float('nan')):.3f}" for model in ("original", "unlearned")), text)
            for name, text in explain.FEATURE_MEANINGS.items()
            if name in numbers.get("unlearned", {})
        ],
        "notes": [note for note in audit.notes if "no retrained models" not in note],
        "curve": None if picture is None else _drawn(picture),
    }


_HEADINGS = {
    "utility": "What should have stayed",
    "answers": "Answers on the samples to forget",
    "single samples": "Each sample against models trained again",
    "unseen samples": "Answers on samples that have nothing to do with the request",
    "representation": "Below the answers",
}


def _groups(verdict: Verdict) -> list[tuple[str, list[dict[str, str]]]]:
    """(heading, rows) of the tests, kind by kind."""
    groups: dict[str, list[dict[str, str]]] = {}
    for comparison in verdict.comparisons:
        groups.setdefault(KINDS.get(comparison.name, "answers"), []).append(_test(comparison))
    return [(heading, groups[kind]) for kind, heading in _HEADINGS.items() if kind in groups]


def _test(comparison: Comparison) -> dict[str, str]:
    text = explain.STATISTIC_MEANINGS.get(comparison.name) or explain.FEATURE_MEANINGS[comparison.name]
    unsaid = "" if comparison.tells_original else "; says little: the original does not differ either"
    return {
        "name": comparison.name,
        "original": "–" if np.isnan(comparison.original) else f"{comparison.original:.3f}",
        "value": f"{comparison.value:.3f}",
        "reference": f"{comparison.reference:.3f} ± {comparison.spread:.3f}",
        "difference": f"{comparison.difference:+.3f}",
        "seen": f"{comparison.detectable:.3f}",
        "p": "below 0.001" if comparison.p_corrected < 0.001 else f"{comparison.p_corrected:.3f}",
        "word": "different" if comparison.differs else f"no difference{unsaid}",
        "tone": "bad" if comparison.differs else "",
        "text": text,
    }


def _reported(verdict: Verdict) -> list[dict[str, str]]:
    """Rows of the numbers that are reported and not tested."""
    rows = []
    for number in verdict.reported:
        interval = "" if np.isnan(number.low) else f" ({number.low:.3f} .. {number.high:.3f})"
        span = f"{min(number.retrained):.3f} .. {max(number.retrained):.3f}" if number.retrained else "–"
        rows.append({
            "name": number.name, "original": f"{number.original:.3f}", "unlearned": f"{number.unlearned:.3f}{interval}",
            "retrained": span, "text": explain.REPORTED_MEANINGS[number.name], "note": number.note,
        })  # fmt: skip
    return rows


def _sample(name: str, attack: Any) -> dict[str, str]:
    tpr = {
        rate: "too few" if interval is None else f"{100 * interval.value:.1f}"
        for rate, interval in attack.separation.tpr.items()
    }
    return {
        "name": name,
        "auc": f"{100 * attack.auc.value:.1f} ({100 * attack.auc.low:.1f} .. {100 * attack.auc.high:.1f})",
        "tpr": " / ".join(tpr.values()),
        "balanced": f"{100 * attack.balanced_accuracy:.1f}",
        "zero": "–" if attack.at_zero is None else f"{100 * attack.at_zero:.1f}",
        "epsilon": f"{attack.epsilon:.2f} of at most {attack.largest:.2f}",
    }


def _once(label: str, labelled: set[str]) -> str:
    """A legend names everything once."""
    if label in labelled:
        return "_"
    labelled.add(label)
    return label


def _drawn(picture: str) -> Markup:
    return Markup(picture)
