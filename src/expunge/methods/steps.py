"""Building blocks of several methods: endless batches, distillation losses and targets, the linear head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import Augment, Batch, Split
from expunge.models.anatomy import Anatomy, anatomy
from expunge.training.ddp import Passes
from expunge.training.loop import sharp_step


class Endless:
    """Endless batches, reshuffled in each pass (a cycled loader would repeat the first order), with a position.

    A stopped run resumes from the position.
    """

    def __init__(self, split: Split, size: int, run: Run, purpose: str, augment: Augment | None = None) -> None:
        self._split, self._size, self._run, self._purpose, self._augment = split, size, run, purpose, augment
        self._pass, self._taken = 0, 0
        self._batches = self._shuffled()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            self._pass, self._taken = self._pass + 1, 0
            self._batches = self._shuffled()
            batch = next(self._batches)
        self._taken += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """The number of the pass, and of the batches taken from it."""
        return {"pass": self._pass, "taken": self._taken}

    def load_state_dict(self, state_dict: Mapping[str, int], /) -> None:
        """Continue from a state."""
        self._pass, self._taken = state_dict["pass"], state_dict["taken"]
        self._batches = islice(self._shuffled(), self._taken, None)

    def _shuffled(self) -> Iterator[Batch]:
        seed = self._run.seed_for(self._purpose, "shuffle", self._pass)
        return iter(
            self._split.batches(
                self._size, shuffle=True, seed=seed, augment=self._augment, device=self._run.device,
                world=self._run.world,
            )
        )  # fmt: skip


def endless(split: Split, size: int, run: Run, purpose: str, augment: Augment | None = None) -> Endless:
    """Endless batches of `size` samples; `purpose` names the stream of their order."""
    return Endless(split, size, run, purpose, augment)


def cross_entropy(passes: Passes, batch: Batch, targets: Tensor, run: Run) -> Tensor:
    """Mean cross-entropy of a batch, in float32 after a pass in the run's precision; targets (B,)."""
    with run.autocast():
        logits = passes(batch)
    return F.cross_entropy(logits.float(), targets)


def two_loss_step(
    retain_loss: Callable[[], Tensor],
    forget_loss: Callable[[], Tensor],
    weights: tuple[float, float],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dual: torch.optim.Optimizer | None = None,
    *,
    rho: float = 0.0,
    clip: float | None = None,
    before_update: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """One step on a weighted sum of two losses; with `dual` a forget step by that, then a retain step (DualOptim).

    Args:
        retain_loss: computes the loss on the retained samples, a scalar; called once more where rho > 0.
        forget_loss: the same on the samples to forget.
        weights: of the two losses in what is minimised.
        model: the model that learns.
        optimizer: of both losses, or of the retain step.
        dual: of the forget step, with moments of its own.
        rho: radius of SAM, >= 0.
        clip: largest gradient norm of each step.
        before_update: changes the gradients of `optimizer`'s step before they are clipped.

    Returns:
        The two losses before the step that they belong to, unweighted and detached.
    """
    told: dict[str, Tensor] = {}

    def measured(name: str, loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        told.setdefault(name, value.detach())
        return value

    def retain() -> Tensor:
        return weights[0] * measured("retain", retain_loss)

    def forget() -> Tensor:
        return weights[1] * measured("forget", forget_loss)

    if dual is None:
        sharp_step(lambda: retain() + forget(), model, optimizer, rho=rho, clip=clip, before_update=before_update)
    else:
        sharp_step(forget, model, dual, rho=rho, clip=clip)
        sharp_step(retain, model, optimizer, rho=rho, clip=clip, before_update=before_update)
    return told["retain"], told["forget"]


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation loss T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, a scalar >= 0.

    Source: Hinton, Vinyals, Dean, arXiv:1503.02531. The teacher side carries no gradient.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T > 0.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def with_decay(values: Mapping[str, Any], strength: float = 5e-4) -> dict[str, Any]:
    """Settings of a fine-tuning baseline with weight decay added; settings with L2-SP are returned unchanged."""
    return dict(values) if "l2_reference" in values else {"weight_decay": strength, **values}


def masked_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax over all classes but each row's own, whose probability is 0; logits (n, C), labels (n,).

    >>> masked_softmax(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([0]))
    tensor([[0.0000, 0.5000, 0.5000]])
    """
    return logits.scatter(1, labels[:, None], -torch.inf).softmax(1)


def linear_head(model: nn.Module, forget: Split, run: Run, name: str) -> tuple[Anatomy, nn.Linear]:
    """Structure of `model` and its head, the linear layer that gives the logits; `UsageError` if there is none."""
    sample = next(iter(forget.batches(2, device=run.device))).x
    parts = anatomy(model, sample)
    layers = [n for n, m in parts.head_module.named_modules(prefix=parts.head) if isinstance(m, nn.Linear)]
    if layers and layers[-1] != parts.head:
        parts = anatomy(model, sample, head=layers[-1])
    head = parts.head_module
    if not isinstance(head, nn.Linear) or not parts.head_suffices:
        raise UsageError(
            f"{name} projects the input of the last linear layer, but `{parts.head}` ({type(head).__name__}) gives the "
            "logits of this model; choose a method that trains."
        )
    return parts, head


def one_cycle(at: float, warmup: float, low: float = 0.02) -> float:
    """Learning rate as a share of its peak, at the fraction `at` in [0, 1] of the steps.

    It rises linearly during `warmup` and then falls along a cosine to `low`.

    >>> [round(one_cycle(at, 0.2), 2) for at in (0.0, 0.2, 1.0)]
    [0.04, 1.0, 0.02]
    """
    if at < warmup:
        return 0.04 + 0.96 * at / warmup
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (at - warmup) / (1 - warmup)))
