"""ReGUn: match the outputs on the forget set to the trained model's outputs on held-out samples.

Paper      ReGUn: reference-guided unlearning, arXiv:2603.11210
Reference  jmirlach/ReGUn, by a second-hand reading: no figure of the paper is claimed
Notation   H held-out samples, p_o(x) softmax of the trained model, p(x; w) of the student

    q(x) = mean over H of p_o                                                "uniform", the shipped default
         | mean over the samples of H with x's label of p_o                  "class"
         | p_o at the sample of H whose representation is nearest to x's     "nearest"
    min over w:  weight mean over a batch of F of KL( q(x) || p(x; w) ) + (1 - weight) CE over a batch of R

Cost       one forward pass over H (`nearest`: over F too); epochs x passes over R, with F cycled
Limits     "uniform" gives all samples one target: suitable for a class, and far from a retrained model's outputs on
           random samples, for which "class" and "nearest" are meant; these two do not forget a whole class of which H
           has samples
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import PerSample
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.anatomy import anatomy
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


@method("regun")
class ReGUn(IterativeMethod):
    """Distillation from the trained model's own behaviour on held-out samples."""

    preset_source: ClassVar[str] = "`authors`: the shipped defaults, by a second-hand reading; `uniform`: ours"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {
            "reference": "uniform",
            "weight": 0.5,
            "epochs": 10,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0,
        },
        "uniform": {"reference": "uniform"},
    }

    reference: Literal["class", "uniform", "nearest"] = Field(
        "class", description="which held-out outputs are the target"
    )
    weight: float = Field(0.5, ge=0, le=1, description="weight of the forget term; 1 - weight: of the retain term")
    epochs: int = Field(10, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD, constant")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    @property
    def needs(self) -> Needs:
        labels: Literal["labels", "inputs"] = "labels" if self.reference == "class" else "inputs"
        return super().needs | Needs(forget=labels, validation=labels)

    def cost(self, sizes: Sizes) -> Work:
        work = paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)
        return work + forward(sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("references"):
            targets = PerSample(problem.forget, self.targets(problem, run))
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs, state=[optimizer, forget_batches]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(self.retain_batch_size, shuffle=True, seed=seed, device=run.device):
                forgotten = next(forget_batches)
                with run.autocast():
                    retain_loss = F.cross_entropy(student(retained.x).float(), retained.y)
                    log_p = student(forgotten.x).float().log_softmax(1)
                forget_distance = F.kl_div(log_p, targets[forgotten.index], reduction="batchmean")
                step(self.weight * forget_distance + (1 - self.weight) * retain_loss, student, optimizer)
                epoch.add("forget_distance", forget_distance, len(forgotten))
                epoch.add("retain_loss", retain_loss, len(retained))
        return student

    def targets(self, problem: Problem, run: Run) -> Tensor:
        """Target probabilities q(x) (len(F), C); raises `UsageError` if a class has no held-out sample."""
        p = predict(problem.model, problem.validation, run.device).softmax(1)
        if self.reference == "uniform":
            return p.mean(0).expand(len(problem.forget), -1)
        if self.reference == "class":
            held_out_labels, forget_labels = problem.validation.y.to(p.device), problem.forget.y.to(p.device)
            absent = sorted(set(forget_labels.tolist()) - set(held_out_labels.tolist()))
            if absent:
                raise UsageError(
                    f"regun: no held-out sample has class {absent[0]}, which the forget set has; pass more, or choose "
                    "reference=uniform."
                )
            means = torch.zeros(problem.num_classes, p.shape[1], device=p.device)
            for c in forget_labels.unique():
                means[c] = p[held_out_labels == c].mean(0)
            return means[forget_labels]
        parts = anatomy(problem.model, next(iter(problem.forget.batches(2, device=run.device))).x)
        forget_features, held_out_features = (
            predict(problem.model, split, run.device, forward=parts.features)
            for split in (problem.forget, problem.validation)
        )
        return torch.cat([p[torch.cdist(rows, held_out_features).argmin(1)] for rows in forget_features.split(1024)])
