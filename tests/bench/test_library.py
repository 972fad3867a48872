"""Every recipe that comes with Expunge is valid and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.bench.library import recipes
from expunge.bench.reading import load_study


@pytest.mark.parametrize("name", recipes())
def test_recipe(name: str) -> None:
    study = load_study(Path(recipes()[name]))
    assert study.name == name
    assert study.title
    assert len(study.about) > 40
    assert any(label == "original" or method.card.name == "original" for label, method in study.named_methods())


def test_changes_reach_the_study() -> None:
    study = load_study(Path(recipes()["scrub-small-rb"]), ["data.source=elsewhere", "seeds=[7]", "train.epochs=3"])
    assert (study.data.source, study.seeds, study.recipe().epochs) == ("elsewhere", (7,), 3)
    assert study.pretrain is not None
    assert study.pretrain.source is None, "the other classes of the same data"
