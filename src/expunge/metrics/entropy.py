"""Entropy attack: does the certainty of the model's answers alone say that it knows the forget set?

Paper      diagnostic of the SCRUB authors' large-scale notebook (after Golatkar et al., CVPR 2020); specification,
           section 5. There it is defined but does not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from torch import Tensor

from expunge.core.options import Field
from expunge.core.seeds import numpy_generator
from expunge.metrics.base import Evaluation, Metric, Value, metric


@metric("entropy-attack")
class EntropyAttack(Metric):
    """Share of the forget set that a logistic regression on output entropy takes for training data.

    It is fitted on retained (1) against test (0) samples, class-balanced, at most `samples` of each. Read it against
    the retrained model's value: 0.5 only where members and others have equal entropy.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    samples: int = Field(4000, ge=10, description="most samples of either side")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        known, unseen, forgotten = (entropy(evaluation.logits(model, s)) for s in ("retain", "test", "forget"))
        rng = numpy_generator(evaluation.seed, "entropy attack")
        known, unseen = (subsample(side, self.samples, rng) for side in (known, unseen))
        yield Value("entropy_attack", entropy_attack(known, unseen, forgotten), "fraction", "reference")


def entropy_attack(known: np.ndarray, unseen: np.ndarray, forgotten: np.ndarray) -> float:
    """Share of `forgotten` classified as known, in [0, 1]."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([known, unseen]).reshape(-1, 1)
    truth = np.repeat([1, 0], [len(known), len(unseen)])
    attack = LogisticRegression(class_weight="balanced").fit(features, truth)
    return float(attack.predict(forgotten.reshape(-1, 1)).mean())


def entropy(logits: Tensor) -> np.ndarray:
    """Shannon entropy of softmax(logits) in nats, float64 (N,)."""
    log_p = logits.double().log_softmax(1)
    values: np.ndarray = -(log_p.exp() * log_p).sum(1).numpy()
    return values


def subsample(values: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return values if len(values) <= most else rng.choice(values, most, replace=False)
