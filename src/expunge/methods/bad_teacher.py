"""Bad teacher: the student imitates the trained model on retained samples and an untrained model on the forget set.

Paper      Chundawat, Tarun, Mandal, Kankanhalli, AAAI 2023, arXiv:2205.08096; "Bad-T" in Kurmanji et al., "T-S" in
           Shen et al.
Notation   d(x; w, t) = T^2 KL( softmax(t(x)/T) || softmax(f(x; w)/T) )                     batch mean, logits (B, C)

    min over w:  retain_weight * d(B_r; w, competent) + forget_weight * d(B_f; w, incompetent)

competent = the trained model, incompetent = the same architecture with random weights; both frozen, in eval mode.
Reads no label. One pass over D_r per epoch; D_f is cycled and reshuffled.
Cost       `epochs` passes over D_r and as many steps on D_f; one teacher pass over each set, cached
Limits     the forget set is pushed to near-uniform outputs, which unseen data do not have: an attack can detect it
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import PerSample
from expunge.methods import scaling
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import distillation, endless
from expunge.models.initial import reset_parameters
from expunge.models.modes import training_mode
from expunge.training.ddp import Passes
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import learning_rate, make_optimizer, set_rate

MAX_EXPOSURE = 10  # passes over the forget set at full weight of the incompetent teacher


@method("bad-t")
class BadTeacher(IterativeMethod):
    """Two-teacher distillation; defaults are those of the SCRUB paper's CIFAR-10 runs with All-CNN."""

    parallel: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"keep": "retain_weight", "forget": "forget_weight"}
    preset_source: ClassVar[str] = "the runs of the SCRUB paper's authors, by the size of the task or the architecture"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {"lr": 5e-4, "weight_decay": 0.1, "retain_weight": 0.5, "forget_weight": 0.5, "temperature": 1.0,
                  "epochs": 10, "retain_batch_size": 16, "forget_batch_size": 32, "milestones": (3, 6, 9)},
        "large": {"lr": 1e-3, "epochs": 1, "retain_batch_size": 128, "forget_batch_size": 512},
        "vgg": {"lr": 5e-5, "epochs": 10, "retain_batch_size": 128, "forget_batch_size": 16},
        "resnet50": {"lr": 5e-5, "epochs": 5, "retain_batch_size": 128, "forget_batch_size": 64},
    }  # fmt: skip

    epochs: int = Field(1, ge=0, description="passes over the retained samples")
    temperature: float = Field(4.0, gt=0, description="T of the distillation distance d")
    retain_weight: float = Field(1.0, ge=0, description="weight of the competent teacher on retained samples")
    forget_weight: float = Field(1.0, ge=0, description="weight of the incompetent teacher on the forget set")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(512, ge=1, description="samples to forget per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="update rule")
    lr: float = Field(1e-3, gt=0, description="base learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    milestones: tuple[int, ...] = Field((), description="rate x `decay` for each milestone < epoch (strictly)")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """The learning rate follows the recipe; the forget weight falls with the passes over the forget set."""
        seen = scaling.exposure(sizes, self.epochs, self.retain_batch_size, self.forget_batch_size)
        adaptive = self.optimizer != "sgd"
        return {
            "lr": scaling.rate(sizes, 1e-3, 0.3, adaptive=adaptive, momentum=self.momentum),
            "forget_weight": min(1.0, MAX_EXPOSURE / max(seen, 1e-9)),
        }

    def cost(self, sizes: Sizes) -> Work:
        work = paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)
        return work + forward(sizes.forget) + forward(sizes.retain)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("teachers"):
            incompetent = copy.deepcopy(problem.model)
            reset_parameters(incompetent, seed=run.seed_for("incompetent"), any_rule=True)
            competent_logits = PerSample(
                problem.retain, predict(problem.model, problem.retain, run.device, world=run.world)
            )
            incompetent_logits = PerSample(
                problem.forget, predict(incompetent, problem.forget, run.device, world=run.world)
            )
        optimizer = make_optimizer(
            self.optimizer, student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        passes = Passes(student, run)
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs, state=[optimizer, forget_batches]):
            rate = learning_rate(
                epoch.number, base=self.lr, schedule="milestones", milestones=self.milestones, decay=self.decay
            )
            set_rate(optimizer, rate)
            epoch.log(lr=rate)
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(
                self.retain_batch_size, shuffle=True, seed=seed, device=run.device, world=run.world
            ):
                forgotten = next(forget_batches)
                with run.autocast():
                    on_retain, on_forget = passes(retained), passes(forgotten)
                retain_loss = distillation(on_retain.float(), competent_logits[retained.index], self.temperature)
                forget_loss = distillation(on_forget.float(), incompetent_logits[forgotten.index], self.temperature)
                step(self.retain_weight * retain_loss + self.forget_weight * forget_loss, student, optimizer, self.clip)
                epoch.add("retain_distance", retain_loss, len(retained))
                epoch.add("forget_distance", forget_loss, len(forgotten))
        return student
