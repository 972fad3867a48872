"""Perturb and heal: damage the trained weights at once, then fine-tune on the retained samples.

Papers     CT and MSG: entries of the NeurIPS 2023 challenge, compared in Cadet et al., Deep Unlearn, arXiv:2410.01276
           NoT: Khalil et al., CVPR 2025, arXiv:2503.05657
           shrink and perturb: Ash, Adams, NeurIPS 2020, arXiv:1910.08475
Source     CT, MSG: public code of that comparison. NoT, and re-initialisation as a rival, from second-hand notes: no
           figure of the paper is claimed

    negate      theta_1 <- -theta_1 of the first layer with a weight matrix (convolution, embedding, linear)        NoT
    transpose   every square convolution kernel larger than 1 x 1:  k[a, b] <- k[b, a]                                CT
    smallest    per convolution (none: per linear layer but the head) the `share` of weights with the smallest
                | grad ( CE over |F| samples of R - CE over F ) | is re-initialised; while healing, gradients of all
                other weights are multiplied by `others`                                                             MSG
    reinit      the last k blocks and the head are re-initialised
    shrink      theta <- shrink theta + fresh theta',  theta' freshly initialised

    heal        CE over R, SGD

Cost       `epochs` passes over R; `smallest` one more over |F| samples of R and over F
Limits     all but `smallest` ignore the forget set: like fine-tuning, they forget what R does not teach again.
           BatchNorm statistics do not change until healing updates them
Deviates   fresh weights come from each layer's own rule (`reset_parameters`), not from Kaiming's normal rule throughout
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field, build
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.anatomy import anatomy, execution_order, reset_parameters
from expunge.models.modes import evaluation_mode
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe, learning_rate

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@method("perturb")
class PerturbAndHeal(IterativeMethod):
    """One of five perturbations, then fine-tuning; `perturb/ct`, `perturb/msg` and so on: as published."""

    preset_source: ClassVar[str] = (
        "`ct`, `msg`: public code of the comparison by Cadet et al.; `not`, `reinit`: the mode alone, "
        "healing is ours; `shrink`: factors of Ash and Adams"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # The two challenge entries by their code in the comparison (CIFAR-10 and others, ResNet-18).
        "ct": {"mode": "transpose", "epochs": 3, "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64,
               "schedule": "cosine"},
        "msg": {"mode": "smallest", "share": 0.3, "others": 0.1, "epochs": 5, "lr": 1e-3, "momentum": 0.9,
                "weight_decay": 5e-4, "batch_size": 64, "schedule": "warm-up"},
        # The mode as published, with our settings for healing.
        "not": {"mode": "negate"},
        "reinit": {"mode": "reinit"},
        "shrink": {"mode": "shrink", "shrink": 0.6, "fresh": 0.01},
    }  # fmt: skip

    mode: Literal["negate", "transpose", "smallest", "reinit", "shrink"] = Field("negate", description="see above")
    share: float = Field(0.3, gt=0, le=1, description="smallest: share of each layer's weights to re-initialise")
    others: float = Field(0.1, ge=0, description="smallest: factor on the gradients of the weights that were kept")
    k: int = Field(1, ge=1, description="reinit: blocks before the head to re-initialise")
    shrink: float = Field(0.6, ge=0, description="shrink: factor on the trained weights")
    fresh: float = Field(0.01, ge=0, description="shrink: factor on random initial weights")
    epochs: int = Field(5, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="largest learning rate of SGD")
    schedule: Literal["constant", "cosine", "warm-up"] = Field(
        "cosine", description="learning rate over epochs; warm-up: linearly up to the middle, then down"
    )
    batch_size: int = Field(64, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while healing")

    @property
    def needs(self) -> Needs:
        extra = Needs(forget="labels") if self.mode == "smallest" else Needs()
        return super().needs | extra

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1."""
        if self.schedule != "warm-up":
            return learning_rate(epoch, base=self.lr, schedule=self.schedule, epochs=self.epochs)
        top = (self.epochs + 1) / 2
        return self.lr * min(epoch, self.epochs + 1 - epoch) / top

    def cost(self, sizes: Sizes) -> Work:
        work = steps(sizes.retain, self.batch_size, self.epochs)
        contrasted = sizes.forget + min(sizes.forget, sizes.retain) if self.mode == "smallest" else 0
        return work + steps(contrasted, self.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("perturbation"):
            redrawn = self._perturb(student, problem, run)
        names = ("epochs", "lr", "batch_size", "momentum", "weight_decay", "batchnorm")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        recipe = build(
            Recipe, {**values, "schedule": "constant", "precision": run.precision}
        )  # `rate` has the schedule
        with _damped(student, redrawn, self.others):
            return train_model(student, problem.retain, recipe, run, purpose="heal", rate=self.rate)

    def _perturb(self, student: nn.Module, problem: Problem, run: Run) -> dict[str, Tensor]:
        """Change the student in place; returns, for "smallest", masks of the re-initialised weights."""
        if self.mode == "transpose":
            run.details["transposed"] = transpose_kernels(student)
        elif self.mode == "shrink":
            twin = copy.deepcopy(student)
            reset_parameters(twin, seed=run.seed_for("fresh weights"))
            blend(student, twin, self.shrink, self.fresh)
        elif self.mode == "smallest":
            return self._redraw_smallest(student, problem, run)
        else:
            sample = next(iter(problem.retain.batches(2, device=run.device))).x
            if self.mode == "negate":
                run.details["negated"] = negate_first(student, sample)
            else:
                parts = anatomy(student, sample)
                names = [*parts.last_blocks(self.k), parts.head]
                reset_parameters(student, names, seed=run.seed_for("fresh weights"))
                run.details["drawn_anew"] = names
        return {}

    def _redraw_smallest(self, student: nn.Module, problem: Problem, run: Run) -> dict[str, Tensor]:
        layers = [name for name, module in student.named_modules() if isinstance(module, CONVOLUTIONS)]
        if not layers:
            sample = next(iter(problem.retain.batches(2, device=run.device))).x
            head = anatomy(student, sample).head
            linear = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
            layers = [name for name in linear if name != head]
        if not layers:
            raise UsageError("perturb/msg: the model has no convolution and no linear layer before its head.")
        gradients = contrast(student, problem.retain, problem.forget, run, self.batch_size)
        twin = copy.deepcopy(student)
        reset_parameters(twin, layers, seed=run.seed_for("fresh weights"))
        fresh = dict(twin.named_parameters())
        masks = {}
        with torch.no_grad():
            for name, p in student.named_parameters():
                if name.rpartition(".")[0] in layers and name.endswith("weight"):
                    masks[name] = smallest(gradients[name], self.share)
                    p.copy_(torch.where(masks[name], fresh[name], p))
        run.details["drawn_anew"] = sum(int(mask.sum()) for mask in masks.values())
        return {name: masks.get(name, torch.zeros_like(p, dtype=torch.bool)) for name, p in student.named_parameters()}


def transpose_kernels(model: nn.Module) -> int:
    """Swap the two axes of every square kernel larger than 1 x 1, in place.

    Returns:
        The number of kernels.

    Raises:
        UsageError: if there is none.
    """
    kernels = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] == module.kernel_size[1] > 1
    ]
    if not kernels:
        raise UsageError("perturb: no convolution of the model has a square kernel to transpose; choose another mode.")
    with torch.no_grad():
        for kernel in kernels:
            kernel.copy_(kernel.transpose(2, 3).clone())
    return len(kernels)


def negate_first(model: nn.Module, sample: Tensor) -> str:
    """Change the sign of the first executed layer that has a weight matrix, in place.

    Returns:
        Its name.

    Raises:
        UsageError: if no convolution, embedding or linear layer is executed on `sample`.
    """
    modules = dict(model.named_modules())
    kinds = (*CONVOLUTIONS, nn.Embedding, nn.Linear)
    for name in execution_order(model, sample):
        if isinstance(modules[name], kinds):
            with torch.no_grad():
                for p in modules[name].parameters(recurse=False):
                    p.neg_()
            return name
    raise UsageError("perturb: no convolution, embedding or linear layer runs in the model; choose another mode.")


def blend(model: nn.Module, fresh: nn.Module, keep: float, add: float) -> None:
    """Set theta to keep * theta + add * theta', theta' the weights of `fresh`, in place; buffers do not change."""
    with torch.no_grad():
        for p, initial in zip(model.parameters(), fresh.parameters(), strict=True):
            p.mul_(keep).add_(initial, alpha=add)


def contrast(model: nn.Module, retain: Split, forget: Split, run: Run, batch_size: int) -> dict[str, Tensor]:
    """Gradient of CE summed over |F| random samples of R, minus that over F, by parameter name; eval mode."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = [torch.zeros_like(p) for p in parameters]

    def add(x: Tensor, y: Tensor, sign: float) -> None:
        loss = sign * F.cross_entropy(model(x).float(), y, reduction="sum")
        for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                sum_.add_(gradient)

    with evaluation_mode(model):
        remaining = len(forget)
        for batch in retain.batches(batch_size, shuffle=True, seed=run.seed_for("retain sample"), device=run.device):
            add(batch.x[:remaining], batch.y[:remaining], 1.0)
            remaining -= len(batch)
            if remaining <= 0:
                break
        for batch in forget.batches(batch_size, device=run.device):
            add(batch.x, batch.y, -1.0)
    return dict(zip(names, total, strict=True))


def smallest(gradient: Tensor, share: float) -> Tensor:
    """Bool mask of the `share` of entries with the smallest absolute value, at least one; shape of `gradient`.

    >>> smallest(torch.tensor([3.0, -1.0, 0.5, -4.0]), 0.5).tolist()
    [False, True, True, False]
    """
    mask = torch.zeros(gradient.numel(), dtype=torch.bool, device=gradient.device)
    mask[gradient.abs().flatten().argsort(stable=True)[: max(1, round(share * gradient.numel()))]] = True
    return mask.view_as(gradient)


@contextmanager
def _damped(model: nn.Module, masks: Mapping[str, Tensor], factor: float) -> Iterator[None]:
    """Within the context, gradients of weights outside their mask are multiplied by `factor`."""
    handles = []
    for name, p in model.named_parameters():
        if name in masks:
            scale = torch.where(masks[name], 1.0, factor).to(p)
            handles.append(p.register_hook(lambda gradient, scale=scale: gradient * scale))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
