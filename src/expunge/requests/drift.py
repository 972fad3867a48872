"""How far a model has moved by approximate unlearning since it was last trained (when to train: `training.advice`).

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

from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.data.split import Split
from expunge.training.advice import Drift
from expunge.training.inference import predict


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
