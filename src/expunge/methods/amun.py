"""AMUN: train on the nearest adversarial examples of the forget set, with the wrong answers that the model gives there.

Paper      Ebrahimpour-Boroojeny, Sundaram, Chandrasekaran: AMUN: Adversarial Machine UNlearning, ICML 2025,
           arXiv:2503.00917
Reference  Ali-E/AMUN, adversarial_unlearn.py, pgdl2_modified.py
Notation   x in pixels with their box (images: [0, 1]), f the trained model, y the label; norms L2, per sample

    x_A   per round r = 0, 1, ...: radius eps_r = 2^r eps, steps of eps_r / 10 along the gradient of
          max over k != y of f_k - f_y, clipped to ball and box, at most `steps` of them; stop at the first wrong answer
    D_A = {(x_A, argmax f(x_A))};   a sample that resists all rounds has no place in it
    min over w:  CE over the data of `data`:  all = R, F and D_A  |  retain = R and D_A  |  forget = F and D_A  |
                 adversarial = D_A alone

F stays in with its true labels (`all`, `forget`): the wrong examples beside it lower the confidence around it to what
unseen samples have. `forget` and `adversarial` read no retained sample.
Cost       at most rounds x steps passes over F for the attack; epochs x passes over the data trained on
Limits     on a class the true labels keep it alive: choose `retain` or `adversarial`. Over-forgets by strong attacks at
           one per cent of the data (RMIA AUC below one half in a comparison by others)
Deviates   the attack climbs the margin, not the cross-entropy, whose slope vanishes where the model is sure
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import ResidentStore, Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.boundary import pixel_space
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import evaluation_mode, training_mode
from expunge.numerics.attack import PixelSpace
from expunge.training.loop import step
from expunge.training.recipe import learning_rate, make_optimizer, set_rate


@method("amun")
class AMUN(IterativeMethod):
    """Fine-tuning with adversarial neighbours of the forget set; defaults of the authors' code, but for the rounds."""

    preset_source: ClassVar[str] = "`authors`: defaults of the reference for CIFAR-10; `apart`: ours"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"data": "all", "eps": 0.01, "rounds": 6, "lr": 0.01, "epochs": 10, "batch_size": 128},  # CIFAR-10
        "apart": {"data": "retain"},  # the originals stay out, as a class to forget needs
    }

    data: Literal["all", "retain", "forget", "adversarial"] = Field("all", description="what is trained on, see above")
    eps: float = Field(0.01, gt=0, description="radius of the first round, L2 over all pixels")
    rounds: int = Field(12, ge=1, description="most rounds; the radius doubles in each")
    steps: int = Field(50, ge=1, description="most steps of a round, each of a tenth of its radius")
    epochs: int = Field(10, ge=0, description="passes over the data that are trained on")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD")
    milestones: tuple[int, ...] = Field((), description="rate x `decay` for each milestone < epoch (strictly)")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    batch_size: int = Field(128, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    @property
    def needs(self) -> Needs:
        needs = super().needs
        return needs if self.data in ("all", "retain") else replace(needs, retain="none")

    def cost(self, sizes: Sizes) -> Work:
        used = sizes.retain * (self.data in ("all", "retain")) + sizes.forget * (self.data in ("all", "forget"))
        attack = steps(sizes.forget, self.batch_size, self.rounds * self.steps)
        return (attack + steps(sizes.forget + used, self.batch_size, self.epochs)).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("attack"):
            adversarial = self.neighbours(problem, run)
        splits = [adversarial]
        splits += [problem.retain] if self.data in ("all", "retain") else []
        splits += [problem.forget] if self.data in ("all", "forget") else []
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(student, self.epochs):
            rate = learning_rate(
                epoch.number, base=self.lr, schedule="milestones", milestones=self.milestones, decay=self.decay
            )
            set_rate(optimizer, rate)
            training_mode(student, self.batchnorm)
            seed = run.seed_for("mixed", "shuffle", epoch.number)
            for whole in mixed_batches(splits, self.batch_size, seed=seed, device=run.device):
                parts = [part for part in whole if part is not None]
                with run.autocast():
                    logits = student(torch.cat([part.x for part in parts])).float()
                loss = F.cross_entropy(logits, torch.cat([part.y for part in parts]))
                step(loss, student, optimizer)
                epoch.add("loss", loss, len(logits))
        return student

    def neighbours(self, problem: Problem, run: Run) -> Split:
        """D_A, as a split of its own."""
        space = pixel_space(problem.forget, run)
        images, labels = [], []
        with evaluation_mode(problem.model):
            for batch in problem.forget.batches(self.batch_size, device=run.device):
                moved, wrong = nearest_wrong(
                    problem.model, space.pixels(batch.x), batch.y, space, eps=self.eps, rounds=self.rounds,
                    steps=self.steps,
                )  # fmt: skip
                flipped = wrong >= 0
                images.append(space.seen(moved[flipped]).cpu())
                labels.append(wrong[flipped].cpu())
        made = torch.cat(labels)
        run.details["adversarial_examples"] = len(made)
        if not len(made):
            raise UsageError(
                f"amun: no sample to forget changed its answer within {self.rounds} rounds from eps = {self.eps:g}; "
                "raise `rounds`."
            )
        if len(made) < len(problem.forget):
            run.notes.append(f"{len(problem.forget) - len(made)} samples to forget kept their answer in all rounds.")
        classes = [str(c) for c in range(problem.num_classes)]
        return Split.whole(ResidentStore(torch.cat(images), made, classes=classes, name="adversarial"), "adversarial")


def nearest_wrong(
    model: nn.Module, x: Tensor, y: Tensor, space: PixelSpace, *, eps: float, rounds: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Pixels (B, ...) near x that `model` answers wrongly, and these answers (B,), -1 where none was reached."""
    made, answers = x.clone(), torch.full_like(y, -1)
    left = torch.arange(len(x), device=x.device)
    for number in range(rounds):
        radius = eps * 2**number
        d = torch.zeros_like(x[left])
        for taken in range(steps + 1):
            if not len(left):
                return made, answers
            at = (x[left] + d).requires_grad_(True)
            with torch.enable_grad():
                logits = model(space.seen(at)).float()
                own = logits.gather(1, y[left, None])[:, 0]
                margin = logits.scatter(1, y[left, None], -torch.inf).amax(1) - own
                (g,) = torch.autograd.grad(margin.sum(), at)
            wrong = logits.argmax(1) != y[left]
            made[left[wrong]], answers[left[wrong]] = at.detach()[wrong], logits.argmax(1)[wrong]
            left, d, g = left[~wrong], d[~wrong], g[~wrong]
            if taken < steps:
                d = _within(x[left], d + radius / 10 * g / _norm(g).clamp(min=1e-30), radius, space)
    return made, answers


def _within(x: Tensor, d: Tensor, radius: float, space: PixelSpace) -> Tensor:
    d = (x + d).clamp(space.low, space.high) - x
    return d * (radius / _norm(d).clamp(min=1e-12)).clamp(max=1.0)


def _norm(d: Tensor) -> Tensor:
    """L2 norm per sample, shaped to broadcast."""
    return d.flatten(1).norm(dim=1).reshape(-1, *[1] * (d.dim() - 1))
