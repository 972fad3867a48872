"""Every registered method against every conformance check."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge import methods
from expunge.core.options import option_names
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.testing.conformance import CHECKS, Settings, compare_cost
from expunge.testing.toys import toy_problem

from .settings import SETTINGS


def test_every_method_has_settings() -> None:
    assert set(METHODS.names()) == set(SETTINGS)


def test_every_loop_states_what_it_carries() -> None:
    """Without it, a stopped call would begin again."""
    for file in Path(methods.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "epochs":
                assert "state" in {keyword.arg for keyword in call.keywords}, f"{file.name}:{call.lineno}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", METHODS.names())
def test_conformance(name: str, check: Callable[[type[Method], Settings], None]) -> None:
    check(METHODS.load(name), SETTINGS[name])


SMALL = {"epochs": 2, "vae_epochs": 2, "limit": 2, "iterations": 2, "rounds": 2, "steps": 2, "msteps": 1}
PRESETS = [
    f"{name}/{preset}"
    for name in METHODS.names()
    for preset in METHODS.load(name).presets
    if METHODS.load(name).presets[preset].get("augment") != "rrc-flip-224"  # seconds each
]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_cost_what_they_state(name: str) -> None:
    chosen = make_method(name)
    given = vars(chosen)
    fewer: dict[str, Any] = {option: min(most, given[option]) for option, most in SMALL.items() if given.get(option)}
    if "extractor" in option_names(type(chosen)):
        fewer["extractor"] = "hidden"
    compare_cost(replace(chosen, **fewer), toy_problem(epochs=0))  # type: ignore[type-var]
