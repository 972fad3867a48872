"""Predictions of a model on a split: one pass, eval mode, no gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from expunge.core.distributed import ALONE, World
from expunge.data.split import Split
from expunge.models.layout import fast_layout
from expunge.models.modes import evaluation_mode

EVAL_BATCH = 256
"""Samples per pass. Larger batches are slower on a CPU, because activations exceed its caches, and need more memory."""


def predict(
    model: nn.Module,
    split: Split,
    device: torch.device | str = "cpu",
    batch_size: int = EVAL_BATCH,
    world: World = ALONE,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Predict all samples of a split in eval mode, without gradients.

    Args:
        model: a classifier, on `device`.
        split: the samples.
        device: where batches are put.
        batch_size: samples per pass and process.
        world: the processes that share the work; all of them get all outputs.
        forward: what to compute of a batch (B, ...) instead of the logits, (B, k).

    Returns:
        Logits (len(split), classes), float32, on `device`, in the split's order.
    """
    parts = []
    # The search for the layout makes a trial pass, which hooks would count as a pass over samples.
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    layout = nullcontext() if watched else fast_layout(model, split.input_shape)
    with layout, evaluation_mode(model), torch.inference_mode():
        for batch in split.batches(batch_size * world.size, device=device, world=world):
            parts.append(batch.gather((forward or model)(batch.x).float()))
    # A clone outside inference mode: cached logits take part in losses that need autograd.
    return torch.cat(parts).detach().clone() if parts else torch.empty(0, split.num_classes, device=device)


def error_rate(logits: Tensor, labels: Tensor) -> float:
    """Share of wrong predictions in [0, 1], NaN for an empty set; logits (n, C), labels (n,)."""
    if len(labels) == 0:
        return float("nan")
    return float((logits.argmax(1).cpu() != labels.cpu()).float().mean())
