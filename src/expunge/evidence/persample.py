"""Attacks on single samples, each calibrated by shadow models: LiRA, its adaptation to unlearning, and RMIA.

Sources    LiRA: Carlini et al., IEEE S&P 2022; U-LiRA: Kurmanji et al., NeurIPS 2023 (whose paper leaves
           its details open), and Hayes et al., 2024; RMIA: Zarifzadeh et al., ICML 2024
Notation   phi(x) = log(p_y / (1 - p_y)) under the audited model; phi_i(x) under shadow i

    LiRA       log N(phi; IN) - log N(phi; OUT)     IN: shadows that saw x, OUT: shadows that did not
    U-LiRA     the same with IN: shadows that saw x and then forgot it, OUT: unlearned shadows that never saw x.
               Positive: x looks like a forgotten sample rather than like one that was never seen
    RMIA       share of unseen z with  (p(x) / p_0(x)) / (p(z) / p_0(z)) >= gamma,     p_0: mean over shadows,
               from OUT shadows alone:  p_0 = ((1 + a) mean p_OUT + 1 - a) / 2

Variance   per sample from 64 values on; below, one pooled variance per side (few values estimate a variance poorly).
           IN and OUT each have their own; the public reference code takes the OUT variance from IN values
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.core.seeds import numpy_generator
from expunge.evidence.rates import Separation, epsilon_bound, separation, smallest_epsilon
from expunge.evidence.shadows import ShadowScores
from expunge.numerics.statistics import Interval

Variance = Literal["auto", "per-sample", "global"]
Centre = Literal["median", "mean"]
ENOUGH = 64  # values from which a variance per sample is better than a pooled one


@dataclass(frozen=True, eq=False)
class SampleAttack:
    """One attack, calibrated per sample, on T targets.

    Attributes:
        name: LiRA, RMIA or U-LiRA.
        statistic: (T,), higher for members (trained on, or forgotten).
        member: (T,), bool.
        separation: AUC and TPR at low FPR.
        balanced_accuracy: At the best threshold, so optimistic.
        at_zero: Accuracy of the threshold 0; None for RMIA, which has no such threshold.
        direction: Median over members of (phi - OUT centre) / OUT spread, > 0 if they still look like members; None for
            RMIA.
        epsilon: Lower bound at 95 % that this attack proves.
        largest: The most that this number of samples could prove.
    """

    name: str
    statistic: np.ndarray
    member: np.ndarray
    separation: Separation
    balanced_accuracy: float
    at_zero: float | None
    direction: float | None
    epsilon: float
    largest: float

    @property
    def auc(self) -> Interval:
        """AUC with its 95 % interval."""
        return self.separation.auc

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """(FPR, TPR) at every threshold, from (0, 0) to (1, 1)."""
        order = np.argsort(-self.statistic, kind="stable")
        values, member = self.statistic[order], self.member[order]
        ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # ties share a threshold
        tpr = np.cumsum(member)[ends] / member.sum()
        fpr = np.cumsum(~member)[ends] / (~member).sum()
        return np.insert(fpr, 0, 0.0), np.insert(tpr, 0, 0.0)


def lira(
    phi: np.ndarray,
    scores: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    *,
    variance: Variance = "auto",
    centre: Centre = "median",
) -> tuple[np.ndarray, np.ndarray]:
    """Likelihood ratio attack.

    Args:
        phi: Scores under the audited model (T,).
        scores: Under M shadow models (M, T).
        inside: Which scores count for IN (M, T), bool.
        outside: Which scores count for OUT (M, T), bool.
        variance: Per sample, global (pooled), or `auto` as in the module.
        centre: Of the two normal distributions.

    Returns:
        Log-likelihood ratio and standardised distance from OUT, each (T,); NaN for a sample with fewer than two values
        on a side.
    """
    in_scores, out_scores = np.where(inside, scores, np.nan), np.where(outside, scores, np.nan)
    few = (inside.sum(0) < 2) | (outside.sum(0) < 2)
    middle: Callable[..., np.ndarray] = np.nanmedian if centre == "median" else np.nanmean
    parts = []
    for values, chosen in ((in_scores, inside), (out_scores, outside)):
        usable = np.where(few, 0.0, values)  # a column of NaN only would raise a warning
        mu = middle(usable, axis=0)
        per_sample = variance == "per-sample" or (variance == "auto" and int(chosen.sum(0).min()) >= ENOUGH)
        spread = np.nanstd(usable, axis=0, ddof=1) if per_sample else _pooled(usable, few)
        parts.append((mu, np.maximum(spread, 1e-12)))
    (mu_in, sd_in), (mu_out, sd_out) = parts
    z_in, z_out = (phi - mu_in) / sd_in, (phi - mu_out) / sd_out
    ratio = (z_out**2 - z_in**2) / 2 + np.log(sd_out) - np.log(sd_in)
    return np.where(few, np.nan, ratio), np.where(few, np.nan, z_out)


def rmia(
    phi: np.ndarray,
    scores: np.ndarray,
    outside: np.ndarray,
    population: np.ndarray,
    shadow_population: np.ndarray,
    *,
    gamma: float = 2.0,
    a: float = 0.3,
) -> np.ndarray:
    """Robust membership inference attack: share of the population that a target dominates (T,), in [0, 1].

    Args:
        phi: Scores of the targets under the audited model (T,).
        scores: Of the targets under S shadow originals (S, T).
        outside: Shadow originals that did not see the target (S, T), bool.
        population: Scores of unseen samples under the audited model (P,).
        shadow_population: Of the unseen samples under the shadow originals (S, P).
        gamma: Threshold of the likelihood ratio, > 0; the paper's value for CIFAR-10.
        a: Of the offline approximation, in [0, 1]; the paper's value for CIFAR-10.
    """
    target, unseen = _logistic(phi), _logistic(population)
    out = np.where(outside, _logistic(scores), np.nan)
    usual = ((1 + a) * np.nanmean(out, axis=0) + 1 - a) / 2
    usual_unseen = ((1 + a) * _logistic(shadow_population).mean(0) + 1 - a) / 2
    ratios, population_ratios = target / usual, np.sort(unseen / usual_unseen)
    return np.searchsorted(population_ratios, ratios / gamma, side="right") / len(population_ratios)


def attack_plain(
    phi: np.ndarray, population: np.ndarray, shadows: ShadowScores, *, seed: int = 0
) -> list[SampleAttack]:
    """LiRA and RMIA on a model before unlearning; phi (T,), population (P,): its scores."""
    ratio, z = lira(phi, shadows.plain, shadows.trained, ~shadows.trained)
    share = rmia(phi, shadows.plain, ~shadows.trained, population, shadows.population)
    member = shadows.plan.member
    return [judged("LiRA", ratio, member, seed, z=z, zero=True), judged("RMIA", share, member, seed)]


def attack_unlearned(
    phi: np.ndarray,
    shadows: ShadowScores,
    *,
    seed: int = 0,
    variance: Variance = "auto",
    chosen: np.ndarray | None = None,
) -> SampleAttack:
    """U-LiRA on an unlearned model; phi (T,): its scores. The shadow models were unlearned by the same method.

    For samples that a shadow never saw only its first request counts: those of one shadow are not independent.
    chosen (T,): the targets that the attack is measured on; default: all.
    """
    ratio, z = lira(phi, shadows.unlearned, shadows.forgot, shadows.unseen & shadows.first[:, None], variance=variance)
    if chosen is not None:
        ratio = np.where(chosen, ratio, np.nan)
    return judged("U-LiRA", ratio, shadows.plan.member, seed, z=z, zero=True)


def judged(
    name: str, statistic: np.ndarray, member: np.ndarray, seed: int, *, z: np.ndarray | None = None, zero: bool = False
) -> SampleAttack:
    """All rates of an attack from its statistic on the targets.

    Args:
        name: Of the attack.
        statistic: Higher where a target looks like a member (T,); NaN where there is none.
        member: Bool (T,).
        seed: Of intervals and of the halves of epsilon.
        z: Standardised distance of each target (T,), for the direction.
        zero: Whether 0 is the threshold between members and others.
    """
    usable = ~np.isnan(statistic)
    values, inside = statistic[usable], member[usable]
    rates = separation(
        values[inside], values[~inside], np.ones(int((~inside).sum())), numpy_generator(seed, "per-sample", name)
    )
    epsilon, largest = _epsilon(values, inside, seed)
    balanced = _best_balanced(values, inside)
    at_zero = float(((values > 0) == inside).mean()) if zero else None
    direction = float(np.median(z[usable][inside])) if z is not None else None
    return SampleAttack(name, values, inside, rates, balanced, at_zero, direction, epsilon, largest)


def _best_balanced(values: np.ndarray, inside: np.ndarray) -> float:
    made = SampleAttack("", values, inside, Separation(Interval(0, 0, 0), {}), 0, None, None, 0, 0)
    fpr, tpr = made.roc()
    return float((1 + tpr - fpr).max() / 2)


def _epsilon(values: np.ndarray, inside: np.ndarray, seed: int) -> tuple[float, float]:
    """Bound of the threshold with the largest bound on one half of the targets, measured on the other half.

    A threshold chosen on the targets that it is measured on would overstate the bound.
    """
    order = numpy_generator(seed, "epsilon").permutation(len(values))
    half = len(order) // 2
    choose, measured = order[:half], order[half:]
    best, threshold = 0.0, np.inf
    for candidate in np.unique(np.quantile(values[choose], np.linspace(0.01, 0.99, 99))):
        bound = epsilon_bound(*_counts(values[choose] >= candidate, inside[choose]))
        if bound > best:
            best, threshold = bound, float(candidate)
    caught, members, mistaken, non_members = _counts(values[measured] >= threshold, inside[measured])
    bound = epsilon_bound(caught, members, mistaken, non_members) if np.isfinite(threshold) else 0.0
    return bound, smallest_epsilon(members, non_members)


def _counts(predicted: np.ndarray, inside: np.ndarray) -> tuple[int, int, int, int]:
    return int((predicted & inside).sum()), int(inside.sum()), int((predicted & ~inside).sum()), int((~inside).sum())


def _pooled(values: np.ndarray, few: np.ndarray) -> np.ndarray:
    """One standard deviation for all samples: the root of the mean variance."""
    spread = np.nanvar(values, axis=0, ddof=1)
    usable = spread[~few]
    return np.full(values.shape[1], np.sqrt(usable.mean()) if len(usable) else np.nan)


def _logistic(phi: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(phi))
