"""Train many models of one architecture at once: their weights are stacked, and every step is one vectorised pass.

For a GPU that a single small model does not fill. On a CPU single-threaded processes are faster (`core.pool`). Each
model gets the batches and updates that `train_model` would give it, so results agree up to rounding; only modules that
draw random numbers (dropout) differ.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import DivergedError, UsageError
from expunge.core.run import Run
from expunge.data.augment import make_augment
from expunge.data.split import Split
from expunge.models.modes import lone_samples, training_mode
from expunge.training.recipe import Recipe, make_optimizer, set_rate


def train_stacked(
    models: Sequence[nn.Module],
    data: Sequence[Split],
    recipe: Recipe,
    runs: Sequence[Run],
    *,
    purpose: str = "train",
) -> None:
    """Train every model in place on its own data with its run's seed; models end on the runs' device.

    Args:
        models: of one architecture.
        data: splits of one length, so that all models make the same steps.
        recipe: how to train.
        runs: of one device and precision.
        purpose: name of the stream of random numbers.

    Raises:
        UsageError: if architectures, lengths, devices or precisions differ.
        DivergedError: if weights become infinite.
    """
    _check(models, data, runs)
    device = runs[0].device
    for model in models:
        model.to(device).train()
    weights, buffers = torch.func.stack_module_state(list(models))
    for name, parameter in models[0].named_parameters():
        weights[name].requires_grad_(parameter.requires_grad)
    trained = [weight for weight in weights.values() if weight.requires_grad]
    start = [weight.detach().clone() for weight in trained] if recipe.l2_reference else []
    optimizer = make_optimizer(
        recipe.optimizer, trained, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    skeleton = copy.deepcopy(models[0]).to("meta")
    augment = make_augment(recipe.augment)

    def forward(weight: dict[str, Tensor], buffer: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(skeleton, (weight, buffer), (x,))
        return out

    forward_all = torch.vmap(forward, randomness="different")
    with lone_samples(skeleton, allowed=recipe.batch_size > 1):
        for epoch in range(1, recipe.epochs + 1):
            torch.manual_seed(runs[0].seed_for(purpose, "modules", epoch))
            training_mode(skeleton, recipe.batchnorm)
            set_rate(optimizer, recipe.rate(epoch))
            streams = [
                split.batches(
                    recipe.batch_size,
                    shuffle=True,
                    seed=run.seed_for(purpose, "shuffle", epoch),
                    augment=augment,
                    device=device,
                )
                for split, run in zip(data, runs, strict=True)
            ]
            for batches in zip(*streams, strict=True):
                x, y = torch.stack([batch.x for batch in batches]), torch.stack([batch.y for batch in batches])
                with runs[0].autocast():
                    logits = forward_all(weights, buffers, x).float()
                losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
                optimizer.zero_grad(set_to_none=True)
                losses.view(y.shape).mean(1).sum().backward()  # each model's weights see its own mean alone
                for weight, reference in zip(trained, start, strict=bool(start)):
                    if weight.grad is not None:
                        weight.grad.add_(weight.detach() - reference, alpha=recipe.l2_reference)
                _clip(trained, recipe.clip)
                optimizer.step()
    _unstack(models, weights, buffers)


def _check(models: Sequence[nn.Module], data: Sequence[Split], runs: Sequence[Run]) -> None:
    if not len(models) == len(data) == len(runs) > 0:
        raise UsageError(f"stacked training got {len(models)} models, {len(data)} data sets and {len(runs)} runs.")
    sizes = sorted({len(split) for split in data})
    if len(sizes) > 1:
        raise UsageError(f"models that train together need data of one length, got {sizes}; train them one by one.")
    if len({repr(model) for model in models}) > 1:
        raise UsageError("models that train together must be of one architecture; train them one by one.")
    if len({(run.device, run.precision) for run in runs}) > 1:
        raise UsageError("models that train together need one device and one precision.")


def _clip(trained: Sequence[Tensor], limit: float | None) -> None:
    """Gradient norms clipped per model, as `clip_grad_norm_` does for one."""
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    if limit is None or not gradients:
        return
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def _unstack(models: Sequence[nn.Module], weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for number, model in enumerate(models):
            for stacked, own in ((weights, dict(model.named_parameters())), (buffers, dict(model.named_buffers()))):
                for name, values in stacked.items():
                    if bool((~torch.isfinite(values[number]) & torch.isfinite(own[name])).any()):
                        raise DivergedError(f"model {number} of {len(models)} diverged: `{name}` is not finite.")
                    own[name].copy_(values[number])
