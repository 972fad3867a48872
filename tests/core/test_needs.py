"""Needs: unions take the wider access, and the phrases in tables are facts."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.core.needs import Needs


def test_needs_unite_to_the_wider_access() -> None:
    both = Needs(forget="inputs", labelled=0.1) | Needs(forget="labels", validation="labels", initial=True)
    assert both == Needs(forget="labels", validation="labels", initial=True, labelled=0.1)


def test_a_union_forgets_no_need() -> None:
    """Every field on its own survives a union from either side; a field added later is covered too."""
    nothing = Needs(weights=False)
    for field in dataclasses.fields(Needs):
        if field.name == "optional":  # qualifies other fields, and means nothing alone
            continue
        value = {"str": "labels", "bool": True, "float": 0.5}.get(type(getattr(nothing, field.name)).__name__)
        one = dataclasses.replace(nothing, **{field.name: value})
        assert nothing | one == one | nothing == one | one == one
        assert one != nothing


@pytest.mark.parametrize(("wide", "narrow"), [("labels", "inputs"), ("inputs", "none"), ("labels", "none")])
def test_labels_are_wider_than_inputs_are_wider_than_nothing(wide: str, narrow: str) -> None:
    either = [Needs(retain=wide) | Needs(retain=narrow), Needs(retain=narrow) | Needs(retain=wide)]  # type: ignore
    assert [needs.retain for needs in either] == [wide, wide]


def test_label_free_means_no_label_of_any_split() -> None:
    assert Needs(forget="inputs", retain="inputs", validation="inputs", recipe=True).label_free
    assert not Needs(forget="inputs", retain="inputs", labelled=5).label_free
    for split in ("forget", "retain", "validation"):
        assert not Needs(**{split: "labels"}).label_free  # type: ignore[arg-type]


def test_forget_set_only_means_no_other_data() -> None:
    assert Needs(forget="labels", recipe=True).forget_set_only
    assert not Needs(forget="labels", validation="inputs").forget_set_only
    assert not Needs(forget="labels", retain="inputs").forget_set_only


def test_phrases() -> None:
    phrases = Needs(forget="labels", retain="inputs", labelled=0.1, weights=False, recipe=True, initial=True).describe()
    assert phrases == {
        "forget": "inputs and labels",
        "retain": "inputs only, labels of 10%",
        "validation": "-",
        "trained weights": "-",
        "also": "training recipe, initial weights",
    }
    assert Needs(retain="inputs", labelled=250).describe()["retain"] == "inputs only, labels of 250 samples"
    assert Needs().describe()["also"] == "-"


def test_needs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Needs().retain = "labels"  # type: ignore[misc]


def test_a_union_is_optional_only_where_both_can_do_without() -> None:
    either = Needs(validation="labels", recipe=True, optional=("validation", "recipe"))
    assert (either | Needs(retain="labels")).optional == ("validation", "recipe")
    assert (either | Needs(validation="inputs")).optional == ("recipe",)
    assert either.describe()["validation"] == "inputs and labels, where given"
    assert either.describe()["also"] == "training recipe where known"
