"""Feature-level audit: do the hidden layers still hold what the answers no longer show?

A method may change the last layer and leave everything below it as it was. Four statistics test for that, each measured
on the unlearned model, on models retrained without the samples, and on the original:

probe confidence  Mean probability that a linear probe of the frozen features, fitted on retained samples, gives the
                  true class of the forget samples (its accuracy is a coarser row). If whole classes are forgotten, no
                  retained sample shows them: the probe is then also fitted on one half of the forget samples and
                  predicts the other half. Features of a retrained model separate an unseen class less well, but rarely
                  not at all: the difference counts, not the level.
misalignment      Feature-classifier misalignment (Gao et al., 2026, arXiv:2604.08271): share of the forget samples that
                  the probe classifies correctly and the model's own head does not. Near 0 in the original and, for
                  single samples, in a retrained model; for whole classes it equals the probe accuracy of a retrained
                  model, whose head cannot predict the class. Higher than after retraining: the answers were changed,
                  the features were not.
relearn accuracy  Mean accuracy on one half of the forget samples during a few training steps on the other half (mixed
                  with retained samples). A retrained model has to learn them; a model that hides them recovers faster.
layer CKA gap     CKA to the original on forget samples minus that on retained samples, mean over the layers below the
                  head; 0 in the original. CKA alone stays near 1 in any model that starts from the original's weights;
                  retrained models lose more of it on samples that they never saw. Samples that the original had not
                  memorised leave no gap in any model.

Tests      `compare` of each statistic against the retrained models, with Holm's correction. A flag needs a difference
           at 5 % that is not shown to be within the margin, towards the original; and the original itself must differ
           (without Holm), else the statistic has no power here, which the notes say. For misalignment "towards the
           original" means higher.
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
from expunge.evidence.equivalence import ALPHA, Comparison, compare
from expunge.evidence.feature_measures import (
    AuditSamples,
    FeatureSettings,
    FeatureValue,
    NoHiddenLayer,
    grams,
    layer_rows,
    probe_rows,
    relearn_rows,
)
from expunge.metrics.base import ORIGINAL, Evaluation
from expunge.numerics.statistics import holm

UNLEARNED = "unlearned"
FEATURE_STATISTICS = ("probe confidence", "misalignment", "relearn accuracy", "layer CKA gap")
_FLAGS = {
    "probe confidence": "a linear classifier on the model's inner features is {value:.1%} sure of the right "
    "answer for the forgotten samples; for models that never saw them it is {reference:.1%} +- {spread:.1%}: the "
    "features still hold them",
    "misalignment": "for {value:.1%} of the forgotten samples the inner features give the right answer while the model "
    "gives a wrong one; for models that never saw them {reference:.1%} +- {spread:.1%}: the answers were changed, the "
    "features were not",
    "relearn accuracy": "during a few training steps on one half of the forgotten samples the model recognises "
    "{value:.1%} of the other half, models that never saw them {reference:.1%} +- {spread:.1%}: it "
    "remembers them rather than learning them",
    "layer CKA gap": "the inner layers represent the forgotten samples nearly as the original model did (similarity "
    "{value:+.3f} relative to retained samples); those of models that never saw them do not ({reference:+.3f} +- "
    "{spread:.3f})",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FeatureAudit:
    """The result of the feature-level audit.

    Attributes:
        rows: Every number of every model.
        comparisons: One per statistic; empty without retrained models.
        flags: One sentence per statistic that shows that the features still hold the samples.
        notes: What was left out or has no power, and why.
        left_out: (what, why) of what could not be measured although the models have it.
    """

    rows: list[FeatureValue]
    comparisons: list[Comparison]
    flags: list[str]
    notes: list[str]
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def numbers(self) -> dict[str, dict[str, float]]:
        """Model -> statistic -> value, of the statistics that are tested."""
        return _numbers(self.rows)

    def frame(self) -> pd.DataFrame:
        """One row per number: model, statistic, part (layer, half), step (of relearning; missing elsewhere), value."""
        frame = pd.DataFrame([vars(row) for row in self.rows], columns=["model", "statistic", "part", "step", "value"])
        return frame.astype({"step": "Int64"})

    def details(self) -> dict[str, Any]:
        """Flags, notes, statistics and tests, ready for JSON; without the rows of `frame`."""
        tests = [{**vars(comparison), "equivalent": comparison.equivalent} for comparison in self.comparisons]
        return {"flags": self.flags, "notes": self.notes, "statistics": self.numbers(), "tests": tests}


def audit_features(
    original: Any,
    unlearned: Any,
    retrained: Sequence[Any] = (),
    *,
    forget: Any,
    retain: Any = None,
    test: Any,
    settings: FeatureSettings | Mapping[str, float] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> FeatureAudit:
    """Measure what the features of `unlearned` still hold of `forget`, against models retrained without it.

    Args:
        original: The model before unlearning, a module or a result; like the other models it is not changed.
        unlearned: The model after unlearning.
        retrained: Models retrained without the forget set, none or at least two; without them nothing is flagged.
        forget: The forgotten samples, with labels.
        retain: Retained samples; default: the test samples take their place.
        test: Samples that no model was trained on.
        settings: Sample sizes and margins.
        seed: Of all draws, >= 0.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: For a single retrained model, which has no spread, or for data without labels.
    """
    target = pick_device(device)
    if len(retrained) == 1:
        raise UsageError("one retrained model has no spread; pass at least two, or none for the numbers alone.")
    splits = as_splits({"forget": forget, "retain": retain, "test": test})
    check_disjoint(splits)
    for name in ("forget", "test"):
        if name not in splits:
            raise UsageError(f"the feature-level audit needs {name} data with labels; pass {name}=...")
    for name, split in splits.items():
        if not split.has_labels:
            raise UsageError(f"the feature-level audit needs {name} data with labels; the {name} set has none.")
    models = {ORIGINAL: as_module(original, "original"), UNLEARNED: as_module(unlearned, "unlearned")}
    models |= {f"retrained {i + 1}": as_module(model, f"retrained[{i}]") for i, model in enumerate(retrained)}
    models = {name: as_classifier(module, splits, target)[0] for name, module in models.items()}
    for module in models.values():
        check_fit(module, splits, target)
    return examine(Evaluation(models, splits, device=target, seed=seed), settings)


def examine(evaluation: Evaluation, settings: FeatureSettings | Mapping[str, float] | None = None) -> FeatureAudit:
    """`audit_features` for checked models and splits: "original", "unlearned"; every other model is retrained."""
    if not isinstance(settings, FeatureSettings):
        settings = build(FeatureSettings, dict(settings or {}), "settings")
    splits = evaluation.splits
    retain = splits.get("retain", splits["test"])
    samples = AuditSamples.draw(splits["forget"], retain, splits["test"], evaluation.seed, settings)
    rows: list[FeatureValue] = []
    notes: list[str] = []
    left_out: list[tuple[str, str]] = []
    for part, measure in (("probes", _probes), ("relearning", _relearning), ("layers", _layers)):
        try:
            rows += list(measure(evaluation, samples))
        except NoHiddenLayer as error:
            notes.append(f"{part} not applicable: {error}")
        except (UsageError, RuntimeError, ValueError, TypeError, IndexError) as error:  # left out for all models
            left_out.append((part, _first_line(error)))
    notes += [f"{what} left out: {why}" for what, why in left_out]
    numbers = _numbers(rows)
    references = [name for name in evaluation.models if name not in (ORIGINAL, UNLEARNED)]
    if not references:
        notes.append("no retrained models were given, so nothing is flagged.")
        return FeatureAudit(rows, [], [], notes, left_out)
    comparisons, flags, silent = judge(numbers, references, settings)
    return FeatureAudit(rows, comparisons, flags, [*notes, *silent], left_out)


def judge(
    numbers: Mapping[str, Mapping[str, float]], references: Sequence[str], settings: FeatureSettings
) -> tuple[list[Comparison], list[str], list[str]]:
    """Comparisons, flags and notes.

    Args:
        numbers: Model -> statistic -> value.
        references: Names of at least two retrained models.
        settings: The margins.
    """
    names = [name for name in FEATURE_STATISTICS if name in numbers.get(UNLEARNED, {})]
    reference_values = {name: [numbers[model][name] for model in references] for name in names}
    comparisons = [
        compare(name, numbers[UNLEARNED][name], reference_values[name], settings.margin(name)) for name in names
    ]
    adjusted = holm(np.array([comparison.p_difference for comparison in comparisons]))
    flags, notes = [], []
    for comparison, p in zip(comparisons, adjusted, strict=True):
        side = 1.0
        if comparison.name != "misalignment":
            anchor = compare(
                comparison.name, numbers[ORIGINAL][comparison.name], reference_values[comparison.name], comparison.delta
            )
            if anchor.equivalent or anchor.p_difference >= ALPHA:
                notes.append(
                    f"{comparison.name} does not tell the original model ({anchor.value:.3f}) from {len(references)} "
                    f"retrained ones ({anchor.reference:.3f} +- {anchor.spread:.3f}), so it shows nothing."
                )
                continue
            side = float(np.sign(anchor.difference))
        if not comparison.equivalent and p < ALPHA and np.sign(comparison.difference) == side:
            flags.append(f"{_FLAGS[comparison.name].format(**vars(comparison))} (p {p:.3g} after Holm).")
    return comparisons, flags, notes


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _probes(evaluation: Evaluation, samples: AuditSamples) -> Iterator[FeatureValue]:
    for name in evaluation.models:
        yield from probe_rows(name, evaluation, samples)


def _relearning(evaluation: Evaluation, samples: AuditSamples) -> Iterator[FeatureValue]:
    for name, model in evaluation.models.items():
        yield from relearn_rows(name, model, samples, evaluation.device)


def _layers(evaluation: Evaluation, samples: AuditSamples) -> Iterator[FeatureValue]:
    anchor = grams(evaluation.models[ORIGINAL], samples, evaluation.device)
    for name, model in evaluation.models.items():
        yield from layer_rows(name, grams(model, samples, evaluation.device), anchor)


def _numbers(rows: Sequence[FeatureValue]) -> dict[str, dict[str, float]]:
    numbers: dict[str, dict[str, float]] = {}
    for row in rows:
        if not row.part and row.step is None:
            numbers.setdefault(row.model, {})[row.statistic] = row.value
    return numbers
