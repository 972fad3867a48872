"""The training loop by hand: the pull of L2-SP, frozen BatchNorm, resuming, the cache of trained models, schedules."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import Cancelled, CheckpointError
from expunge.core.run import Run
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.cache import train_cached
from expunge.training.inference import error_rate, predict
from expunge.training.loop import L2Reference, train_model
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.1)


def test_pull_is_the_gradient_of_the_penalty() -> None:
    net = nn.Linear(3, 2).double()
    pull = L2Reference(net, 0.7)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net.weight.add_(torch.randn(2, 3).double())
    x = torch.randn(4, 3).double()
    penalty = sum((p - start[name]).square().sum() for name, p in net.named_parameters())
    expected = torch.autograd.grad(net(x).sum() + 0.7 / 2 * penalty, list(net.parameters()))
    net(x).sum().backward()
    pull.add_gradient()
    for p, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, gradient)


def test_one_epoch_is_what_pytorch_does() -> None:
    data = toy_problem(forget_class=1).retain
    torch.manual_seed(0)
    ours, theirs = (copy.deepcopy(net) for net in [ToyNet()] * 2)
    recipe = Recipe(epochs=1, batch_size=16, lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="constant")
    run = Run(seed=5)
    train_model(ours, data, recipe, run)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    theirs.train()
    for batch in data.batches(16, shuffle=True, seed=Run(seed=5).seed_for("train", "shuffle", 1)):
        optimizer.zero_grad()
        F.cross_entropy(theirs(batch.x), batch.y).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("frozen", False)])
def test_frozen_batchnorm_keeps_its_statistics(mode: str, moves: bool) -> None:
    data, net = toy_problem(forget_class=1).retain, ToyNet()
    before = net.norm.running_mean.clone()
    train_model(net, data, Recipe(epochs=1, batchnorm=mode), Run())
    assert torch.equal(before, net.norm.running_mean) is not moves


def test_a_stopped_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data, start = toy_problem(forget_class=1).retain, ToyNet()
    whole = train_model(copy.deepcopy(start), data, RECIPE, Run(seed=1))
    file, polls = tmp_path / "state.pt", iter([False, True])
    with pytest.raises(Cancelled):
        train_model(copy.deepcopy(start), data, RECIPE, Run(seed=1, cancelled=lambda: next(polls)), resume=file)
    run = Run(seed=1)
    resumed = train_model(copy.deepcopy(start), data, RECIPE, run, resume=file)
    assert same(weights(whole), weights(resumed))
    assert [row["epoch"] for row in run.history] == [1, 2, 3]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be resumed from"):
        train_model(ToyNet(), toy_problem(forget_class=1).retain, RECIPE, Run(), resume=file)


def test_nothing_trains_twice_and_damage_is_repaired(tmp_path: Path) -> None:
    data, start = toy_problem(forget_class=1).retain, ToyNet()
    first = Run(seed=1, cache=tmp_path)
    trained = weights(train_cached(copy.deepcopy(start), data, RECIPE, first))
    assert "cached_seconds" not in first.details
    second = Run(seed=1, cache=tmp_path)
    assert same(trained, weights(train_cached(copy.deepcopy(start), data, RECIPE, second)))
    assert second.details["cached_seconds"] > 0
    assert second.history == first.history
    other = Run(seed=2, cache=tmp_path)
    assert not same(trained, weights(train_cached(copy.deepcopy(start), data, RECIPE, other)))
    for file in (tmp_path / "models").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    third = Run(seed=1, cache=tmp_path)
    assert same(trained, weights(train_cached(copy.deepcopy(start), data, RECIPE, third)))
    assert any("damaged" in note for note in third.notes)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "cosine"}, [1.0, 0.853553, 0.5, 0.146447]),
        ({"schedule": "milestones", "milestones": (1, 3)}, [1.0, 0.1, 0.1, 0.01]),
        ({"schedule": "milestones", "milestones": (2, 2), "decay": 0.5}, [1.0, 1.0, 0.25, 0.25]),
    ],
)
def test_rates_per_epoch(options: dict[str, object], rates: list[float]) -> None:
    recipe = Recipe(epochs=4, lr=1.0, **options)
    assert [recipe.rate(e) for e in (1, 2, 3, 4)] == pytest.approx(rates, rel=1e-5)


def test_predictions_are_in_order_in_eval_mode_and_leave_the_mode() -> None:
    problem = toy_problem(forget_class=1)
    net = problem.model.train()
    logits = predict(net, problem.retain, batch_size=7)
    assert net.training
    with torch.no_grad():
        assert torch.allclose(logits, net.eval()(problem.retain.inputs()), atol=1e-5)
    assert error_rate(torch.eye(3), torch.tensor([0, 1, 0])) == pytest.approx(1 / 3)
