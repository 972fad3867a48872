"""Drift between two versions, measured on real models, and the advice that follows."""

from __future__ import annotations

import copy
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.data.split import ResidentStore, Split
from expunge.requests.drift import measure_drift
from expunge.testing.toys import toy_problem
from expunge.training.advice import Advice, Drift, Limits, advise


class Says(nn.Module):
    """Answers what its samples carry in one column."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * nn.functional.one_hot(x[:, self.column].long(), 3).float()


def answers(base: list[int], active: list[int], labels: list[int]) -> Split:
    x = torch.tensor([base, active]).T.float()
    return Split.whole(ResidentStore(x, torch.tensor(labels), classes=list("abc")), "test")


def drift(**fields: Any) -> Drift:
    return build(Drift, {"steps": 2, "forgotten": 10, "knew": 1000, **fields})


def test_numbers_by_hand() -> None:
    test = answers([0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 1, 2, 0, 0, 0], [0, 1, 2, 0, 1, 2, 1, 0])
    found = measure_drift(Says(0), Says(1), test, steps=1, forgotten=5, knew=50, failed=1)
    assert found.samples == 8
    assert found.disagreement == 4 / 8
    assert (found.base_accuracy, found.accuracy) == (6 / 8, 4 / 8)  # three lost, one won
    assert found.accuracy_loss == 0.25
    assert found.p_loss == pytest.approx(sum(comb(4, k) for k in (3, 4)) / 2**4)
    assert (found.steps, found.forgotten, found.knew, found.failed) == (1, 5, 50, 1)


def test_classes_that_were_forgotten_are_left_out() -> None:
    test = answers([0, 0, 1, 2], [1, 2, 1, 2], [0, 0, 1, 2])
    found = measure_drift(Says(0), Says(1), test, steps=1, forgotten=9, knew=50, removed=[0])
    assert (found.samples, found.disagreement, found.accuracy_loss) == (2, 0.0, 0.0)
    with pytest.raises(UsageError, match="no test sample is left"):
        measure_drift(Says(0), Says(1), test, steps=1, forgotten=9, knew=50, removed=[0, 1, 2])
    with pytest.raises(UsageError, match="no labels to find them by"):
        measure_drift(Says(0), Says(1), test.without_labels(), steps=1, forgotten=9, knew=50, removed=[0])


def test_without_labels_or_test_data_the_rest_remains() -> None:
    test = answers([0, 1], [1, 1], [0, 1])
    blind = measure_drift(Says(0), Says(1), test.without_labels(), steps=1, forgotten=1, knew=50)
    assert (blind.disagreement, blind.accuracy_loss, blind.p_loss) == (0.5, None, None)
    nothing = measure_drift(Says(0), Says(1), None, steps=1, forgotten=1, knew=50)
    assert (nothing.samples, nothing.disagreement) == (0, None)
    advice = advise(nothing)
    assert (advice.word, advice.left) == ("go on", None)
    assert "give test data with labels" in advice.reasons[-1]


@pytest.mark.parametrize(
    ("fields", "word", "reason"),
    [
        ({"steps": 0}, "go on", "no approximate step"),
        ({}, "go on", "2 approximate steps were made"),
        ({"steps": 12}, "retrain soon", "12 approximate steps"),
        ({"steps": 20}, "retrain now", "the limit is 20."),
        ({"forgotten": 60}, "retrain soon", "6.0% of the training samples"),
        ({"forgotten": 100}, "retrain now", "10.0% of the training samples"),
        ({"failed": 1}, "retrain now", "1 audit since then failed"),
        ({"samples": 900, "disagreement": 0.13}, "retrain soon", "13.0% of 900 unseen samples"),
        ({"samples": 900, "disagreement": 0.2}, "retrain now", "20.0% of 900 unseen samples"),
        ({"samples": 900, "base_accuracy": 0.9, "accuracy": 0.8, "p_loss": 1e-4}, "retrain now", "from 0.900 to 0.800"),
        ({"samples": 900, "base_accuracy": 0.9, "accuracy": 0.86, "p_loss": 0.01}, "retrain soon", "0.860"),
        ({"samples": 20, "base_accuracy": 0.9, "accuracy": 0.8, "p_loss": 0.3}, "retrain soon", "may still be chance"),
        ({"samples": 20, "base_accuracy": 0.9, "accuracy": 0.86, "p_loss": 0.5}, "go on", "0.860"),
        ({"samples": 900, "base_accuracy": 0.9, "accuracy": 0.95, "p_loss": 1.0}, "go on", "0.950"),
    ],
)  # fmt: skip
def test_the_rule(fields: dict[str, Any], word: str, reason: str) -> None:
    advice = advise(drift(**fields))
    assert advice.word == word
    assert reason in str(advice)
    assert str(advice).splitlines()[0] == word


def test_the_worst_number_stands_first_and_the_rest_of_utility_is_told() -> None:
    advice = advise(drift(steps=13, samples=900, base_accuracy=0.9, accuracy=0.8, p_loss=1e-9))
    assert advice.word == "retrain now"
    assert "accuracy" in advice.reasons[0]
    assert "13 approximate steps" in advice.reasons[1]
    assert advice.left == 0.0
    half = advise(drift(samples=900, base_accuracy=0.9, accuracy=0.88, p_loss=1e-9), Limits(accuracy_loss=0.04))
    assert half.left == pytest.approx(0.5)
    assert advise(drift(steps=5), Limits(steps=5)).word == "retrain now"
    with pytest.raises(UsageError, match="`accuracy_loss` should be greater than 0"):
        Limits(accuracy_loss=0.0)


def stream(method: str, **options: Any) -> Advice:
    """Three requests of 8 samples, one after the other, on a trained model; then the advice."""
    toy = toy_problem(epochs=8, forget_class=None)
    active, knew = copy.deepcopy(toy.model), len(toy.forget) + len(toy.retain)
    for part in toy.forget.index.split(8):
        active = expunge.unlearn(
            active, forget=toy.forget.take(part), retain=toy.retain, method=method, device="cpu", **options
        ).model
    found = measure_drift(toy.model, active, toy.test, steps=3, forgotten=24, knew=knew)
    return advise(found, Limits(forgotten=1.0))


def test_a_stream_that_ruins_a_model_says_retrain_now_and_a_gentle_one_goes_on() -> None:
    ruined = stream("neggrad", epochs=5, lr=0.1, batch_size=8, clip=1.0)
    assert ruined.word == "retrain now"
    assert ruined.drift.accuracy_loss is not None
    assert ruined.drift.accuracy_loss > 0.05
    assert ruined.left == 0.0
    gentle = stream("finetune", epochs=1, lr=1e-4)
    assert gentle.word == "go on"
    assert gentle.drift.disagreement is not None
    assert gentle.drift.disagreement < 0.1


def test_a_model_does_not_drift_from_itself() -> None:
    toy = toy_problem(epochs=3)
    found = measure_drift(toy.model, copy.deepcopy(toy.model), toy.test, steps=1, forgotten=1, knew=120)
    assert (found.disagreement, found.accuracy_loss, found.p_loss) == (0.0, 0.0, 1.0)
