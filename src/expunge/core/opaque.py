"""Handles that name an object without leading to it.

A method is given a problem and a run. Some of what these need at work, such as a streaming data set or the caller's
progress bar, refers to more than the method declared. They hold a handle in its place: the object itself is known only
to a table of this module, so that no attribute, bound method, closure or referent of the handle leads there.

Python has no stronger wall inside one process. Code that looks for this table, at the frames of its callers or at all
objects of the garbage collector finds everything; what is kept out is every path that starts at the handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_TARGETS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Opaque(Generic[T]):
    """A handle on `target`, for `resolve`. A copy is the same handle; a pickle (for worker processes) has it."""

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
    """A handle on a function that can be called; only what the function returns comes back."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return resolve(self)(*arguments)


def resolve(handle: Opaque[T]) -> T:
    """What the handle stands for."""
    target: T = _TARGETS[handle]
    return target


def opaque(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A function behind a handle; None and what is behind one already stay as they are."""
    return function if function is None or isinstance(function, OpaqueFunction) else OpaqueFunction(function)
