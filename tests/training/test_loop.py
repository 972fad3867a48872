"""The training loop by hand: what an epoch does, the pull of L2-SP, frozen BatchNorm, stopping and resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import Cancelled, CheckpointError, DivergedError, ExpungeError
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.loop import L2Reference, train_model
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.1)


@pytest.fixture(scope="module")
def data() -> Split:
    return toy_problem(epochs=0).retain


class Dropping(nn.Module):
    """Draws from the global generator in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.dropout(x.flatten(1), training=self.training))


def rows(run: Run) -> list[dict[str, float]]:
    """The history without what differs from run to run."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_pull_is_the_gradient_of_the_penalty(strength: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    net[0].bias.requires_grad_(False)
    pull = L2Reference(net, strength)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    moving = {name: p for name, p in net.named_parameters() if p.requires_grad}
    x = torch.randn(4, 3).double()
    penalty = sum((p - start[name]).square().sum() for name, p in moving.items())
    expected = torch.autograd.grad(net(x).square().sum() + strength / 2 * penalty, list(moving.values()))
    net(x).square().sum().backward()
    pull.add_gradient()
    for p, gradient in zip(moving.values(), expected, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-12, atol=1e-12)
    assert net[0].bias.grad is None


def test_pull_to_other_weights_than_those_at_the_start() -> None:
    net = nn.Linear(3, 2).double()
    reference = {name: torch.full_like(p, 2.0) for name, p in net.named_parameters()}
    pull = L2Reference(net, 0.5, reference)
    (0.0 * net(torch.ones(1, 3).double()).sum()).backward()
    pull.add_gradient()
    for p in net.parameters():
        assert torch.allclose(p.grad, 0.5 * (p.detach() - 2.0))


def test_a_strong_pull_keeps_the_model_at_its_reference(data: Split) -> None:
    torch.manual_seed(0)
    start = ToyNet()
    moved = []
    for strength in (0.0, 5.0):
        recipe = Recipe(epochs=5, batch_size=16, lr=0.1, momentum=0.0, weight_decay=0.0, l2_reference=strength)
        net = train_model(copy.deepcopy(start), data, recipe, Run())
        moved.append(float((net.head.weight - start.head.weight).detach().norm()))
    assert 0 < moved[1] < moved[0] / 4, moved


@pytest.mark.parametrize(("optimizer", "clip"), [("sgd", None), ("sgd", 0.05), ("adam", None), ("adamw", None)])
def test_two_epochs_are_what_pytorch_does(data: Split, optimizer: str, clip: float | None) -> None:
    # Before a BatchNorm, the gradient of a bias is rounding noise, which Adam blows up to steps of full size.
    torch.manual_seed(0)
    ours = ToyNet(batchnorm=optimizer == "sgd")
    theirs = copy.deepcopy(ours)
    lr = 0.1 if optimizer == "sgd" else 1e-4
    given = {"optimizer": optimizer, "lr": lr, "weight_decay": 0.5, "clip": clip}
    recipe = Recipe(epochs=2, batch_size=16, schedule="milestones", milestones=(1,), **given)
    train_model(ours, data, recipe, Run(seed=5))
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(theirs.parameters(), lr=lr, momentum=0.9, weight_decay=0.5),
        "adam": lambda: torch.optim.Adam(theirs.parameters(), lr=lr, weight_decay=0.5),
        "adamw": lambda: torch.optim.AdamW(theirs.parameters(), lr=lr, weight_decay=0.5),
    }
    reference = made[optimizer]()
    theirs.train()
    for epoch, rate in [(1, lr), (2, 0.1 * lr)]:
        reference.param_groups[0]["lr"] = rate
        for batch in data.batches(16, shuffle=True, seed=Run(seed=5).seed_for("train", "shuffle", epoch)):
            reference.zero_grad()
            F.cross_entropy(theirs(batch.x), batch.y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("frozen", False)])
def test_frozen_batchnorm_keeps_its_statistics(data: Split, mode: str, moves: bool) -> None:
    net = ToyNet()
    before = weights(net)
    train_model(net, data, Recipe(epochs=1, batchnorm=mode), Run())
    assert torch.equal(before["norm.running_mean"], net.norm.running_mean) is not moves
    assert torch.equal(before["norm.running_var"], net.norm.running_var) is not moves
    assert bool(net.norm.num_batches_tracked == 0) is not moves
    assert not torch.equal(before["norm.weight"], net.norm.weight)  # its scale learns either way


def test_fixed_parameters_stay(data: Split) -> None:
    net = ToyNet()
    net.conv.requires_grad_(False)
    before = weights(net)
    train_model(net, data, RECIPE, Run())
    assert torch.equal(before["conv.weight"], net.conv.weight)
    assert not torch.equal(before["head.weight"], net.head.weight)


def test_history_has_one_row_per_epoch_with_the_mean_loss(data: Split) -> None:
    torch.manual_seed(0)
    net = ToyNet(batchnorm=False)
    with torch.no_grad():
        expected = float(F.cross_entropy(net(data.inputs()), data.y))
    run = Run()
    train_model(net, data, Recipe(epochs=2, batch_size=len(data), lr=0.1, schedule="cosine"), run)
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert [row["lr"] for row in run.history] == pytest.approx([0.1, 0.05])
    assert run.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert run.history[1]["loss"] < expected
    assert all(row["seconds"] >= 0 for row in run.history)


def test_the_mean_loss_weighs_a_short_last_batch_by_its_size(data: Split) -> None:
    net = ToyNet(batchnorm=False)
    with torch.no_grad():
        expected = float(F.cross_entropy(net(data.inputs()), data.y))
    run = Run()
    train_model(net, data, Recipe(epochs=1, batch_size=len(data) - 1, lr=1e-12), run)
    assert run.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_seeds_and_purposes_have_their_own_order(data: Split) -> None:
    start = ToyNet()
    found = [
        weights(train_model(copy.deepcopy(start), data, RECIPE, Run(seed=seed), purpose=purpose))
        for seed, purpose in [(0, "train"), (0, "train"), (1, "train"), (0, "pretrain")]
    ]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    assert not same(found[0], found[3])


def test_no_epochs_change_nothing(data: Split) -> None:
    net = ToyNet()
    before, run = weights(net), Run()
    train_model(net, data, Recipe(epochs=0), run)
    assert same(before, weights(net))
    assert run.history == []


def test_a_loss_that_explodes_is_named(data: Split) -> None:
    with pytest.raises(DivergedError, match=r"diverged in epoch \d: .*Lower the learning rate"):
        train_model(ToyNet(batchnorm=False), data, Recipe(epochs=3, lr=1e20), Run(label="toy"))


@pytest.mark.parametrize("make", [ToyNet, Dropping])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_training_resumes_to_the_same_bits(
    data: Split, tmp_path: Path, make: Callable[[], nn.Module], optimizer: str, stop: int
) -> None:
    recipe = Recipe(epochs=4, batch_size=16, optimizer=optimizer, lr=0.05)
    start, whole, file = make(), Run(seed=1), tmp_path / "state.pt"
    expected = train_model(copy.deepcopy(start), data, recipe, whole)
    polls = iter([False] * (stop - 1) + [True])
    with pytest.raises(Cancelled):
        train_model(copy.deepcopy(start), data, recipe, Run(seed=1, cancelled=lambda: next(polls)), resume=file)
    torch.manual_seed(99)  # another process: its global generator stands somewhere else
    rest = Run(seed=1)
    resumed = train_model(make(), data, recipe, rest, resume=file)
    assert same(weights(expected), weights(resumed))
    assert rows(rest) == rows(whole)


def test_a_finished_training_is_not_done_again(data: Split, tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    first = weights(train_model(ToyNet(), data, RECIPE, Run(), resume=file))
    seen: list[int] = []
    again = train_model(ToyNet(), data, RECIPE, Run(progress=lambda step: seen.append(step.done)), resume=file)
    assert same(first, weights(again))
    assert seen == []


def test_a_training_out_of_time_goes_on_where_it_stopped(data: Split, tmp_path: Path) -> None:
    start, file = ToyNet(), tmp_path / "state.pt"
    statuses = []
    for _ in range(RECIPE.epochs):
        run = Run(budget_seconds=0)
        resumed = train_model(copy.deepcopy(start), data, RECIPE, run, resume=file)
        statuses.append(run.status)
    assert statuses == ["budget", "budget", "finished"]
    assert same(weights(resumed), weights(train_model(copy.deepcopy(start), data, RECIPE, Run())))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without(key: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        del state[key]
        torch.save(state, file)

    return change


def holding(value: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(value, file)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_bytes(b"not a checkpoint"),
    "a byte of a pickle": lambda file: file.write_bytes(b"\x80"),
    "a letter": lambda file: file.write_bytes(b"t"),
    "a list": holding([1, 2]),
    "a tensor": holding(torch.ones(3)),
    "another shape": holding({"model": 3, "optimizer": {}, "epoch": 1, "history": []}),
    "another model": holding({"model": nn.Linear(2, 2).state_dict(), "optimizer": {}, "epoch": 1, "history": []}),
    "no optimizer": without("optimizer"),
    "no epoch": without("epoch"),
    "no history": without("history"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named_and_says_what_to_do(data: Split, tmp_path: Path, damage: str) -> None:
    file, run = tmp_path / "state.pt", Run()
    train_model(ToyNet(), data, Recipe(epochs=1), Run(), resume=file)
    DAMAGE[damage](file)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be resumed from .*delete it to start again") as caught:
        train_model(ToyNet(), data, RECIPE, run, resume=file)
    assert "\n" not in str(caught.value)
    assert run.history == []


def test_a_full_disk_leaves_the_last_state_whole(data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, start = tmp_path / "state.pt", ToyNet()
    with pytest.raises(Cancelled):
        train_model(copy.deepcopy(start), data, RECIPE, Run(cancelled=lambda: True), resume=file)
    whole, save = file.read_bytes(), torch.save

    def fill(state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(ExpungeError, match=r"cannot write .*state\.pt \(.*No space left"):
        train_model(copy.deepcopy(start), data, RECIPE, Run(), resume=file)
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr(torch, "save", save)
    resumed = train_model(copy.deepcopy(start), data, RECIPE, Run(), resume=file)
    assert same(weights(resumed), weights(train_model(copy.deepcopy(start), data, RECIPE, Run())))
