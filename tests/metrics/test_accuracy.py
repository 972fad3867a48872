"""Accuracy, error, loss, per class and gap on logits written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from expunge.data.split import ResidentStore, Split
from expunge.metrics.accuracy import Accuracy, ClassAccuracy, Error, Gap, Loss
from expunge.metrics.base import Evaluation
from expunge.metrics.cost import Time


def split(logits: list[list[float]], labels: list[int]) -> Split:
    return Split.whole(ResidentStore(torch.tensor(logits), torch.tensor(labels), classes=["a", "b", "c"]))


TEST = split([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]], [0, 1, 0, 2])
FORGET, RETAIN = split([[0, 0, 2]], [2]), split([[2, 0, 0], [0, 2, 0]], [0, 0])


class Shifted(nn.Module):
    """Answers always with class a."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([9.0, 0.0, 0.0]).expand(len(x), -1)


def values(metric: object, **more: object) -> dict[str, float]:
    evaluation = Evaluation(
        {"m": nn.Identity(), "retrained": Shifted()},
        {"forget": FORGET, "retain": RETAIN, "test": TEST},
        **more,  # type: ignore[arg-type]
    )
    return {v.metric + v.group: v.value for v in metric.compute(evaluation, "m")}  # type: ignore[attr-defined]


def test_accuracy_and_error_also_on_kept_and_removed_classes() -> None:
    accuracy = values(Accuracy())
    assert accuracy["forget_accuracy"] == 1
    assert accuracy["retain_accuracy"] == 0.5
    assert accuracy["test_accuracy"] == 0.75
    assert accuracy["test_removed_accuracy"] == 1  # class c occurs in the forget set alone
    assert accuracy["test_retained_accuracy"] == pytest.approx(2 / 3)
    error = values(Error())
    assert all(error[name.replace("accuracy", "error")] == pytest.approx(1 - v) for name, v in accuracy.items())


def test_loss_by_hand() -> None:
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(math.exp(2) + 2)
    assert values(Loss())["forget_loss"] == pytest.approx(right, rel=1e-6)
    assert values(Loss())["retain_loss"] == pytest.approx((right + wrong) / 2, rel=1e-6)


def test_class_accuracy() -> None:
    assert values(ClassAccuracy()) == {"class_accuracya": 0.5, "class_accuracyb": 1, "class_accuracyc": 1}


def test_gap_to_the_retrained_model() -> None:
    gaps = values(Gap())  # the other model: forget 0, retain 1, test 1/2
    assert gaps == {
        "forget_gap": 1,
        "retain_gap": 0.5,
        "test_gap": 0.25,
        "average_gap": pytest.approx(1.75 / 3),
    }


def test_scale_up_is_retraining_over_unlearning() -> None:
    assert values(Time(), seconds={"m": 2.0, "retrained": 10.0}) == {"seconds": 2.0, "scale_up": 5.0}
