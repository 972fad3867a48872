"""JIT: flatten the model around each forget sample, so that it is no longer distinguished from its neighbourhood.

Paper      Foster, Fogarty, Schoepf, Dugue, Oztireli, Brintrup: An Information Theoretic Approach to Machine Unlearning,
           arXiv:2402.01401
Reference  jit.py of the SUPREME benchmark
Notation   f logits, n ~ N(0, std^2) of the input's shape, norms per sample

    min over w:  mean over F and over `copies` draws of n of  |f(x; w) - f(x + n; w)| / |n|

f(x + n) carries no gradient. Label-free; F is all that is read.
Cost       epochs x passes over F, each with one training pass and `copies` forward passes
Limits     only the neighbourhood of F is smoothed: how much is forgotten depends on rate and epochs, and no term
           protects the retained samples. The noise is in the model's input units (normalised inputs)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


def steepness(logits: Tensor, moved: Tensor, noise: Tensor) -> Tensor:
    """Mean over the batch of |f(x) - f(x + n)| / |n|: logits f(x) and f(x + n) (B, C), noise n (B, ...).

    >>> steepness(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(2.5000)
    """
    return ((logits - moved).norm(dim=1) / noise.flatten(1).norm(dim=1).clamp(min=1e-12)).mean()


@method("jit")
class JIT(IterativeMethod):
    """Smoothing around the forget set; `jit/authors` is the public code's setting, a third of the rate and one pass."""

    preset_source: ClassVar[str] = "the method's settings in the SUPREME benchmark"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"copies": 10, "std": 0.1, "lr": 1e-3, "epochs": 1, "momentum": 0.0}  # the code's, by SUPREME
    }

    copies: int = Field(10, ge=1, description="noisy copies of each sample")
    std: float = Field(0.1, gt=0, description="standard deviation of the noise, in the model's input units")
    epochs: int = Field(2, ge=0, description="passes over the forget set")
    lr: float = Field(3e-3, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.forget, self.batch_size, self.epochs) + forward(
            sizes.forget, times=self.epochs * self.copies
        )

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        optimizer = make_optimizer("sgd", student.parameters(), lr=self.lr, momentum=self.momentum)
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            generator = torch.Generator().manual_seed(run.seed_for("noise", epoch.number))
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    # A clone: a model that begins with an in-place activation would change x under the noisy copies.
                    logits = student(batch.x.clone()).float()
                parts = []
                for _ in range(self.copies):
                    noise = (self.std * torch.randn(batch.x.shape, generator=generator)).to(batch.x)
                    with torch.no_grad(), run.autocast():
                        moved = student(batch.x + noise).float()
                    parts.append(steepness(logits, moved, noise))
                loss = torch.stack(parts).mean()
                step(loss, student, optimizer)
                epoch.add("steepness", loss, len(batch))
        return student
