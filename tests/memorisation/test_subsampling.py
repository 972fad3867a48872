"""Memorisation by subsampling: the estimator by hand, and rows that are never trained twice nor taken for others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import Cancelled, UsageError
from expunge.core.run import Progress, Run
from expunge.data.scores import SampleScores
from expunge.data.split import Split
from expunge.memorisation import subsampling
from expunge.memorisation.subsampling import answers, estimate, memorisation, subset
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import predict
from expunge.training.recipe import Recipe
from expunge.training.rows import ArrayCache

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)


@pytest.fixture(scope="module")
def data() -> Split:
    return toy_problem(epochs=0).retain


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every training that really takes place."""
    seen: list[int] = []
    train = subsampling.train_model

    def counted(model: nn.Module, data: Split, *args: Any, **more: Any) -> nn.Module:
        seen.append(len(data))
        return train(model, data, *args, **more)

    monkeypatch.setattr(subsampling, "train_model", counted)
    return seen


def scores(data: Split, cache: Path | None, *, seed: int = 3, recipe: Recipe = RECIPE, **more: Any) -> SampleScores:
    return memorisation(ToyNetSeeded(), data, recipe, Run(seed=seed, cache=cache), **{"models": 4, **more})


def ToyNetSeeded() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyNet()


def test_the_estimate_by_hand() -> None:
    member = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]], bool)
    correct = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]], bool)
    found = estimate(correct, member)
    # Sample 0: right exactly where it was seen. 1: 1 of 2 in, 1 of 2 out. 2: 1 of 2 in, 0 of 2 out. 3: never out.
    assert found.score[:3].tolist() == [1, 0, 0.5]
    assert np.isnan(found.score[3])
    assert np.isnan(found.error[3])
    assert (found.inside[3], found.models_in[3], found.models_out[3]) == (0.75, 4, 0)
    assert np.isnan(found.outside[3])
    # With one success and one failure more: 3/4 and 1/4 of 4 trials each; then 1/2 and 1/2.
    assert found.error[0] == pytest.approx(np.sqrt(2 * (3 / 4) * (1 / 4) / 4))
    assert found.error[1] == pytest.approx(np.sqrt(2 * (1 / 2) * (1 / 2) / 4))


def test_the_estimate_is_unbiased_and_its_error_is_the_spread() -> None:
    """2000 samples of equal nature: right with 0.9 if seen, 0.4 if not; 40 models."""
    draws = np.random.default_rng(0)
    member = draws.random((40, 2000)) < 0.7
    correct = draws.random((40, 2000)) < np.where(member, 0.9, 0.4)
    found = estimate(correct, member)
    assert found.score.mean() == pytest.approx(0.5, abs=0.02)
    assert found.error.mean() == pytest.approx(found.score.std(), rel=0.1)


def test_matrices_of_different_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        estimate(np.ones((2, 3), bool), np.ones((3, 2), bool))


def test_subsets_have_the_share_and_differ(data: Split) -> None:
    parts = [subset(data, 0.7, 1, number).index for number in range(30)]
    assert {len(part) for part in parts} == {int(0.7 * len(data))}
    assert all(bool(torch.isin(part, data.index).all()) and len(part.unique()) == len(part) for part in parts)
    assert len({tuple(part.tolist()) for part in parts}) == 30
    assert torch.equal(parts[4], subset(data, 0.7, 1, 4).index)
    for share in (0.0001, 1.0):
        with pytest.raises(UsageError, match="share"):
            subset(data, share, 1, 0)


def test_a_row_is_what_its_model_answers(data: Split) -> None:
    model = ToyNet()
    expected = [int(predict(model, data.take([i])).argmax()) == int(data.labels[i]) for i in data.index.tolist()]
    assert answers(model, data, "cpu").tolist() == expected


def test_the_model_and_the_global_generator_are_left_alone(data: Split) -> None:
    model = ToyNet()
    before, state = weights(copy.deepcopy(model)), torch.get_rng_state()
    memorisation(model, data, RECIPE, Run(), models=2)
    assert same(before, weights(model))
    assert torch.equal(state, torch.get_rng_state())


def test_a_stopped_call_goes_on_with_the_same_result(data: Split, tmp_path: Path, trainings: list[int]) -> None:
    whole = scores(data, None)
    trainings.clear()

    def stop(event: Progress) -> None:
        if event.done == 5:  # in the third model of two epochs each
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memorisation(ToyNetSeeded(), data, RECIPE, Run(seed=3, cache=tmp_path, progress=stop), models=4)
    assert len(trainings) == 3
    again = scores(data, tmp_path)
    assert len(trainings) == 5  # the third anew, and the fourth
    for name, column in whole.columns.items():
        assert np.array_equal(again.columns[name], column, equal_nan=True), name
    scores(data, tmp_path)
    assert len(trainings) == 5
    assert set(trainings) == {int(0.7 * len(data))}


def test_more_models_use_the_first_ones(data: Split, tmp_path: Path, trainings: list[int]) -> None:
    scores(data, tmp_path, models=2)
    scores(data, tmp_path, models=3)
    assert len(trainings) == 3


def test_only_rows_are_kept(data: Split, tmp_path: Path) -> None:
    scores(data, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.suffix for path in files} == {".npz", ".origin", ".hashes"}
    assert all(path.stat().st_size < 1024 for path in files)


@pytest.mark.parametrize("other", ["recipe", "seed", "labels", "share", "start"])
def test_rows_of_other_settings_are_never_taken(data: Split, tmp_path: Path, trainings: list[int], other: str) -> None:
    scores(data, tmp_path, models=2)
    changed: dict[str, Any] = {
        "recipe": {"recipe": Recipe(epochs=2, batch_size=16, lr=0.05)},
        "seed": {"seed": 4},
        "labels": {"data": data.with_labels((data.labels + 1) % 4)},
        "share": {"share": 0.5},
        "start": {"start": "given"},
    }[other]
    scores(changed.pop("data", data), tmp_path, models=2, **changed)
    assert len(trainings) == 4


def test_a_damaged_row_is_made_again(data: Split, tmp_path: Path, trainings: list[int]) -> None:
    whole = scores(data, tmp_path)
    for path, content in zip(sorted((tmp_path / "rows").glob("*.npz")), (b"", b"no", None), strict=False):
        path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    again = scores(data, tmp_path)
    assert len(trainings) == 4 + 3
    assert np.array_equal(again.score, whole.score, equal_nan=True)


def test_what_another_process_works_on_is_left_for_later(data: Split, tmp_path: Path) -> None:
    """The row that is locked first is made last, by the one who has it."""
    alone = scores(data, None)
    rows, seen = ArrayCache(tmp_path), []
    maker = subsampling._SubsetTraining(
        ToyNetSeeded(), data, subset(data, 0.7, 3, 0), RECIPE, Run(seed=3), 0, 4, "drawn"
    )
    key = maker.key_and_student()[0]
    held = rows.locked(key)

    def watch(event: Progress) -> None:
        seen.append((event.done - 1) // RECIPE.epochs)
        if event.done == 4 * RECIPE.epochs:
            held.__exit__(None, None, None)  # the other one gave up without a row

    held.__enter__()
    together = memorisation(ToyNetSeeded(), data, RECIPE, Run(seed=3, cache=tmp_path, progress=watch), models=4)
    assert list(dict.fromkeys(seen)) == [1, 2, 3, 0]
    assert np.array_equal(alone.score, together.score, equal_nan=True)


def test_samples_without_a_score_are_told(data: Split) -> None:
    found = scores(data, None, models=2)
    unknown = int(np.isnan(found.score).sum())
    assert 0 < unknown < len(data)
    assert found.notes[0].startswith(f"{unknown} of {len(data)} samples")


def test_bad_requests_are_refused_and_cancelling_is_heard(data: Split) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        scores(data, None, models=1)
    with pytest.raises(Cancelled):
        memorisation(ToyNet(), data, RECIPE, Run(cancelled=lambda: True), models=2)
