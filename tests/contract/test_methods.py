"""Every registered method against every conformance check."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.testing.conformance import CHECKS, Settings

from .settings import SETTINGS


def test_every_method_has_settings() -> None:
    assert set(METHODS.names()) == set(SETTINGS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", METHODS.names())
def test_conformance(name: str, check: Callable[[type[Method], Settings], None]) -> None:
    check(METHODS.load(name), SETTINGS[name])
