"""`evaluate`: one tidy table, predictions once per model and split, and a clear sentence for what is missing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import AccessError, DataError, UsageError
from expunge.metrics import METRICS
from expunge.metrics.accuracy import Accuracy
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem

COLUMNS = ["model", "metric", "group", "value", "low", "high", "unit", "direction", "note"]


@pytest.fixture(scope="module")
def toy() -> ToyProblem:
    return toy_problem()


def evaluate(toy: ToyProblem, models: Any = None, **changes: Any) -> expunge.Scores:
    given: dict[str, Any] = {"forget": toy.forget, "retain": toy.retain, "test": toy.test}
    return expunge.evaluate(
        {"original": toy.model} if models is None else models, **{"device": "cpu", **given, **changes}
    )


def test_the_frame_is_tidy(toy: ToyProblem) -> None:
    frame = evaluate(toy, {"original": toy.model, "retrained": ToyNet()}).frame()
    assert list(frame.columns) == COLUMNS
    assert not frame.duplicated(["model", "metric", "group"]).any()
    assert list(frame["model"].unique()) == ["original", "retrained"]
    assert all(frame[name].dtype == np.float64 for name in ("value", "low", "high"))
    assert np.isfinite(frame["value"]).all()
    assert set(frame["direction"]) <= {"higher", "lower", "reference", "half"}
    with_interval = frame.dropna(subset=["low", "high"])
    assert len(with_interval) > 5
    assert (with_interval["low"] <= with_interval["value"] + 1e-9).all()
    assert (with_interval["value"] <= with_interval["high"] + 1e-9).all()
    assert (frame["low"].isna() == frame["high"].isna()).all()


def test_numbers_are_those_of_the_model(toy: ToyProblem) -> None:
    scores = evaluate(toy, metrics=["accuracy"])
    with torch.no_grad():
        expected = float((toy.model(toy.test.inputs()).argmax(1) == toy.test.y).float().mean())
    assert scores.value("original", "test_accuracy") == pytest.approx(expected)
    frame = scores.frame()
    row = frame[(frame["metric"] == "test_accuracy") & (frame["group"] == "")]
    assert row["value"].item() == pytest.approx(expected)


@pytest.mark.parametrize(("names", "measured"), [(["original", "again"], False), (["original", "retrained"], True)])
def test_gaps_need_a_model_named_retrained(toy: ToyProblem, names: list[str], measured: bool) -> None:
    torch.manual_seed(0)
    scores = evaluate(toy, dict(zip(names, [toy.model, ToyNet()], strict=True)))
    gaps = scores.frame()["metric"].str.endswith("_gap")
    assert gaps.any() == measured
    if measured:
        accuracies = [scores.value(name, "forget_accuracy") for name in names]
        assert scores.value("original", "forget_gap") == pytest.approx(abs(accuracies[0] - accuracies[1]))
        assert scores.value("retrained", "average_gap") == 0
    else:
        with pytest.raises(UsageError, match="gap needs retrained reference"):
            evaluate(toy, dict.fromkeys(names, toy.model), metrics=["gap"])


def test_predictions_are_made_once_per_model_and_split(toy: ToyProblem) -> None:
    toy.clear()
    evaluate(toy, {"original": toy.model, "retrained": ToyNet()})
    for name in ("forget", "retain", "test"):
        looks = 4 if name == "forget" else 2  # at the outputs of each model, and whether the data fit it
        assert toy.read(name) == 2 * (len(toy.split(name)) + looks), name
    assert not toy.read("validation")


def test_models_and_random_state_are_left_alone(toy: ToyProblem) -> None:
    net = copy.deepcopy(toy.model).train()
    net.norm.eval()
    before, modes = weights(net), [m.training for m in net.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = (evaluate(toy, {"m": net}, seed=1).frame() for _ in range(2))
    assert same(before, weights(net))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(first, second)


def test_results_bring_their_seconds(toy: ToyProblem) -> None:
    result = expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, method="scrub", epochs=1, device="cpu")
    scores = evaluate(toy, {"original": toy.model, "unlearned": result, "retrained": toy.model}, metrics=["time"])
    assert scores.value("unlearned", "seconds") == result.seconds
    with pytest.raises(UsageError, match="`seconds` of `original` was not measured"):
        scores.value("original", "seconds")
    timed = evaluate(
        toy, {"unlearned": result, "retrained": toy.model}, metrics=["time"], seconds={"unlearned": 2, "retrained": 8}
    )
    assert timed.value("unlearned", "scale_up") == 4


def test_metrics_by_name_and_by_instance(toy: ToyProblem) -> None:
    by_name, by_instance = (evaluate(toy, metrics=[m]).frame() for m in ("accuracy", Accuracy()))
    pd.testing.assert_frame_equal(by_name, by_instance)
    assert set(by_name["metric"]) == {"forget_accuracy", "retain_accuracy", "test_accuracy", "test_retained_accuracy",
                                      "test_removed_accuracy"}  # fmt: skip
    nothing = evaluate(toy, metrics=[])
    assert list(nothing.frame().columns) == COLUMNS
    assert nothing.frame().empty
    assert nothing.table().empty


def test_costly_metrics_are_measured_on_request_only(toy: ToyProblem) -> None:
    costly = {name for name in METRICS.names() if METRICS.load(name).on_request}
    assert "relearn" in costly
    assert not evaluate(toy).frame()["metric"].str.contains("relearn").any()
    assert evaluate(toy, metrics=["relearn"]).frame()["metric"].str.contains("relearn").any()


def test_the_table_has_one_row_per_model_in_their_order(toy: ToyProblem) -> None:
    table = evaluate(toy, {"z": toy.model, "a": toy.model}, metrics=["accuracy", "class-accuracy"]).table()
    assert list(table.index) == ["z", "a"]
    assert "test_accuracy" in table.columns
    assert "class_accuracy" not in table.columns  # one value per class does not fit a cell


def test_data_in_any_form_and_only_some_of_them(toy: ToyProblem) -> None:
    x, y = toy.forget.inputs(), toy.forget.y
    pair = expunge.evaluate({"m": toy.model}, forget=(x, y), metrics=["loss"], device="cpu")
    split = expunge.evaluate({"m": toy.model}, forget=toy.forget, metrics=["loss"], device="cpu")
    assert pair.value("m", "forget_loss") == split.value("m", "forget_loss")
    assert {v.metric for v in pair.values["m"]} == {"forget_loss"}


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"models": {}}, UsageError, "nothing to evaluate"),
        ({"forget": None, "retain": None, "test": None}, UsageError, "no data to evaluate on"),
        ({"models": {"m": "m.pt"}}, UsageError, "model `m`: there is no folder m.pt"),
        ({"models": {"m": Pair()}}, DataError, "logits of shape"),
        ({"metrics": ["acuracy"]}, UsageError, r"unknown metric `acuracy`; did you mean `accuracy`\? Allowed: "),
        ({"metrics": ["relearn"], "forget": None}, UsageError, "relearn needs"),
        ({"metrics": ["class-accuracy"], "test": None}, UsageError, "class-accuracy needs test"),
        ({"forget": (torch.rand(0, 1, 8, 8), torch.zeros(0).long())}, DataError, "the forget set is empty"),
        ({"test": (torch.rand(4, 1, 8, 8), torch.full((4,), 6))}, DataError, "the test set has label 6"),
        ({"test": (torch.rand(4, 3), torch.zeros(4).long())}, DataError, r"refuses test samples of shape \(3,\)"),
        ({"device": "gpu"}, UsageError, "device `gpu` cannot be used"),
    ],
)
def test_what_cannot_be_evaluated(
    toy: ToyProblem, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        evaluate(toy, **changes)
    assert "\n" not in str(caught.value)


def test_the_forget_set_is_not_scored_against_itself(toy: ToyProblem) -> None:
    with pytest.raises(DataError, match="30 samples are in both the forget and the test set"):
        evaluate(toy, test=toy.forget)


def test_labels_that_are_withheld_cannot_be_scored(toy: ToyProblem) -> None:
    with pytest.raises(AccessError, match="carries no labels"):
        evaluate(toy, forget=toy.forget.without_labels(), metrics=["accuracy"])


def test_weights_that_are_no_numbers_are_not_scored(toy: ToyProblem) -> None:
    broken = copy.deepcopy(toy.model)
    with torch.no_grad():
        broken.head.bias[2] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        evaluate(toy, {"original": toy.model, "broken": broken})
