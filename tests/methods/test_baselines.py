"""CF-k, EU-k, Bad-T: what moves, what stays, and what it moves towards; every preset builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import expunge
from expunge.methods import METHODS
from expunge.methods.base import make_method
from expunge.methods.scrub import SCRUB
from expunge.testing.conformance import RECIPE, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem
from expunge.training.inference import predict
from expunge.training.recipe import learning_rate


def forget(problem: ToyProblem, method: str, *, initial: Any = None, **options: Any) -> expunge.Result:
    return expunge.unlearn(
        problem.model,
        forget=problem.forget,
        retain=problem.retain,
        recipe=RECIPE,
        initial=initial,
        method=method,
        device="cpu",
        **options,
    )


def moved(problem: ToyProblem, result: expunge.Result) -> set[str]:
    before, after = weights(problem.model), weights(result.model)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("k", "head", "names"),
    [
        (1, "trained", {"hidden", "head"}),
        (1, "frozen", {"hidden"}),
        (2, "trained", {"conv", "norm", "hidden", "head"}),
    ],
)
def test_cf_k_moves_the_last_blocks_alone(k: int, head: str, names: set[str]) -> None:
    problem = toy_problem(forget_class=1)
    result = forget(problem, "cf-k", k=k, head=head, epochs=1, lr=0.1)
    assert {name.split(".")[0] for name in moved(problem, result)} == names
    assert all(p.requires_grad for p in result.model.parameters())


def test_eu_k_starts_at_the_start_weights() -> None:
    problem = toy_problem(forget_class=1)
    start = {name: torch.full_like(value, 0.5) for name, value in problem.initial.items()}
    after = weights(forget(problem, "eu-k", epochs=0, initial=start).model)
    before = weights(problem.model)
    for name in ("hidden.weight", "head.bias"):
        assert torch.equal(after[name], start[name])
    for name in ("conv.weight", "norm.running_mean"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize(("buffers", "mean"), [(True, 0.5), (False, None)])
def test_eu_k_resets_batchnorm_statistics_if_asked(buffers: bool, mean: float | None) -> None:
    problem = toy_problem(forget_class=1)
    start = {name: torch.full_like(value, 0.5) for name, value in problem.initial.items()}
    after = weights(forget(problem, "eu-k", k=2, epochs=0, initial=start, buffers=buffers).model)
    expected = weights(problem.model)["norm.running_mean"] if mean is None else start["norm.running_mean"]
    assert torch.equal(after["norm.running_mean"], expected)
    assert torch.equal(after["norm.weight"], start["norm.weight"])


def test_eu_k_faithful_keeps_or_resets_the_frozen_head() -> None:
    problem = toy_problem(forget_class=1)
    kept = weights(forget(problem, "eu-k", head="frozen", epochs=1, initial=problem.initial).model)
    reset = weights(forget(problem, "eu-k", head="reset", epochs=1, initial=problem.initial).model)
    assert torch.equal(kept["head.weight"], weights(problem.model)["head.weight"])
    assert torch.equal(reset["head.weight"], problem.initial["head.weight"])


def test_eu_k_without_start_weights_draws_them_and_says_so() -> None:
    result = forget(toy_problem(forget_class=1), "eu-k", epochs=0)
    assert any("drawn anew" in note for note in result.notes)


def test_bad_teacher_approaches_the_ignorant_teacher_on_the_forget_set_only() -> None:
    problem = toy_problem(ToyNet(batchnorm=False), forget_class=1)
    result = forget(problem, "bad-t", epochs=8, lr=5e-3, retain_batch_size=16, forget_batch_size=8)
    first, last = result.history[0], result.history[-1]
    assert last["forget_distance"] < 0.5 * first["forget_distance"]
    chance = predict(result.model, problem.forget).softmax(1)[:, 1].mean()
    assert float(chance) < 0.6
    kept = predict(result.model, problem.retain).argmax(1) == problem.retain.y
    assert float(kept.float().mean()) > 0.9


PRESETS = [(name, preset) for name in METHODS.names() for preset in METHODS.load(name).presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS, ids=lambda text: text)
def test_every_preset_builds(name: str, preset: str) -> None:
    assert make_method(f"{name}/{preset}").card.name == name


# Rates per epoch as the notebooks produce them (specification, table of section 2.3).
RATES = {
    "small-rb": [5e-4] * 5 + [5e-5] * 3 + [5e-6, 5e-7],
    "large-rb": [5e-4] * 3,
    "small-rc": [5e-4] * 5 + [5e-5] + [5e-6] * 3 + [5e-7],
    "large-rc": [5e-4] * 7 + [5e-5] * 3,
    "up": [5e-4] * 3 + [5e-5] * 2,
    "resnet50": [5e-4] * 5,
}


@pytest.mark.parametrize("reading", ["", "/faithful"])
@pytest.mark.parametrize("family", RATES)
def test_learning_rates_of_each_family(family: str, reading: str) -> None:
    method = make_method(f"scrub/{family}{reading}")
    assert isinstance(method, SCRUB)
    rates = [
        learning_rate(e, base=method.lr, schedule="milestones", milestones=method.milestones, decay=method.decay)
        for e in range(1, method.epochs + 1)
    ]
    if family == "large-rc":  # milestones 7, 10, 10: the drop after 10 falls behind the last epoch
        assert len(rates) == 10
    assert rates == pytest.approx(RATES[family])


def test_readings_differ_in_what_the_objective_does_not_have() -> None:
    clean, faithful = SCRUB.presets["small-rc"], SCRUB.presets["small-rc/faithful"]
    assert {k for k in faithful if faithful[k] != clean.get(k)} == {"gamma", "smoothing"}
    assert SCRUB.presets["large-rb/faithful"]["smoothing"] == 0
