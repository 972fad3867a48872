"""Names and docstrings of the package: one meaning per class name, and a docstring for every public member."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import expunge

ROOT = Path(expunge.__file__).parent
PACKAGES = ["core", "data", "models", "training", "numerics", "scenarios", "methods", "metrics", "memorisation"]
PACKAGES += ["testing", "evidence", "repair", "report", "bench", "cli"]


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice


def undocumented(package: str) -> Iterator[str]:
    """Public methods and properties without a docstring of their own or of the method that they override.

    Ruff's D102 does not see overriding; it checks everything else (see pyproject.toml).
    """
    for module in pkgutil.walk_packages([str(ROOT / package)], f"expunge.{package}."):
        for cls in vars(importlib.import_module(module.name)).values():
            if not isinstance(cls, type) or cls.__module__ != module.name or cls.__name__.startswith("_"):
                continue
            for name, member in vars(cls).items():
                kinds = (FunctionType, property, cached_property, classmethod, staticmethod)
                if not name.startswith("_") and isinstance(member, kinds):
                    inherited = (vars(base).get(name) for base in cls.__mro__)
                    if not any(inspect.getdoc(each) for each in inherited if each is not None):
                        yield f"{module.name}.{cls.__name__}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_methods_have_docstrings(package: str) -> None:
    assert not list(undocumented(package))
