"""Rewinding (SCRUB+R): return the epoch whose error on the forget set is that of unseen data of the same classes.

Paper      Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, section 3.2 (SCRUB+R)
Rule       target = error of the *final* model on held-out samples, weighted by the forget set's class histogram;
           return the snapshot e in 0..E whose error on the forget set is closest to it, the earliest on ties
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.methods.problem import Problem
from expunge.training.inference import error_rate, predict


def closest(errors: Sequence[float], target: float) -> int:
    """Index of the error closest to the target, the earliest on ties.

    >>> closest([0.0, 0.25, 0.5, 0.75], target=0.375)
    1
    """
    return min(range(len(errors)), key=lambda e: (abs(errors[e] - target), e))


def matched_error(logits: Tensor, labels: Tensor, like: Tensor) -> float:
    """Error of held-out samples, reweighted to the class histogram of the forget set.

    Classes of D_f without a held-out sample are ignored.

    Args:
        logits: of held-out samples (n, C).
        labels: of held-out samples (n,).
        like: labels of D_f (m,).

    Returns:
        An error in [0, 1].

    Raises:
        UsageError: if no held-out sample has a class of D_f.
    """
    wrong = (logits.argmax(1).cpu() != labels).double()
    weights = torch.bincount(like).double()
    total, mass = 0.0, 0.0
    for label in weights.nonzero().flatten().tolist():
        held_out = labels == label
        if bool(held_out.any()):
            total += float(weights[label] * wrong[held_out].mean())
            mass += float(weights[label])
    if mass == 0:
        raise UsageError("rewind: no validation sample has a class of the forget set; pass validation data with them.")
    return total / mass


def rewind(problem: Problem, run: Run, final: nn.Module, snapshots: Mapping[int, Mapping[str, Tensor]]) -> nn.Module:
    """Load the chosen snapshot into `final` and return it; adds forget errors to the history.

    Changes that a method makes after its last epoch, such as the repair of the head in LAF+R, are in no snapshot: the
    final model is then one more candidate, "final", after all epochs. A note is added if it is not chosen.

    Args:
        problem: with validation data and a forget set, both labelled.
        run: its history has one row per epoch.
        final: the model as the method returned it; its weights are replaced.
        snapshots: state dict after each epoch, 0 for the original.
    """
    validation = problem.validation
    target = matched_error(predict(final, validation, run.device, world=run.world), validation.y, problem.forget.y)
    last = {name: value.detach().clone() for name, value in final.state_dict().items()}
    candidates: dict[int | str, Mapping[str, Tensor]] = {epoch: snapshots[epoch] for epoch in sorted(snapshots)}
    changed_after_last_epoch = any(
        not torch.equal(value, snapshots[max(snapshots)][name]) for name, value in last.items()
    )
    if changed_after_last_epoch:
        candidates["final"] = last
    errors: dict[int | str, float] = {}
    for name, weights in candidates.items():
        final.load_state_dict(weights)
        errors[name] = error_rate(predict(final, problem.forget, run.device, world=run.world), problem.forget.y)
    chosen = list(errors)[closest(list(errors.values()), target)]
    final.load_state_dict(candidates[chosen])
    for row in run.history:
        if int(row["epoch"]) in errors:
            row["forget_error"] = errors[int(row["epoch"])]
    run.details["rewind"] = {"target": target, "errors": errors, "chosen": chosen}
    if changed_after_last_epoch and chosen != "final":
        run.notes.append(f"rewind chose epoch {chosen}: the result lacks what {run.label} did after its last epoch.")
    return final
