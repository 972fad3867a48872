"""Building a module from the name of a model or a user's factory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.parameter import is_lazy

from expunge.core.errors import UsageError, nearest, unknown
from expunge.core.registry import Card
from expunge.core.user_code import load_user_code
from expunge.models import MODELS
from expunge.models.contract import adapted, plain_module
from expunge.models.initial import drawing
from expunge.models.modes import evaluation_mode

F = TypeVar("F", bound=Callable[..., nn.Module])
_PLAIN: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


def build_model(
    spec: str,
    *,
    num_classes: int,
    input_shape: Sequence[int],
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model with random weights that depend on `seed` alone; the global random state is not changed.

    Args:
        spec: a catalogue name, `package.module:function`, or `path/to/file.py:function`. A user's factory is called
            with those of num_classes, input_shape and in_channels that its signature names, and with `options`.
        num_classes: number of logits.
        input_shape: shape of one sample.
        seed: of the initial weights.
        options: of the factory.

    Raises:
        UsageError: for an unknown name, wrong options, or a factory that fails or returns no module.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UsageError(f"the number of classes must be a whole number >= 1, got {num_classes!r}.")
    if not input_shape or not all(isinstance(n, int) and n > 0 for n in input_shape):
        raise UsageError(f"the input shape must be whole numbers >= 1, such as 3, 32, 32, got {tuple(input_shape)}.")
    make = factory(spec)
    offered = {"num_classes": num_classes, "input_shape": tuple(input_shape), "in_channels": input_shape[0]}
    arguments = _arguments(spec, make, offered, dict(options or {}))
    with drawing(seed):
        try:
            model = make(**arguments)
        except UsageError:
            raise
        except Exception as error:  # a user's factory may raise anything; the message names it
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"model `{spec}` cannot be built with {arguments}: {reason}.") from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"`{spec}` must return a torch.nn.Module, it returned {type(model).__name__}.")
        return _ready(model, spec, tuple(input_shape)) if ":" in spec else model


def _ready(model: nn.Module, spec: str, input_shape: tuple[int, ...]) -> nn.Module:
    """A user's module with initialised lazy layers, within an adapter if its outputs need one."""
    with torch.no_grad(), evaluation_mode(model):
        if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            try:
                model(torch.zeros(2, *input_shape))
            except (RuntimeError, ValueError, TypeError, LookupError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(
                    f"model `{spec}` has lazy layers and does not take a batch of shape {(2, *input_shape)} ({reason})."
                ) from None
    plain = plain_module(model, f"model `{spec}`")
    sample = torch.linspace(-1, 1, 2 * math.prod(input_shape)).reshape(2, *input_shape)
    try:
        return adapted(plain, sample, trains=True)[0]
    except UsageError:
        raise
    except Exception:  # noqa: BLE001  # an artificial sample may be invalid; the check is repeated with real data
        return plain


def _arguments(spec: str, make: Callable[..., Any], offered: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the factory: the offered values that it names, and the options, checked against its signature."""
    try:
        accepted = inspect.signature(make).parameters
    except (TypeError, ValueError):
        raise UsageError(f"`{spec}` has no signature to read; wrap it in a function of your own.") from None
    named = {n: p for n, p in accepted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name in given:
        if name not in named and not anything:
            raise UsageError(f"model `{spec}` has no option `{name}`; {nearest(name, set(named) - set(offered))}.")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in offered and name not in given:
            raise UsageError(f"model `{spec}` needs the option `{name}`, which was not given.")
    typed = {name: _typed(spec, name, value, named.get(name)) for name, value in given.items()}
    return {name: value for name, value in offered.items() if name in named} | typed


def _typed(spec: str, name: str, value: Any, parameter: inspect.Parameter | None) -> Any:
    """The value converted to a plain type that the factory annotates; other annotations are not checked."""
    stated = parameter.annotation if parameter is not None else None
    kind = _PLAIN.get(stated if isinstance(stated, str) else getattr(stated, "__name__", ""))
    if kind is None:
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise UsageError(f"model `{spec}`: `{name}` {message[:1].lower()}{message[1:]}, got {value!r}.") from None


def model(name: str, *, summary: str, needs: str = "any shape") -> Callable[[F], F]:
    """Function or class decorator: register an architecture under `name`, for `--model NAME` and studies.

    In a package, name the function in the entry-point group `expunge.models`. Without a package nothing has to be
    registered: `--model path/to/file.py:function` takes it as it is.

    Args:
        name: How users write it.
        summary: One line for `expunge list models`.
        needs: What inputs it takes, in a few words ("images of at least 8 x 8").

    The function is called with those of `num_classes` (int) and `input_shape` (tuple of ints, without the batch) that
    it names, and with the options that a user gives; it returns an `nn.Module` whose outputs are logits (batch,
    classes).

    Raises:
        ExpungeError: If the name is taken.

    Example:
        @expunge.model("linear", summary="one linear layer", needs="rows of features")
        def linear(num_classes, input_shape):
            return nn.Linear(input_shape[0], num_classes)
    """

    def decorate(function: F) -> F:
        card = Card(name=name, summary=summary, needs=needs)
        function.card = card  # type: ignore[attr-defined]  # what the registry looks for
        MODELS.add(card, function)
        return function

    return decorate


def factory(spec: str) -> Callable[..., Any]:
    """The function that a spec names; a user's file or module is imported. Raises `UsageError` if there is none."""
    if ":" not in spec:
        if spec not in MODELS.names():
            raise unknown("model", spec, [*MODELS.names(), "package.module:function", "path/to/file.py:function"])
        loaded: Callable[..., Any] = MODELS.load(spec)
        return loaded
    loaded = load_user_code(spec, "model")
    if not callable(loaded):
        raise UsageError(f"`{spec}` is a {type(loaded).__name__}; name a function or class that makes the model.")
    return loaded
