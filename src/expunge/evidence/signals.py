"""Signals of membership attacks without shadow models: one score per sample, higher for likely members.

Sources    loss: Yeom et al., CSF 2018; entropy, modified entropy: Song and Mittal, USENIX Security 2021; margin and
           logit-scaled confidence: Carlini et al., IEEE S&P 2022; gradient norm: Nasr et al., IEEE S&P 2019, of the
           last layer, where it has a closed form
Notation   z logits (n, C), p their softmax, y labels (n,), e representations (n, d); everything in float64
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) -> score per sample. Label-free signals ignore the labels."""


def loss(z: Tensor, y: Tensor) -> Tensor:
    """Minus the cross-entropy."""
    return -F.cross_entropy(z.double(), y, reduction="none")


def confidence(z: Tensor, y: Tensor) -> Tensor:
    """Logit-scaled confidence log(p_y / (1 - p_y)), computed without rounding 1 - p_y to 0."""
    logs = z.double().log_softmax(1)
    other_classes = logs.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return logs.gather(1, y[:, None]).squeeze(1) - other_classes


def margin(z: Tensor, y: Tensor) -> Tensor:
    """z_y minus the largest other logit."""
    z = z.double()
    other_classes = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return z.gather(1, y[:, None]).squeeze(1) - other_classes


def entropy(z: Tensor, y: Tensor) -> Tensor:
    """Minus the entropy of p; ignores the labels."""
    logs = z.double().log_softmax(1)
    return (logs.exp() * logs).sum(1)


def largest(z: Tensor, y: Tensor) -> Tensor:
    """The logarithm of the largest probability; ignores the labels."""
    return z.double().log_softmax(1).amax(1)


def modified_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Minus the modified entropy: (1 - p_y) log p_y + sum over k != y of p_k log(1 - p_k).

    0 for a confident correct prediction, minus infinity for a confident wrong one (clamped at log 1e-30).
    """
    logs = z.double().log_softmax(1)
    p = logs.exp()
    rest = (1 - p).clamp_min(1e-30).log()
    wrong = (p * rest).scatter(1, y[:, None], 0.0).sum(1)
    right = logs.gather(1, y[:, None]).squeeze(1).clamp_min(-69.0)
    return (1 - p.gather(1, y[:, None]).squeeze(1)) * right + wrong


SIGNALS: Mapping[str, Score] = {
    "loss": loss,
    "confidence": confidence,
    "margin": margin,
    "modified entropy": modified_entropy,
    "entropy": entropy,
    "largest probability": largest,
}
LABEL_FREE = ("entropy", "largest probability")


def gradient(z: Tensor, y: Tensor, e: Tensor) -> Tensor:
    """Minus the norm of the loss gradient in a linear last layer and its bias: -||p - 1_y|| sqrt(||e||^2 + 1)."""
    p = z.double().softmax(1)
    p = p - F.one_hot(y, p.shape[1])
    return -(p.norm(dim=1) * (e.double().square().sum(1) + 1).sqrt())
