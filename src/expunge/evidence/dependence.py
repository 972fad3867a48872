"""What representations tell about having been forgotten: IDI, SDE, and residual knowledge.

IDI     Jeon et al., AAAI 2026, arXiv:2405.17878. Y: is a sample one to forget; Z_l: the output of block l
            I_l(model) = H(Y) - cross-entropy of Y given Z_l,   at least 0, in bits
            IDI = sum over l (I_l(model) - I_l(retrained)) / sum over l (I_l(original) - I_l(retrained))
        1: untouched, 0: like retrained. The cross-entropy is that of a logistic regression on principal coordinates of
        the Gram matrix of the block, fitted on one half of the samples and read on the other (the paper bounds the
        information by a contrastive network)
SDE     split-half dependence, ICLR 2026. For a set S, over random halves A, B of S:
            HSIC(A, B) = tr(K_A H K_B H) / (m - 1)^2,   K: Gaussian kernel of width sqrt(d),   H = 1 - 1/m
        Samples that were trained on together depend on each other. d_S: the distribution of HSIC over draws of halves;
            SDE = JSD(d_forget, d_unseen) / (JSD(d_forget, d_unseen) + JSD(d_forget, d_retain))
        0: the samples to forget are like unseen ones, 1: like retained ones; no other model is needed
Residual knowledge   arXiv:2601.22359: P[right at inputs near the samples], the model's over that of retrained ones;
        above 1 where something is left
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from expunge.core.seeds import numpy_generator

Array = np.ndarray
SHUFFLES, BINS, COORDINATES = 200, 20, 16
PENALTY = 1.0  # inverse strength of the ridge of the logistic regression
TOLD = 0.02  # bits per block, on average, by which the original must differ from retraining


def information(gram: Tensor, member: Array, *, seed: int = 0) -> float:
    """I_l: bits that a block tells about membership, cross-fitted; at least 0.

    Args:
        gram: Gram matrix (n, n) of the block's outputs over samples to forget and others.
        member: Bool (n,): which are to forget; at least four of either kind.
        seed: Of the halves.
    """
    from sklearn.linear_model import LogisticRegression

    k = gram.double().numpy()
    k = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    values, vectors = np.linalg.eigh(k)
    largest = max(float(values[-1]), 1e-12)
    kept = values[-COORDINATES:] > 1e-9 * largest
    x = vectors[:, -COORDINATES:][:, kept] * np.sqrt(len(k))  # unit variance each
    if not x.shape[1]:
        return 0.0
    fold = _halves(member, seed)
    bits = np.zeros(len(member))
    for half in (0, 1):
        model = LogisticRegression(C=PENALTY, max_iter=200).fit(x[fold != half], member[fold != half])
        p = np.clip(model.predict_proba(x[fold == half])[:, 1], 1e-6, 1 - 1e-6)
        bits[fold == half] = -np.log2(np.where(member[fold == half], p, 1 - p))
    share = member.mean()
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return max(0.0, float(entropy - bits.mean()))


def _halves(member: Array, seed: int) -> Array:
    """0 or 1 per sample, members spread evenly."""
    rng = numpy_generator(seed, "information", "halves")
    fold = np.zeros(len(member), int)
    for side in (True, False):
        rows = rng.permutation(np.flatnonzero(member == side))
        fold[rows] = np.arange(len(rows)) % 2
    return fold


def idi(model: Mapping[str, float], original: Mapping[str, float], retrained: Sequence[Mapping[str, float]]) -> float:
    """IDI from the information of each block; NaN where the original tells no more than retrained models.

    Args:
        model: Block -> bits of the model.
        original: The same of the original.
        retrained: The same of each retrained model, at least one.
    """
    blocks = list(original)
    usual = {block: float(np.mean([bits[block] for bits in retrained])) for block in blocks}
    whole = sum(original[block] - usual[block] for block in blocks)
    if whole <= TOLD * len(blocks):
        return float("nan")
    return sum(model[block] - usual[block] for block in blocks) / whole


def split_half_dependence(features: Array, *, seed: int = 0, shuffles: int = SHUFFLES) -> Array:
    """HSIC of random halves of one set, (shuffles,).

    Args:
        features: (n, d), n >= 8.
        seed: Of the halves.
        shuffles: Number of draws.
    """
    squares = np.square(features).sum(1)
    apart = np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0)
    kernel = np.exp(-apart / (2 * features.shape[1]))
    rng = numpy_generator(seed, "split-half")
    size = len(features) // 2
    values = np.zeros(shuffles)
    for draw in range(shuffles):
        order = rng.permutation(len(features))
        a, b = order[:size], order[size : 2 * size]
        values[draw] = (_centred(kernel[np.ix_(a, a)]) * _centred(kernel[np.ix_(b, b)])).sum() / (size - 1) ** 2
    return values


def _centred(k: Array) -> Array:
    centred: Array = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    return centred


def sde(forget: Array, retain: Array, unseen: Array, *, seed: int = 0, shuffles: int = SHUFFLES) -> float:
    """SDE of three sets of features, cut to one size and standardised together; NaN where both distances are 0.

    Args:
        forget: (a, d) features of the samples to forget.
        retain: (b, d) of retained samples.
        unseen: (c, d) of unseen samples; each at least 8.
        seed: Of the halves.
        shuffles: Draws per set.
    """
    size = min(len(forget), len(retain), len(unseen))
    together = np.concatenate([forget, retain, unseen])
    mean, scale = together.mean(0), together.std(0) + 1e-9
    of_forget, of_retain, of_unseen = (
        split_half_dependence((part[:size] - mean) / scale, seed=seed, shuffles=shuffles)
        for part in (forget, retain, unseen)
    )
    to_unseen, to_retain = distribution_jsd(of_forget, of_unseen), distribution_jsd(of_forget, of_retain)
    return to_unseen / (to_unseen + to_retain) if to_unseen + to_retain > 0 else float("nan")


def distribution_jsd(first: Array, second: Array, bins: int = BINS) -> float:
    """Jensen-Shannon divergence of two samples of numbers, by a histogram over both; bits in [0, 1].

    >>> distribution_jsd(np.zeros(5), np.ones(5))
    1.0
    """
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    if low == high:
        return 0.0
    p, q = (np.histogram(values, bins, (low, high))[0] / len(values) for values in (first, second))
    middle = (p + q) / 2
    return _entropy(middle) - (_entropy(p) + _entropy(q)) / 2


def _entropy(p: Array) -> float:
    from scipy.special import xlogy

    return float(-xlogy(p, p).sum() / np.log(2))


def residual_knowledge(model: float, retrained: Sequence[float]) -> float:
    """Share right near the samples over the mean share of retrained models; NaN where these are never right.

    Args:
        model: P[right] of the model at inputs near the samples to forget, in [0, 1].
        retrained: The same of each retrained model.
    """
    usual = float(np.mean(retrained))
    return model / usual if usual > 0 else float("nan")


__all__ = [
    "distribution_jsd", "idi", "information", "residual_knowledge", "sde", "split_half_dependence",
]  # fmt: skip
