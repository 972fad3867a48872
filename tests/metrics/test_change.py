"""What unlearning changed: each number by hand on models with a known answer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.data.convert import as_split
from expunge.metrics.agreement import Moments
from expunge.metrics.base import Evaluation, check_applies
from expunge.metrics.change import LayerCKA, PredictionPattern, WeightDrift, layer_outputs
from expunge.numerics.statistics import gram_cka
from expunge.testing.toys import toy_problem
from expunge.training.ensemble import Ensemble


def values(metric, evaluation: Evaluation, model: str = "unlearned") -> dict[str, float]:
    return {value.metric: value.value for value in metric.compute(evaluation, model)}


def test_drift_by_hand() -> None:
    then = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, affine=False))
    then[0].weight.data = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    now = copy.deepcopy(then)
    now[0].weight.data[0] += 1
    then[1].running_var.fill_(4.0 - then[1].eps)
    now[1].running_var.fill_(4.0 * math.e - now[1].eps)
    now[1].running_mean.copy_(torch.tensor([2.0, 0.0]))
    found = values(WeightDrift(), Evaluation({"original": then, "unlearned": now}, {}))
    assert found["weight_drift"] == pytest.approx(1 / 5)
    assert found["batchnorm_mean_drift"] == pytest.approx(math.sqrt(0.5))  # one channel of two moved one deviation
    assert found["batchnorm_variance_drift"] == pytest.approx(1.0, rel=1e-4)
    same = values(WeightDrift(), Evaluation({"original": then, "unlearned": then}, {}))
    assert set(same.values()) == {0.0}


def test_an_ensemble_has_other_tensors_and_no_drift() -> None:
    model = toy_problem().model
    both = Evaluation({"original": model, "unlearned": Ensemble([model, model])}, {})
    (only,) = values(WeightDrift(), both).items()
    assert only == ("weight_drift", pytest.approx(float("nan"), nan_ok=True))


class Says(nn.Module):
    """Logits looked up by the number in the first pixel."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x.flatten(1)[:, 0].long()]


def test_pattern_by_hand() -> None:
    """Four samples of class 0; one still right, two now class 1, one class 2; the original would have said 1 next."""
    split = as_split((torch.arange(4.0).reshape(4, 1), torch.zeros(4, dtype=torch.long)), name="forget")
    split = split.__class__(split.store, split.index, split.labels, "forget")
    original = Says([[9.0, 5.0, 1.0]] * 4)
    now = Says([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    evaluation = Evaluation({"original": original, "unlearned": now}, {"forget": split})
    found = values(PredictionPattern(), evaluation)
    assert found == pytest.approx({"new_class_largest_share": 2 / 3, "new_class_second_choice": 2 / 3})
    assert all(math.isnan(v) for v in values(PredictionPattern(), evaluation, "original").values())
    with pytest.raises(UsageError, match="original model"):
        check_applies([PredictionPattern()], Evaluation({"unlearned": now}, {"forget": split}))


@pytest.mark.parametrize("unbiased", [True, False])
def test_gram_cka_equals_that_of_the_moments(unbiased: bool) -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tanh(x[:, :3]) + 4
    moments = Moments()
    moments.add(x, y)
    assert gram_cka(x @ x.T, y @ y.T, unbiased=unbiased) == pytest.approx(moments.cka(unbiased=unbiased), rel=1e-9)


def test_layers_in_order_and_only_the_changed_ones_differ() -> None:
    toy = toy_problem()
    now = copy.deepcopy(toy.model)
    with torch.no_grad():
        now.head.weight.normal_(generator=torch.Generator().manual_seed(3))
    evaluation = Evaluation({"original": toy.model, "unlearned": now}, {"test": toy.test})
    found = {value.group: value.value for value in LayerCKA().compute(evaluation, "unlearned")}
    assert list(found) == list(layer_outputs(toy.model, toy.test, torch.device("cpu")))
    *blocks, head = found.values()
    assert blocks == pytest.approx([1.0] * len(blocks))
    assert head < 0.99
