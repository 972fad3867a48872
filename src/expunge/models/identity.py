"""Identity of a model's code: of all its module classes and of functions stored as attributes."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from expunge.core.identity import code_hash
from expunge.models.modes import LoneSample


def model_code(model: nn.Module) -> str:
    """Hex SHA-256 over the source code that a forward pass of `model` runs (see `core.identity`).

    It includes the classes of all modules, a `forward` that was replaced on an instance, functions stored as
    attributes, and hooks, but no weights or options.
    """
    return code_hash(*{id(thing): thing for module in model.modules() for thing in _things(module)}.values())


def _things(module: nn.Module) -> Iterator[Any]:
    yield type(module)
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    for value in (*vars(module).values(), *hooks):
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, types.MethodType):
            if isinstance(value.__self__, LoneSample):  # of Expunge, for the time of a training
                continue
            value = value.__func__
        if isinstance(value, types.FunctionType):
            yield value
