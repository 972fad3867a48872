"""Registries: names load lazily, third parties come in by entry points, and a wrong name meets the nearest one."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

import expunge
from expunge.core import registry
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.registry import Card, Registry
from expunge.methods import METHODS

ORDERED = Card(name="dict", summary="a dictionary", target="collections:OrderedDict")
PLUGIN = """
from torch import nn
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.methods.base import Method, method

@method("from-afar", summary="of another package", needs=Needs(forget="inputs"))
class FromAfar(Method):
    strength: float = Field(1.0, ge=0, description="strength")

    def unlearn(self, problem, run):
        return problem.student()
"""


@pytest.fixture
def things() -> Registry:
    return Registry("thing", [ORDERED])


@pytest.fixture
def from_afar(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that names a method of its own in the group `expunge.methods`."""
    (tmp_path / "package_from_afar.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("from-afar", "package_from_afar:FromAfar", "expunge.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "expunge.methods" else [])
    yield
    METHODS.remove("from-afar")
    sys.modules.pop("package_from_afar", None)


def test_a_name_loads_what_its_card_targets(things: Registry) -> None:
    assert things.names() == ["dict"]
    assert things.cards() == [ORDERED]
    assert things.load("dict") is OrderedDict


def test_a_card_needs_no_import() -> None:
    lazy: Registry = Registry("thing", [Card(name="far", summary="", target="no.such.module:Thing")])
    assert lazy.card("far").name == "far"
    with pytest.raises(ModuleNotFoundError):
        lazy.load("far")


def test_a_wrong_name_meets_the_nearest_one(things: Registry) -> None:
    with pytest.raises(UsageError, match=r"unknown thing `dcit`; did you mean `dict`\? Allowed: dict\."):
        things.load("dcit")
    with pytest.raises(UsageError, match="unknown thing `zzz`; allowed: dict"):
        things.card("zzz")


def test_a_name_is_taken_once(things: Registry) -> None:
    card = Card(name="set", summary="")
    things.add(card, set)
    things.add(card, frozenset)  # the cell of a notebook that is run again
    assert things.names() == ["dict", "set"]
    assert things.load("set") is frozenset
    with pytest.raises(ExpungeError, match="the thing name `dict` is already taken"):
        things.add(Card(name="dict", summary="another"), dict)
    assert things.load("dict") is OrderedDict


def test_what_was_added_can_be_removed(things: Registry) -> None:
    things.add(Card(name="set", summary=""), set)
    things.remove("set")
    assert things.names() == ["dict"]
    with pytest.raises(UsageError, match="unknown thing `set`"):
        things.load("set")


def test_a_method_of_another_package_is_listed_and_works(from_afar: None) -> None:
    assert "package_from_afar" not in sys.modules
    assert METHODS.names()[-1] == "from-afar"
    assert "package_from_afar" not in sys.modules  # names alone import nothing
    assert METHODS.card("from-afar").summary == "of another package"
    assert expunge.method("from-afar")(strength=2).strength == 2.0
    assert METHODS.names().count("from-afar") == 1
    with pytest.raises(UsageError, match="from-afar: `strength` should be greater than or equal to 0"):
        expunge.method("from-afar")(strength=-1)
    with pytest.raises(UsageError, match="did you mean `from-afar`"):
        expunge.method("from-far")


def test_entry_points_are_looked_up_in_the_group_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or [])
    for kind in ("method", "metric", "scenario", "model", "dataset"):
        Registry(kind).names()
    assert asked == ["expunge.methods", "expunge.metrics", "expunge.scenarios", "expunge.models", "expunge.datasets"]


def test_another_package_cannot_take_the_name_of_ours(things: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("dict", "builtins:dict", things.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert things.names() == ["dict"]
    assert things.load("dict") is OrderedDict


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('too old')", "RuntimeError: too old"),
        ("import a_library_that_is_not_installed", "ModuleNotFoundError"),
        ("class Thing: pass", "`package_from_hell:Thing` is no method; its author registers it with @expunge.methods"),
    ],
)
def test_a_package_that_misbehaves_costs_a_warning_and_not_the_list(
    source: str, reason: str, tmp_path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "package_from_hell.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("broken", "package_from_hell:Thing", "expunge.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "expunge.methods" else [])
    monkeypatch.setattr(METHODS, "_broken", set())
    built_in = len(METHODS.names()) - 1
    assert len(METHODS.cards()) == len(METHODS.cards()) == built_in
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason.partition("`")[0] in caplog.text
    with pytest.raises(UsageError, match=re.escape(reason)):
        METHODS.load("broken")
    sys.modules.pop("package_from_hell", None)


def test_a_module_that_runs_again_replaces_what_it_registered(tmp_path) -> None:
    path = tmp_path / "mine.py"
    for strength in (1.0, 2.5):
        path.write_text(PLUGIN.replace("from-afar", "edited").replace("1.0", str(strength)).replace("of another", "my"))
        assert METHODS.named(f"{path}:FromAfar/fast") == "edited/fast"
        assert METHODS.load("edited")().strength == strength
    path.with_name("other.py").write_text(PLUGIN.replace("from-afar", "edited"))
    with pytest.raises(UsageError, match="the method name `edited` is already taken"):
        METHODS.named(f"{tmp_path}/other.py:FromAfar")
    METHODS.remove("edited")


def test_what_a_user_names_must_be_of_the_kind(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def net(): pass\n")
    with pytest.raises(UsageError, match=r"mine.py:net` is no method: register it with @expunge\.methods"):
        METHODS.named(f"{path}:net")
    with pytest.raises(UsageError, match="has no function or class `nett`; did you mean `net`"):
        METHODS.named(f"{path}:nett")
    assert METHODS.named("scrub/paper") == "scrub/paper"
    with pytest.raises(UsageError, match="unknown method"):
        METHODS.load(f"{path}:net")  # a name from a stored file runs nothing
