"""l1-sparse: the fading strength by hand, and an epoch against a loss that has the penalty in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from expunge.core.run import Run
from expunge.methods.l1_sparse import L1Sparse
from expunge.testing.conformance import run
from expunge.testing.toys import ToyNet, toy_problem


def test_the_penalty_fades_linearly() -> None:
    chosen = L1Sparse(gamma=0.1, epochs=4)
    assert [chosen.strength(epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert L1Sparse(gamma=0.1, epochs=4, fading=False).strength(4) == 0.1


def test_two_epochs_against_the_penalty_in_the_loss() -> None:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False))
    chosen = L1Sparse(gamma=0.01, epochs=2, lr=0.05, batch_size=45, max_drop=None)
    made = run(chosen, problem, seed=2)
    model = problem.model
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in (1, 2):
        seed = Run(seed=2).seed_for("retain", "shuffle", epoch)
        for batch in problem.retain.batches(45, shuffle=True, seed=seed):
            penalty = sum(p.abs().sum() for p in model.parameters())
            loss = F.cross_entropy(model(batch.x), batch.y) + chosen.strength(epoch) * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(made.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_strong_penalty_makes_weights_small() -> None:
    problem = toy_problem()
    sizes = []
    for gamma in (0.0, 0.02):
        model = run(L1Sparse(gamma=gamma, epochs=6, lr=0.05, batch_size=16, max_drop=None), problem).model
        sizes.append(float(sum(p.detach().abs().sum() for p in model.parameters())))
    assert sizes[1] < 0.7 * sizes[0]
