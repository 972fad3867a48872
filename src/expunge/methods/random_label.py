"""Random labels: train on the forget set with wrong labels.

Paper      Graves, Nagisetty, Ganesh, Amnesiac Machine Learning, AAAI 2021, arXiv:2010.10981

    min over w:  CE(D_r batch, y) + weight CE(D_f batch, y~),   y~ uniform over the C - 1 wrong classes, drawn once

Cost       epochs x passes over D_r, with D_f cycled and reshuffled
Limits     the forget set is pushed to confident wrong predictions, which an attack can detect (over-forgetting)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.split import PerSample
from expunge.methods import scaling
from expunge.methods.base import DualMethod, method
from expunge.methods.cost import Work, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import cross_entropy, endless, two_loss_step
from expunge.models.modes import training_mode
from expunge.training.ddp import Passes
from expunge.training.recipe import make_optimizer


def wrong_labels(labels: torch.Tensor, num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """Wrong labels (n,), uniform over the other classes: (y + 1 + U{0..C-2}) mod C for labels y (n,), C >= 2."""
    return (labels + 1 + torch.randint(num_classes - 1, labels.shape, generator=generator)) % num_classes


MAX_EXPOSURE = 5  # passes over the wrong labels at full weight


@method("random-label")
class RandomLabel(DualMethod):
    """Cross-entropy to the true labels on the retained and to fixed random wrong labels on the forget batch."""

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = "the defaults of the class, not scaled to the problem"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    weight: float = Field(1.0, ge=0, description="weight of the forget term")
    epochs: int = Field(5, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate, constant")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Epochs and learning rate follow the recipe; the weight of wrong labels falls with the number of passes."""
        epochs = scaling.passes(sizes, 5)
        seen = scaling.exposure(sizes, epochs, self.retain_batch_size, self.forget_batch_size)
        return {
            "epochs": epochs,
            "lr": scaling.rate(sizes, 0.01, 0.2, momentum=self.momentum),
            "weight": min(1.0, MAX_EXPOSURE / max(seen, 1e-9)),
        }

    def cost(self, sizes: Sizes) -> Work:
        return self.sharp(
            paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)
        )

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        generator = torch.Generator().manual_seed(derive(run.seed, "wrong labels"))
        wrong = PerSample(problem.forget, wrong_labels(problem.forget.y, problem.num_classes, generator))
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        passes = Passes(student, run)
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        dual = self.dual(student)
        for epoch in run.epochs(student, self.epochs, state=[optimizer, forget_batches, *([dual] if dual else [])]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(
                self.retain_batch_size, shuffle=True, seed=seed, device=run.device, world=run.world
            ):
                forgotten = next(forget_batches)
                told = two_loss_step(
                    partial(cross_entropy, passes, retained, retained.y, run),
                    partial(cross_entropy, passes, forgotten, wrong[forgotten.index].to(run.device), run),
                    (1.0, self.weight),
                    student, optimizer, dual, rho=self.sam_rho,
                )  # fmt: skip
                epoch.add("retain_loss", told[0], len(retained))
                epoch.add("random_label_loss", told[1], len(forgotten))
        return student
