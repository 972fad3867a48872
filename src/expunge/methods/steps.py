"""Small pieces that several methods share: endless batches, and a distillation distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from expunge.core.run import Run
from expunge.data.split import Batch, Split


def endless(split: Split, size: int, run: Run, purpose: str) -> Iterator[Batch]:
    """Batches for ever, shuffled anew in each pass (a cycled loader would freeze the first order)."""
    round_number = 0
    while True:
        yield from split.batches(
            size,
            shuffle=True,
            seed=run.seed_for(purpose, "shuffle", round_number),
            device=run.device,
            world=run.world,
        )
        round_number += 1


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """d = T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits (B, C), a scalar >= 0.

    Hinton et al., arXiv:1503.02531. The teacher side carries no gradient.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def with_decay(values: Mapping[str, Any], strength: float = 5e-4) -> dict[str, Any]:
    """Settings of a plain fine-tuning baseline with the weight decay its training had; L2-SP settings stay as is."""
    return dict(values) if "l2_reference" in values else {"weight_decay": strength, **values}
