"""NTK forgetting: move the weights by the contribution of the forget set in the linearised model.

Paper      Golatkar, Achille, Soatto, "Forgetting Outside the Box", ECCV 2020, arXiv:2003.02960; scale and settings of
           the SCRUB authors' code
Notation   G columns: gradients of every logit of every sample at w_o, eval mode; D = D_r then D_f, N = |D|;
           r = softmax - one-hot, stacked alike; l strength of the L2-SP training regulariser

    w_D = -G (G^T G + N l I)^-1 r          w_R the same with D_r and N_r alone          D = w_R - w_D
    e = w_o - w_start - w_R                k = ||D|| + 2 |cos(D, e)| ||e||              w_u = w_o + k D / ||D||

Cost       one backward pass per sample and class for each group of layers that fits into memory, and a Cholesky
           factorisation of (samples x classes)^2: for a few thousand columns, not for large data
Limits     exact only as far as the model is linear in its weights; the scale k is a heuristic of the authors
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.numerics.tangent_kernel import gram_matrix, product
from expunge.training.inference import predict


@method("ntk")
class NTK(Method):
    """One closed-form shift of the weights; BatchNorm statistics do not change."""

    ridge: float | None = Field(
        None, gt=0, description="strength l; none: the recipe's l2_reference, or its weight decay if that is 0"
    )
    columns: int = Field(
        6000, ge=1, description="maximal number of columns (samples x classes); the cost grows with the square"
    )
    memory: float = Field(640.0, gt=0, description="MiB for gradients and kernel; trades memory for speed only")

    def cost(self, sizes: Sizes) -> Work:
        # A backward pass per class; the forward pass of a sample is shared by them.
        return steps((sizes.retain + sizes.forget) * sizes.classes, 32).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        splits = [problem.retain, problem.forget]
        self._check(problem, splits)
        strength = self._strength(problem)
        with run.stage("kernel"):
            kernel = gram_matrix(student, splits, run, memory=self.memory)
        residual = torch.cat([_residual(student, split, run) for split in splits])
        retain_columns = len(problem.retain) * problem.num_classes
        with run.stage("solve"):
            on_all = _solve(kernel, residual, strength * sum(len(split) for split in splits))
            on_retain = _solve(
                kernel[:retain_columns, :retain_columns], residual[:retain_columns], strength * len(problem.retain)
            )
        del kernel
        w_all = product(student, splits, -on_all, run)
        w_retain = product(student, splits[:1], -on_retain, run)
        with torch.no_grad():
            shift = {name: w_retain[name] - w_all[name] for name in w_all}
            rest = {
                name: p.double() - problem.initial[name].to(p).double() - w_retain[name]
                for name, p in student.named_parameters()
            }
            scale = step_scale(shift, rest)
            run.details["shift"] = {"norm": float(_norm(shift)), "scale": scale}
            for name, p in student.named_parameters():
                p.add_(scale * shift[name])
        return student

    def _check(self, problem: Problem, splits: list[Split]) -> None:
        columns = problem.num_classes * sum(len(split) for split in splits)
        if columns > self.columns:
            raise UsageError(
                f"ntk: {columns} columns (samples x classes) are more than `columns` = {self.columns}; raise it (the "
                f"kernel alone takes {columns**2 * 8 / 2**20:.0f} MiB), or use another method for data of this size."
            )
        if not problem.has_initial:
            raise UsageError("ntk: the weights that training started from are needed; pass initial=...")

    def _strength(self, problem: Problem) -> float:
        strength = self.ridge or problem.recipe.l2_reference or problem.recipe.weight_decay
        if not strength:
            raise UsageError("ntk: the recipe has neither l2_reference nor weight_decay; give `ridge`, e.g. ridge=0.1.")
        return strength


def step_scale(shift: dict[str, Tensor], rest: dict[str, Tensor]) -> float:
    """Scale k / ||D|| of the shift D, given e, both by parameter name; 0 if D is 0.

    The authors' two cases, sin(arccos c - pi/2) for c < 0 and c otherwise, are both |c|.
    """
    size, other = _norm(shift), _norm(rest)
    if float(size) == 0:
        return 0.0
    inner = sum((shift[name] * rest[name]).sum() for name in shift)
    cosine = inner / (size * other) if float(other) else torch.zeros(())
    return float((size + 2 * cosine.abs() * other) / size)


def _norm(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.square().sum() for value in parts.values()]).sum().sqrt()


def _residual(model: nn.Module, split: Split, run: Run) -> Tensor:
    """Softmax minus one-hot, flattened sample by sample (N C,), float64."""
    p = predict(model, split, run.device).double().softmax(1)
    return (p - nn.functional.one_hot(split.y.to(p.device), p.shape[1])).flatten()


def _solve(kernel: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve (K + ridge I) x = right by Cholesky factorisation."""
    shifted = kernel.clone()
    shifted.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        raise ExpungeError(f"ntk: the kernel is not positive definite with ridge {ridge:.1e}; raise `ridge`.")
    return torch.cholesky_solve(right[:, None], factor)[:, 0]
