"""The training recipe: everything that determines how a model is trained, as a frozen, validated dataclass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.core.options import Field, build, options
from expunge.core.run import Precision


@options
class Recipe:
    """How a model is trained: cross-entropy over shuffled batches.

    `schedule="milestones"` multiplies the rate by `decay` for every milestone m with epoch > m, epochs counted from 1:
    the drop takes effect one epoch later, as in the SCRUB authors' code. `l2_reference` is the strength l of the
    penalty (l/2) ||w - w_0||^2, w_0 the initial weights (L2-SP).
    """

    epochs: int = Field(20, ge=0, description="passes over the training data")
    batch_size: int = Field(128, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="update rule")
    lr: float = Field(0.05, gt=0, description="base learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength inside the optimiser")
    schedule: Literal["constant", "cosine", "milestones"] = Field("cosine", description="learning rate over epochs")
    milestones: tuple[int, ...] = Field((), description="epochs after which the rate is multiplied by `decay`")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    batchnorm: Literal["train", "frozen"] = Field("train", description="batch statistics, or fixed running statistics")
    l2_reference: float = Field(0.0, ge=0, description="strength of the pull to the initial weights (L2-SP)")
    augment: str = Field("none", description="augmentation of training batches, see `expunge list`")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")
    precision: Precision = Field("auto", description="of passes; auto: bfloat16 if it is measurably faster")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1."""
        return learning_rate(
            epoch,
            base=self.lr,
            schedule=self.schedule,
            epochs=self.epochs,
            milestones=self.milestones,
            decay=self.decay,
        )


def make_recipe(recipe: Recipe | Mapping[str, Any] | None) -> Recipe:
    """The recipe itself, a recipe from a mapping of options, or the default recipe for None."""
    return recipe if isinstance(recipe, Recipe) else build(Recipe, dict(recipe or {}), "recipe")


def learning_rate(
    epoch: int,
    *,
    base: float,
    schedule: str = "constant",
    epochs: int = 0,
    milestones: Iterable[int] = (),
    decay: float = 0.1,
    drop_from: float | None = None,
) -> float:
    """Learning rate of an epoch.

    Args:
        epoch: counted from 1.
        base: the largest rate.
        schedule: "constant", "cosine" or "milestones".
        epochs: number of epochs, for the cosine.
        milestones: each m with epoch > m multiplies the rate by `decay`.
        decay: factor in (0, 1].
        drop_from: rate that `decay` applies to after a milestone; `base` by default.

    >>> [learning_rate(e, base=1.0, schedule="milestones", milestones=(2,)) for e in (1, 2, 3)]
    [1.0, 1.0, 0.1]
    """
    if schedule == "milestones":
        passed = sum(epoch > m for m in milestones)
        start = drop_from if passed and drop_from is not None else base
        return float(start * decay**passed)
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(epochs, 1)))
    return base


def make_optimizer(
    name: str, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """SGD, Adam (weight decay coupled as L2) or AdamW over the parameters that require gradients."""
    trainable = [p for p in parameters if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=weight_decay)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(trainable, lr=lr, weight_decay=weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model: nn.Module, limit: float | None) -> None:
    """Scale gradients so that their joint L2 norm is at most `limit`; None: do nothing."""
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
