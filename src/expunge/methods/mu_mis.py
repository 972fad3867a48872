"""MU-Mis: lower the input sensitivity of the logit of each forget sample's own class.

Paper      Cheng, Huang, Zhou, He, Yang, Wu, Huang: Remaining-data-free Machine Unlearning by Suppressing Sample
           Contribution, ICLR 2026, arXiv:2402.15109
Source     its objective, from a second-hand note: no figure of the paper is claimed, the stopping rule is ours
Notation   y label of x, k another class, drawn per step; gradients of logits in the input, norms per sample

    min over w:  mean over F of  |grad_x f_y(x; w)|^2 - weight |grad_x f_k(x; w)|^2
    stop         once the mean of |grad_x f_y|^2 over an epoch is at most `until` times what it was in the first

A double backward pass; F is all that is read.
Cost       epochs x passes over F, each about twice the price of a training pass
Limits     the second term has no lower bound: the result depends on rate and stop, and no term protects the retained
           samples
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.resume import Values
from expunge.core.run import Run
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.random_label import wrong_labels
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


def sensitivities(model: nn.Module, x: Tensor, *classes: Tensor) -> list[Tensor]:
    """Squared norms |grad_x f_c(x)|^2 per sample, differentiable in the weights.

    Args:
        model: classifier.
        x: inputs (B, ...).
        classes: sets of classes c, each (B,).

    Returns:
        One tensor (B,) per set of classes.
    """
    inputs = x.detach().clone().requires_grad_(True)
    logits = model(inputs * 1.0).float()  # a product: an in-place activation must not touch the leaf
    squared_norms = []
    for chosen in classes:
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), inputs, create_graph=True)
        squared_norms.append(gradient.flatten(1).square().sum(1))
    return squared_norms


@method("mu-mis")
class MUMis(IterativeMethod):
    """Lower the input sensitivity of the own class and raise that of another class."""

    weight: float = Field(1.0, ge=0, description="weight of the sensitivity of the other class")
    until: float = Field(0.1, ge=0, lt=1, description="stop at this part of the first pass's own sensitivity; 0: never")
    epochs: int = Field(10, ge=0, description="maximal number of passes over the forget set")
    lr: float = Field(5e-3, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; none: no clipping")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        # A double backward pass costs about as much as two steps.
        return steps(sizes.forget, self.batch_size, 2 * self.epochs).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        if problem.num_classes < 2:
            raise UsageError("mu-mis: a model with one class has no other class.")
        student = problem.student()
        optimizer = make_optimizer("sgd", student.parameters(), lr=self.lr, momentum=self.momentum)
        seen = Values(first=0.0)
        for epoch in run.epochs(student, self.epochs, state=[optimizer, seen]):
            training_mode(student, self.batchnorm)
            generator = torch.Generator().manual_seed(run.seed_for("other classes", epoch.number))
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                others = wrong_labels(batch.y.cpu(), problem.num_classes, generator).to(batch.y.device)
                own, other = sensitivities(student, batch.x, batch.y, others)
                step((own - self.weight * other).mean(), student, optimizer, self.clip)
                epoch.add("own_sensitivity", own.mean(), len(batch))
                epoch.add("other_sensitivity", other.mean(), len(batch))
            own_mean = epoch.mean("own_sensitivity")
            if epoch.number == 1:
                seen.first = own_mean
            if own_mean <= self.until * seen.first and self.until > 0:
                run.status = "reached"
                epoch.stop = True
        return student
