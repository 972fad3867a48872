"""DELETE: distil from the trained model with the class of each forget sample masked.

Paper      Zhou, Zheng, et al.: Decoupled Distillation to Erase, CVPR 2025, arXiv:2503.23751
Reference  shaaaaron/DELETE, method/delete.py
Notation   w_o trained weights (frozen, eval mode), k(x) the class that is masked

    q(x) = softmax of f(x; w_o) with logit k(x) at minus infinity
    min over w:  mean over F of KL( q(x) || softmax(f(x; w)) )

k(x) is the label of x; with `mask=prediction` it is the trained model's prediction, and no label is read.
Cost       one forward pass over F, then epochs x passes over F
Limits     made for whole classes; on random samples it also removes correct predictions that a retrained model has
Deviates   BatchNorm is frozen by default (an option of the code): statistics of F alone would harm retained samples
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import PerSample
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import masked_softmax
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


@method("delete")
class DELETE(IterativeMethod):
    """Distillation from a teacher with one class masked per sample; reads the forget set alone."""

    preset_source: ClassVar[str] = "the reference's run on CIFAR-10, one class"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"lr": 1e-4, "momentum": 0.9, "epochs": 20, "batchnorm": "train"}  # CIFAR-10, one class, ResNet-18
    }

    mask: Literal["label", "prediction"] = Field("label", description="class to mask: label or model's prediction")
    epochs: int = Field(20, ge=0, description="passes over the forget set")
    lr: float = Field(1e-4, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while unlearning")

    @property
    def needs(self) -> Needs:
        if self.mask == "label" or self.rewind:
            return super().needs
        return Needs(forget="inputs")

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.forget, self.batch_size, self.epochs) + forward(sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        if problem.num_classes < 2:
            raise UsageError("delete: a model with one class has no other class to answer.")
        student = problem.student()
        with run.stage("teacher"):
            logits = predict(problem.model, problem.forget, run.device)
            known = problem.forget.y.to(logits.device) if self.mask == "label" else logits.argmax(1)
            targets = PerSample(problem.forget, masked_softmax(logits, known))
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    log_p = student(batch.x).float().log_softmax(1)
                loss = F.kl_div(log_p, targets[batch.index], reduction="batchmean")
                step(loss, student, optimizer)
                epoch.add("distance", loss, len(batch))
        return student
