"""POUR: project the directions of the forgotten classes out of the representation.

Paper      Le, Peng, Liu, Noble: POUR, CVPR 2026, arXiv:2511.19339; from its abstract and a second-hand note: no figure
           of the paper is claimed
Notation   h(x) representation (d,), logits W h + b; Q an orthonormal basis of the span of one direction per forgotten
           class: its row of W, or the mean of h over its samples in F

    P = I - Q Q^T
    POUR-P     W <- W P                                  closed form: logits become W P h + b
    POUR-D     min over the extractor:  mean over F of |h(x) - P h_0(x)|^2,    h_0 the trained model's; head frozen

Under neural collapse the rows of W form a simplex, and so do those of W P for the retained classes.
Cost       POUR-P one forward pass over two samples (`mean`: over F); POUR-D one over F, then epochs x passes over F
Limits     for whole classes, and refused if F has samples of every class. POUR-P changes the head alone: the extractor
           still separates the class, and an audit of representations detects it
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import PerSample
from expunge.methods.base import IterativeMethod, Method, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import linear_head
from expunge.models.anatomy import Anatomy
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer

Direction = Literal["head", "mean"]


def projector(directions: Tensor) -> Tensor:
    """Projection I - Q Q^T (d, d), float64; Q is an orthonormal basis of the row space of `directions` (k, d).

    >>> projector(torch.tensor([[0.0, 2.0]]))
    tensor([[1., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    _, sizes, rows = torch.linalg.svd(directions.double(), full_matrices=False)
    q = rows[sizes > 1e-10 * sizes.max().clamp(min=1e-300)]
    return torch.eye(directions.shape[1], dtype=torch.float64, device=directions.device) - q.T @ q


def forgotten_classes(problem: Problem, name: str) -> Tensor:
    """Classes (k,) with samples in the forget set; raises `UsageError` if these are all classes."""
    classes = problem.forget.y.unique()
    if len(classes) >= problem.num_classes:
        raise UsageError(
            f"{name} forgets whole classes, but the forget set has samples of all {problem.num_classes} of them; "
            "choose a method for single samples."
        )
    return classes


def directions(parts: Anatomy, head: nn.Linear, problem: Problem, run: Run, classes: Tensor, kind: Direction) -> Tensor:
    """One direction per class (k, d): rows of the head, or means of the representations of F, by `kind`."""
    if kind == "head":
        return head.weight.detach()[classes.to(head.weight.device)]
    h = predict(parts.model, problem.forget, run.device, forward=parts.features)
    labels = problem.forget.y.to(h.device)
    return torch.stack([h[labels == c].mean(0) for c in classes])


@method("pour-p")
class POURP(Method):
    """The closed form: remove the directions of the forgotten classes from the head."""

    direction: Direction = Field("head", description="direction of a class: its row of the head, or its mean in F")

    def cost(self, sizes: Sizes) -> Work:
        return forward(2 if self.direction == "head" else sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        classes = forgotten_classes(problem, "pour-p")
        parts, head = linear_head(student, problem.forget, run, "pour-p")
        p = projector(directions(parts, head, problem, run, classes, self.direction))
        with torch.no_grad():
            head.weight.copy_((head.weight.double() @ p).to(head.weight))
        run.details["classes"] = classes.tolist()
        return student


@method("pour-d")
class POURD(IterativeMethod):
    """The extractor learns the projected representations of the forget set; the head is frozen."""

    direction: Direction = Field("head", description="direction of a class: its row of the head, or its mean in F")
    epochs: int = Field(10, ge=0, description="passes over the forget set")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam, constant")
    batch_size: int = Field(64, ge=1, description="samples per step")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.forget, self.batch_size, self.epochs) + forward(sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        classes = forgotten_classes(problem, "pour-d")
        parts, head = linear_head(student, problem.forget, run, "pour-d")
        with run.stage("teacher"):
            h = predict(student, problem.forget, run.device, forward=parts.features)
            p = projector(directions(parts, head, problem, run, classes, self.direction))
            targets = PerSample(problem.forget, (h.double() @ p).to(h))
        head.requires_grad_(False)
        optimizer = make_optimizer("adam", student.parameters(), lr=self.lr)
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    representations = parts.features(batch.x).float()
                loss = (representations - targets[batch.index]).square().sum(1).mean()
                step(loss, student, optimizer)
                epoch.add("distance", loss, len(batch))
        return student
