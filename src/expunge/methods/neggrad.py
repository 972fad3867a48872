"""Gradient ascent on the forget set, alone (NegGrad) or combined with descent on the retain set (NegGrad+).

Paper      Golatkar et al., CVPR 2020 (ascent); Kurmanji et al., NeurIPS 2023 (NegGrad+)

    NegGrad     min over w:  - CE(D_f)
    NegGrad+    min over w:  alpha CE(D_r batch) - (1 - alpha) CE(D_f batch)

Cost       epochs x passes over D_f (NegGrad) or over D_r, with D_f cycled and reshuffled (NegGrad+)
Limits     ascent is unbounded: without a clip it ends in NaN or in a ruined model
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Batch
from expunge.methods import scaling
from expunge.methods.base import DualMethod, SharpMethod, method
from expunge.methods.cost import Work, paired_steps, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import cross_entropy, endless, two_loss_step, with_decay
from expunge.models.modes import training_mode
from expunge.training.ddp import Passes
from expunge.training.loop import L2Reference, sharp_step
from expunge.training.recipe import make_optimizer

MAX_EXPOSURE = 20  # passes of ascent over the forget set at full weight


@method("neggrad")
class NegGrad(SharpMethod):
    """Ascent on the cross-entropy of the forget set; needs nothing but the forget samples and their labels."""

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = "the defaults of the class, not scaled to the problem"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    epochs: int = Field(5, ge=0, description="passes over the forget set")
    lr: float = Field(0.001, gt=0, description="learning rate, constant")
    batch_size: int = Field(128, ge=1, description="samples per step")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """About twenty steps for a forget set of any size, with gradients of bounded norm."""
        return {
            "lr": scaling.rate(sizes, 0.001, 0.05, momentum=self.momentum),
            "batch_size": scaling.batch(self.epochs * sizes.forget, steps=20),
            "clip": 1.0,
            "batchnorm": "frozen",
        }

    def cost(self, sizes: Sizes) -> Work:
        return self.sharp(steps(sizes.forget, self.batch_size, self.epochs))

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        passes = Passes(student, run)
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(
                self.batch_size, shuffle=True, seed=seed, device=run.device, world=run.world
            ):
                losses: list[Tensor] = []

                def ascent(batch: Batch = batch, losses: list[Tensor] = losses) -> Tensor:
                    losses.append(cross_entropy(passes, batch, batch.y, run))
                    return -losses[-1]

                sharp_step(ascent, student, optimizer, rho=self.sam_rho, clip=self.clip)
                epoch.add("forget_loss", losses[0], len(batch))
        return student


# Code of the SCRUB authors: in the small families BatchNorm frozen with L2-SP, else plain training without decay.
_FAITHFUL: dict[str, dict[str, Any]] = {
    "small-rb": {"batchnorm": "frozen", "l2_reference": 0.1},
    "small-rc": {"batchnorm": "frozen", "l2_reference": 0.1, "forget_batch_size": 32},
    "large-rc": {"alpha": 0.9999, "forget_batch_size": 32},
    "up": {"alpha": 0.9999, "epochs": 5, "retain_batch_size": 32, "forget_batch_size": 16},
    "vgg": {"alpha": 0.9999, "lr": 1e-4, "epochs": 5, "forget_batch_size": 128, "weight_decay": 5e-4},
    "resnet50": {"alpha": 0.9999, "epochs": 5},
    "bad-t": {"alpha": 0.9999, "epochs": 5},
}


@method("neggrad+")
class NegGradPlus(DualMethod):
    """Descent on a retain batch and ascent on a forget batch in each step.

    `neggrad+/<family>` has the settings of an experiment family of the SCRUB paper; `neggrad+/<family>/faithful` omits
    weight decay, as the authors' code does.
    """

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = (
        "the experiment families of the SCRUB authors' notebooks; `faithful`: without the weight decay "
        "their code leaves out"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        **{name: with_decay(values) for name, values in _FAITHFUL.items()},
        **{f"{name}/faithful": values for name, values in _FAITHFUL.items()},
    }

    alpha: float = Field(0.95, ge=0, le=1, description="weight of the retained loss; 1 - alpha: of the ascent")
    epochs: int = Field(10, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate, constant")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    l2_reference: float = Field(0.0, ge=0, description="strength of the pull to the trained weights (L2-SP)")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Epochs and learning rate follow the recipe; the weight of the ascent falls with the number of passes."""
        epochs = scaling.passes(sizes, 10)
        seen = scaling.exposure(sizes, epochs, self.retain_batch_size, self.forget_batch_size)
        return {
            "epochs": epochs,
            "lr": scaling.rate(sizes, 0.01, 0.05, momentum=self.momentum),
            "alpha": 1 - 0.05 * min(1.0, MAX_EXPOSURE / max(seen, 1e-9)),
            "clip": 1.0,
        }

    def cost(self, sizes: Sizes) -> Work:
        return self.sharp(
            paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)
        )

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        pull = L2Reference(student, self.alpha * self.l2_reference)
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
                    partial(cross_entropy, passes, forgotten, forgotten.y, run),
                    (self.alpha, -(1 - self.alpha)),
                    student, optimizer, dual, rho=self.sam_rho, clip=self.clip, before_update=pull.add_gradient,
                )  # fmt: skip
                epoch.add("retain_loss", told[0], len(retained))
                epoch.add("forget_loss", told[1], len(forgotten))
        return student
