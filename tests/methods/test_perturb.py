"""Perturbations by hand, and what healing does to the weights that MSG kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.methods.perturb import PerturbAndHeal, blend, contrast, negate_first, smallest, transpose_kernels
from expunge.testing.conformance import run, weights
from expunge.testing.toys import TiedNet, ToyNet, ToyProblem, toy_problem


def plain() -> ToyProblem:
    torch.manual_seed(0)
    return toy_problem(ToyNet(batchnorm=False))


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if not torch.equal(after[name], before[name])}


def unhealed(problem: ToyProblem, **options: Any) -> dict[str, Tensor]:
    return weights(run(PerturbAndHeal(epochs=0, max_drop=None, **options), problem).model)


def test_kernels_are_transposed_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, (1, 3)))
    before = weights(model)
    assert transpose_kernels(model) == 1
    after = weights(model)
    assert torch.equal(after["0.weight"], before["0.weight"].permute(0, 1, 3, 2))
    assert changed(before, after) == {"0.weight"}
    with pytest.raises(UsageError, match="no convolution of the model has a square kernel"):
        transpose_kernels(nn.Linear(2, 2))


def test_the_first_layer_by_execution_is_negated() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)
            self.first = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Swapped()
    before = weights(model)
    assert negate_first(model, torch.zeros(1, 4)) == "first"
    after = weights(model)
    assert torch.equal(after["first.weight"], -before["first.weight"])
    assert torch.equal(after["first.bias"], -before["first.bias"])
    assert torch.equal(after["last.weight"], before["last.weight"])


def test_shrink_and_perturb_by_hand() -> None:
    first, fresh = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        first.weight.fill_(5.0), fresh.weight.fill_(3.0)
    blend(first, fresh, 0.6, 0.1)
    assert first.weight.item() == pytest.approx(3.3)


def test_contrast_is_the_retained_minus_the_forget_gradient() -> None:
    problem = plain()
    made = contrast(problem.model.requires_grad_(True), problem.retain, problem.forget, Run(seed=3), 16)
    order = problem.retain.batches(16, shuffle=True, seed=Run(seed=3).seed_for("retain sample"))
    x, y = (torch.cat(parts)[:30] for parts in zip(*((b.x, b.y) for b in order), strict=True))
    loss = F.cross_entropy(problem.model(x), y, reduction="sum")
    loss = loss - F.cross_entropy(problem.model(problem.forget.inputs()), problem.forget.y, reduction="sum")
    for name, gradient in zip(made, torch.autograd.grad(loss, list(problem.model.parameters())), strict=True):
        torch.testing.assert_close(made[name], gradient, rtol=1e-3, atol=1e-5)


def test_msg_redraws_the_smallest_share_and_damps_the_others() -> None:
    problem = plain()
    after = unhealed(problem, mode="smallest", share=0.25, batch_size=16)
    before = weights(problem.model)
    gradients = contrast(copy.deepcopy(problem.model).requires_grad_(True), problem.retain, problem.forget, Run(), 16)
    redrawn = after["conv.weight"] != before["conv.weight"]
    assert torch.equal(redrawn, smallest(gradients["conv.weight"], 0.25))
    assert changed(before, after) == {"conv.weight"}

    frozen = run(
        PerturbAndHeal(mode="smallest", share=0.25, others=0.0, weight_decay=0.0, epochs=2, batch_size=16), problem
    )
    healed = weights(frozen.model)
    assert torch.equal(healed["conv.weight"][~redrawn], before["conv.weight"][~redrawn])
    assert bool((healed["conv.weight"][redrawn] != after["conv.weight"][redrawn]).any())
    assert torch.equal(healed["head.weight"], before["head.weight"])


def test_msg_reads_the_forget_set_and_the_others_do_not() -> None:
    assert PerturbAndHeal(mode="smallest").needs.forget == "labels"
    assert PerturbAndHeal(mode="transpose").needs.forget == "none"


def test_a_model_without_convolutions() -> None:
    problem = toy_problem(TiedNet())
    before = weights(problem.model)
    after = unhealed(problem, mode="smallest", share=0.5)
    assert changed(before, after) == {
        "stem.weight",
        "first.weight",
        "second.weight",
    }  # the last two are one; the head stays
    with pytest.raises(UsageError, match="square kernel"):
        unhealed(problem, mode="transpose")


def test_reinit_draws_the_last_block_and_the_head() -> None:
    problem = plain()
    before, after = weights(problem.model), unhealed(problem, mode="reinit", k=1)
    assert changed(before, after) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}


def test_rates_over_the_epochs() -> None:
    up = PerturbAndHeal(schedule="warm-up", epochs=5, lr=0.3)
    assert [round(up.rate(e), 3) for e in range(1, 6)] == [0.1, 0.2, 0.3, 0.2, 0.1]
    assert PerturbAndHeal(schedule="cosine", epochs=4, lr=0.1).rate(3) == pytest.approx(0.05)
