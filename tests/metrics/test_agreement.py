"""Linear CKA against its definition over kernel matrices, and on models with a known answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.data.split import ResidentStore, Split
from expunge.metrics.agreement import CKA, Moments, random_subset
from expunge.metrics.base import Evaluation
from expunge.testing.toys import toy_problem


def data(n: int, p: int, q: int, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=g, dtype=torch.float64)
    return x + offset, torch.tanh(x[:, :1]) + torch.randn(n, q, generator=g, dtype=torch.float64) - 3 * offset


def moments(x: Tensor, y: Tensor, batch: int = 7) -> Moments:
    found = Moments()
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        found.add(a, b)
    return found


def biased(k: Tensor, other: Tensor) -> Tensor:
    """tr(K H L H), by the definition."""
    centre = torch.eye(len(k), dtype=k.dtype) - 1 / len(k)
    return torch.trace(k @ centre @ other @ centre)


def unbiased(k: Tensor, other: Tensor) -> Tensor:
    """The U-statistic over all quadruples of different samples would be equal; this is its usual matrix form."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, other = k - k.diag().diag(), other - other.diag().diag()
    rest = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return torch.trace(k @ other) + rest - 2 / (n - 2) * (one @ k @ other @ one)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("hsic", [biased, unbiased])
def test_sums_over_batches_give_the_kernel_formula(hsic: object, offset: float) -> None:
    plain, shifted = data(30, 5, 8), data(30, 5, 8, offset)
    k, other = (v @ v.T for v in plain)
    expected = hsic(k, other) / (hsic(k, k) * hsic(other, other)) ** 0.5
    assert moments(*shifted).cka(unbiased=hsic is unbiased) == pytest.approx(float(expected), rel=1e-8)


def test_unrelated_representations_of_few_samples_look_alike_to_the_biased_estimator_only() -> None:
    g = torch.Generator().manual_seed(1)
    found = moments(torch.randn(40, 300, generator=g), torch.randn(40, 300, generator=g))
    assert found.cka(unbiased=False) > 0.8
    assert abs(found.cka(unbiased=True)) < 0.1


def test_rotation_and_scale_change_nothing_a_constant_has_no_value() -> None:
    x, _ = data(50, 6, 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=x.dtype))[0]
    for unbiased_one in (False, True):
        assert moments(x, 1e-5 * x @ turn + 2).cka(unbiased=unbiased_one) == pytest.approx(1.0)
        assert moments(x, torch.full((50, 3), 0.1)).cka(unbiased=unbiased_one) is None


class Net(nn.Module):
    """Representation: the first `kept` inputs, scaled."""

    def __init__(self, kept: int, scale: float) -> None:
        super().__init__()
        self.body = nn.Linear(4, kept, bias=False)
        self.head = nn.Linear(kept, 2)
        with torch.no_grad():
            self.body.weight.copy_(scale * torch.eye(4)[:kept])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def scores(model: nn.Module, reference: nn.Module, x: Tensor, metric: CKA | None = None) -> dict[str, float]:
    split = Split.whole(ResidentStore(x, torch.zeros(len(x)).long(), classes=["a", "b"]))
    evaluation = Evaluation({"m": model, "retrained": reference}, {"test": split})
    return {v.metric: v.value for v in (metric or CKA()).compute(evaluation, "m")}


def test_the_metric_compares_what_enters_the_head() -> None:
    x = torch.randn(700, 4, generator=torch.Generator().manual_seed(0))
    assert scores(Net(4, 1.0), Net(4, -3.0), x) == {"test_cka": pytest.approx(1.0)}
    first = x.double() - x.double().mean(0)
    cross, own = (first[:, :2].T @ first).square().sum(), (first.T @ first).norm()
    expected = float(cross / ((first[:, :2].T @ first[:, :2]).norm() * own))
    assert scores(Net(2, 1.0), Net(4, 1.0), x) == {"test_cka": pytest.approx(expected)}
    debiased = scores(Net(2, 1.0), Net(4, 1.0), x, CKA(estimator="unbiased"))["test_cka"]
    assert debiased == pytest.approx(expected, abs=0.01)
    assert debiased != pytest.approx(expected, abs=1e-6)


def test_a_model_that_learnt_something_else_is_further_away() -> None:
    problem = toy_problem(forget_class=1)
    other = copy.deepcopy(problem.model)
    with torch.no_grad():
        other.hidden.weight.copy_(torch.randn(other.hidden.weight.shape, generator=torch.Generator().manual_seed(3)))
    models = {"same": problem.model, "other": other, "retrained": problem.model}
    found = expunge.evaluate(
        models, forget=problem.forget, retain=problem.retain, test=problem.test, metrics=["cka"], device="cpu"
    )
    for split in ("forget", "retain", "test"):
        assert found.value("same", f"{split}_cka") == pytest.approx(1.0)
        assert found.value("other", f"{split}_cka") < 0.95


def test_large_splits_are_sampled_by_the_seed() -> None:
    split = toy_problem(forget_class=1).retain
    assert random_subset(split, 100, 0) is split
    drawn = random_subset(split, 20, 0)
    assert len(drawn) == len(drawn.index.unique()) == 20
    assert torch.isin(drawn.index, split.index).all()
    assert torch.equal(drawn.index, random_subset(split, 20, 0).index)
    assert not torch.equal(drawn.index, random_subset(split, 20, 1).index)
