"""Matching of a checkpoint's names with those of a model: wrappers add prefixes, and some add counters.

DataParallel and DDP write `module.`, torch.compile `_orig_mod.`, Opacus `_module.`, Lightning the attribute of the
network (`model.`, `net.`), averages of weights (EMA, SWA) `module.` and a counter. They can be combined in any order,
and some wrap only a part of the network. A prefix is removed only if all remaining names match the model.
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
"""Attributes in which wrappers store the wrapped module, at any level of the network."""

_COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}
"""Numbers that averages of weights store with the weights."""


@dataclass(frozen=True)
class WeightMatch:
    """Weights under the model's names.

    Attributes:
        state: name -> tensor.
        stripped: prefix removed from every name.
        added: prefix added to every name.
        left_out: names in the checkpoint that belong to no tensor of the model, such as the loss of a Lightning module.
    """

    state: StateDict
    stripped: str = ""
    added: str = ""
    left_out: tuple[str, ...] = ()


def match(model: nn.Module, state: StateDict) -> WeightMatch | None:
    """The first interpretation of the names that `model.load_state_dict(strict=True)` accepts; None if there is none.

    Raises:
        CheckpointError: if two parts of the checkpoint match, e.g. a network and its moving average.
    """
    own, ties = own_tensors(model), _ties(model)
    readings = [replace(reading, state=_fill_ties(reading.state, ties)) for reading in _readings(state, own)]
    exact = next((reading for reading in readings if _fits(reading.state, own)), None)
    exact = exact or _only_part(state, own, ties)
    if exact is not None:
        return exact
    # Other names or shapes may be accepted too: modules can convert older formats while loading.
    likely = [r for r in readings if r is readings[0] or 2 * len(r.state.keys() & own.keys()) >= len(own)]
    return next((reading for reading in likely if _taken(model, reading.state)), None)


def closest(model: nn.Module, state: StateDict) -> StateDict:
    """The interpretation that shares most names with the model, for error messages."""
    own = own_tensors(model)
    return max((r.state for r in _readings(state, own)), key=lambda reading: len(reading.keys() & own.keys()))


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the parameters themselves, so that lazy ones can be recognised."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Shape of a tensor; None for a lazy parameter, which gets the shape of the loaded tensor."""
    return None if is_lazy(tensor) else tuple(tensor.shape)


def _readings(state: StateDict, own: Mapping[str, Tensor]) -> Iterator[WeightMatch]:
    """Interpretations: the names unchanged, without prefixes, without wrapper segments, and with the model's prefix."""
    yield WeightMatch(state)
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
            yield WeightMatch(seen, stripped, "", tuple(left_out))
            if wanted is not None:
                yield WeightMatch(seen.renamed(partial(_prefixed, wanted)), stripped, wanted, tuple(left_out))
            prefix = _common_prefix(seen)
            if prefix is None:
                break
            seen, stripped = seen.renamed(partial(_unprefixed, prefix)), stripped + prefix


def _prefixed(prefix: str, name: str) -> str:
    return prefix + name


def _unprefixed(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _only_part(state: StateDict, own: Mapping[str, Tensor], ties: list[list[str]]) -> WeightMatch | None:
    """The attribute of a larger module (a Lightning module, a distillation pair) whose weights match the model."""
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
    """`features.module.0.weight` -> `features.0.weight`; names of the model itself are not changed."""
    return name if name in own else ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def _ties(model: nn.Module) -> list[list[str]]:
    """Groups of names of one tensor, such as an embedding that shares its weights with the head."""
    by_tensor: dict[int, list[str]] = {}
    for name, value in own_tensors(model).items():
        by_tensor.setdefault(id(value), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _fill_ties(state: StateDict, ties: list[list[str]]) -> StateDict:
    """Add tied weights under all their names: some libraries store them under one name only."""
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
    """Whether names and shapes are equal, except for shapes of lazy parameters."""
    return state.keys() == own.keys() and all(
        shape_of(value) in (None, tuple(state[name].shape)) for name, value in own.items()
    )


def _taken(model: nn.Module, state: StateDict) -> bool:
    """Whether a copy of the module accepts these weights: its load hooks may convert names and shapes."""
    try:
        copy.deepcopy(model).load_state_dict(state, strict=True)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        return False
    return True
