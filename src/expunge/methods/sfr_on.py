"""SFR-on: ascent on the forget set where it matters more than the rest, weighted per sample, inside fine-tuning.

Paper      Huang, Cheng, Zheng, Wang, He, Li, Huang: Unified Gradient-Based Machine Unlearning with Remain Geometry
           Enhancement, NeurIPS 2024, arXiv:2409.19732
Reference  K1nght/Unified-Unlearning-w-Remain-Geometry, sfron.py, by a second-hand reading: no figure is claimed
Notation   F_f, F_r diagonal Fisher information of F and R at w_o: means over batches of (d CE / d w)^2, eval mode

    M = 1 where F_f >= threshold F_r
    every `every`-th step first:  w <- w + lr_f M clip(grad sum_i a_i CE(x_i)),  a_i ~ CE(x_i)^-power, sum_i a_i = 1
    every step:                   w <- w - lr grad CE over a batch of R           SGD, cosine
    lr_f = coefficient lr, or Adam at `dual_lr`, along the same cosine;  after each step w <- ema w + (1 - ema) w_before

Cost       one pass over R and F for the Fisher information; epochs x passes over R, with a batch of F beside every
           `every`-th step
Limits     the mask keeps what F and R share; where the two are alike (random samples) it is about half of the weights
Deviates   passes over R instead of a number of iterations. ema = 1, as the code ships, makes the average a no-op
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Batch
from expunge.methods.base import DualMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.modes import training_mode
from expunge.numerics.gradient_moments import gradient_moments
from expunge.training.loop import sharp_step
from expunge.training.recipe import learning_rate, make_optimizer, set_rate


@method("sfr-on")
class SFROn(DualMethod):
    """Masked, adaptively weighted ascent inside fine-tuning; coefficient, power and clip of the authors' code."""

    preset_source: ClassVar[str] = "the code's settings for a random tenth of CIFAR-10, by a second-hand reading"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 1,500 iterations of 128 retained samples are 4.3 passes over 45,000.
        "cifar10": {"epochs": 4, "lr": 0.01, "weight_decay": 5e-4, "coefficient": 25.0, "every": 5, "clip": 7.0},
    }

    epochs: int = Field(4, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD at the start of its cosine")
    coefficient: float = Field(25.0, ge=0, description="learning rate of the ascent, as a multiple of `lr`")
    every: int = Field(5, ge=1, description="a forget step goes before each so many-th retain step")
    power: float = Field(0.5, ge=0, description="samples weigh loss^-power in the ascent")
    threshold: float = Field(1.0, ge=0, description="weights move in the ascent where F_f >= threshold F_r")
    clip: float | None = Field(7.0, gt=0, description="largest norm of the masked forget gradient; none: no clipping")
    ema: float = Field(1.0, gt=0, le=1, description="share of the new weights in the slow ones; 1: no average")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD in the retain steps")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength in the retain steps")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        measured = steps(sizes.retain, self.retain_batch_size) + steps(sizes.forget, self.retain_batch_size)
        learning = steps(sizes.retain, self.retain_batch_size, self.epochs)
        count = -(-learning.step_batches // self.every)
        size = min(self.forget_batch_size, sizes.forget)
        return measured + self.sharp(learning + Work(step_samples=count * size, step_batches=count))

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("mask"):
            masks = self.masks(student, problem, run)
        run.details["share_in_mask"] = float(
            sum(mask.sum() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        )
        descend = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        ascend = self.dual(student) or make_optimizer("sgd", student.parameters(), lr=self.lr, momentum=0.0)
        base = self.coefficient * self.lr if self.dual_lr is None else self.dual_lr
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        parameters = dict(student.named_parameters())
        for epoch in run.epochs(student, self.epochs, state=[descend, ascend, forget_batches]):
            rate = learning_rate(epoch.number, base=self.lr, schedule="cosine", epochs=self.epochs)
            set_rate(descend, rate)
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            batches = problem.retain.batches(self.retain_batch_size, shuffle=True, seed=seed, device=run.device)
            done = (epoch.number - 1) * -(-len(problem.retain) // self.retain_batch_size)
            for number, retained in enumerate(batches, done):
                before = [p.detach().clone() for p in parameters.values()] if self.ema < 1 else []
                if number % self.every == 0:
                    forgotten = next(forget_batches)
                    set_rate(ascend, base * rate / self.lr)
                    forget_loss = self._ascend(student, forgotten, ascend, masks, run)
                    epoch.add("forget_loss", forget_loss, len(forgotten))
                losses: list[Tensor] = []

                def descent(batch: Batch = retained, losses: list[Tensor] = losses) -> Tensor:
                    with run.autocast():
                        losses.append(F.cross_entropy(student(batch.x).float(), batch.y))
                    return losses[-1]

                sharp_step(descent, student, descend, rho=self.sam_rho)
                with torch.no_grad():
                    for p, old in zip(parameters.values(), before, strict=False):
                        p.lerp_(old, 1 - self.ema)
                epoch.add("retain_loss", losses[0], len(retained))
        return student

    def _ascend(
        self, student: nn.Module, batch: Batch, ascend: torch.optim.Optimizer, masks: Mapping[str, Tensor], run: Run
    ) -> Tensor:
        """One masked step up the weighted loss; returns the loss before it."""
        losses: list[Tensor] = []

        def ascent() -> Tensor:
            with run.autocast():
                logits = student(batch.x).float()
            losses.append(weighted_loss(logits, batch.y, self.power))
            return -losses[-1]

        def mask() -> None:
            for name, p in student.named_parameters():
                if p.grad is not None:
                    p.grad.mul_(masks[name])

        sharp_step(ascent, student, ascend, rho=self.sam_rho, clip=self.clip, before_update=mask)
        return losses[0]

    def masks(self, model: nn.Module, problem: Problem, run: Run) -> dict[str, Tensor]:
        """M by parameter name, in its shape, 0 or 1."""
        forget, retain = (
            gradient_moments(model, [split], run, batch_size=self.retain_batch_size, purpose=name)
            for name, split in (("forget", problem.forget), ("retain", problem.retain))
        )
        return {name: (forget[name] >= self.threshold * retain[name]).to(p) for name, p in model.named_parameters()}


def weighted_loss(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """sum_i a_i CE_i with a_i ~ CE_i^-power, sum_i a_i = 1 and no gradient in a; logits (B, C), labels (B,).

    >>> weighted_loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), 0.5)
    tensor(0.6931)
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = losses.detach().clamp(min=1e-6) ** -power
    return (weights * losses).sum() / weights.sum()
