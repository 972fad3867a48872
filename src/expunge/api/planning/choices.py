"""Which methods `auto` weighs for a kind of request, in what order, and with what options.

The order is that of the measurements (`ranks`): more good results first, then the smaller gap. Where a method was not
measured it stands behind those that were, in the order documented here: methods of ours, then those that read more,
then those that do with less. Measured methods run with their defaults, as they were measured; the others with settings
whose batches grow with the forget set, so that the number of ascent steps stays what it is on small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.api.planning.ranks import Rank, Ranks, rank_of
from expunge.api.planning.situation import Kind, Situation
from expunge.methods import METHODS
from expunge.methods.scrub import FAMILIES, SCRUB

Settings = Callable[[Situation], dict[str, Any]]
NEVER = ("reference", "control")  # tags of what is no answer to a request
EXACT = ("retrain", "sisa", "exact-head")  # planned for by rules of their own


@dataclass(frozen=True)
class Choice:
    """method: a registered name. options: of this method in this situation. rank: what was measured, if anything."""

    method: str
    options: dict[str, Any]
    rank: Rank | None

    @property
    def evidence(self) -> str:
        """A sentence without its stop."""
        if self.rank is None:
            return f"{self.method} is next in the documented order; nothing was measured of it for such a request"
        return self.rank.sentence(self.method)


def ascent_batch(at: Situation, passes: int, steps: int) -> int:
    """Batch of the forget set with which `passes` over it make about `steps` steps; within 16 .. 512.

    Above 512 memory decides, and larger sets get more steps.
    """
    return min(max(-(-at.forget * passes // steps), 16), 512)


def scrub(at: Situation) -> dict[str, Any]:
    """About ten ascent steps for a class, three for samples, eight for wrong labels, in the notebooks' reading."""
    if at.kind == "class":
        return {"lr": 4.5e-4, "msteps": 1, "forget_batch_size": ascent_batch(at, 1, 10)}
    if at.kind == "samples":
        return {"epochs": 3, "msteps": 2 if at.forget <= 8 else 3, "forget_batch_size": ascent_batch(at, 3, 3)}
    steps = int(FAMILIES["small-rc"]["msteps"])
    return {**SCRUB.presets["small-rc/faithful"], "forget_batch_size": ascent_batch(at, steps, 8)}


def neggrad_plus(at: Situation) -> dict[str, Any]:
    """Options of NegGrad+, with stronger regularisation for wrong labels."""
    if at.kind == "labels":
        return {"epochs": 10, "clip": 1.0, "batchnorm": "frozen", "l2_reference": 0.1}
    return {"epochs": 3, "clip": 1.0}


def laf(at: Situation) -> dict[str, Any]:
    """The authors' settings of a task, for their CNN or, with BatchNorm, their ResNet."""
    from expunge.methods.laf import LAF

    task = {"samples": "random", "class": "class", "labels": "noise"}[at.kind]
    return dict(LAF.presets[f"{task}-{'resnet' if at.batchnorm else 'cnn'}"])


def laf_repair(at: Situation) -> dict[str, Any]:
    """Options of LAF+R: LAF's, and a longer repair."""
    return {**laf(at), "repair_epochs": 5, "repair_lr": 1e-3}


def bad_teacher(at: Situation) -> dict[str, Any]:
    """Options of bad teacher, with a smaller rate for single samples."""
    if at.kind == "class":
        return {"epochs": 4, "lr": 5.2e-4}
    return {"epochs": 4, "lr": 4.4e-5, "forget_weight": 0.3}


def relabel(at: Situation) -> dict[str, Any]:
    """`l2ul/fast`. Above 32 samples without the importance pull, which holds many of them back."""
    from expunge.methods.l2ul import L2UL

    return {
        **L2UL.presets["fast"],
        "goal": "relabel",
        "strength": 1.0 if at.forget <= 32 else 0.0,
        "examples": 20 if at.forget <= 64 else 10,
        "limit": 60,
    }


SETTINGS: Mapping[str, Settings] = {
    "scrub": scrub,
    "neggrad+": neggrad_plus,
    "laf": laf,
    "laf+r": laf_repair,
    "bad-t": bad_teacher,
    "l2ul": relabel,
    "boundary-shrink": lambda at: {"epochs": 5, "lr": 1.1e-4},
    "boundary-expand": lambda at: {"epochs": 2, "lr": 1.7e-4},
}

# Where nothing is measured. `unsee` changes the model, `retrain-short` never sees the forgotten samples.
DOCUMENTED: Mapping[Kind, tuple[str, ...]] = {
    "samples": ("unsee", "retrain-short", "scrub", "neggrad+", "laf+r", "bad-t", "l2ul"),
    "class": ("unsee", "retrain-short", "scrub", "laf", "boundary-shrink", "bad-t", "boundary-expand"),
    "labels": ("unsee", "retrain-short", "scrub", "neggrad+", "laf", "l2ul"),
}


def choices(at: Situation, ranks: Ranks) -> list[Choice]:
    """What `auto` weighs in this situation, best first."""
    documented = [name for name in DOCUMENTED[at.kind] if name in METHODS.names()]
    known = {name: rank for name in METHODS.usable() if _weighed(name) and (rank := rank_of(name, at, ranks))}
    order = sorted(known, key=lambda name: (-known[name].good, known[name].gap or 0.0, name))
    return [
        Choice(name, options(name, at, ranks), known.get(name))
        for name in (*order, *(name for name in documented if name not in known))
    ]


def options(method: str, at: Situation, ranks: Ranks) -> dict[str, Any]:
    """Of a method that was measured: its defaults, as measured; else those that fit the size of the request."""
    if rank_of(method, at, ranks) is not None or method not in SETTINGS:
        return {}
    return SETTINGS[method](at)


def _weighed(name: str) -> bool:
    return name not in EXACT and not set(METHODS.card(name).tags) & set(NEVER)
