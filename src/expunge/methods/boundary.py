"""Boundary unlearning: shift the decision boundary over the forget set, with nothing but the model and that set.

Paper      Chen, Gao, Liu, Peng, Wang, CVPR 2023, arXiv:2303.11570; settings of the authors' public code
Notation   f(x; w) logits of K classes, w_o the trained weights, x in pixels with box [lo, hi] (images: [0, 1])

    Shrink     x' = clip(x + bound sign(grad_x CE(f(x; w_o), y)))                              FGSM: one step of `bound`
               y' = argmax_{k != y} f_k(x'; w_o)               the nearest wrong class;  min over w:  CE(f(x; w), y')
    Expand     f gets a shadow output K with a random row;     min over w and row:  CE((f, f_K)(x), K);  drop the row

Expand reads no label: every sample of D_f is assigned to the shadow class.
Cost       epochs x passes over D_f; Shrink one more forward and backward pass per step of its search
Deviates   from the public code (`/authors`), which keeps y' = y where the step did not cross the boundary, and so
           trains such samples towards their own class; neighbours are searched once instead of in every epoch (the
           labels are the same, as w_o is fixed), and are not rounded to 8 bits
Limits     all of D_f is pushed into few regions, which an attack can detect; in train mode BatchNorm statistics move
           to those of D_f
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, options
from expunge.core.run import Run
from expunge.data.split import Batch, PerSample, Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.anatomy import anatomy
from expunge.models.initial import drawing
from expunge.models.modes import evaluation_mode, training_mode
from expunge.numerics.attack import PixelSpace
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


@options
class Boundary(IterativeMethod):
    """Cross-entropy on the forget set towards labels that the subclass chooses."""

    epochs: int = Field(10, ge=0, description="passes over the forget set")
    lr: float = Field(1e-5, gt=0, description="learning rate of SGD, constant")
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """BatchNorm is frozen: statistics of the forget set alone would harm the retained samples."""
        return {"batchnorm": "frozen"}

    def descend(
        self, student: nn.Module, problem: Problem, run: Run, targets: Callable[[Batch], Tensor], *extra: nn.Module
    ) -> nn.Module:
        """Train `student` and the modules in `extra` on D_f towards the classes `targets(batch)` (B,)."""
        trained = nn.ModuleList([student, *extra])
        optimizer = make_optimizer(
            "sgd", trained.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(student, self.epochs, state=[optimizer, *extra]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("forget", "shuffle", epoch.number)
            for batch in problem.forget.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    logits = student(batch.x)
                loss = F.cross_entropy(logits.float(), targets(batch))
                step(loss, trained, optimizer, self.clip)
                epoch.add("forget_loss", loss, len(batch))
        return student


@method("boundary-shrink")
class BoundaryShrink(Boundary):
    """Relabel every forget sample with the wrong class that is nearest in input space, and train on these labels."""

    preset_source: ClassVar[str] = "the public code of the paper's authors"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "authors": {"keep_uncrossed": True}}

    bound: float = Field(0.1, gt=0, description="largest change per pixel, pixels in [0, 1]")
    iterations: int = Field(1, ge=1, description="steps of the search; 1: FGSM, more: PGD")
    step: float | None = Field(
        None, gt=0, description="change per pixel and step; none: `bound`, in PGD 2 bound / iterations"
    )
    keep_uncrossed: bool = Field(
        False, description="samples whose neighbour has their own label keep it; else: the most likely other class"
    )

    def cost(self, sizes: Sizes) -> Work:
        attack = steps(sizes.forget, self.batch_size, self.iterations) + forward(sizes.forget, self.batch_size)
        return steps(sizes.forget, self.batch_size, self.epochs) + attack

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        if problem.num_classes < 2:
            raise UsageError("boundary-shrink: a model with one class has no wrong class to move to.")
        with run.stage("neighbours"):
            nearest = PerSample(problem.forget, self.nearest(problem, run))
        return self.descend(problem.student(), problem, run, lambda batch: nearest[batch.index])

    def nearest(self, problem: Problem, run: Run) -> Tensor:
        """Class (len(D_f),) that the trained model predicts for each sample's neighbour across the boundary."""
        space = pixel_space(problem.forget, run)
        stride = self.step or min(self.bound, 2 * self.bound / self.iterations)
        labels, crossed = [], 0
        with evaluation_mode(problem.model):
            for batch in problem.forget.batches(self.batch_size, device=run.device):
                x = space.pixels(batch.x)
                moved = neighbours(
                    problem.model, x, batch.y, space, bound=self.bound, step=stride, iterations=self.iterations
                )
                with torch.no_grad():
                    logits = problem.model(space.seen(moved)).float()
                crossed += int((logits.argmax(1) != batch.y).sum())
                if not self.keep_uncrossed:
                    logits.scatter_(1, batch.y[:, None], -torch.inf)
                labels.append(logits.argmax(1))
        run.details["crossed"] = crossed / len(problem.forget)
        return torch.cat(labels)


@method("boundary-expand")
class BoundaryExpand(Boundary):
    """Assign the forget set to an extra class that exists only while unlearning."""

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.forget, self.batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        shadow = problem.num_classes
        sample = next(iter(problem.forget.batches(2, device=run.device))).x
        layer = logit_layer(student, sample, shadow)
        row = shadow_row(layer, run.seed_for("shadow"))
        with widened(layer, row):
            self._check(student, sample, shadow)
            return self.descend(
                student, problem, run, lambda batch: torch.full_like(batch.index, shadow).to(run.device), row
            )

    def _check(self, student: nn.Module, sample: Tensor, classes: int) -> None:
        with evaluation_mode(student), torch.no_grad():
            outputs = student(sample).shape[1]
        if outputs != classes + 1:
            raise UsageError(
                f"boundary-expand: the model has {outputs} instead of {classes + 1} outputs after its last layer got "
                "one more; what follows that layer must not depend on the number of classes."
            )


def pixel_space(split: Split, run: Run) -> PixelSpace:
    """Pixel space of a split with the box of its extreme values; one pass that keeps two samples in memory."""
    extremes = split.take(split.index[:1]).inputs(run.device)
    for batch in split.batches(1024, device=run.device):
        stacked = torch.cat([extremes, batch.x])
        extremes = torch.stack([stacked.amin(0), stacked.amax(0)])
    normalisation = split.store.normalisation
    return PixelSpace.of(extremes, None if normalisation is None else normalisation.tensors(extremes))


def neighbours(
    model: nn.Module, x: Tensor, y: Tensor, space: PixelSpace, *, bound: float, step: float, iterations: int
) -> Tensor:
    """Adversarial neighbours by signed gradient ascent on the cross-entropy (FGSM, PGD in the L-infinity ball).

    Args:
        model: classifier in eval mode.
        x: pixels (B, ...).
        y: labels (B,).
        space: the box of the pixels.
        bound: largest change per pixel.
        step: change per pixel in one iteration.
        iterations: number of steps.

    Returns:
        Pixels (B, ...).
    """
    moved = x
    for _ in range(iterations):
        inputs = moved.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(model(space.seen(inputs)).float(), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
        change = (moved + step * gradient.sign() - x).clamp(-bound, bound)
        moved = (x + change).clamp(space.low, space.high)
    return moved.detach()


LogitLayer = nn.Linear | nn.Conv2d


def logit_layer(model: nn.Module, sample: Tensor, classes: int) -> LogitLayer:
    """The Linear or Conv2d layer with one output per class; `UsageError` if the head does not end in one."""
    head = anatomy(model, sample).head
    layers = [m for m in model.get_submodule(head).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers or len(layers[-1].weight) != classes or getattr(layers[-1], "groups", 1) != 1:
        raise UsageError(f"boundary-expand: the head `{head}` must end in a Linear or Conv2d layer, one row per class.")
    return layers[-1]


def shadow_row(layer: LogitLayer, seed: int) -> LogitLayer:
    """A layer like `layer` with a single output, the row of the shadow class.

    The weights are initialised by Xavier's normal rule for a layer with one more output; the bias is 0.
    """
    row = copy.deepcopy(layer)
    row.weight = nn.Parameter(torch.empty_like(layer.weight[:1]))
    if layer.bias is not None:
        row.bias = nn.Parameter(torch.zeros_like(layer.bias[:1]))
    outputs, inputs = layer.weight.shape[:2]
    spread = (2 / (layer.weight[0, 0].numel() * (inputs + outputs + 1))) ** 0.5
    with torch.no_grad(), drawing(seed):
        row.weight.copy_(spread * torch.randn(row.weight.shape))
    return row


@contextmanager
def widened(layer: LogitLayer, row: LogitLayer) -> Iterator[None]:
    """Within the context the output of `row` is appended to that of `layer`, whose tensors do not change."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    handle = layer.register_forward_hook(lambda _, inputs, out: torch.cat([out, row(*inputs)], dim=axis))
    try:
        yield
    finally:
        handle.remove()
