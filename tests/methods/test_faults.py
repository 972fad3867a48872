"""Faults that were found in use, each with the smallest case that shows it."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field, option_names
from expunge.core.run import Run
from expunge.methods import METHODS
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.base import RESERVED, Method, make_method, method
from expunge.methods.fisher import Fisher
from expunge.methods.laf import LAFRepair
from expunge.methods.problem import Problem
from expunge.methods.scrub import SCRUB, WeightMean
from expunge.numerics.importance import importance
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import ToyNet, toy_problem

REPAIRED: dict[str, Any] = {
    "max_drop": None, "epochs": 2, "lr_ue": 1e-2, "lr_ra": 1e-3, "batch_size": 8, "vae_epochs": 2, "labels": 30,
    "repair_lr": 0.05, "repair_epochs": 3,
}  # fmt: skip


def test_rewinding_keeps_what_a_method_does_after_its_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.methods import rewind

    plain = run(LAFRepair(**REPAIRED), toy_problem())
    monkeypatch.setattr(rewind, "closest", lambda errors, target: len(errors) - 1)
    last = run(LAFRepair(**REPAIRED, rewind=True), toy_problem())
    assert list(last.details["rewind"]["errors"]) == [0, 1, 2, "final"]
    assert last.details["rewind"]["chosen"] == "final"
    assert same(weights(last.model), weights(plain.model))
    monkeypatch.setattr(rewind, "closest", lambda errors, target: 1)
    early = run(LAFRepair(**REPAIRED, rewind=True), toy_problem())
    assert any("lacks what laf+r did after its last epoch" in note for note in early.notes)


def test_snapshots_are_numbered_as_the_history_over_several_loops() -> None:
    torch.manual_seed(0)
    net, work = ToyNet(), Run(keep_snapshots=True)
    for count in (2, 3):
        for _ in work.epochs(net, count):
            with torch.no_grad():
                net.head.bias += 1
    assert sorted(work.snapshots) == [0, *(int(row["epoch"]) for row in work.history)] == list(range(6))
    first = work.snapshots[0]["head.bias"][0]
    assert [float(work.snapshots[n]["head.bias"][0] - first) for n in range(6)] == pytest.approx(range(6), abs=1e-5)


def test_no_option_has_the_name_of_a_keyword_and_none_can_be_registered() -> None:
    assert {name for name in inspect.signature(expunge.unlearn).parameters if name != "options"} <= RESERVED
    for name in METHODS.names():
        assert not RESERVED.intersection(option_names(METHODS.load(name))), name
    with pytest.raises(ExpungeError, match="the option `retain` has the name of a keyword"):

        @method("toy-reserved", summary="s", needs=Needs())
        class Reserved(Method):
            retain: float = Field(1.0, description="could never be passed")

            def unlearn(self, problem: Problem, run: Run) -> nn.Module:
                return problem.student()


def test_former_names_of_options_are_still_taken() -> None:
    assert make_method("bad-t", forget=0.3, keep=0.5) == BadTeacher(forget_weight=0.3, retain_weight=0.5)
    assert make_method("scrub", kick=0.5) == SCRUB(start_perturbation=0.5)
    with pytest.raises(UsageError, match="former name"):
        make_method("scrub", kick=0.5, start_perturbation=0.1)


def test_faithful_scrub_does_not_perturb_the_start() -> None:
    faithful = [name for name in SCRUB.presets if name.endswith("/faithful")]
    assert len(faithful) == 8
    assert {make_method(f"scrub/{name}").start_perturbation for name in faithful} == {0.0}  # type: ignore[attr-defined]


class Tempered(ToyNet):
    """A learned temperature (a scalar), and a hidden layer as wide as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.narrow = nn.Linear(16, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.hidden(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)))
        return self.head(torch.relu(self.narrow(x))) / self.temperature


@pytest.mark.parametrize("tensors", ["module", "shape"])
def test_fisher_takes_scalars_and_knows_the_head(tensors: Any) -> None:
    torch.manual_seed(0)
    problem = toy_problem(Tempered())
    result = run(Fisher(alpha=1e-9, tensors=tensors), problem)
    assert result.details["whole_classes"] == [1]
    after, before = weights(result.model), weights(problem.model)
    # The row of a class that is forgotten altogether is drawn around zero in the head, and only there.
    moved = (after["narrow.weight"][1] - before["narrow.weight"][1]).abs().max()
    assert bool(moved < 1e-2) == (tensors == "module")
    assert float(after["head.weight"][1].abs().max()) < 0.2


class Dropping(ToyNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


def test_threads_that_unlearn_at_once_give_what_each_gives_alone() -> None:
    torch.manual_seed(0)
    problem = toy_problem(Dropping())
    before = torch.get_rng_state()

    def unlearned() -> dict[str, Tensor]:
        copied = copy.deepcopy(problem)
        return weights(run(make_method("finetune", epochs=4, batch_size=8), copied, seed=3).model)

    alone, results = unlearned(), []
    threads = [threading.Thread(target=lambda: results.append(unlearned())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(same(alone, result) for result in results)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_a_rule_ends_early_is_stopped_and_not_finished() -> None:
    quick = {"lr": 5e-3, "epochs": 6, "msteps": 1, "retain_batch_size": 16, "max_drop": None}
    assert run(SCRUB(**quick, retain_tolerance=1.0), toy_problem()).status == "stopped"
    assert run(SCRUB(**quick), toy_problem()).status == "finished"
    assert (
        run(SCRUB(**{**quick, "epochs": 1}, retain_tolerance=1.0), toy_problem()).status == "finished"
    )  # it was the last


def test_importance_of_the_authors_adds_gradients_up_over_batches() -> None:
    problem = toy_problem(ToyNet(batchnorm=False))
    parts = list(problem.forget.batches(10))
    gradients = [
        torch.autograd.grad(problem.model(part.x).norm(dim=1).mean(), problem.model.head.weight)[0] for part in parts
    ]
    plain = sum(g.abs() for g in gradients)
    summed = sum(total.abs() for total in torch.stack(gradients).cumsum(0))
    for expected, option in ((plain, False), (summed, True)):
        omega = importance(copy.deepcopy(problem.model), problem.forget, Run(), batch_size=10, summed=option)
        scaled = (expected - expected.min()) / (expected.max() - expected.min())
        torch.testing.assert_close(omega["head.weight"], 1 - scaled, atol=1e-4, rtol=0)


def test_the_running_mean_copies_first_if_asked() -> None:
    net = nn.Linear(2, 1, bias=False)
    mean = WeightMean(net, copies_first=True)
    for step, left in ((1.0, 0.0), (1.0, 0.9)):
        with torch.no_grad():
            net.weight.add_(step)
        mean.follow(net)
        assert float(mean.distance(net).detach()) == pytest.approx(left * 2**0.5, abs=1e-5)
