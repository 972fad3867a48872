"""What keeps a method from doing harm: the guard on its utility, and a second try where its steps were too large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from expunge.api.effect import some, staying
from expunge.core.errors import DivergedError
from expunge.core.options import to_dict
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import IterativeMethod, Method
from expunge.methods.problem import Problem
from expunge.training.guard import MOST, Guard

RETAINED = 3.0  # times `max_drop` may be lost on retained samples, which a method may fit less without harm
LOWER = 0.1  # factor on a learning rate that made the first try diverge


def set_guard(chosen: Method, splits: Mapping[str, Split], run: Run) -> None:
    """Give the run the guard that the method asks for; a note where there are no samples to look at."""
    if not isinstance(chosen, IterativeMethod) or chosen.max_drop is None or chosen.rewinds:
        return
    held_out, retain, forget = (splits.get(name) for name in ("validation", "retain", "forget"))
    allowed = chosen.max_drop
    if held_out is not None and held_out.has_labels:
        kept = staying(held_out, forget, retain)
        data = held_out.take(held_out.index[kept])
    elif retain is not None and retain.has_labels:
        data, allowed = retain, min(RETAINED * allowed, 0.5)
        run.notes.append(
            f"the guard on utility had no held-out samples; it watched retained ones, of which {allowed:.0%} may be "
            "lost: pass validation=... with samples that the model was not trained on."
        )
    else:
        data = None
    if data is None or not len(data):
        run.notes.append(
            "the guard on utility (`max_drop`) was off: there are no held-out samples of classes that stay; pass "
            "validation=... with some."
        )
        return
    run.guard = Guard(some(data, MOST, run.seed, "guard"), allowed, run.device, run.world)


def apply_safely(
    chosen: Method, problem: Problem, run: Run, *, rate_given: bool = False
) -> tuple[nn.Module, Method, Run]:
    """`chosen.apply`; where it diverges at its default rate, once more at a tenth of it.

    Returns the model with the method and the run that made it. rate_given: the rate was asked for and is not touched.
    """
    try:
        return chosen.apply(problem, run), chosen, run
    except DivergedError as error:
        slower = None if rate_given else lowered(chosen)
        if slower is None:
            raise
        rate = to_dict(slower)["lr"]
        note = f"{str(error).partition('. ')[0]}; this is the second try, at a learning rate of {rate:g}."
        resume = None if run.resume is None else run.resume.second()
        again = replace(
            run, resume=resume, history=[], stages={}, details={}, snapshots={}, status="finished",
            notes=[*run.notes, note],
        )  # fmt: skip
        again.started = run.started  # a budget counts both tries
        return slower.apply(problem, again), slower, again


def lowered(chosen: Method) -> Method | None:
    """The method at a lower rate; None where it has none, or its settings are a paper's, which have no guard."""
    usual = to_dict(chosen).get("lr")
    guarded = isinstance(chosen, IterativeMethod) and chosen.max_drop is not None
    return replace(chosen, lr=LOWER * usual) if guarded and usual is not None else None  # type: ignore[type-var]
