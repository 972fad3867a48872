"""Entropy attack: does the entropy of the outputs alone reveal that the forget set was trained on?

Paper      Golatkar et al., CVPR 2020, arXiv:1911.04933
Reference  large-scale notebook of the SCRUB authors, where it is defined but not run
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
    """Share of the forget set that a logistic regression on output entropy classifies as training data, in [0, 1].

    It is fitted on retained (1) against test (0) samples, class-balanced, at most `samples` of each. Compare it with
    the retrained model's value; it is 0.5 only if members and non-members have equal entropy.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    samples: int = Field(4000, ge=10, description="maximal number of samples of either side")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        known, unseen, forgotten = (entropy(evaluation.logits(model, s)) for s in ("retain", "test", "forget"))
        rng = numpy_generator(evaluation.seed, "entropy attack")
        known, unseen = (subsample(side, self.samples, rng) for side in (known, unseen))
        yield Value("entropy_attack", entropy_attack(known, unseen, forgotten), "fraction", "reference")


def entropy_attack(known: np.ndarray, unseen: np.ndarray, forgotten: np.ndarray) -> float:
    """Share of `forgotten` that is classified as known, in [0, 1]; all three are entropies in nats, of shape (n,)."""
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
    """At most `most` of the values (n,), drawn without replacement."""
    return values if len(values) <= most else rng.choice(values, most, replace=False)
