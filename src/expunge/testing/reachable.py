"""What can be reached from an object: the check that sealed data are sealed.

The walk follows what the garbage collector knows of every object (attributes, items, slots, cells of closures, the
objects of bound methods, defaults). It does not enter modules, classes and the global names of functions, through which
every object of a program reaches every other one.
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
    """Every object on a path from the roots, each once, the roots included."""
    seen: dict[int, object] = {}  # keeps what it has seen alive, so that no id is used twice
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
    if isinstance(item, Tensor):  # what a view shows is less than what it leads to
        return [item._base, item.grad, *vars(item).values()]
    if isinstance(item, np.ndarray):
        return [item.base, *(item.ravel().tolist() if item.dtype == object else [])]
    return gc.get_referents(item)


def leaks(roots: list[object], secret: dict[str, Tensor | np.ndarray]) -> list[str]:
    """Names of the secrets that a walk from `roots` comes across.

    secret: name -> samples (n, ...) or labels (n,) as tensors, or ids (n,) as an array of strings. A tensor counts as
    met if any memory on the way has the bytes of one of its samples, or those of all its labels in a row; an array if
    one of its ids is met.
    """
    tests: dict[str, Callable[[object], bool]] = {}
    for name, values in secret.items():
        if isinstance(values, np.ndarray):
            tests[name] = _meets_id(set(values.tolist()))
        else:
            rows = [values] if values.dim() == 1 else list(values)
            tests[name] = _meets_bytes([row.contiguous().numpy().tobytes() for row in rows])
    met = set()
    for item in reachable(*roots):
        met |= {name for name, test in tests.items() if name not in met and test(item)}
    return sorted(met)


def _meets_bytes(patterns: list[bytes]) -> Callable[[object], bool]:
    def test(item: object) -> bool:
        memory = _memory(item)
        return memory is not None and any(pattern in memory for pattern in patterns)

    return test


def _memory(item: object) -> bytes | None:
    """All bytes of the storage that a tensor or an array lies in, whatever part of it is shown."""
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
