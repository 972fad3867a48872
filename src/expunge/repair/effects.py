"""What a repair did to a model: the confused pairs, every class, the suspects themselves. All paired, before and after.

IC-ERR and FGT-ERR are those of `metrics.confusion`, for each pair of labels that the suspects mix up and for all pairs
together. p is of the exact McNemar test: samples that turned wrong against samples that turned right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from expunge.metrics.base import ORIGINAL, REFERENCE, Evaluation
from expunge.metrics.confusion import pair_errors
from expunge.numerics.statistics import wilson
from expunge.repair.suspects import Suspects

REPAIRED = "repaired"
MODELS = (ORIGINAL, REPAIRED, REFERENCE)
MOST_PAIRS = 10  # the rarer ones are in the row of all pairs


@dataclass(frozen=True)
class Share:
    """A proportion in [0, 1] with its 95 % Wilson interval."""

    count: int
    of: int

    def details(self) -> dict[str, float | int]:
        """Count, total, share and its 95 % Wilson interval."""
        low, high = wilson(self.count, self.of)
        return {"count": self.count, "of": self.of, "share": self.count / self.of, "low": low, "high": high}


@dataclass(frozen=True)
class Turned:
    """Samples that were right before and wrong after (`lost`), and the other way round (`won`)."""

    lost: int
    won: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> Turned:
        """before, after: bool (n,), right or not."""
        return cls(int((before & ~after).sum()), int((~before & after).sum()))

    @property
    def p(self) -> float:
        """Exact McNemar test, two-sided; 1 where nothing turned."""
        total = self.lost + self.won
        return float(binomtest(self.lost, total).pvalue) if total else 1.0

    def details(self) -> dict[str, float | int]:
        """Newly wrong and newly correct samples, and the p value of their difference."""
        return {"lost": self.lost, "won": self.won, "p": self.p}


def overall(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Accuracy on test and on retained samples, per model."""
    rows = []
    for split in evaluation.present(("test", "retain")):
        everybody = torch.ones(len(evaluation.splits[split]), dtype=torch.bool)
        rows.append({"split": split, **_beside(evaluation, split, everybody)})
    return rows


def class_effects(evaluation: Evaluation, suspects: Suspects) -> list[dict[str, Any]]:
    """Accuracy per class and split (test and retained samples), per model; classes without samples are left out.

    suspects: how many suspects carry the class as given, and how many should carry it.
    """
    rows = []
    for split in evaluation.present(("test", "retain")):
        labels = evaluation.labels(split)
        for number, name in enumerate(evaluation.splits[split].store.classes):
            of_class = labels == number
            if bool(of_class.any()):
                given_count = int((suspects.given == number).sum())
                suggested = int((suspects.suggested == number).sum())
                row = {"split": split, "class": number, "name": name, "given": given_count, "suggested": suggested}
                rows.append(row | _beside(evaluation, split, of_class))
    return rows


def pair_effects(evaluation: Evaluation, suspects: Suspects) -> list[dict[str, Any]]:
    """IC-ERR and FGT-ERR per pair of mixed-up labels and split; a last row "all pairs" where there are several."""
    directed = {(given, suggested): count for given, suggested, count in suspects.pairs()}
    counts: Counter[tuple[int, int]] = Counter()
    for (given, suggested), count in directed.items():
        counts[min(given, suggested), max(given, suggested)] += count
    most = sorted(counts, key=lambda pair: (-counts[pair], pair))
    rows = []
    for split in evaluation.present(("test", "retain")):
        names = evaluation.splits[split].store.classes
        for a, b in most[:MOST_PAIRS]:
            row = _pair_row(evaluation, split, [(a, b)])
            if row is not None:
                forward, back = directed.get((a, b), 0), directed.get((b, a), 0)
                facts = {"classes": [a, b], "names": [names[a], names[b]], "there": forward, "back": back}
                rows.append({"split": split, **facts, "suspects": counts[a, b], **row})
        if len(most) > 1 and (row := _pair_row(evaluation, split, most)) is not None:
            facts = {"classes": [], "names": ["all pairs"], "there": None, "back": None}
            rows.append({"split": split, **facts, "suspects": counts.total(), **row})
    return rows


def suspect_effects(evaluation: Evaluation, suspects: Suspects) -> dict[str, dict[str, Any]]:
    """Per model: how many suspects it still calls by the given label, by the suggested one, by another.

    confidence: mean probability of the given label.
    """
    effects = {}
    for model in present(evaluation):
        logits = evaluation.logits(model, "forget")
        predictions = logits.argmax(1)
        given, suggested = predictions == suspects.given, (predictions == suspects.suggested) & suspects.relabelled
        sure = confidence(logits, suspects.given)
        effects[model] = {
            "given": int(given.sum()),
            "suggested": int(suggested.sum()),
            "other": int((~given & ~suggested).sum()),
            "confidence": float(sure.mean()),
        }
    return effects


def present(evaluation: Evaluation) -> Iterable[str]:
    """Names of the models of a repair that are evaluated, in their order."""
    return (name for name in MODELS if name in evaluation.models)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability of these labels, float64 (n,)."""
    return logits.double().softmax(1).gather(1, labels[:, None])[:, 0]


def _beside(evaluation: Evaluation, split: str, affected: Tensor) -> dict[str, Any]:
    right = {model: evaluation.correct(model, split)[affected] for model in present(evaluation)}
    return {
        "samples": int(affected.sum()),
        "models": {model: Share(int(hits.sum()), len(hits)).details() for model, hits in right.items()},
        "turned": Turned.of(right[ORIGINAL], right[REPAIRED]).details(),
    }


def _pair_row(evaluation: Evaluation, split: str, pairs: list[tuple[int, int]]) -> dict[str, Any] | None:
    """IC-ERR and FGT-ERR of the classes of these pairs; None without a sample of them."""
    labels = evaluation.labels(split)
    of_pair = torch.isin(labels, torch.tensor(sorted({number for pair in pairs for number in pair})))
    total = int(of_pair.sum())
    if not total:
        return None
    models = {}
    for model in present(evaluation):
        predictions = evaluation.logits(model, split).argmax(1)
        wrong = int((predictions[of_pair] != labels[of_pair]).sum())
        exchanged = sum(errors[1] for pair in pairs if (errors := pair_errors(labels, predictions, *pair)) is not None)
        models[model] = {"ic_error": Share(wrong, total).details(), "fgt_error": Share(exchanged, total).details()}
    before, after = (evaluation.correct(model, split)[of_pair] for model in (ORIGINAL, REPAIRED))
    return {"samples": total, "models": models, "turned": Turned.of(before, after).details()}
