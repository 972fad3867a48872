"""Options: validated, frozen, nearest names; needs: unions and phrases; seeds: one stream per purpose."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field, build, options, to_dict
from expunge.core.registry import Card, Registry
from expunge.core.seeds import derive, torch_generator


@options
class Base:
    steps: int = Field(3, ge=0, description="steps")


@options
class Inner(Base):
    rate: float = Field(0.5, gt=0, lt=1, description="rate")
    marks: tuple[int, ...] = Field((), description="marks")


def test_values_are_converted_and_frozen() -> None:
    made = build(Inner, {"rate": "0.25", "marks": [1, 2]}, "inner")
    assert (made.steps, made.rate, made.marks) == (3, 0.25, (1, 2))
    assert to_dict(made) == {"steps": 3, "rate": 0.25, "marks": [1, 2]} or to_dict(made)["marks"] == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": 1.5}, "rate.*less than 1.*1.5"),
        ({"steps": -1}, "steps.*greater than or equal to 0"),
        ({"steps": "many"}, "steps.*integer"),
        ({"rat": 0.1}, "did you mean `rate`"),
    ],
)
def test_what_is_not_allowed_names_the_option_and_the_value(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(Inner, given, "inner")


def test_options_of_a_base_class_are_validated_too() -> None:
    with pytest.raises(UsageError):
        build(Inner, {"steps": -5}, "inner")


def test_needs_unite_to_the_wider_access() -> None:
    both = Needs(forget="inputs", labelled=0.1) | Needs(forget="labels", validation="labels", initial=True)
    assert both == Needs(forget="labels", validation="labels", initial=True, labelled=0.1)
    assert Needs(forget="inputs", retain="inputs").label_free
    assert not Needs(forget="inputs", retain="inputs", labelled=5).label_free
    assert Needs(forget="labels").forget_set_only
    assert not Needs(forget="labels", validation="inputs").forget_set_only


def test_seeds_differ_by_purpose_and_repeat() -> None:
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert len({derive(0, "a"), derive(0, "b"), derive(1, "a"), derive(0, "a", 1)}) == 4
    assert torch_generator(3, "x").initial_seed() == torch_generator(3, "x").initial_seed()


def test_a_registry_loads_by_name_and_suggests() -> None:
    registry: Registry[type] = Registry("thing", [Card(name="dict", summary="", target="collections:OrderedDict")])
    assert registry.load("dict").__name__ == "OrderedDict"
    with pytest.raises(UsageError, match="did you mean `dict`"):
        registry.load("dcit")
