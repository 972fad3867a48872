"""L1-sparse: fine-tune on the retained samples with a decaying l1 penalty on the weights.

Paper      Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023,
           arXiv:2304.04934
Reference  OPTML-Group/Unlearn-Sparse

    min over w:  CE(f(x; w), y) over R + gamma_t sum_j |w_j|,    gamma_t = gamma (1 - t / epochs),  t = 0, 1, ...

The forget set is not read: weights that only it needs get no gradient from the loss and shrink.
Cost       epochs x passes over R
Limits     gamma has to be tuned: too much prunes weights that the retained samples need. Few steps change little
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.recipe import make_optimizer


@method("l1-sparse")
class L1Sparse(IterativeMethod):
    """Cross-entropy on the retained samples plus a linearly fading l1 penalty on all weights."""

    preset_source: ClassVar[str] = "the reference's settings for CIFAR-10"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"gamma": 5e-4, "lr": 0.01, "epochs": 10, "momentum": 0.9, "weight_decay": 5e-4}  # CIFAR-10, ResNet
    }

    gamma: float = Field(5e-4, ge=0, description="strength of the penalty in the first epoch")
    fading: bool = Field(True, description="the strength falls linearly over the epochs; no: it is constant")
    epochs: int = Field(10, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(128, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    def strength(self, epoch: int) -> float:
        """gamma_t of a 1-based epoch."""
        return self.gamma * (1 - (epoch - 1) / self.epochs) if self.fading else self.gamma

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.retain, self.batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            strength = self.strength(epoch.number)
            epoch.log(gamma=strength)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for batch in problem.retain.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    loss = F.cross_entropy(student(batch.x).float(), batch.y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                # The penalty's gradient, added straight: no sum over all weights in the graph.
                pairs = [(p.grad, p.detach().sign()) for p in student.parameters() if p.grad is not None]
                torch._foreach_add_([g for g, _ in pairs], [sign for _, sign in pairs], alpha=strength)
                optimizer.step()
                epoch.add("retain_loss", loss, len(batch))
        return student
