"""LoTUS: distil from the trained model, with softer targets on the forget set the higher its accuracy there.

Paper      Spartalis, Semertzidis, Gavves, Daras: LoTUS, CVPR 2025, arXiv:2503.18314
Reference  cspartalis/LoTUS, src/unlearning_methods/lotus_class.py
Notation   z_o(x) logits of the trained model, a_F accuracy of the student on F before the epoch, a_V of the trained
           model on held-out samples; G Gumbel noise, -log(-log U)

    tau      = exp(alpha (a_F - a_V))                                               updated in each epoch
    t(x)     = softmax((z_o(x) + G) / tau) on F,    onehot argmax(z_o(x) + G) on a share of R
    min over w:  mean over both of  - sum_c t_c(x) log softmax(f(x; w))_c           batches mixed
    stop     once a_F - a_V <= - tolerance: a rule that needs no retrained model

Labels enter through the two accuracies alone. If a whole class is forgotten, a model that never saw it is right on none
of its samples: `target=none` takes a_V = 0.
Cost       epochs x passes over F and `share` of R, and a forward pass over F; one teacher pass over both
Limits     it looks at accuracy on F alone: a forget set that is predicted as confidently as before counts as forgotten
           once its accuracy matches
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.resume import Values
from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import PerSample
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.inference import error_rate, predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


def gumbel_targets(logits: Tensor, temperature: float | None, generator: torch.Generator) -> Tensor:
    """Targets (n, C) from logits z (n, C): softmax((z + G) / temperature), or one-hot argmax(z + G) if it is None."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(min=1e-20).to(logits)
    noisy = logits - torch.log(-torch.log(uniform))
    if temperature is None:
        return torch.zeros_like(logits).scatter_(1, noisy.argmax(1, keepdim=True), 1.0)
    return (noisy / temperature).softmax(1)


@method("lotus")
class LoTUS(IterativeMethod):
    """Gumbel-softmax distillation with a temperature that follows the accuracy on the forget set."""

    preset_source: ClassVar[str] = (
        "the authors' notebooks; rate and decay are defaults of their configuration; `class`: their "
        "switch for whole classes"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Settings of the authors' notebooks; lr and decay are the defaults of their configuration.
        "cifar10": {"alpha": 8.0, "epochs": 10, "share": 0.3, "lr": 1e-4, "weight_decay": 5e-4},
        "cifar100": {"alpha": 2.0, "epochs": 10, "share": 0.3, "lr": 1e-4, "weight_decay": 5e-4},
        "class": {"target": "none"},
    }

    alpha: float = Field(8.0, ge=0, description="how fast the temperature grows with the accuracy in excess")
    target: Literal["validation", "none"] = Field(
        "validation", description="accuracy to reach on F: that on held-out samples, or 0 (a whole class)"
    )
    tolerance: float = Field(0.01, ge=0, le=1, description="stop once the accuracy is this far below the target")
    share: float = Field(0.3, gt=0, le=1, description="part of the retained samples that is used")
    epochs: int = Field(10, ge=0, description="maximal number of epochs")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW, constant")
    batch_size: int = Field(128, ge=1, description="samples per step")
    weight_decay: float = Field(5e-4, ge=0, description="decoupled decay of AdamW")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(validation="labels") if self.target == "validation" else super().needs

    def cost(self, sizes: Sizes) -> Work:
        used = sizes.forget + round(self.share * sizes.retain)
        work = steps(used, self.batch_size, self.epochs) + forward(used) + forward(sizes.forget, times=self.epochs)
        return work.at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        forget = problem.forget
        order = torch.randperm(
            len(problem.retain), generator=torch.Generator().manual_seed(run.seed_for("retain part"))
        )
        chosen = order[: max(1, round(self.share * len(order)))].sort().values
        retain = problem.retain.take(problem.retain.index[chosen])
        with run.stage("teacher"):
            on_forget = PerSample(forget, predict(problem.model, forget, run.device))
            on_retain = PerSample(retain, predict(problem.model, retain, run.device))
        goal = 0.0
        if self.target == "validation":
            goal = 1 - error_rate(predict(problem.model, problem.validation, run.device), problem.validation.y)
        optimizer = make_optimizer("adamw", student.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        excess = 1 - error_rate(on_forget.values, forget.y) - goal
        if excess <= -self.tolerance:
            run.status = "already"
            return student
        seen = Values(excess=excess)
        for epoch in run.epochs(student, self.epochs, state=[optimizer, seen]):
            temperature = math.exp(self.alpha * seen.excess)
            training_mode(student, self.batchnorm)
            noise = torch.Generator().manual_seed(run.seed_for("gumbel", epoch.number))
            seed = run.seed_for("mixed", "shuffle", epoch.number)
            for forgotten, retained in mixed_batches([forget, retain], self.batch_size, seed=seed, device=run.device):
                inputs, targets = [], []
                if forgotten is not None:
                    inputs.append(forgotten.x)
                    targets.append(gumbel_targets(on_forget[forgotten.index], temperature, noise))
                if retained is not None:
                    inputs.append(retained.x)
                    targets.append(gumbel_targets(on_retain[retained.index], None, noise))
                with run.autocast():
                    log_p = student(torch.cat(inputs)).float().log_softmax(1)
                loss = -(torch.cat(targets) * log_p).sum(1).mean()
                step(loss, student, optimizer)
                epoch.add("loss", loss, len(log_p))
            seen.excess = 1 - error_rate(predict(student, forget, run.device), forget.y) - goal
            epoch.log(temperature=temperature, excess_accuracy=seen.excess)
            if seen.excess <= -self.tolerance:
                run.status = "reached"
                epoch.stop = True
        return student
