"""Objects reachable from an object, to check that sealed data are sealed.

The search follows the references that the garbage collector knows (attributes, items, slots, cells of closures, the
objects of bound methods, defaults). It does not enter modules, classes and the globals of functions, through which all
objects of a program are connected.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CLOSED = (types.ModuleType, type, types.CodeType, types.BuiltinFunctionType, types.FrameType)


def reachable(*roots: object) -> Iterator[object]:
    """All objects reachable from the roots, each once, including the roots."""
    seen: dict[int, object] = {}  # keeps objects alive, so that no id is reused
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _CLOSED):
            continue
        seen[id(item)] = item
        yield item
        waiting.extend(_referents(item))


def _referents(item: object) -> list[object]:
    if isinstance(item, types.FunctionType):
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
    if isinstance(item, Tensor):  # a view leads to more than its own values
        return [item._base, item.grad, *vars(item).values()]
    if isinstance(item, np.ndarray):
        return [item.base, *(item.ravel().tolist() if item.dtype == object else [])]
    return gc.get_referents(item)


def leaks(roots: list[object], secret: dict[str, Tensor | np.ndarray]) -> list[str]:
    """Find undeclared data that are reachable.

    Args:
        roots: where the search starts.
        secret: name -> samples (n, ...) or labels (n,) as tensors, or ids (n,) as an array of strings. A tensor is
            found if any reachable memory contains the bytes of one of its samples, or of all its labels in order; an
            array, if one of its ids is reachable.

    Returns:
        Names of the data that were found, sorted.
    """
    tests: dict[str, Callable[[object], bool]] = {}
    for name, values in secret.items():
        if isinstance(values, np.ndarray):
            tests[name] = _meets_id(set(values.tolist()))
        else:
            rows = [values] if values.dim() == 1 else list(values)
            tests[name] = _meets_bytes([row.contiguous().numpy().tobytes() for row in rows])
    leaked = set()
    for item in reachable(*roots):
        leaked |= {name for name, test in tests.items() if name not in leaked and test(item)}
    return sorted(leaked)


def _meets_bytes(patterns: list[bytes]) -> Callable[[object], bool]:
    def test(item: object) -> bool:
        memory = _memory(item)
        return memory is not None and any(pattern in memory for pattern in patterns)

    return test


def _memory(item: object) -> bytes | None:
    """All bytes of the storage of a tensor, also those that a view does not show, or of an array."""
    if isinstance(item, Tensor):
        if item.device.type != "cpu" or item.layout != torch.strided:
            item = item.detach().to("cpu").to_dense() if item.is_sparse else item.detach().to("cpu")
        storage = item.untyped_storage()
        return bytes(torch.tensor([], dtype=torch.uint8).set_(storage).numpy())
    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        return item.tobytes()
    return item if isinstance(item, bytes) else None


def _meets_id(ids: set[Any]) -> Callable[[object], bool]:
    def test(item: object) -> bool:
        if isinstance(item, np.ndarray) and item.dtype.kind in "UO":
            return not ids.isdisjoint(item.ravel().tolist())
        return isinstance(item, str) and item in ids

    return test
