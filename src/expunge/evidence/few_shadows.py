"""Attacks on an unlearned model that need few other models and no registered method.

Sources    RMIA: Zarifzadeh et al., ICML 2024; quantile regression: Bertran et al., NeurIPS 2023; IAM: arXiv:2506.06112
Notation   phi(x) = log(p_y / (1 - p_y)) under a model; R: retrained models, which saw neither the samples to forget nor
           the unseen ones, so they are OUT shadows for both

    RMIA       share of unseen z with  (p(x) / p_0(x)) / (p(z) / p_0(z)) >= gamma;  p_0 = ((1 + a) mean_R p + 1 - a) / 2
    quantile   (phi(x) - q_1/2(x)) / (q_3/4(x) - q_1/4(x)),  q_t(x): the t-quantile of phi at an unseen sample like x,
               by gradient-boosted regression with the pinball loss  max(t (phi - q), (t - 1) (phi - q))  on the inputs
               and the label. Unseen samples are read by a regression that was not fitted on them
    IAM        1/K sum over t = 0, 1/K, .. of F((phi(x) - (1 - t) phi_r(x) - t phi_o(x)) / b),   F(u) = exp(-exp(-u)),
               r: one retrained model, o: the original, b: spread of phi_r - phi_o over the samples. How far along the
               way from "never there" to "still there" a sample is. Weights of t are equal here
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expunge.core.seeds import derive, numpy_generator
from expunge.data.split import Split
from expunge.evidence.persample import SampleAttack, judged, rmia

Array = np.ndarray
MOST = 2000  # samples of each side that a regression sees
COLUMNS = 32  # principal components of the inputs that it sees
STEPS = 100  # K of IAM


def rmia_by_references(
    members: Array, others: Array, reference_members: Array, reference_others: Array, *, seed: int = 0
) -> SampleAttack:
    """RMIA with retrained models as OUT shadows, with all its rates; the arguments are those of `rmia_scores`."""
    share, inside = rmia_scores(members, others, reference_members, reference_others, seed=seed)
    return judged("RMIA, retrained models", share, inside, seed)


def rmia_scores(
    members: Array, others: Array, reference_members: Array, reference_others: Array, *, seed: int = 0
) -> tuple[Array, Array]:
    """RMIA with retrained models as OUT shadows; a random half of the unseen samples is the population z.

    Args:
        members: phi of the samples to forget under the audited model (m,).
        others: phi of unseen samples of the same classes (n,), n >= 4.
        reference_members: phi of the former under the references (N, m), N >= 1.
        reference_others: phi of the latter under them (N, n).
        seed: Of the halves.

    Returns:
        The statistic of the members and of the other half of the unseen samples (T,), and which are members (T,).
    """
    order = numpy_generator(seed, "rmia", "halves").permutation(len(others))
    targets, population = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    phi = np.concatenate([members, others[targets]])
    scores = np.concatenate([reference_members, reference_others[:, targets]], axis=1)
    share = rmia(phi, scores, np.ones(scores.shape, bool), others[population], reference_others[:, population])
    return share, np.arange(len(phi)) < len(members)


def quantile_attack(
    members: Array, others: Array, member_columns: Array, other_columns: Array, *, seed: int = 0
) -> SampleAttack:
    """The attack by quantile regression, with all its rates; the arguments are those of `quantile_scores`."""
    statistic, inside = quantile_scores(members, others, member_columns, other_columns, seed=seed)
    return judged("quantile regression", statistic, inside, seed)


def quantile_scores(
    members: Array, others: Array, member_columns: Array, other_columns: Array, *, seed: int = 0
) -> tuple[Array, Array]:
    """The attack by quantile regression; it needs no other model.

    Args:
        members: phi of the samples to forget (m,).
        others: phi of unseen samples (n,), n >= 20.
        member_columns: What the regression sees of the former (m, d), see `columns`.
        other_columns: The same of the latter (n, d).
        seed: Of the folds and of the regression.

    Returns:
        The statistic of both sides (m + n,), and which are members (m + n,).
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    fold = numpy_generator(seed, "quantile", "folds").permutation(len(others)) % 2
    quartiles = {"members": np.zeros((3, len(members))), "others": np.zeros((3, len(others)))}
    for row, t in enumerate((0.25, 0.5, 0.75)):
        for half in (0, 1):
            model = HistGradientBoostingRegressor(
                loss="quantile", quantile=t, max_iter=40, max_depth=3, min_samples_leaf=10, early_stopping=False,
                random_state=derive(seed, "quantile", half) % 2**32,
            )  # fmt: skip
            model.fit(other_columns[fold != half], others[fold != half])
            quartiles["others"][row, fold == half] = model.predict(other_columns[fold == half])
            quartiles["members"][row] += model.predict(member_columns) / 2
    floor = 0.1 * float(np.subtract(*np.quantile(others, [0.75, 0.25]))) + 1e-9  # crossing quartiles must not explode
    statistic = [
        (phi - q[1]) / np.maximum(q[2] - q[0], floor)
        for phi, q in ((members, quartiles["members"]), (others, quartiles["others"]))
    ]
    return np.concatenate(statistic), np.arange(len(members) + len(others)) < len(members)


def columns(forget: Split, unseen: Split) -> tuple[Array, Array]:
    """What a regression sees of both sets: principal components of the inputs and the label as one-hot columns.

    Inputs that are no single tensor of numbers give the label alone.

    Args:
        forget: m samples.
        unseen: n samples; the components are fitted on them.

    Returns:
        float64 arrays (m, d) and (n, d).
    """
    labels = [np.eye(unseen.num_classes)[split.y.numpy()] for split in (forget, unseen)]
    inputs: list[object] = [split.inputs() for split in (forget, unseen)]
    if not all(isinstance(x, torch.Tensor) for x in inputs):
        return labels[0], labels[1]
    flat = [x.double().flatten(1) for x in inputs if isinstance(x, torch.Tensor)]
    mean, scale = flat[1].mean(0), flat[1].std(0) + 1e-9
    flat = [(x - mean) / scale for x in flat]
    if flat[0].shape[1] > COLUMNS:
        covariance = flat[1].T @ flat[1] if flat[1].shape[1] <= MOST else None
        if covariance is None:  # more columns than samples: by the Gram matrix
            values, vectors = torch.linalg.eigh(flat[1] @ flat[1].T)
            basis = flat[1].T @ vectors[:, -COLUMNS:] / values[-COLUMNS:].clamp_min(1e-9).sqrt()
        else:
            basis = torch.linalg.eigh(covariance)[1][:, -COLUMNS:]
        flat = [x @ basis for x in flat]
    return (
        np.concatenate([flat[0].numpy(), labels[0]], axis=1),
        np.concatenate([flat[1].numpy(), labels[1]], axis=1),
    )


def iam(phi: Array, original: Array, retrained: Array, *, steps: int = STEPS) -> Array:
    """IAM: per sample, how far from "never there" to "still there"; (n,) in [0, 1].

    Args:
        phi: Under the audited model (n,).
        original: Under the original (n,).
        retrained: Under one retrained model, the only shadow (n,).
        steps: K, >= 1.
    """
    apart = original - retrained
    width = max(float(apart.std()), 1e-9)
    t = np.linspace(0, 1, steps + 1)[:, None]
    centre = (1 - t) * retrained + t * original
    position: Array = np.exp(-np.exp(np.clip(-(phi - centre) / width, -700, 700))).mean(0)
    return position


def iam_of_references(
    references: Array, original: Array, phi: Sequence[Array]
) -> tuple[list[float], tuple[float, ...]]:
    """Mean IAM of models and of the references themselves, each with the next reference as its one shadow.

    Args:
        references: phi under N >= 2 retrained models (N, n).
        original: phi under the original (n,).
        phi: phi (n,) under each model; their first shadow is the first reference.

    Returns:
        The mean over samples, and over references as the shadow, of each model, and of each reference (N,).
    """
    count = len(references)
    of_models = [float(np.mean([iam(scores, original, r).mean() for r in references])) for scores in phi]
    of_references = tuple(
        float(np.mean([iam(references[j], original, references[k]).mean() for k in range(count) if k != j]))
        for j in range(count)
    )
    return of_models, of_references


__all__ = [
    "columns",
    "iam",
    "iam_of_references",
    "quantile_attack",
    "quantile_scores",
    "rmia_by_references",
    "rmia_scores",
]
