"""The training loop, used for originals, retrained references and every cross-entropy baseline."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import CheckpointError, ExpungeError
from expunge.core.run import Run
from expunge.data.augment import make_augment
from expunge.data.split import Split
from expunge.models.layout import fast_layout
from expunge.models.modes import lone_samples, training_mode
from expunge.training.ddp import Passes
from expunge.training.recipe import Recipe, clip_gradients, make_optimizer, set_rate
from expunge.training.sharpness import sharp_gradients


def step(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
    """Backward pass and one update; `clip` is the largest gradient norm, None for no clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(model, clip)
    optimizer.step()


def sharp_step(
    loss: Callable[[], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rho: float = 0.0,
    clip: float | None = None,
    before_update: Callable[[], None] | None = None,
) -> None:
    """One update by the gradient at the worst point within `rho` (SAM, see `training.sharpness`).

    Args:
        loss: computes the loss, a scalar; called twice where rho > 0.
        model: the model that learns.
        optimizer: of its parameters.
        rho: radius, >= 0; 0: an ordinary step, bit for bit that of `step`.
        clip: largest gradient norm, None for no clipping.
        before_update: changes the gradients before they are clipped, such as `L2Reference.add_gradient`.
    """

    def backward() -> None:
        loss().backward()

    sharp_gradients(backward, model, rho)
    if before_update is not None:
        before_update()
    clip_gradients(model, clip)
    optimizer.step()


class L2Reference:
    """Adds the gradient of (strength/2) ||w - w_ref||^2 to the gradients of a model (L2-SP).

    Source: Li, Grandvalet, Davoine, ICML 2018, arXiv:1802.01483. A penalty in the graph would cost a Python loop over
    the tensors forward and backward; this is one fused call.

    Args:
        model: its parameters that require gradients are pulled.
        strength: >= 0.
        reference: w_ref by parameter name; the model's current weights by default.
    """

    def __init__(self, model: nn.Module, strength: float, reference: Mapping[str, Tensor] | None = None) -> None:
        self.strength = strength
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        self._reference = [(reference[name] if reference else p).detach().clone().to(p) for name, p in named]

    def add_gradient(self) -> None:
        """Add the gradient of the penalty to `p.grad` of every parameter that has one."""
        if self.strength == 0:
            return
        pairs = [(p, r) for p, r in zip(self._parameters, self._reference, strict=True) if p.grad is not None]
        gradients = [p.grad for p, _ in pairs if p.grad is not None]
        pull = torch._foreach_sub([p.detach() for p, _ in pairs], [r for _, r in pairs])
        torch._foreach_add_(gradients, pull, alpha=self.strength)


def train_model(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    run: Run,
    *,
    purpose: str = "train",
    reference: Mapping[str, Tensor] | None = None,
    resume: Path | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    rate: Callable[[int], float] | None = None,
) -> nn.Module:
    """Train `model` in place by cross-entropy over `data` and return it.

    Args:
        model: the model, moved to the run's device.
        data: the training samples with labels.
        recipe: how to train.
        run: device, seeds, progress and history.
        purpose: name of the stream of random numbers that shuffles the data.
        reference: weights that L2-SP pulls to; the initial weights by default.
        resume: file with the state after the last finished epoch. An interrupted training continues from it with the
            same result, because the order of every epoch derives from (seed, purpose, epoch).
        after_epoch: called with the epoch, counted from 1, and the model, before the epoch counts as finished.
        rate: learning rate of an epoch, counted from 1, in place of the recipe's.

    Raises:
        CheckpointError: if `resume` cannot be read.
        ExpungeError: if it cannot be written.
    """
    rate = recipe.rate if rate is None else rate
    model.to(run.device)
    optimizer = make_optimizer(
        recipe.optimizer, model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    pull = L2Reference(model, recipe.l2_reference, reference)
    augment = make_augment(recipe.augment)
    done = _load_state(resume, model, optimizer, run)
    carried = None if resume is not None or after_epoch is not None else [optimizer]
    with fast_layout(model, data.input_shape), lone_samples(model, allowed=recipe.batch_size > 1 or len(data) == 1):
        passes = Passes(model, run)
        for epoch in run.epochs(model, recipe.epochs, first=done + 1, what=f"{run.label}: {purpose}", state=carried):
            # Random numbers that modules draw (dropout) are reseeded per epoch, so that resuming changes nothing.
            torch.manual_seed(run.module_seed(purpose, "modules", epoch.number))
            training_mode(model, recipe.batchnorm)
            set_rate(optimizer, rate(epoch.number))
            epoch.log(lr=rate(epoch.number))
            order = run.seed_for(purpose, "shuffle", epoch.number)
            for batch in data.batches(
                recipe.batch_size, shuffle=True, seed=order, augment=augment, device=run.device, world=run.world
            ):
                with run.autocast():
                    loss = F.cross_entropy(passes(batch).float(), batch.y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                pull.add_gradient()
                clip_gradients(model, recipe.clip)
                optimizer.step()
                epoch.add("loss", loss, len(batch))
            if after_epoch is not None:
                after_epoch(epoch.number, model)
            if resume is not None and run.world.is_main:
                row = {"epoch": float(epoch.number), **epoch.close()}
                _save_state(resume, model, optimizer, epoch.number, [*run.history, row])
    return model


def _save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, history: Sequence[dict[str, float]]
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "history": list(history)}
    part = path.with_suffix(path.suffix + ".part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise ExpungeError(f"cannot write {path} ({reason}); free some space or choose another folder.") from None


def _load_state(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> int:
    """Number of finished epochs; 0 without a file. Only the main process reads it."""
    if path is None:
        return 0
    try:
        state = run.world.from_main(lambda: _read_state(path))
        if state is None:
            return 0
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history, done = list(state["history"]), int(state["epoch"])
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be resumed from ({reason}); delete it to start again.") from None
    run.history.extend(history)
    return done


def _read_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
