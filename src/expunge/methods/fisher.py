"""Fisher forgetting: noise on every weight, scaled by the inverse Fisher information of the retained samples.

Paper      Golatkar, Achille, Soatto, CVPR 2020, arXiv:1911.04933; clamps and factors of the SCRUB authors' code
Notation   F diagonal Fisher information on D_r at the trained weights w_o, N standard normal

    v   = min(1 / (F + 1e-8), 1e3), in tensors of the head min(., 1e2);  v <- alpha v
    v  <- its mean over dimension 1 (tensors of two or more dimensions);  x 10 in those of the head and of BatchNorm
    w_u = mu + sqrt(v) N,   mu = w_o;  if an entire class is forgotten, its rows in the head get mu = 0 and v = 1e-4,
          before the factor

`tensors` decides which tensors are the head's and BatchNorm's. "module": those of the layer that gives the logits and
of the BatchNorm layers of this model. "shape", as in the code and in the presets: every tensor whose first dimension is
the number of classes counts as the head's (a hidden layer of that width too), every 1-D tensor as BatchNorm's.

Cost       one forward and `classes` - 1 backward passes over D_r (`monte-carlo`: one), and a layer's weight gradients
Limits     the noise does not depend on the forget set unless that is a whole class; too little of it does not forget,
           too much ruins the model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.anatomy import anatomy
from expunge.models.modes import evaluation_mode
from expunge.numerics.curvature import fisher_diagonal


@method("fisher")
class Fisher(Method):
    """Additive Gaussian noise shaped by the diagonal Fisher information of the retained samples."""

    preset_source: ClassVar[str] = "the SCRUB authors' code, for its small and its large tasks"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"alpha": 1e-6, "tensors": "shape"},
        "large": {"alpha": 1e-7, "tensors": "shape"},
    }

    alpha: float = Field(1e-6, gt=0, description="scale of the noise variance")
    estimate: Literal["exact", "monte-carlo"] = Field(
        "exact", description="sum over all classes, or one class per sample drawn from the model: faster, noisier"
    )
    tensors: Literal["shape", "module"] = Field(
        "module",
        description="how tensors of the head and of BatchNorm are recognised: by the model's layers, or, as published, "
        "by their shape",
    )
    memory: float = Field(512.0, gt=0, description="MiB for per-sample gradients; trades memory for speed only")

    def cost(self, sizes: Sizes) -> Work:
        vectors = max(sizes.classes - 1, 1) if self.estimate == "exact" else 1
        # A vector is a backward pass; the forward pass of a sample is shared by its vectors.
        return steps(sizes.retain * vectors, 32).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        with run.stage("fisher"):
            diagonal = fisher_diagonal(student, problem.retain, run, estimate=self.estimate, memory=self.memory)
        kinds = self._kinds(student, problem, run)
        removed = whole_classes(problem.retain.y, problem.num_classes)
        run.details["whole_classes"] = removed.tolist()
        generator = torch.Generator().manual_seed(run.seed_for("noise"))
        with torch.no_grad():
            for name, weight in student.named_parameters():
                in_head, is_norm = kinds[name]
                mean, variance = posterior(
                    weight, diagonal[name], self.alpha, removed, in_head=in_head, is_norm=is_norm
                )
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
                weight.copy_(mean + variance.sqrt() * noise)
        return student

    def _kinds(self, student: nn.Module, problem: Problem, run: Run) -> dict[str, tuple[bool, bool]]:
        """Parameter name -> (counts as part of the head, counts as part of BatchNorm)."""
        if self.tensors == "shape":
            classes = problem.num_classes
            return {name: (p.shape[:1] == (classes,), p.dim() == 1) for name, p in student.named_parameters()}
        head = logit_module(student, next(iter(problem.retain.batches(2, device=run.device))).x, problem.num_classes)
        norms = tuple(f"{name}." for name, module in student.named_modules() if isinstance(module, _BatchNorm))
        return {name: (name.startswith(f"{head}."), name.startswith(norms)) for name, _ in student.named_parameters()}


def logit_module(model: nn.Module, sample: Tensor, classes: int) -> str:
    """Name of the module that gives the logits.

    That is the head of the model's structure, or, if modules with weights follow it (a learned temperature), the last
    executed layer with one output per class. Raises `UsageError` if there is none.
    """
    try:
        return anatomy(model, sample).head
    except UsageError:
        passed: list[str] = []
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        hooks = [m.register_forward_hook(lambda *_, name=name: passed.append(name)) for name, m in layers.items()]
        try:
            with evaluation_mode(model), torch.no_grad():
                model(sample)
        finally:
            for hook in hooks:
                hook.remove()
        if not passed or len(layers[passed[-1]].weight) != classes:
            raise
        return passed[-1]


def whole_classes(retain: Tensor, classes: int) -> Tensor:
    """Classes (k,) without a retained sample, given the retained labels (n,)."""
    return (torch.bincount(retain, minlength=classes) == 0).nonzero().flatten()


def posterior(
    weight: Tensor, fisher: Tensor, alpha: float, removed: Tensor, *, in_head: bool, is_norm: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the noisy weights of one tensor.

    Args:
        weight: trained weights, of any shape.
        fisher: diagonal Fisher information >= 0, in the same shape.
        alpha: scale of the variance.
        removed: classes (k,) that are forgotten entirely; their rows in the head get mean 0.
        in_head: whether the tensor counts as part of the head.
        is_norm: whether it counts as part of BatchNorm.

    Returns:
        (mu, v), float64, in the weight's shape.
    """
    variance = (1 / (fisher.double() + 1e-8)).clamp(max=1e3)
    if in_head:
        variance = variance.clamp(max=1e2)
    variance = alpha * variance
    if variance.dim() > 1:
        variance = variance.mean(1, keepdim=True).expand_as(variance).clone()
    mean = weight.detach().double().clone()
    if in_head and len(removed):
        mean[removed], variance[removed] = 0.0, 1e-4
    if in_head or is_norm:
        variance = 10 * variance
    return mean, variance
