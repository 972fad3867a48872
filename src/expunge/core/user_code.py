"""What users write in files of their own: `path/to/file.py:name` or `package.module:name`, with nothing installed."""

from __future__ import annotations

import functools
import hashlib
import importlib
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from expunge.core.errors import UsageError, nearest


def is_user_code(spec: str) -> bool:
    """Whether `spec` names code (`file.py:name`, `package.module:name`) and not an entry of a catalogue."""
    return ":" in spec


def split_preset(name: str) -> tuple[str, str]:
    """A method's name and its preset, "" without one; slashes of a path belong to the path.

    >>> split_preset("scrub/paper"), split_preset("my/methods.py:Mine/fast")
    (('scrub', 'paper'), ('my/methods.py:Mine', 'fast'))
    """
    place, colon, last = name.rpartition(":")
    base, _, preset = last.partition("/")
    return f"{place}{colon}{base}", preset


def load_user_code(spec: str, kind: str) -> Any:
    """The object that a spec names; its file or module is imported.

    Args:
        spec: `path/to/file.py:name` or `package.module:name`.
        kind: what it should be, for messages ("model").

    Raises:
        UsageError: no such file, module or name, or an error while it is imported.
    """
    place, _, name = spec.rpartition(":")
    module = _from_file(Path(place), kind) if place.endswith(".py") else _from_package(place)
    if not hasattr(module, name):
        public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UsageError(f"`{place}` has no function or class `{name}`; {nearest(name, public)}.")
    return getattr(module, name)


def _from_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{kind} file {path} does not exist; write path/to/file.py:name.")
    _importable(path.resolve().parent)  # as `python file.py` does: the file may import its neighbours
    try:
        return _run_file(path.resolve(), path.read_bytes())
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the message names it
        raise UsageError(f"{kind} file {path} cannot be imported: {type(error).__name__}: {error}.") from error


@functools.lru_cache
def _run_file(path: Path, source: bytes) -> ModuleType:
    """The module of a file, made once for each content: its classes stay the same objects.

    The source itself is compiled. Python's stored bytecode is valid for a size and a whole second, so after an edit of
    equal length within the second the former code would run.
    """
    name = f"expunge_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickling look modules up by name
    linecache.checkcache(str(path))  # so that `inspect.getsource` shows what runs
    try:
        with _without_bytecode():
            exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"`{name}` is neither a module nor a .py file; write package.module:name.")
    _importable(Path.cwd())
    try:
        with _without_bytecode():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the same for a user's module
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"module `{name}` cannot be imported ({reason}); check the name and the folder.") from error


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Stores none for the modules that are imported inside: it could be taken for that of a later edit."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
