"""A metric that was asked for and has no value says why; nothing is dropped in silence."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from expunge.api.evaluate import Scores, evaluate
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem


@pytest.fixture(scope="module")
def toy() -> ToyProblem:
    return toy_problem()


class Flat(nn.Module):
    """Answers one class whatever the input, with equal representations."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(0 * x.flatten(1))


def scores(
    toy: ToyProblem, metric: str, models: dict[str, nn.Module] | None = None, few: int = 5, **more: Any
) -> Scores:
    splits = {
        "forget": toy.forget.take(toy.forget.index[:few]),
        "retain": toy.retain,
        "test": toy.test,
        **more,
    }
    return evaluate(models or {"original": toy.model}, metrics=[metric], device="cpu", **splits)


@pytest.mark.parametrize(
    ("metric", "names", "why"),
    [
        ("mia", {"mia_accuracy"}, "needs 10 samples on either side; there are 5 forgotten"),
        ("mia-repeated", {"mia_repeated"}, "needs 10 samples on either side; there are 5"),
        ("asr", {"asr", "asr_neutral"}, "needs 10 samples of each kind; there are 5 retained"),
        ("asr-balanced", {"asr_balanced", "asr_auc", "asr_validation"}, "needs 10 samples of each kind"),
    ],
)
def test_attacks_on_too_few_samples(toy: ToyProblem, metric: str, names: set[str], why: str) -> None:
    got = scores(toy, metric)
    values = {value.metric: value for value in got.values["original"]}
    assert set(values) == names
    assert all(math.isnan(value.value) and why in value.note for value in values.values())
    assert set(got.table().columns) == names
    assert got.table().isna().to_numpy().all()
    assert got.frame()["note"].str.contains(why).all()
    assert len(got.notes) == len(names)


def test_an_attack_without_unseen_samples_of_the_classes(toy: ToyProblem) -> None:
    other = toy.test.take(toy.test.index[toy.test.y != 1])
    got = scores(toy, "mia-auc", few=20, test=other)
    assert got.notes == [
        "original: mia_auc has no value: the test split has no sample of the classes of the forget split."
    ]


def test_what_cannot_be_compared_with_the_original(toy: ToyProblem) -> None:
    models = {"original": toy.model, "other": Flat()}
    for metric, name in (("drift", "weight_drift"), ("cka-layers", "forget_layer_cka")):
        notes = scores(toy, metric, models).notes
        assert f"other: {name} has no value: the tensors of the model are not those of the original." in notes
    plain = ToyNet(batchnorm=False)
    got = scores(toy, "drift", {"original": plain, "other": copy.deepcopy(plain)})
    assert "other: batchnorm_mean_drift has no value: the model has no BatchNorm statistics." in got.notes
    notes = scores(toy, "prediction-pattern").notes
    assert "original: new_class_largest_share has no value: no forget sample is predicted wrongly." in notes


def test_representations_that_are_all_equal_or_too_few(toy: ToyProblem) -> None:
    models = {"original": toy.model, "retrained": Flat()}
    notes = scores(toy, "cka", models).notes
    assert "original: forget_cka has no value: one of the models gives all samples the same representation." in notes
    assert (
        "original: forget_cka has no value: 3 samples; the estimator needs 4."
        in scores(toy, "cka", models, few=3).notes
    )


def test_confusion_of_classes_that_a_split_does_not_have(toy: ToyProblem) -> None:
    from expunge.metrics.confusion import ConfusionErrors

    got = evaluate(
        {"original": toy.model},
        forget=toy.forget,
        retain=toy.retain,
        test=toy.test.take(toy.test.index[toy.test.y > 1]),
        metrics=[ConfusionErrors(classes=(0, 1))],
        device="cpu",
    )
    assert "original: test_ic_error has no value: the test split has no sample of the two classes." in got.notes
    assert not math.isnan(got.value("original", "retain_ic_error"))


def test_what_was_not_asked_for_is_left_out(toy: ToyProblem) -> None:
    few = toy.forget.take(toy.forget.index[:5])
    got = evaluate({"original": toy.model}, forget=few, retain=toy.retain, test=toy.test, device="cpu")
    assert got.notes == []
    assert "mia_accuracy" not in got.table().columns
