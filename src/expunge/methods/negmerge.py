"""NegMerge: fine-tune several copies on the forget set, keep what they agree on, and go the other way.

Paper      Kim, Han, Choe: NegMerge: Sign-Consensual Weight Merging for Machine Unlearning, ICML 2025, arXiv:2410.05583
           (by its abstract and a second-hand note: no figure is claimed)
Notation   w_k fine-tuned on F with the k-th setting, t_k = w_k - w_o

    t = mean over k of t_k where all t_k have the same sign, 0 elsewhere
    w = w_o - lambda t

lambda     "held-out": the largest of lambda_max (1/2)^i, i = 0 .. 9, with which held-out accuracy on the classes that
           are not to be forgotten whole stays at `keep` of what it was. "fixed": lambda_max
Cost       copies x epochs passes over F, and at most eleven forward passes over the held-out samples
Limits     a forget set that is fitted perfectly teaches next to nothing, so that t is small and its direction noise;
           weights that serve all data are among those that agree
Deviates   the settings are K learning rates, a factor of two apart, and orders of the samples; the paper varies more.
           BatchNorm statistics stay those of w_o
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.inference import error_rate, predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer

HALVINGS = 10


@method("negmerge")
class NegMerge(Method):
    """Negated task vectors of several fine-tunings, merged by the consensus of their signs."""

    copies: int = Field(3, ge=1, description="K, fine-tuned copies")
    epochs: int = Field(5, ge=0, description="passes over the forget set of each copy")
    lr: float = Field(0.01, gt=0, description="middle of the learning rates of SGD")
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    lambda_max: float = Field(32.0, gt=0, description="largest factor on the merged direction")
    rule: Literal["held-out", "fixed"] = Field("held-out", description="how lambda is chosen, see above")
    keep: float = Field(0.97, gt=0, le=1, description="held-out: share of the accuracy that must stay")

    @property
    def needs(self) -> Needs:
        needs: Needs = self.card.needs
        return needs | Needs(validation="labels") if self.rule == "held-out" else needs

    def cost(self, sizes: Sizes) -> Work:
        learning = steps(sizes.forget, self.batch_size, self.copies * self.epochs)
        if self.rule == "fixed":
            return learning
        # Held-out samples are counted like retained ones: their number is not known.
        return (learning + forward(sizes.retain, times=HALVINGS + 1)).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        vectors = [self._task_vector(problem, run, number) for number in range(self.copies)]
        merged = [consensus([vector[i] for vector in vectors]) for i in range(len(vectors[0]))]
        agreed = sum(int((t != 0).sum()) for t in merged)
        run.details["agreed"] = agreed / sum(t.numel() for t in merged)
        if not agreed:
            return student
        start = [p.detach().clone() for p in student.parameters()]
        if self.rule == "fixed":
            _move(student, start, merged, self.lambda_max)
            run.details["lambda"] = self.lambda_max
            return student
        data = other_classes(problem.validation, problem.forget)
        enough = self.keep * (1 - error_rate(predict(student, data, run.device), data.y))
        for halving in range(HALVINGS):
            factor = self.lambda_max * 0.5**halving
            _move(student, start, merged, factor)
            if 1 - error_rate(predict(student, data, run.device), data.y) >= enough:
                run.details["lambda"] = factor
                return student
        _move(student, start, merged, 0.0)
        run.details["lambda"] = 0.0
        run.notes.append("negmerge: no lambda kept enough held-out accuracy, so the model is as it was given.")
        return student

    def _task_vector(self, problem: Problem, run: Run, number: int) -> list[Tensor]:
        tuned = copy.deepcopy(problem.student())
        rate = self.lr * 2.0 ** (number - (self.copies - 1) / 2)
        optimizer = make_optimizer("sgd", tuned.parameters(), lr=rate, momentum=self.momentum)
        with run.stage("fine-tuning"):
            for epoch in range(1, self.epochs + 1):
                training_mode(tuned, "frozen")
                seed = run.seed_for("forget", "shuffle", number, epoch)
                for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                    with run.autocast():
                        loss = F.cross_entropy(tuned(batch.x).float(), batch.y)
                    step(loss, tuned, optimizer)
                run.report(f"{run.label}: copy {number + 1}", epoch, self.epochs)
        return [(a - b).detach() for a, b in zip(tuned.parameters(), problem.model.parameters(), strict=True)]


def consensus(tensors: Sequence[Tensor]) -> Tensor:
    """The mean where all have the same sign, 0 elsewhere; tensors of one shape.

    >>> consensus([torch.tensor([1.0, -1.0, 2.0]), torch.tensor([3.0, 1.0, 0.0])])
    tensor([2., 0., 0.])
    """
    stacked = torch.stack(list(tensors))
    agree = (stacked > 0).all(0) | (stacked < 0).all(0)
    return torch.where(agree, stacked.mean(0), 0.0)


def other_classes(data: Split, forget: Split) -> Split:
    """Samples of classes that no sample to forget has; all of them where each class is among those."""
    chosen = ~torch.isin(data.y, forget.y.unique())
    return data.take(data.index[chosen]) if bool(chosen.any()) else data


def _move(model: nn.Module, start: Sequence[Tensor], direction: Sequence[Tensor], factor: float) -> None:
    with torch.no_grad():
        for p, first, t in zip(model.parameters(), start, direction, strict=True):
            p.copy_(first - factor * t)
