"""From a model's name or a user's own factory to an `nn.Module`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from expunge.core.errors import UsageError, nearest, unknown
from expunge.core.seeds import derive
from expunge.models import MODELS


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
    factory = _factory(spec)
    given = dict(options or {})
    offered = {"num_classes": num_classes, "input_shape": tuple(input_shape), "in_channels": input_shape[0]}
    accepted = inspect.signature(factory).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name in given:
        if name not in accepted and not anything:
            raise UsageError(f"model `{spec}` has no option `{name}`; {nearest(name, set(accepted) - set(offered))}.")
    arguments = {name: value for name, value in offered.items() if name in accepted} | given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        try:
            model = factory(**arguments)
        except UsageError:
            raise
        except Exception as error:  # a user's factory may raise anything; the message names it
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"model `{spec}` cannot be built with {arguments}: {reason}.") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"`{spec}` must return a torch.nn.Module, it returned {type(model).__name__}.")
    return model


def _factory(spec: str) -> Callable[..., Any]:
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
    name = f"expunge_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"model file {path} cannot be imported.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look modules up here
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the message names it
        raise UsageError(f"model file {path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


def _from_package(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"module `{name}` cannot be imported ({error}); check the name and the folder.") from None
