"""Identity of code, a part of every cache key and cell id: results of edited code are never served from a cache.

`code_hash(things)` covers the source that runs for the given classes, functions and modules:

- files of the user (any file that is not part of an installed distribution): the file that defines the thing, and all
  such files that it imports, directly or indirectly;
- modules of Expunge: the module and what it imports inside Expunge, without docstrings;
- installed distributions: their version (not that of PyTorch, which is recorded separately, nor the standard library);
- code without a file (a notebook cell): the compiled code, its constants and what it refers to in the same module.

The parts of a class are determined once, at the first call: a file that is edited later, while the process still runs
the loaded code, does not change the identity of what runs.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_OWN = "expunge"
_SEEN: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def code_hash(*things: object) -> str:
    """Hex SHA-256 over the source of what runs.

    Args:
        things: Classes, functions, modules, or names of modules of Expunge such as "expunge.training.loop".

    Returns:
        64 hex digits, the same in every process that runs the same code.
    """
    parts: dict[str, str] = {}
    for thing in things:
        parts |= _parts(thing)
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def _parts(thing: object) -> dict[str, str]:
    """Name -> hash or version of all parts of `thing`."""
    if isinstance(thing, str):
        return {name: _own_module(name)[0] for name in _own_closure(thing)}
    try:
        if thing in _SEEN:
            return _SEEN[thing]
    except TypeError:  # no weak references
        return _fresh_parts(thing)
    parts = _fresh_parts(thing)
    with contextlib.suppress(TypeError):
        _SEEN[thing] = parts
    return parts


def _fresh_parts(thing: object) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in thing.__mro__ if isinstance(thing, type) else (thing,):
        part = inspect.unwrap(part) if callable(part) and not isinstance(part, type) else part
        name = str(part.__name__ if isinstance(part, types.ModuleType) else getattr(part, "__module__", None) or "")
        parts |= _parts_of_module(name, part)
    return parts


def _parts_of_module(name: str, thing: object) -> dict[str, str]:
    top = name.partition(".")[0]
    if top == _OWN:
        return {own: _own_module(own)[0] for own in _own_closure(name)}
    if top == "torch" or top in sys.builtin_module_names or (top in sys.stdlib_module_names and top != "__main__"):
        return {}
    file = _file_of(sys.modules.get(name))
    if file is None:
        return {f"{name}:{getattr(thing, '__qualname__', repr(thing))}": _compiled(thing, set())}
    if _installed(file):
        return {top: _version(top)}
    return dict(_user_files(name, file))


def _file_of(module: types.ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and file.endswith(".py") and Path(file).is_file() else None


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib"))


def _installed(file: Path) -> bool:
    parts = set(file.parts)
    if parts & {"site-packages", "dist-packages"}:
        return True
    return any(file.is_relative_to(folder) for folder in _library_folders())


@functools.cache
def _version(top: str) -> str:
    """The version of the distribution of a top-level package."""
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(top, ())
        return ",".join(f"{name} {importlib.metadata.version(name)}" for name in names) or "unknown"


# ---------------------------------------------------------------------------------------------- modules of Expunge


@functools.cache
def _own_closure(name: str) -> tuple[str, ...]:
    """The module and all modules of Expunge that it imports, directly or indirectly."""
    modules: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current not in modules and _own_module(current)[0]:
            modules.add(current)
            pending += _own_module(current)[1]
    return tuple(sorted(modules))


@functools.cache
def _own_module(name: str) -> tuple[str, tuple[str, ...]]:
    """(hash without docstrings, names of modules of Expunge that it imports); an empty hash if there is no file."""
    root = Path(__file__).resolve().parents[1].joinpath(*name.split(".")[1:])
    path = next((file for file in (root.with_suffix(".py"), root / "__init__.py") if file.is_file()), None)
    if path is None or name == _OWN:
        return "", ()
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    for start, end in _docstrings(tree):
        lines[start - 1 : end] = [""] * (end - start + 1)
    text = "\n".join(line.rstrip() for line in lines if line.strip())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = tuple(imported for imported in _imports(tree, package) if imported.partition(".")[0] == _OWN)
    return hashlib.sha256(text.encode()).hexdigest(), imports


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.lineno, first.end_lineno or first.lineno


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names that may be modules: `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*(part for part in above if part), *([node.module] if node.module else [])])
            yield from ([base] if base else [])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


# ----------------------------------------------------------------------------------------------- files of the user


def _user_files(name: str, file: Path) -> Iterator[tuple[str, str]]:
    """(name, hash) of a file and of all files of the user that it imports, and versions of other imports.

    Names are those of modules, not of folders: equal code in another folder is the same code.
    """
    seen: set[Path] = set()
    pending = [(_plain(name, file), name, file)]
    while pending:
        label, name, file = pending.pop()
        if file in seen:
            continue
        seen.add(file)
        source = file.read_bytes()
        yield label, hashlib.sha256(source.replace(b"\r\n", b"\n")).hexdigest()
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # the file was edited after it was loaded
            continue
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _with_parents(_imports(tree, package)):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or top in (_OWN, "torch"):
                continue
            source_file = _file_of(sys.modules.get(imported)) or _beside(file.parent, imported)
            if source_file is not None and not _installed(source_file):
                pending.append((_plain(imported, source_file), imported, source_file))
            elif source_file is not None or top in sys.modules:
                yield top, _version(top)


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    """Names with their parent packages: `import a.b` runs the file of the package a as well."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _plain(name: str, file: Path) -> str:
    """The name of a module, independent of the folder its file was loaded from."""
    return file.stem if name == "__main__" or name.startswith("expunge_user_") else name


def _beside(folder: Path, name: str) -> Path | None:
    """The file of an import that was not executed yet, if it is in the same folder."""
    base = folder.joinpath(*name.split("."))
    return next((f.resolve() for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


# -------------------------------------------------------------------------------------------- code without a file


def _compiled(thing: Any, seen: set[int]) -> str:
    """Hex SHA-256 over compiled code, plain values, and what these refer to in the same module."""
    digest = hashlib.sha256()
    for part in _compiled_parts(thing, seen):
        digest.update(f"{part}\x1f".encode())
    return digest.hexdigest()


_Plain = (int, float, str, bytes, tuple, bool)


def _compiled_parts(thing: Any, seen: set[int]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, type):
        yield thing.__qualname__
        for name, value in sorted(vars(thing).items()):
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__"):
                yield name
                yield from _compiled_parts(value, seen)
    elif isinstance(thing, property):
        yield from _compiled_parts(thing.fget, seen)
    elif isinstance(thing, staticmethod | classmethod | types.MethodType):
        yield from _compiled_parts(thing.__func__, seen)
    elif isinstance(thing, types.FunctionType):
        yield from _code_parts(thing.__code__)
        yield repr((thing.__defaults__, thing.__kwdefaults__))
        for name, value in _referred(thing):
            if isinstance(value, _Plain):
                yield f"{name}={value!r}"
            elif getattr(value, "__module__", None) == thing.__module__:
                yield from _compiled_parts(value, seen)
    elif isinstance(thing, _Plain):
        yield repr(thing)


def _referred(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Globals and closure variables that a function refers to."""
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents


def _code_parts(code: types.CodeType) -> Iterator[str]:
    yield repr((code.co_code.hex(), code.co_names, code.co_varnames))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _names(code: types.CodeType) -> Iterable[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_names(constant))
    return sorted(names)
