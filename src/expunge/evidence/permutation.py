"""Exact permutation tests, for where too few samples or models make an asymptotic one wrong.

Two groups   scores of samples to forget and of unseen ones. If a model knows neither, which are which is arbitrary
             within a class: every allocation of as many to either side is equally likely. Statistic: the weighted AUC
Models       values of one statistic for the audited and for N retrained models. If the audited one is like a retrained
             one, each of the N + 1 is equally likely to be it: p is at least 1 / (N + 1), so no single request can be
             decided by fewer than 19 references in this way. Over several requests the choices multiply: 3 requests
             with 5 references each have 6^3 = 216
Samples      each sample's value under the audited and N retrained models. If samples err independently of each other,
             each of the N + 1 values is equally likely to be the audited one: (N + 1)^n choices for n samples

All allocations are counted where there are at most `MOST`; beyond, so many are drawn, and p = (1 + hits) / (1 + draws),
which is a valid test, too (Phipson and Smyth, 2010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from expunge.core.seeds import numpy_generator
from expunge.numerics.statistics import placements

Array = np.ndarray
MOST = 20_000
SLACK = 1e-12  # relative, for sums that are equal but for rounding


def permuted_groups(members: Array, others: Array, groups: tuple[Array, Array], *, seed: int = 0) -> float:
    """Two-sided p of the AUC of members against others, by permutation within groups.

    Args:
        members: Scores (m,).
        others: Scores (n,).
        groups: Group of each member (m,) and of each of the others (n,), such as its class. Others count with the
            shares of the members' groups.
        seed: Of the draws, where there are more than `MOST` allocations.

    Returns:
        p in (0, 1]; 1.0 where no group has both sides.
    """
    blocks = []
    for group in np.unique(groups[0]):
        inside, outside = members[groups[0] == group], others[groups[1] == group]
        if len(inside) and len(outside):
            blocks.append((np.concatenate([inside, outside]), len(inside)))
    if not blocks:
        return 1.0
    whole = math.prod(math.comb(len(values), count) for values, count in blocks)
    pooled = np.concatenate([values for values, _ in blocks])
    weights = np.concatenate([np.full(len(v), c / (len(v) - c)) for v, c in blocks])
    starts = np.cumsum([0, *(len(values) for values, _ in blocks)])

    def auc(chosen: Array) -> float:
        left = ~chosen
        return float(placements(pooled[chosen], pooled[left], weights[left]).mean())

    first = np.concatenate([np.arange(len(values)) < count for values, count in blocks])
    observed = abs(auc(first) - 0.5)
    edge = observed * (1 - SLACK) - SLACK
    if whole <= MOST:
        hits = sum(abs(auc(chosen) - 0.5) >= edge for chosen in _allocations(blocks, starts, len(pooled)))
        return hits / whole
    rng = numpy_generator(seed, "permuted groups")
    hits = 1
    for _ in range(MOST // 10):
        chosen = np.zeros(len(pooled), bool)
        for (values, count), start in zip(blocks, starts, strict=False):
            chosen[start + rng.permutation(len(values))[:count]] = True
        hits += abs(auc(chosen) - 0.5) >= edge
    return hits / (1 + MOST // 10)


def _allocations(blocks: Sequence[tuple[Array, int]], starts: Array, size: int) -> list[Array]:
    allocations = [np.zeros(size, bool)]
    for (values, count), start in zip(blocks, starts, strict=False):
        grown = []
        for base in allocations:
            for places in combinations(range(len(values)), count):
                chosen = base.copy()
                chosen[start + np.array(places)] = True
                grown.append(chosen)
        allocations = grown
    return allocations


def permuted_choices(values: Sequence[Array], *, seed: int = 0, two_sided: bool = True) -> float:
    """p of the sum of the first values, where every entry of a row is equally likely to be the first.

    Args:
        values: One row per request (its audited and its retrained models) or per sample (its value under each model);
            row r has N_r + 1 entries, the audited model's first. Rows are standardised by their own mean and deviation,
            which no choice changes; a row whose entries are equal says nothing.
        seed: Of the draws, where there are more than `MOST` choices.
        two_sided: Whether a small sum counts as much as a large one.

    Returns:
        p in (0, 1].
    """
    rows = []
    for row in values:
        row = np.asarray(row, dtype=float)
        deviation = float(row.std())
        if deviation > 0:
            rows.append((row - row.mean()) / deviation)
    if not rows:
        return 1.0
    size = math.prod(len(row) for row in rows)
    observed = sum(float(row[0]) for row in rows)
    side = abs if two_sided else float
    edge = side(observed) - SLACK * len(rows)
    if size <= MOST:
        sums = np.zeros(1)
        for row in rows:
            sums = (sums[:, None] + row).ravel()
        return float(((np.abs(sums) if two_sided else sums) >= edge).mean())
    rng = numpy_generator(seed, "permuted choices")
    sums = np.zeros(MOST)
    for row in rows:
        sums += row[rng.integers(len(row), size=MOST)]
    hits = int(((np.abs(sums) if two_sided else sums) >= edge).sum())
    return (1 + hits) / (1 + MOST)


def smallest_p(sizes: Sequence[int]) -> float:
    """The smallest p that `permuted_choices` can give, one-sided: 1 over the number of choices.

    >>> round(smallest_p([6, 6, 6]), 4)
    0.0046
    """
    return 1 / math.prod(sizes)


__all__ = ["permuted_choices", "permuted_groups", "smallest_p"]
