"""Opaque handles, from which no reference leads to their object.

A method is given a problem and a run. Some objects that these use, such as a streaming data set or the caller's
progress bar, refer to more data than the method declared. They are replaced by a handle: the object itself is stored in
a table of this module, so that no attribute, bound method, closure or referent of the handle leads to it.

Python offers no stronger isolation within one process. Code that searches this table, the frames of its callers or all
objects of the garbage collector can find the object; only paths that start at the handle are excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_TARGETS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Opaque(Generic[T]):
    """A handle of `target`, for `resolve`; a copy is the same handle, a pickle (for worker processes) contains it."""

    __slots__ = ("__weakref__",)

    def __init__(self, target: T) -> None:
        _TARGETS[self] = target

    def __copy__(self) -> Opaque[T]:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Opaque[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (resolve(self),)


class OpaqueFunction(Opaque[Callable[..., Any]]):
    """A handle of a function, which can be called through the handle."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return resolve(self)(*arguments)


def resolve(handle: Opaque[T]) -> T:
    """The object of a handle."""
    target: T = _TARGETS[handle]
    return target


def opaque(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A handle of a function; None and handles are returned unchanged."""
    return function if function is None or isinstance(function, OpaqueFunction) else OpaqueFunction(function)
