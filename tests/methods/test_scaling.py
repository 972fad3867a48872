"""Defaults fit the problem; what was given, presets and studies stay as written."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.core.options import given, option_names
from expunge.methods import METHODS
from expunge.methods.base import make_method
from expunge.methods.scaling import Sizes, exposure
from expunge.models.initial import reset_parameters
from expunge.training.recipe import Recipe

SGD = Recipe(epochs=20, lr=0.1, momentum=0.9, batch_size=64)
ADAM = Recipe(epochs=20, lr=2e-3, optimizer="adamw", batch_size=64)


def fitted(name: str, sizes: Sizes, **options: Any) -> Any:
    return make_method(name, **options).fitted(sizes)


@pytest.mark.parametrize("forget", [20, 300, 20_000])
def test_ascent_steps_stay_few_whatever_the_size(forget: int) -> None:
    sizes = Sizes(forget, 60_000, SGD)
    scrub = fitted("scrub", sizes)
    steps = scrub.msteps * -(-forget // scrub.forget_batch_size)
    assert steps <= 6 or scrub.forget_batch_size == 512
    neggrad = fitted("neggrad", sizes)
    assert neggrad.epochs * -(-forget // neggrad.batch_size) <= 25 or neggrad.batch_size == 512
    plus = fitted("neggrad+", sizes)
    seen = exposure(sizes, plus.epochs, plus.retain_batch_size, plus.forget_batch_size)
    assert (1 - plus.alpha) * seen <= 1.0 + 1e-9  # never more than twenty looks at a weight of 0.05


@pytest.mark.parametrize("name", ["scrub", "neggrad+", "random-label", "finetune", "cf-k"])
def test_passes_follow_the_training(name: str) -> None:
    epochs = [fitted(name, Sizes(100, 5000, replace(SGD, epochs=count))).epochs for count in (4, 20, 40)]
    assert epochs == [2, 3, 6]
    assert fitted(name, Sizes(100, 5000)).epochs == make_method(name).epochs  # nothing is known of the training


def test_rates_follow_a_training_with_the_same_kind_of_optimiser() -> None:
    at = {"sgd": Sizes(100, 5000, SGD), "adam": Sizes(100, 5000, ADAM), "unknown": Sizes(100, 5000)}
    assert [fitted("scrub", sizes).lr for sizes in at.values()] == [5e-4, 1e-3, 5e-4]
    assert fitted("random-label", at["sgd"]).lr == pytest.approx(0.02)
    assert fitted("random-label", at["adam"]).lr == 0.01
    tuned = fitted("finetune", at["adam"])
    assert (tuned.optimizer, tuned.lr, tuned.batch_size) == ("adamw", 1e-3, 64)
    again = fitted("eu-k", at["adam"])
    assert (again.optimizer, again.lr, again.milestones) == ("adamw", 2e-3, (10, 15, 18))


def test_what_was_given_and_presets_are_not_touched() -> None:
    sizes = Sizes(20, 60_000, ADAM)
    assert fitted("scrub", sizes, lr=0.1, epochs=9).lr == 0.1
    assert fitted("scrub", sizes, lr=0.1, epochs=9).epochs == 9
    for name in METHODS.names():
        cls = METHODS.load(name)
        for preset in cls.presets:
            made = make_method(f"{name}/{preset}")
            assert made.fitted(sizes) == made
            assert given(made) == set(option_names(cls))
        if "paper" in cls.presets:
            assert make_method(f"{name}/paper") == replace(make_method(name), max_drop=None)
    kept = make_method(make_method("scrub"), lr=0.2)
    assert given(kept) == {"lr"}
    assert kept.fitted(sizes).forget_batch_size == 16


def test_a_study_runs_what_it_says() -> None:
    from expunge.bench.reading import parse_study

    study = parse_study(
        {
            "name": "x", "data": {"source": "digits"}, "model": {"name": "mlp"}, "scenarios": ["class:1"],
            "methods": ["scrub", {"name": "finetune", "lr": 0.3}],
        }
    )  # fmt: skip
    made = dict(study.named_methods())
    assert all(method.fitted(Sizes(20, 900, ADAM)) == method for method in made.values())
    assert made["scrub"] == make_method("scrub", max_drop=None)


def test_results_state_the_numbers_that_were_used() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 6, generator=generator), torch.arange(60) % 3
    model = expunge.train(nn.Linear(6, 3), (x, y), recipe={"epochs": 20, "lr": 0.1, "batch_size": 16}, device="cpu")
    result = expunge.unlearn(model, forget=list(range(6)), method="random-label", device="cpu", momentum=0.5)
    options = result.facts["options"]
    assert (options["epochs"], options["momentum"]) == (3, 0.5)
    assert options["lr"] == pytest.approx(0.2 * 0.1 * 0.5 / 0.1)
    seen = exposure(Sizes(6, 54), 3, 128, 64)
    assert options["weight"] == pytest.approx(min(1.0, 5 / seen))


class Positions(nn.Module):
    """Holds weights that no `reset_parameters` draws."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.position)


def test_the_ignorant_teacher_is_drawn_whatever_holds_its_weights() -> None:
    model = Positions()
    reset_parameters(model, seed=3, any_rule=True)
    assert 0 < float(model.position.detach().abs().max()) < 0.2
    x, y = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    result = expunge.unlearn(
        Positions(), forget=(x[:8], y[:8]), retain=(x[8:], y[8:]), method="bad-t", device="cpu", measure=False
    )
    assert all(math.isfinite(row["retain_distance"]) for row in result.history if "retain_distance" in row)
    assert result.status == "finished"
