"""Accuracy, error, loss, per class and gap on logits written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.metrics.accuracy import Accuracy, ClassAccuracy, ErrorRate, Gap, MeanLoss
from expunge.metrics.base import Evaluation, Metric, Value, measure
from expunge.metrics.cost import Time
from expunge.numerics.statistics import wilson


def split(logits: list[list[float]], labels: list[int]) -> Split:
    return Split.whole(ResidentStore(torch.tensor(logits), torch.tensor(labels), classes=["a", "b", "c"]))


TEST = split([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]], [0, 1, 0, 2])
FORGET, RETAIN = split([[0, 0, 2]], [2]), split([[2, 0, 0], [0, 2, 0]], [0, 0])
SPLITS = {"forget": FORGET, "retain": RETAIN, "test": TEST}


class Always(nn.Module):
    """Answers always with class a."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([9.0, 0.0, 0.0]).expand(len(x), -1)


def evaluation(splits: dict[str, Split] | None = None, **more: object) -> Evaluation:
    models = {"m": nn.Identity(), "retrained": Always()}
    return Evaluation(models, SPLITS if splits is None else splits, **more)  # type: ignore[arg-type]


def rows(metric: Metric, splits: dict[str, Split] | None = None, model: str = "m", **more: object) -> dict[str, Value]:
    return {v.metric + v.group: v for v in metric.compute(evaluation(splits, **more), model)}


def values(metric: Metric, *given: object, **more: object) -> dict[str, float]:
    return {name: value.value for name, value in rows(metric, *given, **more).items()}  # type: ignore[arg-type]


def test_accuracy_and_error_also_on_kept_and_removed_classes() -> None:
    accuracy = values(Accuracy())
    assert accuracy == {
        "forget_accuracy": 1,
        "retain_accuracy": 0.5,
        "test_accuracy": 0.75,
        "test_removed_accuracy": 1,  # class c occurs in the forget set alone
        "test_retained_accuracy": pytest.approx(2 / 3),
    }
    error = values(ErrorRate())
    assert set(error) == {name.replace("accuracy", "error") for name in accuracy}
    assert all(error[name.replace("accuracy", "error")] == pytest.approx(1 - v) for name, v in accuracy.items())


def test_kept_and_removed_classes_are_told_apart_only_where_a_class_is_gone() -> None:
    mixed = split([[2, 0, 0]], [0])
    names = set(values(Accuracy(), {"forget": mixed, "retain": RETAIN, "test": TEST}))
    assert names == {"forget_accuracy", "retain_accuracy", "test_accuracy"}
    assert set(values(Accuracy(), {"forget": FORGET, "test": TEST})) == {"forget_accuracy", "test_accuracy"}
    gone_only = values(Accuracy(), {"forget": FORGET, "retain": RETAIN, "test": FORGET})
    assert gone_only["test_removed_accuracy"] == 1
    assert "test_retained_accuracy" not in gone_only


def test_validation_is_measured_where_it_is_given() -> None:
    assert values(Accuracy(), {"validation": TEST}) == {"validation_accuracy": 0.75}


def test_what_is_good_where_a_class_is_gone() -> None:
    """To forget well is to do as the retrained model does, not to be as wrong as possible."""
    directions = {name: row.direction for name, row in rows(Accuracy()).items()}
    assert directions == {
        "forget_accuracy": "reference",
        "retain_accuracy": "higher",
        "test_accuracy": "higher",
        "test_retained_accuracy": "higher",
        "test_removed_accuracy": "reference",
    }
    assert rows(ErrorRate())["retain_error"].direction == "lower"
    assert rows(ErrorRate())["test_removed_error"].direction == "reference"
    assert rows(MeanLoss())["forget_loss"].direction == "reference"
    assert rows(ClassAccuracy())["class_accuracyc"].direction == "reference"
    assert rows(ClassAccuracy())["class_accuracya"].direction == "higher"


@pytest.mark.parametrize("hits", [0, 3, 10])
def test_intervals_are_those_of_wilson(hits: int) -> None:
    n, z = 10, 1.959963984540054
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(hits, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_intervals_of_error_mirror_those_of_accuracy() -> None:
    right, wrong = rows(Accuracy())["test_accuracy"], rows(ErrorRate())["test_error"]
    assert (wrong.low, wrong.high) == pytest.approx((1 - right.high, 1 - right.low))
    assert 0 <= right.low < right.value < right.high <= 1


def test_loss_by_hand() -> None:
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(math.exp(2) + 2)
    found = rows(MeanLoss())
    assert found["forget_loss"].value == pytest.approx(right, rel=1e-6)
    assert found["retain_loss"].value == pytest.approx((right + wrong) / 2, rel=1e-6)
    half = 1.96 * (wrong - right) / 2 / math.sqrt(2)  # two values: their deviation is half of their distance
    assert found["retain_loss"].high - found["retain_loss"].value == pytest.approx(half, rel=1e-6)
    assert found["forget_loss"].low == found["forget_loss"].high == found["forget_loss"].value


def test_loss_of_a_model_that_is_very_sure_and_wrong_stays_a_number() -> None:
    sure = split([[1e4, 0, 0], [0, 0, 0]], [1, 0])
    assert values(MeanLoss(), {"forget": sure})["forget_loss"] == pytest.approx((1e4 + math.log(3)) / 2)


def test_class_accuracy() -> None:
    assert values(ClassAccuracy()) == {"class_accuracya": 0.5, "class_accuracyb": 1, "class_accuracyc": 1}
    assert values(ClassAccuracy(), {"test": split([[2, 0, 0]], [0])}) == {"class_accuracya": 1}


def test_gap_to_the_retrained_model() -> None:
    gaps = values(Gap())  # the other model: forget 0, retain 1, test 1/2
    assert gaps == {
        "forget_gap": 1,
        "retain_gap": 0.5,
        "test_gap": 0.25,
        "average_gap": pytest.approx(1.75 / 3),
    }
    assert set(values(Gap(), model="retrained").values()) == {0.0}
    assert values(Gap(), {"forget": FORGET}) == {"forget_gap": 1, "average_gap": 1}


def test_scale_up_is_retraining_over_unlearning() -> None:
    assert values(Time(), seconds={"m": 2.0, "retrained": 10.0}) == {"seconds": 2.0, "scale_up": 5.0}
    assert values(Time(), model="retrained", seconds={"m": 2.0, "retrained": 10.0}) == {"seconds": 10.0}
    assert values(Time(), seconds={"m": 2.0}) == {"seconds": 2.0}
    assert values(Time()) == {}


def test_a_metric_without_its_data_is_left_out_or_refused_where_it_was_asked_for() -> None:
    alone = Evaluation({"m": nn.Identity()}, {"forget": FORGET})
    found = measure(alone, [Accuracy(), ClassAccuracy(), Gap()], "m")
    assert {value.metric for row in found for value in row} == {"forget_accuracy"}
    with pytest.raises(UsageError, match="class-accuracy needs test"):
        measure(alone, [Accuracy(), ClassAccuracy()], "m", [ClassAccuracy()])
    with pytest.raises(UsageError, match="gap needs retrained reference"):
        measure(alone, [Gap()], "m", [Gap()])


def test_agreement_with_the_true_labels_where_some_were_replaced() -> None:
    train = split([[0, 0, 2], [2, 0, 0], [0, 2, 0], [2, 0, 0]], [2, 1, 1, 0])
    noisy = train.with_labels(torch.tensor([0, 0, 0, 0]))
    parts = {"forget": noisy.take([0, 1, 2], "forget"), "retain": noisy.take([3], "retain")}
    found = rows(Accuracy(), parts)
    assert found["forget_accuracy"].value == pytest.approx(1 / 3)
    assert found["forget_true_accuracy"].value == pytest.approx(2 / 3)
    assert found["forget_true_accuracy"].direction == "reference"
    assert (found["forget_true_accuracy"].low, found["forget_true_accuracy"].high) == wilson(2, 3)
    clean = {name: train.take(part.index, name) for name, part in parts.items()}
    assert "forget_true_accuracy" not in values(Accuracy(), clean)


@pytest.mark.parametrize(("scenario", "known"), [("noisy", True), ("laf-task", True), ("random", False)])
def test_scenarios_tell_the_true_labels(scenario: str, known: bool) -> None:
    labels = torch.arange(200) % 10
    train = Split.whole(ResidentStore(torch.eye(10)[labels], labels, classes=[str(c) for c in range(10)]))
    options = {"task": "noise"} if scenario == "laf-task" else {}
    made = expunge.scenario(scenario, train, seed=1, **options)
    scores = expunge.evaluate({"m": nn.Identity()}, forget=made.forget, retain=made.retain, metrics=["accuracy"])
    found = {value.metric: value.value for value in scores.values["m"]}
    assert ("forget_true_accuracy" in found) is known
    assert found.get("forget_true_accuracy", 1.0) == 1.0  # this model answers with the true class
    assert found["forget_accuracy"] == (0.0 if known else 1.0)


def test_training_samples_can_be_scored_augmented_too() -> None:
    """Only the left edge tells the class, and a mirrored picture shows it on the right."""
    count = 400
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, 8, 8)
    images[labels == 1, :, :, :2] = 1.0
    classes = ["left", "right"]
    parts = {name: Split.whole(ResidentStore(images, labels, classes=classes)) for name in ("forget", "retain", "test")}

    class Edge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dark = x[:, 0, :, :2].mean((1, 2))
            return torch.stack([0.2 - dark, dark - 0.2], 1)

    def found(seed: int = 0) -> dict[str, Value]:
        seen = Evaluation({"m": Edge()}, parts, seed=seed)
        return {v.metric: v for v in Accuracy(augment="crop-flip").compute(seen, "m")}

    first = found()
    assert all(first[f"{name}_accuracy"].value == 1 for name in parts)
    assert 0.5 < first["forget_augmented_accuracy"].value < 0.8  # mirrored and moved edges are lost
    assert first["forget_augmented_accuracy"].direction == "reference"
    assert first["retain_augmented_accuracy"].direction == "higher"
    assert "test_augmented_accuracy" not in first
    assert found() == first
    assert found(1) != first
    with pytest.raises(UsageError, match="crop-flip"):
        list(Accuracy(augment="crop-flop").compute(evaluation(), "m"))
