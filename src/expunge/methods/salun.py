"""SalUn: random labels, trained only in the weights that are most salient for the forget set.

Paper      Fan, Liu, Zhang, Wong, Wei, Liu: SalUn, ICLR 2024, arXiv:2310.12508
Reference  OPTML-Group/Unlearn-Saliency
Notation   w_o trained weights, M in {0, 1} per weight

    M = 1 for the `keep` |w| weights with the largest | sum over batches of F of grad CE(f(x; w_o), y) |    eval mode
    per epoch, on weights with M = 1:   CE(f(x; w), y~) over F,   CE(f(x; w), y) over R;   y~ random wrong labels

mask       "restored": after each step weights with M = 0 get their values back. "gradient": only their gradients are
           set to 0, so that weight decay and momentum still change them, as in figures published before 2026-02
order      "sequential": all of F, then all of R, in each epoch (the code on CIFAR-10 and SVHN). "mixed": shuffled
           batches of both (CIFAR-100, Tiny-ImageNet)
Cost       one pass over F for the mask; epochs x passes over F and R
Limits     as random labels: an attack can distinguish confident wrong predictions from unseen data. BatchNorm
           statistics are not masked
Deviates   labels are wrong ones only, drawn once (`redraw`: in each epoch)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.mixing import mixed_batches
from expunge.data.split import Batch, PerSample, Split
from expunge.methods.base import SharpMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.random_label import wrong_labels
from expunge.methods.scaling import Sizes
from expunge.models.modes import evaluation_mode, training_mode
from expunge.training.recipe import make_optimizer
from expunge.training.sharpness import sharp_gradients


@method("salun")
class SalUn(SharpMethod):
    """Random labels under a saliency mask.

    Defaults are the rate and mask of the authors' README, with weights restored and both sets mixed, which keeps more
    accuracy on retained samples on small models.
    """

    preset_source: ClassVar[str] = "rate and mask of the reference's README, by its code path for each data set"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # README of the reference (lr 0.013, mask 0.5), by the code path of each data set, with its gradient mask.
        "cifar10": {"lr": 0.013, "keep": 0.5, "mask": "gradient", "order": "sequential"},
        "cifar100": {"lr": 0.013, "keep": 0.5, "mask": "gradient", "order": "mixed"},
    }

    keep: float = Field(0.5, gt=0, le=1, description="share of the weights that may move")
    mask: Literal["restored", "gradient"] = Field(
        "restored", description="weights outside the mask get their values back, or only no gradient"
    )
    order: Literal["sequential", "mixed"] = Field("mixed", description="F then R in each epoch, or both mixed")
    redraw: bool = Field(False, description="draw new random labels in each epoch")
    epochs: int = Field(10, ge=0, description="passes over F and R")
    lr: float = Field(0.013, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(128, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        learning = steps(sizes.retain + sizes.forget, self.batch_size, self.epochs)
        return steps(sizes.forget, self.batch_size) + self.sharp(learning)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("mask"):
            masks = saliency_masks(forget_gradient(student, problem.forget, run, self.batch_size), self.keep)
        start = [p.detach().clone() for p in student.parameters()]
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(student, self.epochs, state=[optimizer]):
            training_mode(student, self.batchnorm)
            wrong = self._labels(problem, run, epoch.number)
            for forgotten, retained in self._steps(problem, run, epoch.number):
                parts = [part for part in (forgotten, retained) if part is not None]
                x = torch.cat([part.x for part in parts])
                labels = [] if forgotten is None else [wrong[forgotten.index].to(run.device)]
                targets = torch.cat(labels + ([] if retained is None else [retained.y]))
                losses: list[Tensor] = []

                def backward(x: Tensor = x, targets: Tensor = targets, losses: list[Tensor] = losses) -> None:
                    with run.autocast():
                        logits = student(x).float()
                    losses.append(F.cross_entropy(logits, targets))
                    losses[-1].backward()

                sharp_gradients(backward, student, self.sam_rho)
                if self.mask == "gradient":
                    for p, mask in zip(student.parameters(), masks, strict=True):
                        if p.grad is not None:
                            p.grad.mul_(mask)
                optimizer.step()
                if self.mask == "restored":
                    with torch.no_grad():
                        for p, mask, first in zip(student.parameters(), masks, start, strict=True):
                            p.copy_(torch.where(mask, p, first))
                epoch.add("loss", losses[0], len(targets))
        return student

    def _labels(self, problem: Problem, run: Run, epoch: int) -> PerSample:
        purpose = ("wrong labels", epoch) if self.redraw else ("wrong labels",)
        generator = torch.Generator().manual_seed(derive(run.seed, *purpose))
        return PerSample(problem.forget, wrong_labels(problem.forget.y, problem.num_classes, generator))

    def _steps(self, problem: Problem, run: Run, epoch: int) -> Iterator[tuple[Batch | None, Batch | None]]:
        """(forget, retain) parts of each step of an epoch."""
        if self.order == "sequential":
            for split, purpose in ((problem.forget, "forget"), (problem.retain, "retain")):
                seed = run.seed_for(purpose, "shuffle", epoch)
                for batch in split.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                    yield (batch, None) if purpose == "forget" else (None, batch)
            return
        seed = run.seed_for("mixed", "shuffle", epoch)
        for parts in mixed_batches([problem.forget, problem.retain], self.batch_size, seed=seed, device=run.device):
            yield parts[0], parts[1]


def forget_gradient(model: nn.Module, forget: Split, run: Run, batch_size: int) -> list[Tensor]:
    """Sum over the batches of the forget set of the gradient of the mean cross-entropy, per parameter; eval mode."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    with evaluation_mode(model):
        for batch in forget.batches(batch_size, device=run.device):
            loss = F.cross_entropy(model(batch.x).float(), batch.y)
            for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if gradient is not None:
                    sum_.add_(gradient)
    return total


def saliency_masks(gradients: list[Tensor], keep: float) -> list[Tensor]:
    """Bool masks in the gradients' shapes, true for the share `keep` of all weights with the largest |gradient|.

    >>> [mask.tolist() for mask in saliency_masks([torch.tensor([3.0, -1.0]), torch.tensor([0.5, -4.0])], 0.5)]
    [[True, False], [False, True]]
    """
    sizes = torch.cat([gradient.abs().flatten() for gradient in gradients])
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.argsort(descending=True, stable=True)[: max(1, round(keep * len(sizes)))]] = True
    parts = chosen.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
