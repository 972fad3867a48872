"""Unrolling SGD: one step that undoes, to first order, the contribution of the forget set to training.

Paper      Thudi, Deza, Chandrasekaran, Papernot, EuroS&P 2022, arXiv:2109.13398 ("single gradient unlearning")
Notation   w_0 the weights training started from, w_o the trained ones; eta_e learning rate of epoch e (sum: H), b batch
           size, mu momentum; all from the recipe of the original

    SGD unrolled at w_0     w_o = w_0 - (1/b) sum_e eta_e sum_{(x, y) in D} grad CE(f(x; w_0), y) + O(eta^2)
    hence without D_f       w_u = w_o + scale (H / b) sum_{(x, y) in D_f} grad CE(f(x; w_0), y)

With a constant rate and a forget set of one batch this is the paper's w_o + eta epochs grad CE. The gradient is taken
as in training: batches of b, BatchNorm as in the recipe. BatchNorm statistics of the result stay those of w_o.
Needs      labels of D_f, the recipe and w_0. `at="trained"` needs no w_0 and takes the gradient at w_o, where it
           is small for samples that were learnt
Cost       one forward and backward pass over D_f; no optimiser, no epochs
Limits     the omitted terms grow with eta, the number of steps and the curvature: for a network trained from scratch
           until it fits, the approximation is crude. It is derived for plain SGD: momentum counts as a factor
           1 / (1 - mu) only if requested, and for Adam, whose steps do not scale with the gradient, choose `scale`
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.recipe import Recipe


@method("unrolling")
class Unrolling(Method):
    """Add the gradients of the forget set at the initial weights as often as training subtracted them."""

    at: Literal["initial", "trained"] = Field("initial", description="the weights at which the gradient is taken")
    total: Literal["sum", "mean"] = Field(
        "sum", description="every sample counts 1 / batch size as in training, or all of D_f together as one batch"
    )
    scale: float = Field(1.0, gt=0, description="factor on the step; 1: the derived one")
    momentum: bool = Field(False, description="count the recipe's momentum as a factor 1 / (1 - momentum)")

    @property
    def needs(self) -> Needs:
        needs: Needs = self.card.needs
        return needs if self.at == "initial" else replace(needs, initial=False)

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.forget, sizes.forget if sizes.recipe is None else sizes.recipe.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        recipe, student = problem.recipe, problem.student()
        linearisation = copy.deepcopy(student)
        if self.at == "initial":
            if not problem.has_initial:
                raise UsageError(
                    'unrolling: the weights that training started from are needed; pass initial=..., or at="trained".'
                )
            linearisation.load_state_dict(problem.initial)
        gradient = summed_gradient(linearisation, problem, recipe, run)
        size = self.scale * self._rate(recipe) / (recipe.batch_size if self.total == "sum" else len(problem.forget))
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.add_(gradient[name], alpha=size)
        norm = float(torch.stack([g.norm() for g in gradient.values()]).norm())
        run.details["step"] = {"rate": self._rate(recipe), "norm": size * norm}
        if recipe.optimizer != "sgd":
            run.notes.append(
                f"unrolling is derived for SGD, but the recipe's optimiser is {recipe.optimizer}; choose `scale` on "
                "validation data."
            )
        return student

    def _rate(self, recipe: Recipe) -> float:
        """H, the sum of the learning rates of all epochs."""
        total = sum(recipe.rate(epoch) for epoch in range(1, recipe.epochs + 1))
        return total / (1 - recipe.momentum) if self.momentum and recipe.optimizer == "sgd" else total


def summed_gradient(model: nn.Module, problem: Problem, recipe: Recipe, run: Run) -> dict[str, Tensor]:
    """Sum over D_f of the gradients of CE, by parameter name.

    Args:
        model: changed in place (BatchNorm statistics): pass a copy.
        problem: with the labels of the forget set.
        recipe: its batch size matters to BatchNorm alone.
        run: device, precision and the seed of the order of the samples.
    """
    training_mode(model, recipe.batchnorm)
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    seed = run.seed_for("forget", "shuffle")
    batches = problem.forget.batches(recipe.batch_size, shuffle=True, seed=seed, device=run.device)
    for number, batch in enumerate(batches, 1):
        with run.autocast():
            logits = model(batch.x)
        loss = F.cross_entropy(logits.float(), batch.y, reduction="sum")
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient
        run.report(run.label, number, -(-len(problem.forget) // recipe.batch_size))
    return total
