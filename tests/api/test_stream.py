"""Requests one after the other: who is handed what, where each starts, what is measured."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.methods import METHODS
from expunge.methods.base import Method, method
from expunge.methods.problem import Problem
from expunge.testing.conformance import RECIPE, same, weights
from expunge.testing.toys import ToyProblem, toy_problem

SEEN: list[dict[str, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def nudge():
    """A method that keeps a diary and adds one to the bias of the head."""

    @method("nudge", summary="for this test", needs=Needs(forget="labels", retain="labels"))
    class Nudge(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            SEEN.append(
                {
                    "forget": problem.forget.ids.tolist(),
                    "retain": problem.retain.ids.tolist(),
                    "start": float(student.head.bias[0].detach()),
                    "seed": run.seed,
                }
            )
            with torch.no_grad():
                student.head.bias += 1
            run.status = "limit" if len(SEEN) == 2 else "finished"
            return student

    yield
    METHODS.remove("nudge")


@pytest.fixture(scope="module")
def toy() -> ToyProblem:
    return toy_problem()


def stream(toy: ToyProblem, parts: int = 3, **more: Any) -> expunge.Result:
    requests = [toy.forget.take(part) for part in toy.forget.index.tensor_split(parts)]
    given = {"retain": toy.retain, "test": toy.test, "device": "cpu", **more}
    return expunge.unlearn_stream(toy.model, requests=requests, **given)


def test_each_request_starts_where_the_last_one_ended_and_retains_what_nobody_named(toy: ToyProblem) -> None:
    SEEN.clear()
    before = weights(toy.model)
    data = toy.test
    kept, gone = data.take(range(20, 80)), torch.arange(20).tensor_split(3)
    requests = [data.take(part) for part in gone]
    result = expunge.unlearn_stream(toy.model, requests=requests, retain=kept, method="nudge", device="cpu")
    parts = [request.ids.tolist() for request in requests]
    assert [one["forget"] for one in SEEN] == parts
    later = [parts[1] + parts[2], parts[2], []]
    assert [sorted(one["retain"]) for one in SEEN] == [sorted(kept.ids.tolist() + rest) for rest in later]
    start = float(toy.model.head.bias[0].detach())
    assert [one["start"] for one in SEEN] == pytest.approx([start, start + 1, start + 2])
    assert len({one["seed"] for one in SEEN}) == 3
    assert same(weights(toy.model), before)
    assert float(result.model.head.bias[0].detach()) == pytest.approx(start + 3)
    assert result.status == "limit"  # the least good of the three
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in result.details["requests"]))


def test_the_rows_say_what_each_request_cost(toy: ToyProblem) -> None:
    result = stream(toy, method="neggrad", epochs=2, clip=1.0)
    rows = result.details["requests"]
    assert [row["samples"] for row in rows] == [len(p) for p in toy.forget.index.tensor_split(3)]
    assert all(a["drift"] < b["drift"] for a, b in itertools.pairwise(rows))
    said = result.model(toy.forget.inputs()).argmax(1)
    assert rows[-1]["past_accuracy"] == pytest.approx(float((said == toy.forget.y).double().mean()))
    assert rows[0]["current_accuracy"] == rows[0]["past_accuracy"]
    assert {"retain_accuracy", "test_accuracy"} <= rows[0].keys()
    frame = result.frame()
    assert frame["request"].tolist() == [1, 1, 2, 2, 3, 3]
    assert frame["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_last_retraining_is_the_reference_of_all_requests_together(toy: ToyProblem) -> None:
    given = {"method": "retrain", "recipe": RECIPE, "seed": 4}
    last = stream(toy, **given).model
    once = expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, device="cpu", **given).model
    assert same(weights(last), weights(once))


def test_a_forget_set_only_method_needs_no_retained_data(toy: ToyProblem) -> None:
    result = stream(toy, method="l2ul-plain", limit=3, retain=None, test=None, lr=0.01)
    assert result.needs.forget_set_only
    assert "retain_accuracy" not in result.details["requests"][0]


def test_requests_of_separate_arrays_are_joined(toy: ToyProblem) -> None:
    SEEN.clear()
    x, y = toy.forget.inputs(), toy.forget.y
    kept = (toy.retain.inputs(), toy.retain.y)
    requests = [(x[:5], y[:5]), (x[5:9], y[5:9])]
    expunge.unlearn_stream(toy.model, requests=requests, retain=kept, method="nudge", device="cpu")
    assert [len(one["retain"]) for one in SEEN] == [len(kept[0]) + 4, len(kept[0])]


def test_a_sample_cannot_be_in_two_requests(toy: ToyProblem) -> None:
    with pytest.raises(DataError, match="both the forget and the request 2 set"):
        expunge.unlearn_stream(toy.model, requests=[toy.forget, toy.forget], retain=toy.retain, device="cpu")
    with pytest.raises(UsageError, match="`requests` is empty"):
        expunge.unlearn_stream(toy.model, requests=[])


def test_a_scenario_cuts_its_forget_set_into_requests(toy: ToyProblem) -> None:
    train = toy.test
    split = expunge.scenario("random", train, amount=10, requests=4, seed=1)
    parts = split.requests()
    assert sorted(len(part) for part in parts) == [2, 2, 3, 3]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == split.forget.index.tolist()
    again = expunge.scenario("random", train, amount=10, requests=4, seed=1).requests()
    assert [part.index.tolist() for part in parts] == [part.index.tolist() for part in again]
    with pytest.raises(DataError, match="11 requests for 10 samples"):
        expunge.scenario("random", train, amount=10, requests=11).requests()


def test_what_trains_anew_starts_from_the_given_model_every_time(toy: ToyProblem) -> None:
    """An ensemble of the first request must not become the architecture of the second."""
    result = stream(toy, method="sisa", shards=2, slices=1, recipe=RECIPE)
    assert len(result.model.models) == 2
    assert not any(isinstance(member, type(result.model)) for member in result.model.models)
    assert all(row["drift"] != row["drift"] for row in result.details["requests"])  # NaN: other tensors
