"""Representations in two dimensions, for the eye: principal components of unseen samples, forgotten ones among them."""

from __future__ import annotations

from typing import Any

from expunge.metrics.agreement import random_subset
from expunge.metrics.base import Evaluation

SAMPLES = 150  # per split


def projection(evaluation: Evaluation, model: str) -> dict[str, Any]:
    """split -> rows (first, second component, class) of at most 150 samples to forget and unseen ones.

    The components are those of the unseen samples in this model's own representation, so each model has its own.
    """
    from sklearn.decomposition import PCA

    parts = {
        name: random_subset(evaluation.splits[name], SAMPLES, evaluation.seed)
        for name in evaluation.present(("forget", "test"))
    }
    if len(parts) < 2 or min(map(len, parts.values())) < 2:
        return {}
    features = {name: evaluation.features(model, name, split) for name, split in parts.items()}
    plane = PCA(n_components=min(2, features["test"].shape[1])).fit(features["test"].numpy())
    rows = {}
    for name, split in parts.items():
        points = plane.transform(features[name].numpy()).round(3).tolist()
        rows[name] = [[*point, label] for point, label in zip(points, split.y.tolist(), strict=True)]
    return rows
