"""The planner asked for one call of `unlearn`: the choice of `method="auto"`, and what a method will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from expunge.api.effect import stated_wrong
from expunge.api.planning.pace import measure_pace
from expunge.api.planning.plan import Plan, duration
from expunge.api.planning.planner import make_plan
from expunge.api.planning.situation import Situation, situation_of
from expunge.core.errors import UsageError
from expunge.data.split import Split
from expunge.methods.base import Method, make_method
from expunge.models.modes import evaluation_mode
from expunge.training.recipe import Recipe

# Operations up to which a retraining is cheap: about a minute of one core. Counted, not timed, so that the same call
# makes the same choice on every machine, however busy.
CHEAP = 2e12


def situation(
    model: nn.Module,
    splits: Mapping[str, Split],
    *,
    recipe: Recipe | None,
    initial: bool,
    wrong_labels: bool | None = None,
    budget_seconds: float | None = None,
    certified: bool = False,
) -> Situation:
    """What a call of `unlearn` was given, as the planner sees it. splits: forget, and what is at hand of the others.

    initial: whether the start weights are known. wrong_labels: whether the request is about wrong labels; None: if the
    data say so. certified: whether only a guarantee will do.
    """
    if "forget" not in splits:
        raise UsageError("the planner has nothing to forget: pass forget=...")
    forget, retain, held_out = splits["forget"], splits.get("retain"), splits.get("validation")
    return situation_of(
        model,
        forget,
        retain,
        recipe=recipe,
        initial=initial,
        validation=held_out is not None and held_out.has_labels,
        wrong_labels=stated_wrong(forget) if wrong_labels is None else wrong_labels,
        budget_seconds=budget_seconds,
        certified=certified,
    )


def choose(model: nn.Module, splits: Mapping[str, Split], at: Situation, device: torch.device | str = "cpu") -> Plan:
    """The plan for a forget set: exact where it is cheap or within the budget, else what measurements rank first.

    Raises `UsageError` where nothing fits, with what to provide.
    """
    if at.budget_seconds is not None:
        return make_plan(at, pace=measure_pace(model, splits["forget"], device))
    cheap = at.recipe is not None and training_operations(model, splits["forget"], at.retain, at.recipe) < CHEAP
    return make_plan(at, exact=cheap)


@dataclass(frozen=True)
class Announcement:
    """What a run will take. seconds, retraining: estimates, None where the work cannot be counted or is unknown."""

    method: str
    seconds: float | None
    retraining: float | None
    bound: str = "about"

    @property
    def sentence(self) -> str:
        retrain = self.retraining
        if self.seconds is None:
            text = f"how long {self.method} takes is not known beforehand"
            return f"{text}; `retrain` would take about {duration(retrain)}." if retrain else f"{text}."
        text = f"{self.bound} {duration(self.seconds)}"
        if self.method == "retrain" or not retrain:
            return f"{text}."
        return f"{text}: {self.seconds / retrain:.0%} of a retraining; `retrain` would take {duration(retrain)}."


def announce(
    model: nn.Module, chosen: Method, at: Situation, some: Split, device: torch.device | str = "cpu"
) -> Announcement:
    """Count the work of a method and time a few batches of the model on `some`; right within a factor of about 1.5."""
    pace = measure_pace(model, some, device)
    work = chosen.cost(at.sizes)
    whole = None if at.recipe is None or not at.retain else make_method("retrain").cost(at.sizes)
    return Announcement(
        chosen.card.name,
        None if work is None else pace.seconds(work),
        None if whole is None else pace.seconds(whole),
        "about" if work is None else work.bound,
    )


def training_operations(model: nn.Module, some: Split, samples: int, recipe: Recipe) -> float:
    """Floating-point operations of a training on so many samples: three forward passes per sample and epoch.

    What PyTorch cannot count (recurrent kernels) counts at least as two operations per weight.
    """
    batch = next(iter(some.batches(1)))
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, evaluation_mode(model), torch.no_grad():
        model(batch.x.to(home))
    forward = max(counter.get_total_flops(), 2 * sum(p.numel() for p in model.parameters()))
    return 3.0 * forward * samples * recipe.epochs
