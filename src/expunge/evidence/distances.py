"""Distances between unlearned and retrained models, per sample or between populations of models.

Sources    JSD: Chundawat et al., AAAI 2023 (for any number of classes); ToW: Zhao et al., NeurIPS 2024; KLOM:
           Georgiev et al., 2024; forgetting score: the NeurIPS 2023 challenge, Triantafillou et al., 2024; ZRF:
           Chundawat et al., AAAI 2023
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 20
STEP, LEVELS = 0.5, 13  # of the challenge: epsilon bins of width 0.5; the 13th holds all values above 6


def jsd(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two softmax outputs per sample (n,), in bits, in [0, 1]; logits (n, C) each.

    >>> round(float(jsd(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))), 6)
    1.0
    """
    p, q = first.double().softmax(1), second.double().softmax(1)
    middle = (p + q) / 2

    def entropy(r: Tensor) -> Tensor:
        return -torch.special.xlogy(r, r).sum(1) / np.log(2)

    return (entropy(middle) - (entropy(p) + entropy(q)) / 2).clamp(0, 1)


def tug_of_war(unlearned: dict[str, float], retrained: dict[str, float]) -> float:
    """Tug of war (ToW): product over forget, retain and test of 1 - |difference in accuracy|; 1 is equal.

    >>> tug_of_war({"forget": 0.5, "retain": 1.0, "test": 0.8}, {"forget": 0.0, "retain": 1.0, "test": 0.8})
    0.5
    """
    shared = [name for name in ("forget", "retain", "test") if name in unlearned and name in retrained]
    return float(np.prod([1 - abs(unlearned[name] - retrained[name]) for name in shared]))


def klom(unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = BINS, clip: float = 100.0) -> np.ndarray:
    """KL(retrained || unlearned) of the margins of each sample over many models, in nats (n,).

    Args:
        unlearned: Margins of N models on n samples (N, n).
        retrained: Margins of M models on the same samples (M, n).
        bins: Number of equal-width bins over the range of both; half a count is added to each (no empty bins).
        clip: Margins are clipped to [-clip, clip].
    """
    divergences = []
    for unlearned_margins, retrained_margins in zip(
        unlearned.T.clip(-clip, clip), retrained.T.clip(-clip, clip), strict=True
    ):
        low, high = (
            min(unlearned_margins.min(), retrained_margins.min()),
            max(unlearned_margins.max(), retrained_margins.max()),
        )
        if low == high:
            divergences.append(0.0)
            continue
        edges = np.linspace(low, high, bins + 1)
        p, q = (np.histogram(values, edges)[0] + 0.5 for values in (retrained_margins, unlearned_margins))
        p, q = p / p.sum(), q / q.sum()
        divergences.append(float((p * np.log(p / q)).sum()))
    return np.array(divergences)


@dataclass(frozen=True, eq=False)
class ForgettingScore:
    """The forgetting score of the NeurIPS 2023 challenge.

    Attributes:
        score: Mean over samples of 2 / 2^bin(epsilon), in [0, 1].
        chance: The same after permuting the models: the score where nothing differs, for this number of models.
        epsilon: Per sample (n,), >= 0; inf where an attack makes no error.
    """

    score: float
    chance: float
    epsilon: np.ndarray


def forgetting_score(
    unlearned: list[np.ndarray], retrained: list[np.ndarray], rng: np.random.Generator, *, delta: float = 0.01
) -> ForgettingScore:
    """How hard unlearned models are to tell from retrained ones, per sample.

    Attacks are all single thresholds in both directions and all intervals between two thresholds; the largest epsilon
    counts. As in the challenge, rates are measured on the models that the thresholds come from, so with few models even
    equal ones look different; `chance` shows by how much.

    Args:
        unlearned: Per sample, its scores under unlearned models; sizes may differ between samples.
        retrained: Per sample, its scores under models that never saw it.
        rng: Permutes the models for `chance`.
        delta: Of (epsilon, delta)-indistinguishability, in [0, 1).
    """
    pairs = list(zip(unlearned, retrained, strict=True))
    epsilons = np.array(
        [sample_epsilon(unlearned_scores, retrained_scores, delta) for unlearned_scores, retrained_scores in pairs]
    )
    permuted = []
    for unlearned_scores, retrained_scores in pairs:
        pooled = rng.permutation(np.concatenate([unlearned_scores, retrained_scores]))
        permuted.append(sample_epsilon(pooled[: len(unlearned_scores)], pooled[len(unlearned_scores) :], delta))
    return ForgettingScore(_level(epsilons), _level(np.array(permuted)), epsilons)


def sample_epsilon(unlearned: np.ndarray, retrained: np.ndarray, delta: float = 0.01) -> float:
    """Largest max(log((1 - delta - FPR) / FNR), log((1 - delta - FNR) / FPR)) of all attacks; inf for a perfect one.

    An attack with exactly one rate of zero is left out, as in the challenge: too few models resolve the other rate.

    >>> sample_epsilon(np.array([0.0, 1.0]), np.array([5.0, 6.0]))
    inf
    """
    edges = np.unique(np.concatenate([unlearned, retrained]))
    edges = np.concatenate([[-np.inf], (edges[1:] + edges[:-1]) / 2, [np.inf]])
    unlearned_below = np.searchsorted(np.sort(unlearned), edges) / len(unlearned)  # share below each edge
    retrained_below = np.searchsorted(np.sort(retrained), edges) / len(retrained)
    low, high = np.triu_indices(len(edges), 1)
    fpr = (
        retrained_below[high] - retrained_below[low]
    )  # retrained models inside the interval; single thresholds: one end is infinite
    fnr = 1 - (unlearned_below[high] - unlearned_below[low])
    fpr, fnr = np.concatenate([fpr, 1 - fpr]), np.concatenate([fnr, 1 - fnr])
    if bool(((fpr == 0) & (fnr == 0)).any()):
        return math.inf
    usable = (fpr > 0) & (fnr > 0)
    fpr, fnr = fpr[usable], fnr[usable]
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.concatenate([np.log((1 - delta - fpr) / fnr), np.log((1 - delta - fnr) / fpr)])
    finite = bounds[~np.isnan(bounds)]
    return max(0.0, float(finite.max())) if len(finite) else 0.0


def _level(epsilon: np.ndarray) -> float:
    bins = np.minimum(np.floor(np.where(np.isinf(epsilon), STEP * LEVELS, epsilon) / STEP) + 1, LEVELS)
    return float((2 / 2**bins).mean())


def zrf(unlearned: Tensor, ignorant: Tensor) -> float:
    """Zero retrain forgetting: 1 - mean JSD to a randomly initialised model on the forget set; logits (n, C).

    In [0, 1]. Higher is not better: a retrained model is no random model, so compare with its value.
    """
    return 1 - float(jsd(unlearned, ignorant).mean())
