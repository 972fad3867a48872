"""The SSD family: dampening and its thresholds by hand, the whole method against a slow loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from expunge import api
from expunge.api.saved import load
from expunge.api.trained import TrainedModel
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.methods.base import Method, make_method
from expunge.methods.ssd import SSD, Potion, adaptive_percentile, at_percentile, dampened, sorted_ratios
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import error_rate, predict


def test_dampening_by_hand() -> None:
    """Selected strictly above alpha; the factor is lam I_D / I_F, and at most 1; I_F = 0 is never selected."""
    i_all = torch.tensor([1.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    i_forget = torch.tensor([10.0, 11.0, 40.0, 0.0, 11.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.1, 4.0, 5.0, -2.2])
    made = dampened(weight, i_all, i_forget, alpha=10.0, lam=1.0)
    torch.testing.assert_close(made, torch.tensor([1.0, 0.1, 0.2, 5.0, -0.2]))
    torch.testing.assert_close(dampened(weight, i_all, i_forget, alpha=10.0, lam=100.0), weight)


def test_percentiles_by_hand() -> None:
    i_all = {"a": torch.ones(4, dtype=torch.float64), "b": torch.full((6,), 2.0, dtype=torch.float64)}
    i_forget = {"a": torch.arange(4.0).double(), "b": 2 * torch.arange(4.0, 10.0).double()}
    ratios = sorted_ratios(i_all, i_forget)
    assert ratios.tolist() == list(range(10))
    assert at_percentile(ratios, 80) == 7  # so 8 and 9, the largest two of ten, lie strictly above
    assert at_percentile(ratios, 100) == 9
    assert adaptive_percentile(0.05) == pytest.approx(100 - math.log(6))


def test_per_sample_against_a_slow_loop() -> None:
    problem = toy_problem(forget_class=None)
    made = run(SSD(unit="sample", alpha=1.5, lam=0.5), problem).model
    names = [name for name, _ in problem.model.named_parameters()]

    def squares(split) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
        total = [torch.zeros_like(p) for p in problem.model.parameters()]
        for batch in split.batches(1):
            loss = F.cross_entropy(problem.model(batch.x), batch.y)
            for sum_, g in zip(total, torch.autograd.grad(loss, list(problem.model.parameters())), strict=True):
                sum_ += g * g
        return total

    forget, retain = squares(problem.forget), squares(problem.retain)
    state, moved = weights(made), 0
    for name, p, f, r in zip(names, problem.model.parameters(), forget, retain, strict=True):
        i_forget, i_all = f / len(problem.forget), (f + r) / (len(problem.forget) + len(problem.retain))
        chosen = i_forget > 1.5 * i_all
        moved += int(chosen.sum())
        expected = torch.where(chosen, p.detach() * (0.5 * i_all / i_forget.clamp(min=1e-30)).clamp(max=1), p.detach())
        torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6)
    assert moved > 0


def test_per_sample_ratios_cannot_pass_the_share_of_the_forget_set() -> None:
    """I_F / I_D <= |D| / |F|: what a tenth of the data or more cannot reach with alpha = 10 is said, not done."""
    problem = toy_problem(forget_class=None)
    result = run(SSD(unit="sample", alpha=10.0), problem)
    assert same(weights(result.model), weights(problem.model))
    assert any("no weight was selected" in note for note in result.notes)


def test_potion_stops_at_the_first_share_that_reaches_its_target() -> None:
    problem = toy_problem()
    result = run(Potion(rho=0.5, batch_size=8, growth=1.3), problem)
    before, after = (
        1 - error_rate(predict(m, problem.forget), problem.forget.y) for m in (problem.model, result.model)
    )
    assert result.status == "reached"
    assert after <= 0.5 * before
    fewer = run(Potion(rho=0.5, batch_size=8, growth=1.3, rounds=result.details["rounds"] - 1), problem)
    assert fewer.status == "limit"
    assert fewer.details["forget_accuracy"] > 0.5 * before
    assert any("still" in note for note in fewer.notes)


def known(method: str | Method) -> tuple[Any, TrainedModel]:
    """The toy problem, and its model with the importance of its training data."""
    problem = toy_problem(forget_class=None)
    data = problem.forget.take(torch.cat([problem.forget.index, problem.retain.index]), "train")
    trained = TrainedModel.of(problem.model, data=data).with_importance(method, device="cpu")
    problem.clear()
    return problem, trained


def stored(trained: TrainedModel, problem: Any, method: str, **options: Any) -> Any:
    return api.unlearn(
        trained, forget=problem.forget, retain=problem.retain, method=method, importance="stored", measure=False,
        device="cpu", precision="float32", **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["ssd/det", "lfssd/det", "assd", "potion"])
def test_with_kept_importance_the_forget_set_is_all_that_is_read(method: str) -> None:
    """The same result as from all data, and the method was handed no retained sample."""
    chosen = make_method(method, unit="sample")
    problem, trained = known(chosen)
    result = stored(trained, problem, method, unit="sample")
    assert problem.handed("retain") == 0
    assert problem.handed("forget") > 0
    assert result.needs == replace(chosen.needs, retain="none", importance=True)
    computed = run(chosen, problem)
    for key, value in weights(computed.model).items():
        torch.testing.assert_close(weights(result.model)[key], value, rtol=1e-5, atol=1e-7)


def test_kept_importance_is_saved_loaded_and_dropped_with_the_weights(tmp_path: Path) -> None:
    problem, trained = known("ssd/det")
    trained.save(tmp_path)
    again = load(tmp_path, model=ToyNet())
    assert again.importance is not None
    assert trained.importance is not None
    assert again.importance.facts() == trained.importance.facts()
    assert same(dict(again.importance.values), dict(trained.importance.values))
    result = stored(again, problem, "ssd/det", alpha=1.5)
    assert result.importance is None  # of other weights
    replace(trained, importance=None).save(tmp_path)
    assert not (tmp_path / "importance.safetensors").exists()


def test_importance_of_another_kind_or_model_is_refused() -> None:
    problem, trained = known("ssd")
    with pytest.raises(UsageError, match="does not carry"):
        stored(replace(trained, importance=None), problem, "ssd")
    with pytest.raises(UsageError, match="loss = 'cross-entropy'"):
        stored(trained, problem, "lfssd")
    with pytest.raises(UsageError, match="batch_size = 64"):
        stored(trained, problem, "ssd", batch_size=32)
    other = replace(trained, model=toy_problem(epochs=1).model)
    with pytest.raises(UsageError, match="of other weights"):
        stored(other, problem, "ssd")
    with pytest.raises(UsageError, match="no importance to keep"):
        trained.with_importance("finetune")
    assert make_method("ssd", importance="stored").needs == Needs(forget="labels", importance=True)


def test_training_can_keep_it() -> None:
    problem = toy_problem()
    recipe = {"epochs": 1, "batch_size": 30, "optimizer": "adam", "lr": 0.02, "weight_decay": 0.0}
    trained = api.train(ToyNet(), problem.retain, recipe=recipe, device="cpu", importance="lfssd/det")
    assert trained.importance is not None
    assert trained.importance.samples == len(problem.retain)
    assert trained.record()["importance"]["unit"] == "sample"
