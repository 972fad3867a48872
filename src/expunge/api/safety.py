"""What keeps a method from doing harm: the guard on its utility, and a second try where its steps were too large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from expunge.api.effect import some, staying
from expunge.core.errors import DivergedError
from expunge.core.options import describe, to_dict
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import IterativeMethod, Method
from expunge.methods.problem import Problem
from expunge.training.guard import MOST, Guard

LOWER = 0.1  # factor on a learning rate that made the first try diverge


def set_guard(chosen: Method, splits: Mapping[str, Split], run: Run) -> None:
    """Give the run the guard that the method asks for; a note where there are no samples to look at."""
    if not isinstance(chosen, IterativeMethod) or chosen.max_drop is None or chosen.rewinds:
        return
    held_out, retain, forget = (splits.get(name) for name in ("validation", "retain", "forget"))
    if held_out is None or not held_out.has_labels:
        run.notes.append(
            "the guard on utility (`max_drop`) was off: there are no held-out samples; pass validation=... with some."
        )
        return
    kept = staying(held_out, forget, retain)
    if not bool(kept.any()):
        run.notes.append("the guard on utility (`max_drop`) was off: no held-out sample has a class that stays.")
        return
    data = some(held_out.take(held_out.index[kept]), MOST, run.seed, "guard")
    run.guard = Guard(data, chosen.max_drop, run.device, run.world)


def apply_safely(chosen: Method, problem: Problem, run: Run) -> tuple[nn.Module, Method, Run]:
    """`chosen.apply`; where it diverges at its default rate, once more at a tenth of it.

    Returns the model with the method and the run that made it. A rate that was asked for is not touched.
    """
    try:
        return chosen.apply(problem, run), chosen, run
    except DivergedError as error:
        slower = lowered(chosen)
        if slower is None:
            raise
        rate = to_dict(slower)["lr"]
        note = f"{str(error).partition('. ')[0]}; this is the second try, at a learning rate of {rate:g}."
        again = replace(
            run, history=[], stages={}, details={}, snapshots={}, status="finished", notes=[*run.notes, note]
        )
        again.started = run.started  # a budget counts both tries
        return slower.apply(problem, again), slower, again


def lowered(chosen: Method) -> Method | None:
    """The method at a lower rate; None where its rate is not the default, or its settings are a paper's."""
    usual = {option.name: option.default for option in describe(type(chosen))}.get("lr")
    guarded = isinstance(chosen, IterativeMethod) and chosen.max_drop is not None
    if not guarded or usual is None or usual != to_dict(chosen)["lr"]:
        return None
    return replace(chosen, lr=LOWER * usual)  # type: ignore[type-var]
