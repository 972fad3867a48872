"""How far unlearned models are from retrained ones, sample by sample, or as a population of models.

Sources    JSD: Chundawat et al., AAAI 2023 (here for any number of classes); ToW: Zhao et al., NeurIPS 2024; KLOM:
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
STEP, LEVELS = 0.5, 13  # of the challenge: epsilons in bins of a half, the 13th for all above 6


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


@dataclass(frozen=True, eq=False)
class ForgettingScore:
    """score in [0, 1]: mean over samples of 2 / 2^bin(epsilon); chance: the same for relabelled models, so what so few
    models give even where nothing differs; epsilon (n,): per sample, inf where an attack made no error."""

    score: float
    chance: float
    epsilon: np.ndarray


def forgetting_score(
    unlearned: list[np.ndarray], retrained: list[np.ndarray], rng: np.random.Generator, *, delta: float = 0.01
) -> ForgettingScore:
    """How hard unlearned models are to tell from retrained ones, sample by sample.

    unlearned, retrained: per sample, its scores under so many models (sizes may differ from sample to sample). Attacks:
    every single threshold, either way round, and every interval between two; the largest epsilon counts. As in the
    challenge, rates are counted on the very models that the thresholds come from: with few models even equal ones look
    different, which `chance` shows.
    """
    pairs = list(zip(unlearned, retrained, strict=True))
    found = np.array([sample_epsilon(mine, theirs, delta) for mine, theirs in pairs])
    mixed = []
    for mine, theirs in pairs:
        both = rng.permutation(np.concatenate([mine, theirs]))
        mixed.append(sample_epsilon(both[: len(mine)], both[len(mine) :], delta))
    return ForgettingScore(_level(found), _level(np.array(mixed)), found)


def sample_epsilon(unlearned: np.ndarray, retrained: np.ndarray, delta: float = 0.01) -> float:
    """Largest max(log((1 - delta - FPR) / FNR), log((1 - delta - FNR) / FPR)) of all attacks; inf for a perfect one.

    An attack with a single rate of zero says nothing (the other rate is resolved too coarsely) and is left out, as in
    the challenge.

    >>> sample_epsilon(np.array([0.0, 1.0]), np.array([5.0, 6.0]))
    inf
    """
    edges = np.unique(np.concatenate([unlearned, retrained]))
    edges = np.concatenate([[-np.inf], (edges[1:] + edges[:-1]) / 2, [np.inf]])
    mine = np.searchsorted(np.sort(unlearned), edges) / len(unlearned)  # share below each edge
    theirs = np.searchsorted(np.sort(retrained), edges) / len(retrained)
    low, high = np.triu_indices(len(edges), 1)
    fpr = theirs[high] - theirs[low]  # retrained models inside the interval; single thresholds: one end is infinite
    fnr = 1 - (mine[high] - mine[low])
    fpr, fnr = np.concatenate([fpr, 1 - fpr]), np.concatenate([fnr, 1 - fnr])
    if bool(((fpr == 0) & (fnr == 0)).any()):
        return math.inf
    usable = (fpr > 0) & (fnr > 0)
    fpr, fnr = fpr[usable], fnr[usable]
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.concatenate([np.log((1 - delta - fpr) / fnr), np.log((1 - delta - fnr) / fpr)])
    known = bounds[~np.isnan(bounds)]
    return max(0.0, float(known.max())) if len(known) else 0.0


def _level(epsilon: np.ndarray) -> float:
    bins = np.minimum(np.floor(np.where(np.isinf(epsilon), STEP * LEVELS, epsilon) / STEP) + 1, LEVELS)
    return float((2 / 2**bins).mean())


def zrf(unlearned: Tensor, ignorant: Tensor) -> float:
    """1 - mean JSD between the unlearned model and a freshly drawn one on the forget set; logits (n, C).

    1: as ignorant. A retrained model is not ignorant: compare with its own value, higher is not better.
    """
    return 1 - float(jsd(unlearned, ignorant).mean())
