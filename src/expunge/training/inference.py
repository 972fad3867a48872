"""Predictions of a model on a split: one pass, eval mode, no gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.core.distributed import ALONE, World
from expunge.data.split import Split
from expunge.models.modes import evaluation_mode

EVAL_BATCH = 1024


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
    with evaluation_mode(model), torch.inference_mode():
        for batch in split.batches(batch_size * world.size, device=device, world=world):
            parts.append(batch.whole((forward or model)(batch.x).float()))
    # A clone outside inference mode: cached logits take part in losses that need autograd.
    return torch.cat(parts).detach().clone() if parts else torch.empty(0, split.num_classes, device=device)


def error_rate(logits: Tensor, labels: Tensor) -> float:
    """Share of wrong arg-max predictions, in [0, 1]; nan for an empty set."""
    if len(labels) == 0:
        return float("nan")
    return float((logits.argmax(1).cpu() != labels.cpu()).float().mean())
