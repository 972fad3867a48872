"""SISA as a method: an exact ensemble, whose own first training is no part of the time of unlearning."""

from __future__ import annotations

import torch

import expunge
from expunge.data.split import ResidentStore, Split
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_images
from expunge.training.ensemble import Ensemble
from expunge.training.recipe import Recipe
from expunge.training.shards import Sharding
from expunge.training.sisa import ShardedTraining

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05)
DATA = Split.whole(ResidentStore(*toy_images(60, seed=0), classes=list("abcd")), "train")
GONE = DATA.take([3, 4], "forget")
KEPT = DATA.take([i for i in range(60) if i not in (3, 4)], "retain")


def forget() -> expunge.Result:
    torch.manual_seed(0)
    model = ToyNet()
    return expunge.unlearn(
        model, forget=GONE, retain=KEPT, method="sisa", shards=3, slices=2, recipe=RECIPE, seed=5, device="cpu",
        initial=model,
    )  # fmt: skip


def test_the_ensemble_is_that_of_a_sharded_training_that_forgot() -> None:
    result = forget()
    assert isinstance(result.model, Ensemble)
    torch.manual_seed(0)
    order = torch.cat([KEPT.index, GONE.index])
    training = ShardedTraining(
        ToyNet(), DATA.take(order), recipe=RECIPE, sharding=Sharding(shards=3, slices=2, start="drawn"), seed=5
    )
    training.train()
    assert same(weights(result.model), weights(training.forget(GONE)))
    assert 0 < result.details["sisa"]["share"] < 1


def test_only_the_second_training_counts() -> None:
    result = forget()
    assert result.details["sharded_training_seconds"] > 0
    assert 0 < result.seconds < result.details["sharded_training_seconds"]


def test_it_is_measured_like_any_other_model() -> None:
    result = forget()
    plain = expunge.train(ToyNet(), DATA, recipe=RECIPE, seed=0)
    scores = expunge.evaluate(
        {"original": plain, "retrained": plain, "sisa": result}, forget=GONE, retain=KEPT, device="cpu"
    )
    metrics = {value.metric for value in scores.values["sisa"]}
    assert "retain_accuracy" in metrics
    assert "weight_distance" not in metrics  # other tensors
