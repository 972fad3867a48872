"""Every recipe that comes with Expunge is valid and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.bench.library import recipes
from expunge.bench.reading import load_study
from expunge.methods.references import Retrain


@pytest.mark.parametrize("name", recipes())
def test_recipe(name: str) -> None:
    study = load_study(Path(recipes()[name]))
    assert study.name == name
    assert study.title
    assert len(study.about) > 40
    assert any(label == "original" or method.card.name == "original" for label, method in study.named_methods())


SCRUB = sorted(name for name in recipes() if name.startswith("scrub-"))


@pytest.mark.parametrize("name", [name for name in SCRUB if name.endswith("-faithful")])
def test_the_scrub_authors_reading(name: str) -> None:
    """Their constants, a refilled reference, and the `faithful` preset of every method that has one for the family."""
    study = load_study(recipes()[name])
    assert study.data.normalise == ("scrub-lacuna" if "lacuna" in name else "scrub-cifar")
    reference = study.reference()
    assert isinstance(reference, Retrain)
    assert reference.refill
    for _, _, method, _ in study.method_items():
        base, _, preset = method.partition("/")
        if base in ("finetune", "neggrad+", "cf-k", "scrub"):
            assert preset.endswith("/faithful"), method
        if base == "eu-k":  # the notebooks reset the head of All-CNN alone
            assert preset.endswith("/faithful/allcnn" if study.model.name == "allcnn" else "/faithful"), method
        assert base != "neggrad", "not in their code"
    labels = {label for label, _ in study.named_methods()}
    assert labels >= {"Finetune", "NegGrad+", "CF-k", "EU-k", "Bad-T", "SCRUB"}


@pytest.mark.parametrize("name", SCRUB)
def test_scrub_pretraining_is_pulled_to_its_start(name: str) -> None:
    """Only the reduced recipes, whose results are kept, do it with weight decay, and they say so."""
    study = load_study(recipes()[name])
    if study.pretrain is None:
        return
    recipe = study.pretrain.recipe
    assert (recipe["weight_decay"], recipe.get("l2_reference")) in ((0.0, 5e-4), (5e-4, None))
    if study.pretrain.source is None:
        assert recipe["weight_decay"] == 5e-4
        assert "weight decay" in study.about or "scrub-small-r" in study.about
    else:
        assert recipe["l2_reference"] == 5e-4


@pytest.mark.parametrize("name", [name for name in SCRUB if "large" in name and "-rc" in name])
def test_large_confusion_trains_with_frozen_batchnorm(name: str) -> None:
    recipe = load_study(recipes()[name]).recipe()
    assert (recipe.batchnorm, recipe.l2_reference, recipe.weight_decay) == ("frozen", 5e-4, 0.0)


@pytest.mark.parametrize("name", SCRUB)
def test_the_width_of_all_cnn_is_the_published_one(name: str) -> None:
    model = load_study(recipes()[name]).model
    assert model.name != "allcnn" or model.options.get("width", 1.0) == 1.0


def test_changes_reach_the_study() -> None:
    study = load_study(Path(recipes()["scrub-small-rb"]), ["data.source=elsewhere", "seeds=[7]", "train.epochs=3"])
    assert (study.data.source, study.seeds, study.recipe().epochs) == ("elsewhere", (7,), 3)
    assert study.pretrain is not None
    assert study.pretrain.source is None, "the other classes of the same data"
