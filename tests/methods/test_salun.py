"""SalUn: the mask by hand, both readings of it, both orders, and one epoch against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.methods.random_label import wrong_labels
from expunge.methods.salun import SalUn, forget_gradient, saliency_masks
from expunge.testing.conformance import run
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem


def plain() -> ToyProblem:
    torch.manual_seed(0)
    return toy_problem(ToyNet(batchnorm=False))


def masks(problem: ToyProblem, keep: float, batch_size: int) -> list[Tensor]:
    return saliency_masks(forget_gradient(problem.model, problem.forget, Run(), batch_size), keep)


def moved(problem: ToyProblem, model: nn.Module) -> list[Tensor]:
    return [(a - b).detach() != 0 for a, b in zip(model.parameters(), problem.model.parameters(), strict=True)]


def test_the_mask_ranks_all_weights_together_and_keeps_exactly_the_share() -> None:
    gradients = [torch.tensor([0.1, -0.9]), torch.tensor([[0.5], [-0.2]])]
    assert [m.flatten().tolist() for m in saliency_masks(gradients, 0.5)] == [[False, True], [True, False]]
    assert sum(int(m.sum()) for m in saliency_masks([torch.zeros(10)], 0.3)) == 3  # ties: still the share


def test_the_saliency_is_the_summed_gradient_of_the_forget_loss() -> None:
    problem = plain()
    expected = [torch.zeros_like(p) for p in problem.model.parameters()]
    for batch in problem.forget.batches(7):
        loss = F.cross_entropy(problem.model(batch.x), batch.y)
        for sum_, g in zip(expected, torch.autograd.grad(loss, list(problem.model.parameters())), strict=True):
            sum_ += g
    for made, wanted in zip(forget_gradient(problem.model, problem.forget, Run(), 7), expected, strict=True):
        torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("order", ["sequential", "mixed"])
def test_restored_weights_do_not_move_and_masked_gradients_let_them_drift(order: Any) -> None:
    problem = plain()
    settings: dict[str, Any] = {
        "order": order,
        "keep": 0.3,
        "epochs": 2,
        "lr": 0.05,
        "batch_size": 16,
        "max_drop": None,
    }
    chosen = masks(problem, 0.3, 16)
    restored = moved(problem, run(SalUn(**settings), problem).model)
    assert not any(bool((m & ~mask).any()) for m, mask in zip(restored, chosen, strict=True))
    assert all(bool((m & mask).any()) for m, mask in zip(restored, chosen, strict=True) if bool(mask.any()))
    drifting = moved(problem, run(SalUn(**settings, mask="gradient"), problem).model)
    assert any(bool((m & ~mask).any()) for m, mask in zip(drifting, chosen, strict=True))  # by weight decay
    still = moved(problem, run(SalUn(**settings, mask="gradient", weight_decay=0.0), problem).model)
    assert not any(bool((m & ~mask).any()) for m, mask in zip(still, chosen, strict=True))


def test_one_sequential_epoch_against_a_plain_loop() -> None:
    problem = plain()
    made = run(
        SalUn(order="sequential", epochs=1, lr=0.05, momentum=0.0, keep=0.4, batch_size=64, max_drop=None),
        problem,
        seed=5,
    )
    model = plain().model
    model.requires_grad_(True)
    chosen = masks(problem, 0.4, 64)
    start = [p.detach().clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(derive(5, "wrong labels"))
    labels = wrong_labels(problem.forget.y, 4, generator)
    batches: list[tuple[Tensor, Tensor]] = [(problem.forget.inputs(), labels)]
    seed = Run(seed=5).seed_for("retain", "shuffle", 1)
    batches += [(b.x, b.y) for b in problem.retain.batches(64, shuffle=True, seed=seed)]
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, mask, first in zip(model.parameters(), chosen, start, strict=True):
                assert p.grad is not None
                p.sub_(0.05 * (p.grad + 5e-4 * p))
                p[~mask] = first[~mask]
    for a, b in zip(made.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
