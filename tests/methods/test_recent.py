"""UNSIR, SFR-on, influence, NegMerge, GS-LoRA and RUM: equations by hand or by a slow oracle, and their limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.methods.gs_lora import GSLoRA
from expunge.methods.influence import Influence, inverse_product
from expunge.methods.negmerge import NegMerge, consensus, other_classes
from expunge.methods.problem import Problem
from expunge.methods.rum import RUM, symmetric_divergence
from expunge.methods.sfr_on import SFROn, weighted_loss
from expunge.methods.unsir import UNSIR, some_of_each
from expunge.numerics.gradient_moments import gradient_moments
from expunge.testing.conformance import run, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem


def plain(forget_class: int | None = 1) -> ToyProblem:
    torch.manual_seed(0)
    return toy_problem(ToyNet(batchnorm=False), forget_class=forget_class)


def accuracy(model: nn.Module, split: Split) -> float:
    with torch.no_grad():
        return float((model(split.inputs()).argmax(1) == split.y).float().mean())


# UNSIR


def test_unsir_noise_is_what_the_model_would_not_call_the_class() -> None:
    problem = plain()
    start = torch.rand(6, 1, 8, 8)
    chosen = UNSIR(noise_steps=25, decay=0.0)
    made = chosen.learn(problem.model, start, 1)
    label = torch.full((6,), 1)
    with torch.no_grad():
        before, after = (F.cross_entropy(problem.model(x), label) for x in (start, made))
    assert float(after) > float(before) + 1
    oracle = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([oracle], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (-F.cross_entropy(problem.model(oracle), label) + 0.3 * (oracle**2).sum() / 6).backward()
        optimizer.step()
    two = UNSIR(noise_steps=2, decay=0.3).learn(problem.model, start, 1)
    torch.testing.assert_close(two, oracle.detach())


def test_unsir_takes_some_of_each_class_and_forgets_one() -> None:
    problem = toy_problem()
    part = some_of_each(problem.retain, 7, 0)
    assert part.y.bincount().tolist() == [7, 0, 7, 7]
    chosen = UNSIR(lr=0.02, repair_lr=0.01, batch_size=16, noise_size=16, copies=1, repair=2, max_drop=None)
    made = run(chosen, plain()).model
    assert accuracy(made, problem.forget) < 0.5
    assert accuracy(made, problem.retain) > 0.9


# SFR-on


def test_weights_of_sfr_on_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    a, b = (float(F.cross_entropy(logits[i : i + 1], torch.tensor([0]))) for i in (0, 1))
    wanted = (a**0.5 + b**0.5) / (a**-0.5 + b**-0.5)
    assert float(weighted_loss(logits, torch.tensor([0, 0]), 0.5)) == pytest.approx(wanted, rel=1e-5)


def test_one_step_of_sfr_on_against_a_plain_one() -> None:
    values: dict[str, Any] = {
        "retain_batch_size": 1000,
        "forget_batch_size": 1000,
        "momentum": 0.0,
        "weight_decay": 0.0,
    }
    chosen = SFROn(epochs=1, lr=0.1, coefficient=2.0, clip=None, threshold=0.5, max_drop=None, **values)
    made = weights(run(chosen, plain()).model)
    problem = plain()
    model = problem.model.requires_grad_(True)
    fisher = [gradient_moments(model, [split], Run(), batch_size=1000) for split in (problem.forget, problem.retain)]
    loss = weighted_loss(model(problem.forget.inputs()), problem.forget.y, 0.5)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
            p.add_(0.2 * g * (fisher[0][name] >= 0.5 * fisher[1][name]))
    model.zero_grad()  # those of the toy's training
    F.cross_entropy(model(problem.retain.inputs()), problem.retain.y).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(made[name], (p - 0.1 * p.grad).detach(), rtol=1e-3, atol=1e-6)


# influence


def test_the_inverse_is_that_of_rank_one_updates_and_of_a_dense_solve() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, v = torch.randn(5, 12, generator=generator), torch.randn(12, generator=generator)
    dense = 0.1 * torch.eye(12) + rows.T @ rows / 5
    torch.testing.assert_close(inverse_product(rows, v, 0.1), torch.linalg.solve(dense, v), rtol=1e-3, atol=1e-4)
    inverse = torch.eye(12) / 0.1
    for g in rows:  # Singh and Alistarh, equation 6
        inverse = inverse - torch.outer(inverse @ g, inverse @ g) / (5 + g @ inverse @ g)
    torch.testing.assert_close(inverse_product(rows, v, 0.1), inverse @ v, rtol=1e-3, atol=1e-4)


def test_the_influence_step_is_exact_for_a_quadratic_loss() -> None:
    """One unit whose loss is nearly quadratic there: the step undoes a sample as a Newton step on the rest does."""
    problem = plain(None)
    made = run(Influence(damping=0.5, scale=3.0, batch_size=1000, batches=1), problem).model
    model = problem.model.requires_grad_(True)

    def flat(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    g_f = flat(F.cross_entropy(model(problem.forget.inputs()), problem.forget.y, reduction="sum"))
    g_r = flat(F.cross_entropy(model(problem.retain.inputs()), problem.retain.y))
    move = torch.linalg.solve(0.5 * torch.eye(len(g_r)) + torch.outer(g_r, g_r), g_f) * 3.0 / len(problem.retain)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    after = torch.cat([p.detach().flatten() for p in made.parameters()])
    torch.testing.assert_close(after, before + move, rtol=1e-4, atol=1e-5)


# NegMerge


def test_consensus_and_the_classes_that_stay() -> None:
    made = consensus([torch.tensor([1.0, -1.0, 0.0, -2.0]), torch.tensor([2.0, 1.0, 1.0, -4.0])])
    assert made.tolist() == [1.5, 0.0, 0.0, -3.0]
    problem = toy_problem()
    assert set(other_classes(problem.validation, problem.forget).y.tolist()) == {0, 2, 3}
    mixed = toy_problem(forget_class=None)
    assert len(other_classes(mixed.validation, mixed.forget)) == len(mixed.validation)


def test_negmerge_goes_as_far_as_held_out_accuracy_allows() -> None:
    problem = toy_problem()
    values: dict[str, Any] = {"lr": 0.05, "batch_size": 8, "copies": 2}
    result = run(NegMerge(**values, lambda_max=64.0), problem)
    factor = result.details["lambda"]
    assert 0 < factor < 64
    assert accuracy(result.model, problem.validation) > 0.6
    assert accuracy(result.model, problem.forget) < accuracy(problem.model, problem.forget)
    kept = run(NegMerge(**values, lambda_max=1e-9, rule="fixed"), problem)
    for name, value in weights(problem.model).items():
        torch.testing.assert_close(weights(kept.model)[name], value, rtol=0, atol=1e-6)
    far = run(NegMerge(**values, lambda_max=1e6), problem)
    assert far.details["lambda"] == 0.0
    assert "no lambda kept enough" in far.notes[-1]
    assert NegMerge(rule="fixed").needs == Needs(forget="labels")


# GS-LoRA


class Block(nn.Module):
    """Attention and MLP of linear layers, as in a transformer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1, 2))
        scores = (self.query(h) @ self.key(h).transpose(1, 2) / 12**0.5).softmax(2)
        h = h + scores @ self.value(h)
        h = h + self.down(torch.relu(self.up(h)))
        return self.head(h.mean(1))


def test_gs_lora_changes_linear_layers_of_a_transformer_by_low_rank() -> None:
    torch.manual_seed(0)
    problem = toy_problem(Block(), epochs=20)
    chosen = GSLoRA(rank=2, epochs=6, lr=0.02, retain_batch_size=16, forget_batch_size=16, beta=1.0, max_drop=None)
    result = run(chosen, problem)
    a, b = weights(problem.model), weights(result.model)
    names = ["embed", "query", "key", "value", "up", "down"]
    assert list(result.details["changes"]) == [f"{name}.weight" for name in names]
    for name in names:
        assert int(torch.linalg.matrix_rank(b[f"{name}.weight"] - a[f"{name}.weight"], rtol=1e-4)) <= 2
    rest = [name for name in a if name.removesuffix(".weight") not in names]
    assert all(torch.equal(a[name], b[name]) for name in rest)
    assert accuracy(result.model, problem.forget) < 0.3
    assert accuracy(result.model, problem.retain) > accuracy(problem.model, problem.retain) - 0.1
    x = problem.retain.inputs()[:2]
    assert GSLoRA(layers="mlp").names(problem.model, x) == ["embed.weight", "up.weight", "down.weight"]
    with pytest.raises(UsageError, match="no linear layer below its head"):
        GSLoRA().names(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), x)


def test_the_group_penalty_holds_layers_at_zero() -> None:
    torch.manual_seed(0)
    problem = toy_problem(Block(), epochs=5)
    values: dict[str, Any] = {"rank": 2, "epochs": 3, "lr": 0.02, "retain_batch_size": 16, "max_drop": None}
    sizes = [sum(run(GSLoRA(alpha=alpha, **values), problem).details["changes"].values()) for alpha in (0.0, 0.3)]
    assert sizes[1] < 0.5 * sizes[0]


# RUM


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]])
    wanted = 0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    torch.testing.assert_close(symmetric_divergence(p.log(), q.log()), wanted[None])


def test_rum_hands_each_part_to_its_method() -> None:
    problem = toy_problem(forget_class=None)
    result = run(RUM(low="original", medium="neggrad", high="boundary-shrink"), problem)
    assert {name: part["method"] for name, part in result.details["parts"].items()} == {
        "low": "original", "medium": "neggrad", "high": "boundary-shrink",
    }  # fmt: skip
    assert [part["samples"] for part in result.details["parts"].values()] == [8, 8, 8]
    alone = run(RUM(low="original", medium="original", high="neggrad", score="confidence"), problem)
    given = Problem(
        model=problem.model, num_classes=4, input_shape=(1, 8, 8), needs=Needs(forget="labels"),
        _splits={"forget": problem.forget},
    )  # fmt: skip
    scores = RUM(score="confidence").scores(given, Run())
    rows = scores.argsort(stable=True)[16:].sort().values
    direct = run_on(problem, problem.forget.take(problem.forget.index[rows]))
    for name, value in weights(direct).items():
        torch.testing.assert_close(weights(alone.model)[name], value, rtol=1e-5, atol=1e-7)


def run_on(problem: ToyProblem, forget: Split) -> nn.Module:
    """NegGrad on a part, with the values that fit it."""
    result = expunge.unlearn(
        problem.model, forget=forget, method="neggrad", max_drop=None, measure=False, device="cpu", precision="float32"
    )
    return result.model


def test_rum_refuses_what_does_not_change_a_given_model() -> None:
    for name in ("rum", "retrain", "sisa", "confidence-masking", "laf+r"):
        with pytest.raises(UsageError, match=f"`high` cannot be {name.replace('+', '.')}"):
            _ = RUM(high=name).needs
    with pytest.raises(UsageError, match="unknown method `neggard`"):
        _ = RUM(high="neggard").needs
    assert RUM(low="jit", medium="jit", high="jit", score="confidence").needs == Needs(forget="labels")
    assert RUM().needs == Needs(forget="labels", retain="labels", validation="labels")


def test_memorised_samples_have_a_high_score() -> None:
    """Two samples with wrong labels among those that were learnt: fine-tuning elsewhere moves them most."""
    problem = toy_problem(forget_class=None)
    x, y = problem.forget.inputs(), problem.forget.y.clone()
    rest, labels = problem.retain.inputs(), problem.retain.y
    y[:2] = (y[:2] + 2) % 4
    model = ToyNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.cat([x, rest])), torch.cat([y, labels])).backward()
        optimizer.step()
    forget = Split.whole(ResidentStore(x, y, classes=list("abcd")), "forget")
    given = Problem(
        model=model.eval(), num_classes=4, input_shape=(1, 8, 8), needs=Needs(forget="labels", validation="labels"),
        _splits={"forget": forget, "validation": problem.validation},
    )  # fmt: skip
    scores = RUM(batch_size=16, proxy_lr=0.05).scores(given, Run())
    assert {0, 1} & set(scores.argsort(descending=True)[:4].tolist())
