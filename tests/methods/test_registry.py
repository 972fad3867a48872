"""Every registered method says where it is from, what it needs, what it costs and where it fails."""

from __future__ import annotations

import sys

import pytest

from expunge.core.needs import Needs
from expunge.methods import METHODS
from expunge.methods.base import make_method

REQUESTS = {"class", "samples", "labels"}
OURS = {"unsee", "retrain-short"}  # of this project: there is no paper to name


@pytest.mark.parametrize("name", METHODS.names())
def test_the_card_is_complete(name: str) -> None:
    card = METHODS.card(name)
    assert isinstance(card.needs, Needs)
    assert len(card.summary) <= 110
    assert set(card.requests) <= REQUESTS
    assert bool(card.requests) != bool({"control"} & set(card.tags) or name == "original")
    if "reference" not in card.tags and name not in OURS:
        assert card.paper is not None
        assert ":" in card.paper.cite
        assert card.paper.url


@pytest.mark.parametrize("name", METHODS.names())
def test_the_page_names_cost_and_limits(name: str) -> None:
    made = METHODS.load(name)
    text = f"{sys.modules[made.__module__].__doc__}\n{made.__doc__}"
    assert "Cost" in text
    assert any(word in text for word in ("Limits", "Claim", "Exact"))


@pytest.mark.parametrize("name", METHODS.names())
def test_presets_can_be_made_and_say_where_they_are_from(name: str) -> None:
    made = METHODS.load(name)
    assert bool(made.presets) == bool(made.preset_source)
    for preset in made.presets:
        make_method(f"{name}/{preset}")
