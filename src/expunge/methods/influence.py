"""Influence function: one step that undoes the forget set to first order, with the curvature of the rest (WoodFisher).

Paper      Koh, Liang, ICML 2017, arXiv:1703.04730 (influence); Singh, Alistarh, NeurIPS 2020, arXiv:2004.14340 (the
           inverse by Woodbury's identity); as an unlearning baseline in Jia et al., NeurIPS 2023, arXiv:2304.04934
Notation   g_j gradient of the mean CE over the j-th of N batches of R at w_o, G (N x P) with rows g_j, eval mode

    H = damping I + 1/N sum_j g_j g_j^T
    w = w_o + scale / |R|  H^-1 sum over F of grad CE
    H^-1 v = (v - G^T (damping N I + G G^T)^-1 G v) / damping         the rank-one updates in one go

Cost       N batches of R and one pass over F, forward and backward; N x P numbers in memory
Limits     first order around a minimum: deep networks are not there, and on forget sets that are fitted perfectly the
           gradients are next to nothing, so the step is too. A large scale / damping walks out of the region where the
           model is linear. No guard: it has no passes
Deviates   all N batches are solved together instead of one after the other, which is the same inverse
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Batch
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, batches, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import evaluation_mode


@method("influence")
class Influence(Method):
    """One closed-form step with the empirical Fisher information of the retained samples."""

    damping: float = Field(1e-3, gt=0, description="added to the curvature; smaller: larger steps where it is flat")
    scale: float = Field(1.0, gt=0, description="factor on the step; 1: what the theory says")
    batch_size: int = Field(32, ge=1, description="samples per batch")
    batches: int = Field(64, ge=1, description="N, most batches of R that the curvature is built from")

    def cost(self, sizes: Sizes) -> Work:
        used = min(batches(sizes.retain, self.batch_size), self.batches)
        seen = min(sizes.retain, used * self.batch_size)
        return steps(sizes.forget, self.batch_size) + steps(seen, self.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        parameters = list(student.parameters())

        def gradient(batch: Batch, reduction: str) -> Tensor:
            loss = F.cross_entropy(student(batch.x).float(), batch.y, reduction=reduction)
            pairs = zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
            return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

        rows = []
        with evaluation_mode(student):
            total = torch.zeros(sum(p.numel() for p in parameters), device=run.device)
            for batch in problem.forget.batches(self.batch_size, device=run.device):
                total += gradient(batch, "sum")
            seed = run.seed_for("retain", "shuffle")
            for batch in problem.retain.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                rows.append(gradient(batch, "mean"))
                run.report(f"{run.label}: curvature", len(rows), self.batches)
                if len(rows) == self.batches:
                    break
        move = inverse_product(torch.stack(rows), total, self.damping) * self.scale / len(problem.retain)
        run.details["step_norm"] = float(move.norm())
        with torch.no_grad():
            for p, part in zip(parameters, move.split([p.numel() for p in parameters]), strict=True):
                p.add_(part.view_as(p))
        return student


def inverse_product(rows: Tensor, v: Tensor, damping: float) -> Tensor:
    """(damping I + 1/N sum_j g_j g_j^T)^-1 v for rows g_j (N, P) and v (P,).

    >>> inverse_product(torch.tensor([[2.0, 0.0]]), torch.tensor([5.0, 3.0]), 1.0)
    tensor([1., 3.])
    """
    count = len(rows)
    gram = (rows @ rows.T).double() + damping * count * torch.eye(count, dtype=torch.float64, device=rows.device)
    inner = torch.linalg.solve(gram, (rows @ v).double()).to(v)
    return (v - rows.T @ inner) / damping
