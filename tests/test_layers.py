"""Packages import only what is below them, as docs/architecture.md draws it, and no imports go in a circle.

Imports within functions count; those for type checkers alone do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import expunge

SOURCE = Path(expunge.__file__).parent
PICTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def layers() -> list[set[str]]:
    """Packages from the bottom to the top, as the document names them."""
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    text = PICTURE.read_text(encoding="utf-8").split("- **")[0]
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith("    ")]
    return [{name for name in row if name in packages} for row in reversed(rows)]


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that a module imports, with the names that are taken out of them."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph() -> dict[str, set[str]]:
    """module -> modules of this package that it imports, by dotted names below `expunge`."""
    modules = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        found[name] = set()
        for target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if target.split(".")[0] != "expunge":
                continue
            inner = target.removeprefix("expunge").removeprefix(".")
            inner = inner if inner in modules else inner.rpartition(".")[0]
            if inner and inner != name:
                found[name].add(inner)
    return found


def package(module: str) -> str:
    return module.split(".")[0]


def test_the_picture_names_every_package() -> None:
    drawn = [name for row in layers() for name in row]
    assert sorted(drawn) == sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def test_no_import_runs_up() -> None:
    floor = {name: number for number, row in enumerate(layers()) for name in row}
    up = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if package(module) in floor and package(target) in floor and floor[package(target)] > floor[package(module)]
    ]
    assert not up


def test_no_imports_go_in_a_circle() -> None:
    between: dict[str, set[str]] = {}
    for module, targets in graph().items():
        between.setdefault(package(module), set()).update(map(package, targets))
    for kind, edges in (("modules", graph()), ("packages", between)):
        inner = {name: {one for one in targets if one != name} for name, targets in edges.items()}
        inner["api.result"] = inner.get("api.result", set()) - {"api.saved"}  # `Result.load`, which makes results
        # The package itself loads its names on first use, and `python -m` starts there.
        inner = {name: targets for name, targets in inner.items() if name not in ("", "__main__")}
        try:
            TopologicalSorter(inner).prepare()
        except CycleError as error:
            raise AssertionError(f"a circle of {kind}: {' -> '.join(error.args[1])}") from None
