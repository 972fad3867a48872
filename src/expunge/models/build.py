"""From a model's name or a user's own factory to an `nn.Module`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import linecache
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.parameter import is_lazy

from expunge.core.errors import UsageError, nearest, unknown
from expunge.models import MODELS
from expunge.models.contract import adapted, plain_module
from expunge.models.initial import drawing
from expunge.models.modes import evaluation_mode

_PLAIN: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


def build_model(
    spec: str,
    *,
    num_classes: int,
    input_shape: Sequence[int],
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised model; the draw depends on `seed` alone and leaves the global random state as it was.

    spec: a catalogue name, `package.module:function`, or `path/to/file.py:function`. A user's factory is called with
    those of num_classes, input_shape and in_channels that its signature names, and with `options`.
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
    """A user's module with the shapes of its lazy layers drawn, read through an adapter where it needs one."""
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
    except Exception:  # noqa: BLE001  # what a made-up sample cannot tell, the data themselves will
        return plain


def _arguments(spec: str, make: Callable[..., Any], offered: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What the factory is called with: the offered values it names, and the options, checked against its signature."""
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
    """The value as the plain type that the factory states for it; other annotations are left to the factory."""
    stated = parameter.annotation if parameter is not None else None
    kind = _PLAIN.get(stated if isinstance(stated, str) else getattr(stated, "__name__", ""))
    if kind is None:
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise UsageError(f"model `{spec}`: `{name}` {message[:1].lower()}{message[1:]}, got {value!r}.") from None


def factory(spec: str) -> Callable[..., Any]:
    """The function that a spec names; a user's file or module is imported. Raises `UsageError` if there is none."""
    if ":" not in spec:
        if spec not in MODELS.names():
            raise unknown("model", spec, [*MODELS.names(), "package.module:function", "path/to/file.py:function"])
        loaded: Callable[..., Any] = MODELS.load(spec)
        return loaded
    place, _, name = spec.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found = getattr(module, name, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"`{place}` has no function `{name}`; {nearest(name, public)}.")
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"model file {path} does not exist; write path/to/file.py:function.")
    _importable(path.resolve().parent)  # as `python file.py` does: the file may import its neighbours
    return _run_file(path.resolve(), path.read_bytes())


@functools.lru_cache
def _run_file(path: Path, source: bytes) -> ModuleType:
    """One module per content of a file: its classes stay the same ones over many builds.

    The source itself is compiled. Python's stored bytecode is valid for a size and a whole second, so an edit of equal
    length that is saved within the second would run the code of before.
    """
    name = f"expunge_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickling look modules up here
    linecache.checkcache(str(path))  # `inspect.getsource` reads the lines that run
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the message names it
        del sys.modules[name]
        raise UsageError(f"model file {path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


def _from_package(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"`{name}` is neither a module nor a .py file; write package.module:function.")
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the same for a user's module
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"module `{name}` cannot be imported ({reason}); check the name and the folder.") from error


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
