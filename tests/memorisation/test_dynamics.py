"""Learning events by hand, and a training that is watched without being changed."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.run import Progress, Run
from expunge.data.split import Split
from expunge.memorisation import dynamics
from expunge.memorisation.dynamics import dynamics_scores, learning_events, record_dynamics
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import predict
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.1, augment="none")


@pytest.fixture(scope="module")
def data() -> Split:
    return toy_problem(epochs=0).retain


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyNet()


def test_learning_events_by_hand() -> None:
    #                 always, late, forgotten twice, once right, never
    correct = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    found = learning_events(correct)
    assert found["learned"].tolist() == [1, 0.5, 0.5, 0.25, 0]
    assert found["forgetting_events"].tolist() == [0, 0, 2, 1, 0]
    assert found["first_learned"].tolist() == [1, 3, 1, 3, 5]


@pytest.mark.parametrize("shape", [(3,), (0, 4)])
def test_learning_events_need_a_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="matrix"):
        learning_events(np.zeros(shape, bool))


def test_watching_changes_nothing_and_sees_the_models_of_every_epoch(data: Split, model: nn.Module) -> None:
    found = record_dynamics(model, data, RECIPE, Run(seed=1))
    run = Run(seed=1, keep_snapshots=True)
    with torch.random.fork_rng():
        trained = train_model(copy.deepcopy(model), data, RECIPE, run)
    for epoch in range(1, 5):
        trained.load_state_dict(run.snapshots[epoch])
        odds = predict(trained, data).softmax(1)
        assert np.allclose(found.probability[epoch - 1], odds[torch.arange(len(data)), data.y], atol=1e-6)
        assert found.correct[epoch - 1].tolist() == (odds.argmax(1) == data.y).tolist()


def test_the_hook_leaves_the_training_as_it_is(data: Split, model: nn.Module) -> None:
    seen: list[int] = []

    def look(epoch: int, student: nn.Module) -> None:
        predict(student, data)
        seen.append(epoch)

    with torch.random.fork_rng():
        plain = train_model(copy.deepcopy(model), data, RECIPE, Run(seed=1))
        watched = train_model(copy.deepcopy(model), data, RECIPE, Run(seed=1), after_epoch=look)
    assert seen == [1, 2, 3, 4]
    assert same(weights(plain), weights(watched))


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch that is really watched."""
    seen: list[int] = []
    look = dynamics._evaluate

    def counted(model: nn.Module, data: Split, run: Run) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(seen))
        return look(model, data, run)

    monkeypatch.setattr(dynamics, "_evaluate", counted)
    return seen


@pytest.mark.parametrize("damage", ["nothing", "state", "epoch", "both"])
def test_a_stopped_training_goes_on_with_the_same_result(
    data: Split, model: nn.Module, tmp_path: Path, epochs: list[int], damage: str
) -> None:
    whole = record_dynamics(model, data, RECIPE, Run(seed=1))
    epochs.clear()

    def stop(event: Progress) -> None:
        if event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_dynamics(model, data, RECIPE, Run(seed=1, cache=tmp_path, progress=stop))
    if damage in ("state", "both"):
        next((tmp_path / "rows").glob("*.state")).write_bytes(b"no")
    if damage in ("epoch", "both"):
        next((tmp_path / "rows").glob("*-2.npz")).write_bytes(b"no")
    again = record_dynamics(model, data, RECIPE, Run(seed=1, cache=tmp_path))
    assert np.array_equal(again.probability, whole.probability)
    assert np.array_equal(again.correct, whole.correct)
    assert len(epochs) == {"nothing": 3 + 1, "state": 3 + 4, "epoch": 3 + 1 + 4, "both": 3 + 4}[damage]
    count = len(epochs)
    kept = record_dynamics(model, data, RECIPE, Run(seed=1, cache=tmp_path))
    assert len(epochs) == count
    assert np.array_equal(kept.probability, whole.probability)
    assert not list((tmp_path / "rows").glob("*.state"))


def test_other_labels_make_another_record(data: Split, model: nn.Module, tmp_path: Path, epochs: list[int]) -> None:
    record_dynamics(model, data, RECIPE, Run(seed=1, cache=tmp_path))
    record_dynamics(model, data.with_labels((data.labels + 1) % 4), RECIPE, Run(seed=1, cache=tmp_path))
    assert len(epochs) == 8


def test_both_proxies_come_from_one_record(data: Split, model: nn.Module, tmp_path: Path, epochs: list[int]) -> None:
    run = Run(seed=1, cache=tmp_path)
    by_confidence = dynamics_scores(model, data, RECIPE, run, by="confidence")
    by_events = dynamics_scores(model, data, RECIPE, Run(seed=1, cache=tmp_path), by="events")
    assert len(epochs) == 4
    assert np.allclose(by_confidence.score, 1 - by_confidence.columns["mean_confidence"])
    assert np.allclose(by_events.score, 1 - by_events.columns["learned"])
    assert by_confidence.score.min() >= 0
    assert by_confidence.score.max() <= 1


def test_no_epochs_are_refused(data: Split, model: nn.Module) -> None:
    with pytest.raises(UsageError, match="0 epochs"):
        record_dynamics(model, data, Recipe(epochs=0), Run())
