"""Expunge makes a trained PyTorch classifier forget chosen training data, and proves how well it forgot.

Importing this package is cheap; torch loads with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.core.version import __version__

if TYPE_CHECKING:
    from expunge.api import data_parallel, method, methods, scenario
    from expunge.api.between import between
    from expunge.api.evaluate import Scores, evaluate
    from expunge.api.exact import fit_head
    from expunge.api.inspection import inspect
    from expunge.api.memorise import memorise
    from expunge.api.result import Result
    from expunge.api.saved import load
    from expunge.api.selection import ids
    from expunge.api.stream import unlearn_stream
    from expunge.api.train import train
    from expunge.api.trained import TrainedModel
    from expunge.api.unlearn import unlearn
    from expunge.data.user_sets import data_set
    from expunge.evidence.audit import audit
    from expunge.evidence.verdict import Verdict
    from expunge.models.build import model
    from expunge.repair.repair import repair_labels
    from expunge.training.recipe import Recipe


_HOMES = {
    "expunge.api": (
        "Result",
        "Scores",
        "TrainedModel",
        "between",
        "data_parallel",
        "evaluate",
        "fit_head",
        "ids",
        "load",
        "memorise",
        "method",
        "scenario",
        "train",
        "unlearn",
        "unlearn_stream",
    ),
    "expunge.api.inspection": ("inspect",),
    "expunge.data.user_sets": ("data_set",),
    "expunge.evidence.audit": ("audit",),
    "expunge.evidence.verdict": ("Verdict",),
    "expunge.models.build": ("model",),
    "expunge.repair.repair": ("repair_labels",),
    "expunge.training.recipe": ("Recipe",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Recipe",
    "Result",
    "Scores",
    "TrainedModel",
    "Verdict",
    "__version__",
    "audit",
    "between",
    "data_parallel",
    "data_set",
    "evaluate",
    "fit_head",
    "ids",
    "inspect",
    "load",
    "memorise",
    "method",
    "methods",
    "model",
    "repair_labels",
    "scenario",
    "train",
    "unlearn",
    "unlearn_stream",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "methods":  # the package, which is callable: importing it binds the same object to this name
        return importlib.import_module("expunge.methods")
    if name not in _WHERE:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
