"""Options: converted, bounded, frozen; an error names the option, the value and the nearest name; rows for `show`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

import pytest

from expunge.core.errors import UsageError, nearest
from expunge.core.options import Field, build, describe, options, to_dict
from expunge.core.registry import Card


@options
class Base:
    steps: int = Field(3, ge=0, description="steps")


@options
class Inner(Base):
    rate: float = Field(0.5, gt=0, lt=1, description="rate")
    marks: tuple[int, ...] = Field((), description="marks")
    kind: Literal["plain", "fancy"] = Field("plain", description="kind")
    clip: float | None = Field(None, gt=0, description="clip")


@options
class Demanding:
    path: str = Field(..., description="where")


def test_values_are_converted_and_frozen() -> None:
    made = build(Inner, {"rate": "0.25", "marks": [1, 2]}, "inner")
    assert (made.steps, made.rate, made.marks) == (3, 0.25, (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 4  # type: ignore[misc]


def test_options_go_through_json_unchanged() -> None:
    made = Inner(steps=7, rate=0.1, marks=(3, 1), kind="fancy", clip=2)
    stored = to_dict(made)
    assert stored == {"steps": 7, "rate": 0.1, "marks": [3, 1], "kind": "fancy", "clip": 2.0}
    assert build(Inner, json.loads(json.dumps(stored))) == made


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": 1.5}, "rate.*less than 1.*1.5"),
        ({"rate": 0}, "rate.*greater than 0.*0"),
        ({"rate": math.nan}, "rate.*nan"),
        ({"clip": math.inf}, "clip.*finite number.*inf"),
        ({"steps": -1}, "steps.*greater than or equal to 0"),
        ({"steps": 2.5}, "steps.*integer.*2.5"),
        ({"steps": "many"}, "steps.*integer"),
        ({"steps": None}, "steps.*integer.*None"),
        ({"kind": "fancier"}, "kind.*'plain' or 'fancy', got 'fancier'"),
        ({"rat": 0.1}, r"inner has no option `rat`; did you mean `rate`\? Allowed: clip, kind, marks, rate, steps"),
        ({"qqqq": 1}, "no option `qqqq`; allowed: clip"),
        ({3: 1}, "option names must be text, got 3"),
    ],
)
def test_what_is_not_allowed_names_the_option_and_the_value(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        build(Inner, given, "inner")
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"`steps`.*`rate`"):
        Inner(steps=-1, rate=2)


def test_what_is_required_is_asked_for() -> None:
    with pytest.raises(UsageError, match="demanding: `path` is required"):
        Demanding()


def test_options_have_names_not_positions() -> None:
    with pytest.raises(TypeError, match="positional"):
        Inner(3)  # type: ignore[misc]


def test_replacing_validates_again() -> None:
    made = Inner(rate=0.2)
    assert dataclasses.replace(made, steps=9) == Inner(rate=0.2, steps=9)
    with pytest.raises(UsageError, match="`rate` should be less than 1"):
        dataclasses.replace(made, rate=3)


def test_options_of_a_base_class_that_would_be_ignored_are_a_mistake_of_the_programmer() -> None:
    class Plain:
        steps: int = Field(3, description="steps")

    with pytest.raises(TypeError, match=r"Plain\.steps is declared in a base without @options"):

        @options
        class Derived(Plain):
            rate: float = 0.5


def test_errors_use_the_name_of_the_card() -> None:
    @options
    class Method:
        steps: int = Field(3, ge=0, description="steps")

    Method.card = Card(name="nice-name", summary="")  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="nice-name: `steps`"):
        Method(steps=-1)


def test_rows_say_type_default_bounds_and_meaning() -> None:
    rows = {row.name: row for row in describe(Inner)}
    assert list(rows) == ["steps", "rate", "marks", "kind", "clip"]
    assert (rows["steps"].type, rows["steps"].default, rows["steps"].bounds) == ("integer", 3, ">= 0")
    assert rows["rate"].bounds == "> 0, < 1"
    assert rows["marks"].type == "list of integer"
    assert rows["kind"].type == "plain | fancy"
    assert (rows["clip"].type, rows["clip"].default, rows["clip"].bounds) == ("number or null", None, "> 0")
    assert all(row.description == row.name for row in rows.values())
    assert describe(Demanding)[0].default == "required"


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("scrbu", "did you mean `scrub`? Allowed: laf, scrub"),
        ("zzz", "allowed: laf, scrub"),
    ],
)
def test_the_nearest_name_is_suggested_only_if_it_is_near(name: str, half: str) -> None:
    assert nearest(name, ["scrub", "laf"]) == half
    assert nearest(name, []) == "allowed: none"
