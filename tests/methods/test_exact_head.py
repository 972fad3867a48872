"""Heads in closed form: other libraries as oracles, deletion equal to refitting, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor, nn

import expunge
from expunge.api.planning.automatic import choose, situation
from expunge.core.errors import DataError, UsageError
from expunge.data.split import Split
from expunge.models.exact_head import ABSENT, ExactHead, HeadOnBackbone
from expunge.testing.toys import ToyNet, toy_problem


def blobs(count: int = 120, features: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    centres = 2 * torch.randn(classes, features, generator=generator)
    return centres[y] + torch.randn(count, features, generator=generator), y


def on_blobs(kind: Any = "ridge", ridge: float = 1.0, rows: Any = slice(None)) -> expunge.TrainedModel:
    x, y = blobs()
    return expunge.fit_head(nn.Identity(), (x[rows], y[rows]), kind=kind, ridge=ridge, scale=1.0, cut=False)


def head(trained: Any) -> ExactHead:
    part = trained.model
    assert isinstance(part, HeadOnBackbone)
    return part.head


def closeness(a: ExactHead, b: ExactHead) -> float:
    """Largest difference relative to the size of the tensor it is in."""
    pairs = ((getattr(a, name).detach(), getattr(b, name).detach()) for name in ("weight", "bias"))
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def test_ridge_is_that_of_scikit_learn() -> None:
    x, y = blobs()
    oracle = Ridge(alpha=0.7).fit(x.double().numpy(), np.eye(3)[y.numpy()])
    made = head(on_blobs(ridge=0.7))
    np.testing.assert_allclose(made.weight.detach().numpy(), oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(made.bias.detach().numpy(), oracle.intercept_, rtol=1e-6)


def test_lda_is_that_of_scikit_learn() -> None:
    x, y = blobs()
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(x.double().numpy(), y.numpy())
    made = head(on_blobs("lda", ridge=1e-9))
    # Its covariance divides by n and not by n - classes.
    factor = (len(x) - 3) / len(x)
    np.testing.assert_allclose(made.weight.detach().numpy(), factor * oracle.coef_, rtol=1e-5, atol=1e-7)
    logits = on_blobs("lda", ridge=1e-9).model(x).detach().numpy()
    assert (logits.argmax(1) == oracle.predict(x.double().numpy())).mean() > 0.98


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_deletion_is_refitting_for_any_order_of_requests(kind: Any) -> None:
    trained: Any = on_blobs(kind)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1)).tolist()
    for rows in (order[:1], order[1:8], order[8:60]):
        trained = expunge.unlearn(trained, forget=rows, method="exact-head", measure=False)
    refitted = on_blobs(kind, rows=torch.tensor(sorted(order[60:])))
    assert closeness(head(trained), head(refitted)) < 1e-6
    assert int(head(trained).counts.sum()) == 60
    assert trained.details["certificate"] == {"kind": "exact", "of": "head", "samples left": 60}


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_a_network_forgets_a_class_exactly_and_its_backbone_stays(kind: Any) -> None:
    toy = toy_problem()
    index = torch.cat([toy.forget.index, toy.retain.index]).sort().values
    data = toy.forget.take(index)
    before = expunge.fit_head(toy.model, data, kind=kind)
    after = expunge.unlearn(before, forget=toy.forget, method="exact-head", device="cpu")
    refitted = expunge.fit_head(toy.model, toy.retain, kind=kind)
    assert closeness(head(after), head(refitted)) < 1e-6
    assert head(after).bias[1].item() == ABSENT
    a, b = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a if name.startswith("backbone."))
    assert not bool((after.model(toy.forget.inputs()).argmax(1) == 1).any())
    assert float((after.model(toy.retain.inputs()).argmax(1) == toy.retain.y).float().mean()) > 0.9
    assert "exact for the head" in after.notes[-1]


def test_what_cannot_be_deleted_is_refused() -> None:
    trained = on_blobs()
    x, y = blobs()
    with pytest.raises(UsageError, match="keeps no statistics to delete from; fit its head"):
        expunge.unlearn(toy_problem().model, forget=toy_problem().forget, method="exact-head")
    twice = (torch.cat([x, x]), torch.cat([y, y]))
    with pytest.raises(UsageError, match="more samples of class 0 are to be forgotten"):
        expunge.unlearn(trained.model, forget=twice, method="exact-head")
    with torch.no_grad():
        head(trained).weight.add_(0.1)
    with pytest.raises(UsageError, match="something else has trained it since"):
        expunge.unlearn(trained, forget=[0], method="exact-head")
    with pytest.raises(UsageError, match="ridge > 0 and scale > 0, got 0"):
        on_blobs(ridge=0)
    with pytest.raises(UsageError, match="of kind `ridge` or `lda`, got 'svm'"):
        on_blobs("svm")
    with pytest.raises(UsageError, match="single layer"):
        expunge.fit_head(nn.Linear(5, 3), (x, y))
    with pytest.raises(DataError, match="one representation per sample"):
        expunge.fit_head(nn.Flatten(0), (x, y), cut=False)


def test_it_is_saved_and_read_with_its_statistics(tmp_path: Path) -> None:
    trained = on_blobs()
    trained.save(tmp_path / "made")
    x, y = blobs()
    empty = HeadOnBackbone(nn.Identity(), ExactHead(5, 3, "ridge", 1.0, 1.0))
    read = expunge.load(tmp_path / "made", model=empty, data=(x, y))
    after = expunge.unlearn(read, forget=[3, 4], method="exact-head", measure=False)
    assert int(head(after).counts.sum()) == 118


def test_the_planner_takes_the_exact_one_first() -> None:
    toy = toy_problem(ToyNet(), forget_class=None)
    trained = expunge.fit_head(toy.model, toy.retain)
    parts: dict[str, Split] = {"forget": toy.retain.take(toy.retain.index[:3]), "retain": toy.validation}
    plan = choose(trained.model, parts, situation(trained.model, parts, recipe=None, initial=False))
    assert (plan.method, plan.exact) == ("exact-head", True)
    alone = {"forget": parts["forget"]}
    assert choose(trained.model, alone, situation(trained.model, alone, recipe=None, initial=False)).exact
    result = expunge.unlearn(trained, forget=trained.train.index[:3].tolist() if trained.train else [], method="auto")
    assert result.facts["method"] == "exact-head"
    other = situation(toy.model, parts, recipe=None, initial=False)
    assert choose(toy.model, parts, other).method != "exact-head"
