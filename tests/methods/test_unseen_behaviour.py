"""AMUN and ReGUn: the attack where the nearest wrong answer is known, targets by hand, what each mode reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import ResidentStore, Split
from expunge.methods.amun import AMUN, nearest_wrong
from expunge.methods.problem import Problem
from expunge.methods.regun import ReGUn
from expunge.numerics.attack import PixelSpace
from expunge.testing.conformance import run, weights
from expunge.testing.toys import ToyNet, toy_problem

SPACE = PixelSpace(torch.zeros(()), torch.ones(()), 0.0, 1.0)


def plane() -> nn.Linear:
    """Logits x1, x2, 0.3 of points in the unit square."""
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, 0.3]))
    return layer


def test_the_nearest_wrong_answer_of_a_plane() -> None:
    """(.6, .5) crosses to b at distance .1 / sqrt 2; (.5, .1) to c at .2; (.1, .8) is wrong already: it stays."""
    x = torch.tensor([[0.6, 0.5], [0.5, 0.1], [0.1, 0.8]])
    made, answers = nearest_wrong(plane(), x, torch.tensor([0, 0, 0]), SPACE, eps=0.01, rounds=8, steps=50)
    assert answers.tolist() == [1, 2, 1]
    distance = (made - x).norm(dim=1)
    for got, least in zip(distance.tolist(), (0.1 / 2**0.5, 0.2, 0.0), strict=True):
        assert least - 1e-6 <= got <= 2 * least + 1e-6  # the radius doubles, so at most twice as far
    torch.testing.assert_close(made[2], x[2])


def test_samples_that_resist_are_told_apart() -> None:
    _, answers = nearest_wrong(
        plane(), torch.tensor([[0.9, 0.1]]), torch.tensor([0]), SPACE, eps=0.01, rounds=3, steps=20
    )
    assert answers.tolist() == [-1]
    with pytest.raises(UsageError, match="raise `rounds`"):
        run(AMUN(eps=1e-6, rounds=1), toy_problem())


@pytest.mark.parametrize(
    ("data", "needs"),
    [
        ("all", Needs(forget="labels", retain="labels")),
        ("retain", Needs(forget="labels", retain="labels")),
        ("forget", Needs(forget="labels")),
        ("adversarial", Needs(forget="labels")),
    ],
)
def test_modes_of_amun(data: Any, needs: Needs) -> None:
    problem = toy_problem()
    chosen = AMUN(data=data, epochs=1, lr=0.01, batch_size=1000, max_drop=None)
    assert chosen.needs == needs
    made = run(chosen, problem, seed=1).model
    given = Problem(
        model=problem.model, num_classes=4, input_shape=(1, 8, 8), needs=needs,
        _splits={"forget": problem.forget, "retain": problem.retain},
    )  # fmt: skip
    adversarial = chosen.neighbours(given, Run(seed=1))
    assert bool((adversarial.y != 1).all())
    splits = [adversarial]
    splits += [problem.retain] if data in ("all", "retain") else []
    splits += [problem.forget] if data in ("all", "forget") else []
    model = problem.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    optimizer.zero_grad()
    (parts,) = mixed_batches(splits, 1000, seed=Run(seed=1).seed_for("mixed", "shuffle", 1))
    x, y = torch.cat([p.x for p in parts if p]), torch.cat([p.y for p in parts if p])
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(made)[name], value, rtol=1e-3, atol=1e-5)


def held_out() -> tuple[Split, Split]:
    """Two points to forget (labels 0, 1), three held-out ones (0, 0, 1) of the plane."""
    forget = ResidentStore(torch.tensor([[0.9, 0.0], [0.0, 0.9]]), torch.tensor([0, 1]), classes=list("abc"))
    unseen = ResidentStore(
        torch.tensor([[0.7, 0.1], [0.5, 0.2], [0.1, 0.8]]), torch.tensor([0, 0, 1]), classes=list("abc")
    )
    return Split.whole(forget), Split.whole(unseen)


def targets(reference: Any, model: nn.Module) -> Tensor:
    forget, validation = held_out()
    problem = Problem(
        model=model, num_classes=3, input_shape=(2,), needs=Needs(forget="labels", validation="labels"),
        _splits={"forget": forget, "validation": validation},
    )  # fmt: skip
    return ReGUn(reference=reference).targets(problem, Run())


def test_targets_of_regun_by_hand() -> None:
    model = nn.Sequential(nn.Identity(), plane()).eval()
    p = model(held_out()[1].inputs()).softmax(1).detach()
    torch.testing.assert_close(targets("uniform", model), p.mean(0).expand(2, 3))
    torch.testing.assert_close(targets("class", model), torch.stack([p[:2].mean(0), p[2]]))
    torch.testing.assert_close(targets("nearest", model), torch.stack([p[0], p[2]]))


def test_regun_needs_a_held_out_sample_of_each_class() -> None:
    problem = toy_problem()
    kept = problem.validation.take(problem.validation.index[problem.validation.y != 1])
    problem.validation = kept
    with pytest.raises(UsageError, match="no held-out sample has class 1"):
        run(ReGUn(), problem)
    assert ReGUn(reference="nearest").needs == Needs(forget="inputs", retain="labels", validation="inputs")
    assert ReGUn().needs == Needs(forget="labels", retain="labels", validation="labels")


def test_one_step_of_regun_against_a_plain_one() -> None:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False))
    chosen = ReGUn(reference="uniform", weight=0.3, epochs=1, lr=0.1, momentum=0.0, retain_batch_size=1000,
                   forget_batch_size=1000, max_drop=None)  # fmt: skip
    made = run(chosen, problem).model
    model, start = problem.model, weights(problem.model)
    q = model(problem.validation.inputs()).softmax(1).mean(0).detach()
    model.zero_grad()
    p = model(problem.forget.inputs()).softmax(1)
    loss = 0.3 * (q * (q / p).log()).sum(1).mean() + 0.7 * F.cross_entropy(
        model(problem.retain.inputs()), problem.retain.y
    )
    loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(weights(made)[name], start[name] - 0.1 * value.grad, rtol=1e-3, atol=1e-6)
