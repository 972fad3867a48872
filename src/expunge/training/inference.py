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
"""Samples per pass. Larger ones are slower on a CPU, where activations leave its caches, and take more memory."""


def predict(
    model: nn.Module,
    split: Split,
    device: torch.device | str = "cpu",
    batch_size: int = EVAL_BATCH,
    world: World = ALONE,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits (len(split), classes), float32, on `device`, in the split's order.

    batch_size: samples per pass and process. world: the processes that share the work; all get all logits.
    forward: what to compute of a batch (B, ...) instead of the logits, (B, anything).
    """
    parts = []
    # Finding the layout takes a trial pass, which hooks would take for one of the samples.
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    layout = nullcontext() if watched else fast_layout(model, split.input_shape)
    with layout, evaluation_mode(model), torch.inference_mode():
        for batch in split.batches(batch_size * world.size, device=device, world=world):
            parts.append(batch.whole((forward or model)(batch.x).float()))
    # A clone outside inference mode: cached logits take part in losses that need autograd.
    return torch.cat(parts).detach().clone() if parts else torch.empty(0, split.num_classes, device=device)


def error_rate(logits: Tensor, labels: Tensor) -> float:
    """Share of wrong arg-max predictions, in [0, 1]; nan for an empty set."""
    if len(labels) == 0:
        return float("nan")
    return float((logits.argmax(1).cpu() != labels.cpu()).float().mean())
