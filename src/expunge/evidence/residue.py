"""Residue below the surface: does a model still hold what its answers no longer show?

A method may silence the last layer and leave everything below as it was. Four statistics look there. Each is measured
on the unlearned model, on the models retrained without the samples, and on the original as the other anchor:

probe confidence  A fresh linear classifier on the frozen features, fitted on samples that stay, reads the forgotten
                  ones: mean probability of the right class (its accuracy, in the rows, is coarser). Single samples:
                  features that memorised them are read better; in a retrained model as well as unseen samples. Whole
                  classes: no sample that stays shows them, so the probe is also shown one half of the forgotten
                  samples and reads the other half. Features of a retrained model separate a class they never saw less
                  well, but rarely not at all: the difference is what counts, not the height.
misalignment      Share of the forgotten samples that the probe reads right and the model's own head gets wrong (Gao et
                  al., 2026). Near 0 in the original; of single samples also in a retrained model; of whole classes its
                  probe accuracy, since its head cannot name the class. Higher than retraining: the answers were
                  changed, the features were not.
relearn accuracy  Mean accuracy over a few small training steps on one half of the forgotten samples (among others that
                  stay), of the half that is not taught. A retrained model must learn it, a hiding one is reminded.
layer CKA gap     CKA to the original on the forgotten samples minus that on samples that stay, mean over the layers
                  below the head; 0 in the original. CKA by itself stays near 1 in whatever starts from the original's
                  weights; retrained models lose more of it on what they never saw. Single samples that the original
                  had not memorised leave no gap in any model, and it says nothing.

Tests      `compare` of each statistic against the retrained models, Holm over them. A flag needs a difference at 5 %
           that is not shown to be within the margin, on the side of the original; and the original itself must differ
           so (without Holm), else the statistic cannot tell anything here, which the notes say. Of misalignment the
           side is "higher", as the original has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from expunge.api.prepare import as_classifier, as_module, as_splits, check_disjoint, check_fit, pick_device
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.evidence.depth import Depth, Draw, NothingBelow, Row, grams, layer_rows, probe_rows, relearn_rows
from expunge.evidence.equivalence import ALPHA, Comparison, compare
from expunge.metrics.base import ORIGINAL, Evaluation
from expunge.numerics.statistics import holm

UNLEARNED = "unlearned"
STATISTICS = ("probe confidence", "misalignment", "relearn accuracy", "layer CKA gap")
_FLAGS = {
    "probe confidence": "a simple classifier that reads the model's inner features is {value:.1%} sure of the right "
    "answer for the forgotten samples, in models that never saw them {reference:.1%} +- {spread:.1%}: the features "
    "still hold them",
    "misalignment": "of {value:.1%} of the forgotten samples the inner features give the right answer while the model "
    "gives a wrong one, in models that never saw them of {reference:.1%} +- {spread:.1%}: the answers were changed, "
    "what lies below was not",
    "relearn accuracy": "during a few training steps on one half of the forgotten samples the model recognises "
    "{value:.1%} of the other half, models that never saw them {reference:.1%} +- {spread:.1%}: it is reminded, it "
    "does not learn anew",
    "layer CKA gap": "the inner layers see the forgotten samples nearly as the original model did (similarity "
    "{value:+.3f} beside that of samples that stay), models that never saw them do not ({reference:+.3f} +- "
    "{spread:.3f})",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Residue:
    """rows: every number of every model. comparisons: one per statistic, empty without retrained models.

    flags: one sentence per statistic that shows residue. notes: what was left out or cannot tell anything, and why.
    left_out: (what, why) of what could not be measured, though the models have it.
    """

    rows: list[Row]
    comparisons: list[Comparison]
    flags: list[str]
    notes: list[str]
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def numbers(self) -> dict[str, dict[str, float]]:
        """model -> statistic -> value, of those that are tested."""
        return _numbers(self.rows)

    def frame(self) -> pd.DataFrame:
        """One row per number: model, statistic, part (layer, half), step (of relearning; missing elsewhere), value."""
        frame = pd.DataFrame([vars(row) for row in self.rows], columns=["model", "statistic", "part", "step", "value"])
        return frame.astype({"step": "Int64"})

    def details(self) -> dict[str, Any]:
        """JSON-ready, without the single numbers of `frame`."""
        tests = [{**vars(one), "equivalent": one.equivalent} for one in self.comparisons]
        return {"flags": self.flags, "notes": self.notes, "statistics": self.numbers(), "tests": tests}


def residue(
    original: Any,
    unlearned: Any,
    retrained: Sequence[Any] = (),
    *,
    forget: Any,
    retain: Any = None,
    test: Any,
    depth: Depth | Mapping[str, float] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Residue:
    """What `unlearned` still holds of `forget` below its answers, against models retrained without it.

    original, unlearned, retrained: modules or results; none is changed. Without retrained models there are numbers and
    no flags; with one, `UsageError`, as it has no spread. retain: samples that stay; without them the unseen `test`
    samples take their place. depth: how much is measured, see `Depth`. Data need labels.
    """
    target = pick_device(device)
    if len(retrained) == 1:
        raise UsageError("one retrained model has no spread; pass at least two, or none for the numbers alone.")
    splits = as_splits({"forget": forget, "retain": retain, "test": test})
    check_disjoint(splits)
    for name in ("forget", "test"):
        if name not in splits:
            raise UsageError(f"residue needs {name} data with labels; pass {name}=...")
    for name, split in splits.items():
        if not split.has_labels:
            raise UsageError(f"residue needs {name} data with labels; the {name} set has none.")
    models = {ORIGINAL: as_module(original, "original"), UNLEARNED: as_module(unlearned, "unlearned")}
    models |= {f"retrained {i + 1}": as_module(model, f"retrained[{i}]") for i, model in enumerate(retrained)}
    models = {name: as_classifier(module, splits, target)[0] for name, module in models.items()}
    for module in models.values():
        check_fit(module, splits, target)
    return examine(Evaluation(models, splits, device=target, seed=seed), depth)


def examine(evaluation: Evaluation, depth: Depth | Mapping[str, float] | None = None) -> Residue:
    """`residue` of models and splits that are already checked: "original", "unlearned", and any others retrained."""
    settings = depth if isinstance(depth, Depth) else build(Depth, dict(depth or {}), "depth")
    splits = evaluation.splits
    others = splits.get("retain", splits["test"])
    draw = Draw.of(splits["forget"], others, splits["test"], evaluation.seed, settings)
    rows: list[Row] = []
    notes: list[str] = []
    left_out: list[tuple[str, str]] = []
    for rows_of in (_probes, _relearning, _layers):
        try:
            rows += list(rows_of(evaluation, draw))
        except NothingBelow as error:
            notes.append(f"{rows_of.__name__.strip('_')} does not apply: {error}")
        except (UsageError, RuntimeError, ValueError, TypeError, IndexError) as error:  # all models go without
            left_out.append((rows_of.__name__.strip("_"), _first_line(error)))
    notes += [f"{what} left out: {why}" for what, why in left_out]
    numbers = _numbers(rows)
    again = [name for name in evaluation.models if name not in (ORIGINAL, UNLEARNED)]
    if not again:
        notes.append("no retrained models were given: these are numbers only, and nothing is flagged.")
        return Residue(rows, [], [], notes, left_out)
    comparisons, flags, silent = judge(numbers, again, settings)
    return Residue(rows, comparisons, flags, [*notes, *silent], left_out)


def judge(
    numbers: Mapping[str, Mapping[str, float]], again: Sequence[str], depth: Depth
) -> tuple[list[Comparison], list[str], list[str]]:
    """Comparisons, flags and notes; `again` names at least two retrained models."""
    names = [name for name in STATISTICS if name in numbers.get(UNLEARNED, {})]
    theirs = {name: [numbers[model][name] for model in again] for name in names}
    found = [compare(name, numbers[UNLEARNED][name], theirs[name], depth.margin(name)) for name in names]
    adjusted = holm(np.array([one.p_difference for one in found]))
    flags, notes = [], []
    for one, p in zip(found, adjusted, strict=True):
        side = 1.0
        if one.name != "misalignment":
            anchor = compare(one.name, numbers[ORIGINAL][one.name], theirs[one.name], one.delta)
            if anchor.equivalent or anchor.p_difference >= ALPHA:
                notes.append(
                    f"{one.name} does not tell the original model ({anchor.value:.3f}) from {len(again)} retrained "
                    f"ones ({anchor.reference:.3f} +- {anchor.spread:.3f}), so here it says nothing."
                )
                continue
            side = float(np.sign(anchor.difference))
        if not one.equivalent and p < ALPHA and np.sign(one.difference) == side:
            flags.append(f"{_FLAGS[one.name].format(**vars(one))} (p {p:.3g} after Holm).")
    return found, flags, notes


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _probes(evaluation: Evaluation, draw: Draw) -> Iterator[Row]:
    for name in evaluation.models:
        yield from probe_rows(name, evaluation, draw)


def _relearning(evaluation: Evaluation, draw: Draw) -> Iterator[Row]:
    for name, model in evaluation.models.items():
        yield from relearn_rows(name, model, draw, evaluation.device)


def _layers(evaluation: Evaluation, draw: Draw) -> Iterator[Row]:
    anchor = grams(evaluation.models[ORIGINAL], draw, evaluation.device)
    for name, model in evaluation.models.items():
        yield from layer_rows(name, grams(model, draw, evaluation.device), anchor)


def _numbers(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if not row.part and row.step is None:
            found.setdefault(row.model, {})[row.statistic] = row.value
    return found
