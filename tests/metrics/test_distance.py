"""Distances to the retrained model, by hand; relearning; the attack on output entropy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import expunge
from expunge.data.split import ResidentStore, Split
from expunge.metrics.base import Evaluation
from expunge.metrics.distance import Distance
from expunge.metrics.entropy import entropy, entropy_attack
from expunge.metrics.relearn import RelearnTime
from expunge.testing.toys import toy_problem


def test_distances_by_hand() -> None:
    x = torch.eye(2)
    data = Split.whole(ResidentStore(x, torch.tensor([0, 1])))
    here, there = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        here.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        there.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        here.bias.zero_()
        there.bias.zero_()
    evaluation = Evaluation({"m": here, "retrained": there}, {"test": data})
    values = {v.metric: v.value for v in Distance().compute(evaluation, "m")}
    p = 1 / (1 + np.exp(-1.0))
    # Sample 0: equal outputs. Sample 1: (p, 1-p) against (1-p, p).
    assert values["test_activation_distance"] == pytest.approx(2 * (2 * p - 1) / 2, rel=1e-6)
    assert values["test_prediction_distance"] == 0.5
    assert values["weight_distance"] == pytest.approx(1.0)  # ||[[0, 1], [0, -1]]|| / ||identity||
    assert all(v.value == 0 for v in Distance().compute(evaluation, "retrained"))


def test_relearning_is_immediate_for_the_original_and_takes_longer_after_forgetting() -> None:
    problem = toy_problem(forget_class=1)
    forgot = copy.deepcopy(problem.model)
    with torch.no_grad():
        forgot.head.bias[1] -= 50
    models = {"original": problem.model, "forgot": forgot}
    scores = expunge.evaluate(
        models, forget=problem.forget, retain=problem.retain, metrics=[RelearnTime(samples=60, limit=40)], device="cpu"
    )
    assert scores.value("original", "relearn_time") == 1
    assert scores.value("forgot", "relearn_time") > 1
    assert float(forgot.head.bias[1].detach()) < -40, "the evaluated model must not be trained"


def test_a_relearning_that_reaches_the_limit_is_marked() -> None:
    problem = toy_problem(forget_class=1)
    ruined = copy.deepcopy(problem.model)
    with torch.no_grad():
        ruined.head.bias[1] -= 1e4
    models = {"original": problem.model, "ruined": ruined}
    metric = RelearnTime(samples=10, limit=2, lr=1e-4)
    scores = expunge.evaluate(models, forget=problem.forget, retain=problem.retain, metrics=[metric], device="cpu")
    assert scores.value("ruined", "relearn_time") == 3
    assert scores.value("ruined", "relearn_censored") == 1


def test_costly_metrics_are_measured_on_request_only() -> None:
    problem = toy_problem(forget_class=1)
    scores = expunge.evaluate({"original": problem.model}, forget=problem.forget, retain=problem.retain, device="cpu")
    assert not scores.frame()["metric"].str.contains("relearn").any()


def test_entropy_of_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [1.0, 2.0]])
    p = F.softmax(logits[2].double(), 0).numpy()
    assert entropy(logits) == pytest.approx([np.log(2), 0.0, -(p * np.log(p)).sum()], abs=1e-12)


def test_entropy_attack_on_separable_sides() -> None:
    rng = np.random.default_rng(0)
    known, unseen = rng.uniform(0, 0.1, 200), rng.uniform(1.0, 2.0, 50)
    assert entropy_attack(known, unseen, known[:20]) == 1.0
    assert entropy_attack(known, unseen, unseen[:20]) == 0.0
