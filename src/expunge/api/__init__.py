"""The verbs on one model: `train`, `load`, `scenario`, `unlearn`, `evaluate`, `memorise`; and `TrainedModel`."""

from __future__ import annotations

from typing import Any

from expunge.api.between import between
from expunge.api.evaluate import Scores, evaluate
from expunge.api.exact import fit_head
from expunge.api.memorise import memorise
from expunge.api.result import Result
from expunge.api.saved import load
from expunge.api.selection import ids
from expunge.api.stream import unlearn_stream
from expunge.api.train import train
from expunge.api.trained import TrainedModel
from expunge.api.unlearn import unlearn
from expunge.core.distributed import data_parallel
from expunge.data.convert import as_split
from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.scenarios.base import ForgetSplit, make_scenario

__all__ = [
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
    "methods",
    "scenario",
    "train",
    "unlearn",
    "unlearn_stream",
]


def methods() -> list[str]:
    """Names of all registered methods, third-party ones included."""
    return METHODS.names()


def method(name: str) -> type[Method]:
    """The options class of a method: a typed, validated, frozen dataclass.

    >>> import expunge
    >>> expunge.method("scrub")(alpha=0.1).alpha
    0.1
    """
    loaded: type[Method] = METHODS.load(METHODS.named(name))
    return loaded


def scenario(name: str, train_set: Any, *, seed: int = 0, **options: Any) -> ForgetSplit:
    """Partition a training set: `.forget`, `.retain`, and `.train` (what the original is trained on).

    train_set: an Expunge split, a map-style PyTorch data set, or (X, y). Same seed, same split. Raises `UsageError`
    on unknown names and options, `DataError` if nothing or everything would be forgotten.
    """
    return make_scenario(name, options).split(as_split(train_set, name="train"), seed)
