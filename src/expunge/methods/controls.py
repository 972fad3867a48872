"""Negative controls that hide knowledge and remove none: an audit that passes them cannot be trusted.

Head distillation   the extractor does not change; a head is fitted on its representations h(x) to a masked teacher:
                    min over head: KL(q || softmax(head(h(x)))),  q the teacher's softmax, on F without the true class
Confidence masking  a wrapper keeps the predicted class and replaces all probabilities by fixed values: c for that
                    class, (1 - c) / (C - 1) for each other one

Paper      both are used as controls, the first in arXiv:2405.17878 (information is left: IDI near 1), the second in
           Shokri et al., IEEE S&P 2017, arXiv:1610.05820, as a (failing) defence; second-hand, no figure is claimed
Cost       head distillation: one forward pass over R and F, and steps of the head alone; confidence masking: none
Limits     they forget nothing by design: tag `control`, never recommended by `auto` or a plan
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, batches, forward
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import masked_softmax
from expunge.models.anatomy import anatomy, set_trainable
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


@method("head-distillation")
class HeadDistillation(Method):
    """A new head that masks the class of forget samples, on an unchanged extractor."""

    epochs: int = Field(10, ge=0, description="passes over the representations of F and R")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    batch_size: int = Field(128, ge=1, description="representations per step")

    def cost(self, sizes: Sizes) -> Work:
        everything = sizes.retain + sizes.forget
        return forward(everything) + Work(small=self.epochs * batches(everything, self.batch_size))

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        parts = anatomy(student, next(iter(problem.forget.batches(2, device=run.device))).x)
        with run.stage("representations"):
            features, targets = [], []
            for split in (problem.forget, problem.retain):
                h = predict(student, split, run.device, forward=parts.features)
                features.append(h)
                logits = parts.classify(h).detach()
                if split is problem.forget:
                    targets.append(masked_softmax(logits, split.y.to(logits.device)))
                else:
                    targets.append(logits.softmax(1))
        h, q = torch.cat(features), torch.cat(targets)
        set_trainable(student, [parts.head])
        optimizer = make_optimizer("adam", student.parameters(), lr=self.lr)
        student.eval()
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            generator = torch.Generator().manual_seed(run.seed_for("shuffle", epoch.number))
            for rows in torch.randperm(len(h), generator=generator).to(h.device).split(self.batch_size):
                log_p = parts.classify(h[rows]).float().log_softmax(1)
                loss = F.kl_div(log_p, q[rows], reduction="batchmean")
                step(loss, student, optimizer)
                epoch.add("distance", loss, len(rows))
        return student


class MaskedConfidence(nn.Module):
    """Logits (B, C) whose softmax is `confidence` at the arg max of the inner model and uniform over other classes."""

    confidence: Tensor

    def __init__(self, model: nn.Module, confidence: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("confidence", torch.tensor(confidence))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        rest = (1 - self.confidence) / (logits.shape[1] - 1)
        best = logits.argmax(1, keepdim=True)
        p = rest.expand_as(logits).scatter(1, best, self.confidence.expand_as(best))
        return p.log().to(logits)


@method("confidence-masking")
class ConfidenceMasking(Method):
    """A wrapper that reveals nothing but the predicted class. From Python and in studies."""

    same_tensors: ClassVar[bool] = False

    confidence: float = Field(0.9, gt=0, lt=1, description="probability of the predicted class, above 1 / classes")

    def cost(self, sizes: Sizes) -> Work:
        return Work()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        if problem.num_classes < 2 or self.confidence <= 1 / problem.num_classes:
            raise UsageError(
                f"confidence-masking: `confidence` must be above 1 / classes = {1 / problem.num_classes:g} so that the "
                f"arg max stays, got {self.confidence}."
            )
        return MaskedConfidence(problem.student(), self.confidence).to(run.device)
