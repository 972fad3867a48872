"""Which of a checkpoint's names are which of a model's: wrappers put prefixes before them, and some add counters.

DataParallel and DDP write `module.`, torch.compile `_orig_mod.`, Opacus `_module.`, Lightning the attribute that holds
the network (`model.`, `net.`), averages of weights (EMA, SWA) `module.` and a counter. They stack in any order, and
some wrap a part of the network only. A prefix is taken off only where all that remains fits the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.core.errors import CheckpointError
from expunge.models.weight_files import StateDict

_SEGMENTS = ("module", "_orig_mod", "_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that wrappers give to what they wrap, wherever in the network that is."""

_COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}
"""Numbers that averages of weights keep beside them."""


@dataclass(frozen=True)
class Match:
    """Weights under the model's own names.

    state: name -> tensor. stripped, added: the prefix taken off, or put before, every name. left_out: names in the
    checkpoint that belong to no tensor of the model, such as the loss of a Lightning module.
    """

    state: StateDict
    stripped: str = ""
    added: str = ""
    left_out: tuple[str, ...] = ()


def match(model: nn.Module, state: StateDict) -> Match | None:
    """The first reading of the names that `model.load_state_dict(strict=True)` takes; None if there is none.

    Raises:
        CheckpointError: two parts of the checkpoint fit, e.g. a network and its moving average.
    """
    own, ties = own_tensors(model), _ties(model)
    readings = [replace(reading, state=_fill_ties(reading.state, ties)) for reading in _readings(state, own)]
    exact = next((reading for reading in readings if _fits(reading.state, own)), None)
    exact = exact or _only_part(state, own, ties)
    if exact is not None:
        return exact
    # Other names or shapes may be taken all the same: modules convert older formats themselves while they load.
    likely = [r for r in readings if r is readings[0] or 2 * len(r.state.keys() & own.keys()) >= len(own)]
    return next((reading for reading in likely if _taken(model, reading.state)), None)


def closest(model: nn.Module, state: StateDict) -> StateDict:
    """The reading of the names that shares most of them with the model: what a message should compare."""
    own = own_tensors(model)
    return max((r.state for r in _readings(state, own)), key=lambda reading: len(reading.keys() & own.keys()))


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the parameters themselves, so that lazy ones can be looked at."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """None for a lazy parameter, which takes the shape of what is loaded."""
    return None if is_lazy(tensor) else tuple(tensor.shape)


def _readings(state: StateDict, own: Mapping[str, Tensor]) -> Iterator[Match]:
    """The names as they are; without prefixes; without the segments of wrappers; and with the model's own prefix."""
    yield Match(state)
    wanted = _common_prefix(own)
    for unwrapped in (False, True):
        seen, left_out, stripped = state, list[str](), ""
        if unwrapped:
            names = {name: _without_segments(name, own) for name in state}
            if len(set(names.values())) < len(names):
                return
            seen, stripped = state.renamed(lambda name: _without_segments(name, own)), "module."
        while True:
            counters = [n for n, v in seen.items() if n in _COUNTERS - own.keys() and v.numel() == 1]
            seen, left_out = seen.without(counters), [*left_out, *counters]
            yield Match(seen, stripped, "", tuple(left_out))
            if wanted is not None:
                yield Match(seen.renamed(partial(_prefixed, wanted)), stripped, wanted, tuple(left_out))
            prefix = _common_prefix(seen)
            if prefix is None:
                break
            seen, stripped = seen.renamed(partial(_unprefixed, prefix)), stripped + prefix


def _prefixed(prefix: str, name: str) -> str:
    return prefix + name


def _unprefixed(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _only_part(state: StateDict, own: Mapping[str, Tensor], ties: list[list[str]]) -> Match | None:
    """The one attribute of a larger module (a Lightning module, a distillation pair) whose weights are the model's."""
    fitting = []
    prefixes = dict.fromkeys(name.partition(".")[0] + "." for name in state if "." in name)
    for prefix in prefixes if len(prefixes) > 1 or any("." not in name for name in state) else ():
        others = tuple(name for name in state if not name.startswith(prefix))
        for reading in _readings(state.without(others), own):
            filled = _fill_ties(reading.state, ties)
            if _fits(filled, own):
                fitting.append((prefix, replace(reading, state=filled, left_out=(*reading.left_out, *others))))
                break
    if len(fitting) > 1:
        parts = ", ".join(f"`{prefix}`" for prefix, _ in fitting)
        raise CheckpointError(
            f"{len(fitting)} parts of the checkpoint fit the model ({parts}), e.g. a network and its moving average; "
            "save the one you mean on its own, without the others' names."
        )
    return fitting[0][1] if fitting else None


def _common_prefix(names: Mapping[str, Tensor]) -> str | None:
    first = {name.partition(".")[0] if "." in name else "" for name in names}
    prefix = first.pop() if len(first) == 1 else ""
    return f"{prefix}." if prefix else None


def _without_segments(name: str, own: Mapping[str, Tensor]) -> str:
    """`features.module.0.weight` -> `features.0.weight`; a name of the model itself stays."""
    return name if name in own else ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of one and the same tensor: the weights of an embedding that are those of the head as well."""
    by_tensor: dict[int, list[str]] = {}
    for name, value in own_tensors(model).items():
        by_tensor.setdefault(id(value), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _fill_ties(state: StateDict, ties: list[list[str]]) -> StateDict:
    """Tied weights are stored under one of their names by some libraries; all names get them."""
    filled = StateDict(state)
    for names in ties:
        stored = [state[name] for name in names if name in state]
        if not stored:
            continue
        if any(not torch.equal(value, stored[0]) for value in stored[1:] if value.shape == stored[0].shape):
            raise CheckpointError(
                f"{' and '.join(f'`{name}`' for name in names)} are one tensor of the model and differ in the "
                "checkpoint, so the checkpoint is of a model that does not tie them."
            )
        filled.update({name: stored[0] for name in names if name not in state})
    return filled


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Equal names, and equal shapes but for those that a lazy parameter leaves open."""
    return state.keys() == own.keys() and all(
        shape_of(value) in (None, tuple(state[name].shape)) for name, value in own.items()
    )


def _taken(model: nn.Module, state: StateDict) -> bool:
    """Whether the module itself takes these weights, tried on a copy: its load hooks may convert names and shapes."""
    try:
        copy.deepcopy(model).load_state_dict(state, strict=True)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        return False
    return True
