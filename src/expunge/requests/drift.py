"""How far a model has moved by approximate unlearning since it was last trained, and when to train it again.

Every approximate step leaves something, forgets too much, or costs accuracy, and later steps start from there. In the
streams of results/README.md ("Requests one after the other") four requests cost methods that see the forget set only 7
to 26 points of test accuracy, SCRUB and NegGrad+ 1 to 3. What is measured here:

    disagreement     share of test samples that the active model answers otherwise than the base
    accuracy loss    accuracy of the base less that of the active model on them, with labels; with the p-value of the
                     exact McNemar test (SciPy's binomial test on the samples where just one of the two is right)
    counted          approximate steps, samples that they forgot, audits that failed

The base is the last version that was trained from scratch without what was forgotten before, or the imported one.
Test samples of classes that were forgotten whole are left out: there the model is meant to change.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from scipy.stats import binomtest
from torch import nn

from expunge.api.planning.advice import Advice, Drift, Limits, Word
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.data.split import Split
from expunge.training.inference import predict

__all__ = ["Advice", "Drift", "Limits", "advise", "measure_drift"]
ALPHA = 0.05


def measure_drift(
    base: nn.Module,
    active: nn.Module,
    test: Split | None,
    *,
    steps: int,
    forgotten: int,
    knew: int,
    failed: int = 0,
    removed: Collection[int] = (),
    device: torch.device | str = "cpu",
) -> Drift:
    """Compare two versions on unseen samples.

    steps: approximate steps from base to active. forgotten: samples that they forgot, of the `knew` that the base was
    trained on. failed: audits among them with the word "not forgotten", "over-forgotten" or "damaged". removed: classes
    that were forgotten whole. Raises `UsageError` where these leave no test sample, or classes have no labels.
    """
    counted = {"steps": steps, "forgotten": forgotten, "knew": knew, "failed": failed}
    if test is None:
        return build(Drift, counted)
    if removed:
        if not test.has_labels:
            raise UsageError("drift: removed classes are named, but the test samples have no labels to find them by.")
        gone = torch.isin(test.y, torch.tensor(sorted(removed)))
        test = test.take(test.index[~gone])
    if not len(test):
        raise UsageError("drift: no test sample is left to compare the two versions on; pass some of other classes.")
    before, now = (_answers(model, test, device) for model in (base, active))
    compared = {"samples": len(test), "disagreement": float((before != now).double().mean())}
    if not test.has_labels:
        return build(Drift, {**counted, **compared})
    was, is_ = before == test.y, now == test.y
    lost, won = int((was & ~is_).sum()), int((is_ & ~was).sum())
    accuracies = {
        "base_accuracy": float(was.double().mean()),
        "accuracy": float(is_.double().mean()),
        "p_loss": float(binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0,
    }
    return build(Drift, {**counted, **compared, **accuracies})


def _answers(model: nn.Module, test: Split, device: torch.device | str) -> torch.Tensor:
    home = next((p.device for p in model.parameters()), torch.device(device))
    try:
        return predict(model.to(device), test, device).argmax(1).cpu()
    finally:
        model.to(home)


def advise(drift: Drift, limits: Limits | None = None) -> Advice:
    """The rule: the worst of all numbers decides. Without an approximate step there is nothing to drift."""
    limit = limits or build(Limits, {})
    if drift.steps == 0:
        reason = "no approximate step was made since the model was trained."
        return Advice(word="go on", reasons=(reason,), drift=drift, limits=limit, left=1.0)
    found: list[tuple[Word, str]] = []
    for text, value, most, sure in _numbers(drift, limit):
        if value >= most and sure:
            found.append(("retrain now", f"{text}; the limit is {_shown(most)}."))
        elif value >= most:
            found.append(("retrain soon", f"{text}, which may still be chance; the limit is {_shown(most)}."))
        elif value >= limit.soon * most and sure:
            found.append(("retrain soon", f"{text}; the limit is {_shown(most)}."))
    words = [word for word, _ in found]
    worst: Word = next((word for word in ("retrain now", "retrain soon") if word in words), "go on")
    reasons = [text for word, text in sorted(found, key=lambda pair: pair[0] != worst)]
    if not found:
        reasons = [f"{text}; the limit is {_shown(most)}." for text, _, most, _ in _numbers(drift, limit)]
    loss = drift.accuracy_loss
    left = None if loss is None else min(max(1 - loss / limit.accuracy_loss, 0.0), 1.0)
    if loss is None:
        reasons.append("accuracy on unseen samples is unknown: give test data with labels.")
    return Advice(word=worst, reasons=tuple(reasons), drift=drift, limits=limit, left=left)


def _numbers(drift: Drift, limit: Limits) -> list[tuple[str, float, float, bool]]:
    """(text, value, limit, beyond chance), the most telling first."""
    rows: list[tuple[str, float, float, bool]] = []
    plural = "s" if drift.failed != 1 else ""
    rows.append((f"{drift.failed} audit{plural} since then failed", drift.failed, limit.failed, True))
    loss = drift.accuracy_loss
    if loss is not None and drift.accuracy is not None and drift.base_accuracy is not None:
        text = (
            f"test accuracy went from {drift.base_accuracy:.3f} to {drift.accuracy:.3f} on {drift.samples} samples "
            f"(p {drift.p_loss:.2g})"
        )
        rows.append((text, loss, limit.accuracy_loss, (drift.p_loss or 0.0) < ALPHA))
    if drift.disagreement is not None:
        text = f"{drift.disagreement:.1%} of {drift.samples} unseen samples are answered otherwise than then"
        rows.append((text, drift.disagreement, limit.disagreement, True))
    share = drift.forgotten / drift.knew
    rows.append((f"{share:.1%} of the training samples were forgotten since then", share, limit.forgotten, True))
    noun = "step" if drift.steps == 1 else "steps"
    rows.append((f"{drift.steps} approximate {noun} were made since then", drift.steps, limit.steps, True))
    return rows


def _shown(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:.1%}"
