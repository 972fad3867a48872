"""Random labels: teach wrong answers on the forget set.

Paper      Graves, Nagisetty, Ganesh, Amnesiac Machine Learning, AAAI 2021, arXiv:2010.10981

    min over w:  CE(D_r batch, y) + weight CE(D_f batch, y~),   y~ uniform over the C - 1 wrong classes, drawn once

Cost       epochs x passes over D_r, with D_f cycled and reshuffled
Limits     the forget set is pushed to confident wrong answers, which an attack can see (over-forgetting)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.split import PerSample
from expunge.methods import scaling
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.modes import training_mode
from expunge.training.ddp import Passes
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


def wrong_labels(labels: torch.Tensor, num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform over the classes other than the true one: (y + 1 + U{0..C-2}) mod C, so y itself never occurs."""
    return (labels + 1 + torch.randint(num_classes - 1, labels.shape, generator=generator)) % num_classes


MOST_SEEN = 5  # times that each wrong label is taught at full weight


@method("random-label")
class RandomLabel(IterativeMethod):
    """Cross-entropy to the true labels on the retained and to fixed random wrong labels on the forget batch."""

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = "values that do not follow the problem, as the class states them"
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
        """Passes and rate follow the training; wrong labels weigh less the more often each of them is seen."""
        epochs = scaling.passes(sizes, 5)
        seen = scaling.exposure(sizes, epochs, self.retain_batch_size, self.forget_batch_size)
        return {
            "epochs": epochs,
            "lr": scaling.rate(sizes, 0.01, 0.2, momentum=self.momentum),
            "weight": min(1.0, MOST_SEEN / max(seen, 1e-9)),
        }

    def cost(self, sizes: Sizes) -> Work:
        return paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        generator = torch.Generator().manual_seed(derive(run.seed, "wrong labels"))
        wrong = PerSample(problem.forget, wrong_labels(problem.forget.y, problem.num_classes, generator))
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        passes = Passes(student, run)
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(
                self.retain_batch_size, shuffle=True, seed=seed, device=run.device, world=run.world
            ):
                forgotten = next(forget_batches)
                with run.autocast():
                    keep = F.cross_entropy(passes(retained).float(), retained.y)
                    target = wrong[forgotten.index].to(run.device)
                    lose = F.cross_entropy(passes(forgotten).float(), target)
                step(keep + self.weight * lose, student, optimizer)
                epoch.add("retain_loss", keep, len(retained))
                epoch.add("random_label_loss", lose, len(forgotten))
        return student
