"""How far unlearned models are from retrained ones, sample by sample, or as a population of models.

Sources    JSD: Chundawat et al., AAAI 2023 (here for any number of classes); ToW: Zhao et al., NeurIPS 2024; KLOM:
           Georgiev et al., 2024
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 20


def jsd(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two softmax outputs per sample, in bits, so in [0, 1]. logits (n, C) both.

    >>> round(float(jsd(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))), 6)
    1.0
    """
    p, q = first.double().softmax(1), second.double().softmax(1)
    middle = (p + q) / 2

    def entropy(r: Tensor) -> Tensor:
        return -torch.special.xlogy(r, r).sum(1) / np.log(2)

    return (entropy(middle) - (entropy(p) + entropy(q)) / 2).clamp(0, 1)


def tug_of_war(unlearned: dict[str, float], retrained: dict[str, float]) -> float:
    """Product over forget, retain and test of 1 - |difference in accuracy|; 1 is equal.

    >>> tug_of_war({"forget": 0.5, "retain": 1.0, "test": 0.8}, {"forget": 0.0, "retain": 1.0, "test": 0.8})
    0.5
    """
    shared = [name for name in ("forget", "retain", "test") if name in unlearned and name in retrained]
    return float(np.prod([1 - abs(unlearned[name] - retrained[name]) for name in shared]))


def klom(unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = BINS, clip: float = 100.0) -> np.ndarray:
    """KL(retrained || unlearned) of the margins of each sample over many models, in nats (n,).

    unlearned (N, n), retrained (M, n): margins of N and M models on the same n samples, clipped to [-clip, clip]. Equal
    bins span both; half a count is added to each, so that an empty bin is no proof.
    """
    found = []
    for mine, theirs in zip(unlearned.T.clip(-clip, clip), retrained.T.clip(-clip, clip), strict=True):
        low, high = min(mine.min(), theirs.min()), max(mine.max(), theirs.max())
        if low == high:
            found.append(0.0)
            continue
        edges = np.linspace(low, high, bins + 1)
        p, q = (np.histogram(values, edges)[0] + 0.5 for values in (theirs, mine))
        p, q = p / p.sum(), q / q.sum()
        found.append(float((p * np.log(p / q)).sum()))
    return np.array(found)
