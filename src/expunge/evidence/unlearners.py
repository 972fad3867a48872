"""What shadow models unlearn with: a method of the catalogue, or any function of the caller.

A function is called as `function(model, forget, retain)`: a copy of a shadow original, the samples to forget and those
to keep (`Split`: `.inputs()`, `.y`, `.batches(size)`). It returns the unlearned module, or a result that holds it.
Nothing has to be registered, and nothing about it has to be known.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from expunge.api.prepare import as_module
from expunge.api.unlearn import unlearn
from expunge.core.errors import UsageError
from expunge.core.identity import code_hash
from expunge.core.options import to_dict
from expunge.data.split import Split
from expunge.methods.base import Method
from expunge.training.recipe import Recipe

Function = Callable[[nn.Module, Split, Split], Any]
Unlearner = Method | Function


def is_function(method: object) -> TypeGuard[Function]:
    """Whether `method` is a function of the caller, and no method of the catalogue, its name or its class."""
    return callable(method) and not isinstance(method, (Method, str, type))


def name_of(method: Unlearner) -> str:
    """The name of a method, or of a function."""
    if isinstance(method, Method):
        return method.card.name
    function = method.func if isinstance(method, functools.partial) else method
    return str(getattr(function, "__name__", type(function).__name__))


def identity_of(method: Unlearner) -> list[Any] | None:
    """What decides the work of a method, for cache keys; None where that cannot be told, so that nothing is cached.

    It can be told of methods, and of plain functions, and `functools.partial` of these with plain values. A closure or
    an object may hold anything.
    """
    if isinstance(method, Method):
        return [code_hash(type(method)), method.card.name, to_dict(method)]
    function, bound = method, []
    if isinstance(method, functools.partial):
        function, bound = method.func, [repr(method.args), repr(sorted(method.keywords.items()))]
        values = (*method.args, *method.keywords.values())
        if not all(isinstance(value, (str, int, float, bool, type(None))) for value in values):
            return None
    if not isinstance(function, types.FunctionType) or function.__closure__:
        return None
    return [code_hash(function), function.__module__, function.__qualname__, repr(function.__defaults__), *bound]


def apply(
    method: Unlearner,
    model: nn.Module,
    forget: Split,
    retain: Split,
    *,
    recipe: Recipe,
    initial: Mapping[str, Tensor],
    seed: int,
    device: str,
) -> nn.Module:
    """The model after unlearning; the given one stays as it is.

    Args:
        method: What unlearns.
        model: A trained model.
        forget: What it is to forget.
        retain: What it is to keep.
        recipe: How it was trained, for methods that need that.
        initial: The weights its training started from, for methods that need them.
        seed: Of the unlearning; a function seeds itself.
        device: Of a method of the catalogue; a function gets the model where it is.

    Raises:
        UsageError: If a function returns no module.
    """
    if isinstance(method, Method):
        # Retraining starts from fresh weights: whoever retrains does not know the initial ones.
        start = initial if method.needs.weights else None
        return unlearn(
            model, forget=forget, retain=retain, method=method, recipe=recipe, initial=start, seed=seed, device=device
        ).model
    result = method(copy.deepcopy(model), forget, retain)
    if result is None:
        raise UsageError(f"{name_of(method)} returned nothing; return the unlearned torch.nn.Module.")
    return as_module(result, f"what {name_of(method)} returned")


__all__ = ["Unlearner", "apply", "identity_of", "is_function", "name_of"]
