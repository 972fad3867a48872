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
            groups=_groups(verdict),
            tested=_drawn(family_picture(verdict)) if verdict.comparisons else None,
            unmeasured=[f"{what}: {why}" for what, why in verdict.unmeasured],
            attacks=_drawn(attack_intervals(frame)) if not frame.empty else None,
            attack_texts=[(name, explain.ATTACK_MEANINGS[name]) for name in dict.fromkeys(frame.get("signal", ()))],
            roc=_drawn(roc_curves(verdict)) if verdict.per_sample else None,
            samples=[_sample(name, one) for name, one in verdict.per_sample.items()],
            distances=distances(verdict.details),
            features=_below(verdict),
            version=__version__,
            style=stylesheet(),
        )
    )
    write_text(out, html)
    return out


def tone(word: str) -> str:
    """The colour of a verdict: good, open or bad."""
    return _TONE.get(word, "bad")


LIMIT = 4.0  # of the picture, in units of the smallest difference that counts


def family_picture(verdict: Verdict) -> str:
    """Every statistic of the family as a distance from retraining, where 1 is the smallest that is called a difference.

    Band: not a difference. Ticks: the retrained models. What lies further out than the picture is drawn at its edge.
    """
    known = [one for one in verdict.comparisons if one.error > 0]
    numbers = verdict.details.get("statistics", {})
    again = [name for name in numbers if name.startswith("retrained")]
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 0.3 * len(known)))
        axes = figure.add_subplot()
        axes.axvspan(-1, 1, color=COLOURS[2], alpha=0.16, linewidth=0, label="no difference")
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        shown: set[str] = set()
        for row, one in enumerate(reversed(known)):
            limit = critical(one)
            for name in again:
                if one.name in numbers[name]:
                    at = (numbers[name][one.name] - one.reference) / limit
                    axes.plot(
                        _inside(at), row, "|", color=COLOURS[2], markersize=9, label=_once("trained again", shown)
                    )
            for value, name in ((one.original, "original"), (one.value, "unlearned")):
                if np.isnan(value):
                    continue
                colour, marker, shift = _MODELS[name]
                colour = COLOURS[4] if name == "unlearned" and one.differs else colour
                label = "unlearned, differs" if name == "unlearned" and one.differs else name
                at = (value - one.reference) / limit
                axes.plot(_inside(at), row + shift, marker, color=colour, label=_once(label, shown))
                if abs(at) > LIMIT:
                    axes.annotate(
                        f"{at:+.0f}", (_inside(at), row + shift), textcoords="offset points", fontsize=7,
                        xytext=(-9 if at > 0 else 9, 0), ha="right" if at > 0 else "left", va="center",
                    )  # fmt: skip
        axes.set_yticks(range(len(known)), [one.name for one in reversed(known)])
        axes.set_xlim(-LIMIT - 0.25, LIMIT + 0.25)
        axes.set_xlabel("distance from models trained again; beyond 1 it is called a difference")
        axes.legend(loc="upper center", bbox_to_anchor=(0.35, -0.9 / figure.get_figheight() - 0.02), ncols=3)
        return svg(figure, "Every tested number of the original and the unlearned model beside models trained again")


def critical(one: Comparison) -> float:
    """The smallest difference that the test calls one, at the level of Holm's first step."""
    from scipy.stats import norm

    return one.detectable - float(norm.ppf(POWER)) * one.error


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
    again = frame["model"].str.startswith("retrained")
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.38 * len(signals)))
        axes = figure.add_subplot()
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        shown: set[str] = set()
        for row, signal in enumerate(reversed(signals)):
            mine = frame[frame["signal"] == signal]
            theirs = mine[again.loc[mine.index]]["auc"]
            if not theirs.empty:
                axes.plot(
                    [theirs.min(), theirs.max()], [row, row], linewidth=9, alpha=0.3, color=COLOURS[2],
                    solid_capstyle="butt", label=_once("trained again", shown),
                )  # fmt: skip
            for model, (colour, marker, shift) in _MODELS.items():
                for found in mine[mine["model"] == model].itertuples():
                    error = [[found.auc - found.auc_low], [found.auc_high - found.auc]]
                    axes.errorbar(
                        found.auc, row + shift, xerr=error, color=colour, marker=marker, linestyle="none",
                        elinewidth=1.2, label=_once(model, shown),
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
    for split, found in details.get("jsd", {}).items():
        value = f"{found['unlearned']:.4f} (among retrained {found['among retrained']:.4f})"
        rows.append((f"JSD, {split} samples", value, explain.DISTANCE_MEANINGS["jsd"]))
    if "tow" in details:
        rows.append(("ToW", f"{details['tow']:.3f}", explain.DISTANCE_MEANINGS["tow"]))
    ignorance = details.get("zrf", {})
    if ignorance:
        again = [value for name, value in ignorance.items() if name.startswith("retrained")]
        beside = f", retrained {np.mean(again):.3f}" if again else ""
        value = f"{ignorance['unlearned']:.3f} (original {ignorance['original']:.3f}{beside})"
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
    again = [name for name in curves.columns if name.startswith("retrained")]
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(5.6, 3.4))
        axes = figure.add_subplot()
        steps = curves.index.to_numpy(dtype=float)
        if again:
            low, high = curves[again].min(axis=1).to_numpy(), curves[again].max(axis=1).to_numpy()
            axes.fill_between(steps, low, high, color=COLOURS[2], alpha=0.3, linewidth=0, label="trained again")
        for model, (colour, marker, _) in _MODELS.items():
            axes.plot(steps, curves[model], color=colour, marker=marker, markersize=4, label=model)
        axes.set_xlabel("training steps on one half of the samples to forget")
        axes.set_ylabel("accuracy on the other half")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(loc="best")
        return svg(figure, "Accuracy on forgotten samples that are not taught, while the others are taught again")


def _below(verdict: Verdict) -> dict[str, Any] | None:
    found = verdict.features
    if found is None:
        return None
    picture = relearning_curves(found.frame())
    numbers = found.numbers()
    return {
        "numbers": [
            (name, *(f"{numbers[model].get(name, float('nan')):.3f}" for model in ("original", "unlearned")), text)
            for name, text in explain.FEATURE_MEANINGS.items()
            if name in numbers.get("unlearned", {})
        ],
        "notes": [note for note in found.notes if "no retrained models" not in note],
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
    found: dict[str, list[dict[str, str]]] = {}
    for one in verdict.comparisons:
        found.setdefault(KINDS.get(one.name, "answers"), []).append(_test(one))
    return [(heading, found[kind]) for kind, heading in _HEADINGS.items() if kind in found]


def _test(one: Comparison) -> dict[str, str]:
    text = explain.STATISTIC_MEANINGS.get(one.name) or explain.FEATURE_MEANINGS[one.name]
    unsaid = "" if one.tells_original else "; says little: the original does not differ either"
    return {
        "name": one.name,
        "original": "–" if np.isnan(one.original) else f"{one.original:.3f}",
        "value": f"{one.value:.3f}",
        "reference": f"{one.reference:.3f} ± {one.spread:.3f}",
        "difference": f"{one.difference:+.3f}",
        "seen": f"{one.detectable:.3f}",
        "p": "below 0.001" if one.p_corrected < 0.001 else f"{one.p_corrected:.3f}",
        "word": "different" if one.differs else f"no difference{unsaid}",
        "tone": "bad" if one.differs else "",
        "text": text,
    }


def _sample(name: str, one: Any) -> dict[str, str]:
    tpr = {
        rate: "too few" if found is None else f"{100 * found.value:.1f}" for rate, found in one.separation.tpr.items()
    }
    return {
        "name": name,
        "auc": f"{100 * one.auc.value:.1f} ({100 * one.auc.low:.1f} .. {100 * one.auc.high:.1f})",
        "tpr": " / ".join(tpr.values()),
        "balanced": f"{100 * one.balanced_accuracy:.1f}",
        "zero": "–" if one.at_zero is None else f"{100 * one.at_zero:.1f}",
        "epsilon": f"{one.epsilon:.2f} of at most {one.largest:.2f}",
    }


def _once(label: str, shown: set[str]) -> str:
    """A legend names everything once."""
    if label in shown:
        return "_"
    shown.add(label)
    return label


def _drawn(picture: str) -> Markup:
    return Markup(picture)
