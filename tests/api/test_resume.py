"""A stopped `unlearn` goes on after its last finished epoch, to the same bits; with anything else it begins again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.api.result import Result
from expunge.core.errors import CheckpointError, ExpungeError
from expunge.core.resume import Values, content_hash, remove_state, state_files
from expunge.core.run import Progress, Run
from expunge.methods import METHODS
from expunge.methods.problem import Problem
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyProblem, toy_problem

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.EffectWarning")
SCRUB = {"epochs": 4, "msteps": 2, "lr": 5e-3, "retain_batch_size": 16, "forget_batch_size": 8}


@pytest.fixture(scope="module")
def problem() -> ToyProblem:
    return toy_problem()


def unlearn(problem: ToyProblem, **changes: Any) -> Result:
    settings: dict[str, Any] = {
        "forget": problem.forget, "retain": problem.retain, "validation": problem.validation, "method": "scrub",
        "device": "cpu", "precision": "float32", "measure": False, **SCRUB, **changes,
    }  # fmt: skip
    return expunge.unlearn(problem.model, **settings)


def stopped(problem: ToyProblem, state: Path, after: int = 2, **changes: Any) -> None:
    def stop(event: Progress) -> None:
        if event.done >= after and state_files(state):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(problem, progress=stop, resume=state, **changes)


def seen(problem: ToyProblem, state: Path, **changes: Any) -> tuple[Result, list[str]]:
    events: list[Progress] = []
    result = unlearn(problem, progress=events.append, resume=state, **changes)
    return result, [f"{event.what} {event.done}" for event in events]


def equal(first: Result, second: Result) -> bool:
    rows = [[{**row, "seconds": 0} for row in result.history] for result in (first, second)]
    return same(weights(first.model), weights(second.model)) and rows[0] == rows[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"rewind": True, "max_drop": None},
        {"max_drop": 0.01, "lr": 0.3, "optimizer": "sgd"},  # the guard takes the model back
        {"smoothing": 0.5, "smoothing_start": 1},
        {"seed": 3, "settle": 1.0},
    ],
    ids=["rewind", "guard", "running mean", "ends early"],
)
def test_what_a_run_carries_is_kept(problem: ToyProblem, tmp_path: Path, changes: dict[str, Any]) -> None:
    state = tmp_path / "unlearn.state"
    whole = unlearn(problem, **changes)
    stopped(problem, state, **changes)
    again, events = seen(problem, state, **changes)
    assert equal(whole, again)
    assert (whole.status, whole.details) == (again.status, again.details)
    assert events[0].startswith("scrub: goes on after ")


def test_finished_work_is_not_done_again_and_its_files_can_be_removed(problem: ToyProblem, tmp_path: Path) -> None:
    state = tmp_path / "unlearn.state"
    (tmp_path / "unlearn.statement").write_text("of the user")
    first, _ = seen(problem, state, rewind=True, max_drop=None)
    again, events = seen(problem, state, rewind=True, max_drop=None)
    assert events == ["scrub: goes on after 4"]
    assert equal(first, again)
    assert len(state_files(state)) == 6  # the state, and the weights after 0 to 4 epochs
    remove_state(state)
    assert [file.name for file in tmp_path.iterdir()] == ["unlearn.statement"]


def test_seconds_count_both_calls(problem: ToyProblem, tmp_path: Path) -> None:
    state = tmp_path / "unlearn.state"
    stopped(problem, state)
    kept = torch.load(state, weights_only=True)
    kept["state"]["spent"] += 1000.0
    kept["digest"] = content_hash(kept["state"])
    torch.save(kept, state)
    assert 1000 < unlearn(problem, resume=state).seconds < 1100


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"lr": 4e-3}, {"retain": "fewer"}, {"model": "another"}],
    ids=["seed", "lr", "data", "model"],
)
def test_the_state_of_other_work_is_not_used(
    problem: ToyProblem, tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "unlearn.state"
    stopped(problem, state)
    if changes.get("retain") == "fewer":
        changes = {"retain": problem.retain.take(problem.retain.index[1:])}
    if changes.pop("model", None):
        problem = toy_problem(epochs=5)
    with caplog.at_level(logging.WARNING):
        again, events = seen(problem, state, **changes)
    assert equal(again, unlearn(problem, **changes))
    assert events == [f"scrub {number}" for number in range(1, 5)]
    told = f"{state} is of other data, weights, options or code, so the work begins again."
    assert told in again.notes
    assert told in caplog.text


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def another_weight(file: Path) -> None:
    kept = torch.load(file, weights_only=True)
    next(iter(kept["state"]["model"].values())).add_(1)
    torch.save(kept, file)


@pytest.mark.parametrize("damage", [cut, another_weight, lambda file: file.write_text("x")])
def test_a_damaged_state_is_not_used(problem: ToyProblem, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    state = tmp_path / "unlearn.state"
    stopped(problem, state)
    damage(state)
    again, events = seen(problem, state)
    assert events[0] == "scrub 1"
    assert f"{state} is damaged, so the work begins again." in again.notes


def test_a_missing_snapshot_begins_again(problem: ToyProblem, tmp_path: Path) -> None:
    state = tmp_path / "unlearn.state"
    stopped(problem, state, rewind=True, max_drop=None)
    (tmp_path / "unlearn.state.1").unlink()
    again, events = seen(problem, state, rewind=True, max_drop=None)
    assert events[0] == "scrub 1"
    assert any("unlearn.state.1 is missing" in note for note in again.notes)


def test_the_second_try_of_a_diverged_method_goes_on(
    problem: ToyProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune = METHODS.load("finetune")
    sound = finetune.unlearn

    def steep(self: Any, problem: Problem, run: Run) -> nn.Module:
        if self.lr > 0.005:  # its default; the second try has a tenth of it
            for epoch in run.epochs(problem.student(), 3, state=[]):
                epoch.add("loss", 1.0 if epoch.number == 1 else float("nan"))
        return sound(self, problem, run)

    monkeypatch.setattr(finetune, "unlearn", steep)
    state, changes = tmp_path / "unlearn.state", {"method": "finetune", "epochs": 3, "batch_size": 16}

    def forgetting(**more: Any) -> Result:
        return expunge.unlearn(
            problem.model, forget=problem.forget, retain=problem.retain, validation=problem.validation, device="cpu",
            precision="float32", measure=False, **changes, **more,
        )  # fmt: skip

    def stop(event: Progress) -> None:
        if (tmp_path / "unlearn.state.second").exists():
            raise KeyboardInterrupt

    whole = forgetting()
    assert any("second try" in note for note in whole.notes)
    with pytest.raises(KeyboardInterrupt):
        forgetting(progress=stop, resume=state)
    events: list[Progress] = []
    assert equal(whole, forgetting(progress=events.append, resume=state))
    assert [event.done for event in events if event.what.endswith("goes on after")] == [1, 1]


def test_a_stream_of_requests_goes_on(problem: ToyProblem, tmp_path: Path) -> None:
    parts = problem.forget.index.split(10)
    requests = [problem.forget.take(part) for part in parts]
    state = tmp_path / "unlearn.state"
    common: dict[str, Any] = {
        "requests": requests, "retain": problem.retain, "method": "neggrad", "epochs": 3, "max_drop": None,
        "device": "cpu", "precision": "float32",
    }  # fmt: skip
    whole = expunge.unlearn_stream(problem.model, **common)

    def stop(event: Progress) -> None:
        if (tmp_path / "unlearn.state.request-2").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expunge.unlearn_stream(problem.model, **common, progress=stop, resume=state)
    events: list[Progress] = []
    again = expunge.unlearn_stream(problem.model, **common, progress=events.append, resume=state)
    assert equal(whole, again)
    assert [f"{event.what} {event.done}" for event in events][:2] == [
        "neggrad: goes on after 3", "neggrad: goes on after 1"
    ]  # fmt: skip


def test_a_state_that_cannot_be_written_is_an_error(
    problem: ToyProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(ExpungeError, match=r"cannot write .*unlearn\.state \(.*No space left"):
        unlearn(problem, resume=tmp_path / "unlearn.state")
    assert not list(tmp_path.iterdir())


def test_carried_state_that_does_not_fit_is_named(problem: ToyProblem, tmp_path: Path) -> None:
    state = tmp_path / "unlearn.state"
    stopped(problem, state)
    kept = torch.load(state, weights_only=True)
    kept["state"]["carried"] = []
    kept["digest"] = content_hash(kept["state"])
    torch.save(kept, state)
    with pytest.raises(CheckpointError, match=r"cannot be resumed from .*delete it to start again"):
        unlearn(problem, resume=state)


def test_values_are_plain() -> None:
    values = Values(a=1)
    values.a += 1
    assert values.state_dict() == {"a": 2}
