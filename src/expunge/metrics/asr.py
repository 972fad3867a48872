"""Attack success rate: does an attack that learnt to tell training from test samples take D_f for training data?

Paper      Shen et al., LAF, ICLR 2024, arXiv:2404.00506 (ASR); the authors' code, MIA with XGBoost
Features   the softmax outputs of a sample, sorted: no label, no shadow model

`asr` is the number of the authors' code, counts and all. Its neutral value is the share of members among the judged
samples, 50 to 79 % in their tasks, and its trees fit their training data far better than anything else; so
`asr-balanced` asks the same question with equal sides, folds, equal classes and an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.seeds import derive, numpy_generator
from expunge.data.augment import make_augment
from expunge.metrics.accuracy import wilson
from expunge.metrics.base import Evaluation, Metric, Value, metric, missing
from expunge.metrics.membership import histogram_weights, matched
from expunge.numerics.statistics import auc_interval, mean_of_shares

BATCH = 32  # the authors walk the test set in batches of this size
_TOO_FEW = 10  # samples of a side below which nothing is fitted

Fit = Callable[[np.ndarray, np.ndarray, int], Any]


@dataclass(frozen=True)
class Rows:
    """members, others: that the attack learns from (others: the first test rows). judged: test rows right after."""

    members: int
    others: int
    judged: int


def published_rows(forget: int, retain: int, test: int, rows: int = 5024) -> Rows:
    """How many samples the authors' code uses; where the test set is no larger than `rows`, half of it comes first.

    >>> published_rows(5000, 45000, 10000)
    Rows(members=5000, others=5024, judged=4976)
    """
    others = rows if test > rows else test // 2
    return Rows(min(others, forget, retain), others, min(math.ceil(forget / BATCH) * BATCH, test - others))


@metric("asr")
class PublishedASR(Metric):
    """Accuracy of the published attack on D_f (said to be members) and fresh test samples; near the retrained is best.

    Gradient-boosted trees learn |D_f| retained samples, at most `rows`, against the first `rows` of the test set.
    `asr_neutral` is the share of members among the judged samples: what an attack scores that says "member" always.
    The retained samples are the first of those that the scenario's authors used, where it knows them (`laf-task`);
    else they are drawn by the evaluation's seed. The trees are seeded, unlike the published ones.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    on_request: ClassVar[bool] = True
    rows: int = Field(5024, ge=_TOO_FEW, description="test samples, the first ones, that the attack learns from")
    held_out: float = Field(0.01, ge=0, lt=1, description="share of the attack's training data set aside unused")
    trees: Literal["xgboost", "sklearn"] = Field(
        "xgboost", description="library; scikit-learn's have the same settings"
    )
    augment: str = Field(
        "none", description="view of the members; the authors show the attack random crops of CIFAR-10 and SVHN"
    )

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        sizes = [len(evaluation.splits[name]) for name in ("forget", "retain", "test")]
        rows = published_rows(sizes[0], sizes[1], sizes[2], self.rows)
        if min(rows.members, rows.others, rows.judged) < _TOO_FEW:
            why = (
                f"the attack needs {_TOO_FEW} samples of each kind; there are {rows.members} retained and "
                f"{rows.others} test samples to learn from, and {rows.judged} to judge"
            )
            yield from missing(why, "fraction", "reference", "asr", "asr_neutral")
            return
        rng = numpy_generator(evaluation.seed, "asr")
        sample = rng.permutation(sizes[1])
        if evaluation.sample is not None:
            sample = evaluation.rows("retain", evaluation.sample).numpy()
        sample = sample[: rows.members]
        known = outputs(self._logits(evaluation, model, "retain"))[sample]
        unseen = outputs(evaluation.logits(model, "test"))
        x, y = sides(known, unseen[: rows.others])
        kept = np.sort(rng.permutation(len(x))[: len(x) - round(self.held_out * len(x))])
        attack = _BOOSTERS[self.trees](x[kept], y[kept], int(rng.integers(2**31)))
        fresh = unseen[rows.others : rows.others + rows.judged]
        x, y = sides(outputs(self._logits(evaluation, model, "forget")), fresh)
        hits = int((attack.predict(x) == y).sum())
        low, high = wilson(hits, len(x))
        yield Value("asr", hits / len(x), "fraction", "reference", low, high)
        yield Value("asr_neutral", float(y.mean()), "fraction", "reference")

    def _logits(self, evaluation: Evaluation, model: str, split: str) -> Tensor:
        augment = make_augment(self.augment)
        if augment is None:
            return evaluation.logits(model, split)
        return evaluation.augmented(model, split, augment, derive(evaluation.seed, "asr", "augment", split))


@metric("asr-balanced")
class BalancedASR(Metric):
    """The same question asked fairly; 0.5: D_f looks as unseen as test samples of its classes.

    The attack learns retained (1) against test (0) samples, of every class equally many, in `folds` parts: every
    sample is judged by an attack that has not seen it, D_f too. Test samples are weighted to the classes of D_f.
    `asr_balanced`: mean of the shares of D_f said to be known and of test samples said to be unseen, `asr_auc`: area
    under the ROC of D_f against test samples; both with a 95 % interval over the samples. `asr_validation`:
    accuracy on held-out retained and test samples. If that is 0.5, the attack knows nothing, and neither do the others.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    on_request: ClassVar[bool] = True
    folds: int = Field(5, ge=2, description="parts of the cross-validation")
    samples: int = Field(5000, ge=_TOO_FEW, description="most samples of either side that the attack learns from")
    attack: Literal["trees", "logistic"] = Field("trees", description="scikit-learn's boosted trees, or a linear model")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        gone, kept, test = (outputs(evaluation.logits(model, name)) for name in ("forget", "retain", "test"))
        labels = {name: evaluation.labels(name).numpy() for name in ("forget", "retain", "test")}
        rng = numpy_generator(evaluation.seed, "asr", "balanced")
        known, unseen = matched(labels["retain"], labels["test"], rng)
        if len(known) > self.samples:
            known, unseen = (side[np.sort(rng.permutation(len(side))[: self.samples])] for side in (known, unseen))
        judged = np.isin(labels["test"], labels["forget"])
        if min(len(known), len(gone), int(judged.sum())) < max(_TOO_FEW, self.folds):
            why = (
                f"the attack needs {max(_TOO_FEW, self.folds)} samples of each kind; there are {len(known)} of each "
                f"side to learn from, {len(gone)} forgotten ones and {int(judged.sum())} test samples of their classes"
            )
            yield from missing(why, "fraction", "half", "asr_balanced", "asr_auc")
            yield from missing(why, "fraction", "reference", "asr_validation")
            return
        scores = self._scores((gone, kept[known], test), unseen, rng)
        members, trained, others = scores
        weights = histogram_weights(labels["test"][judged], labels["forget"])
        balanced = mean_of_shares(members > 0.5, others[judged] <= 0.5, weights)
        yield Value("asr_balanced", balanced.value, "fraction", "half", balanced.low, balanced.high)
        auc = auc_interval(members, others[judged], weights)
        yield Value("asr_auc", auc.value, "fraction", "half", auc.low, auc.high)
        right = np.concatenate([trained > 0.5, others[unseen] <= 0.5])
        low, high = wilson(int(right.sum()), len(right))
        yield Value("asr_validation", float(right.mean()), "fraction", "reference", low, high)

    def _scores(
        self, features: tuple[np.ndarray, np.ndarray, np.ndarray], unseen: np.ndarray, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """P(known) of D_f, of the retained samples and of all test samples, each by the attack of its own fold.

        features: of these three. unseen: test rows that the attacks learn from, beside the retained samples.
        """
        parts = [rng.permutation(len(x)) % self.folds for x in features]
        scores = [np.empty(len(x)) for x in features]
        learnt = np.zeros(len(features[2]), dtype=bool)
        learnt[unseen] = True
        for fold in range(self.folds):
            x, y = sides(features[1][parts[1] != fold], features[2][learnt & (parts[2] != fold)])
            attack = _FAIR[self.attack](x, y, int(rng.integers(2**31)))
            for side, part, score in zip(features, parts, scores, strict=True):
                score[part == fold] = attack.predict_proba(side[part == fold])[:, 1]
        return scores


def outputs(logits: Tensor) -> np.ndarray:
    """Softmax outputs per sample in ascending order, float64 (N, classes)."""
    values: np.ndarray = logits.double().softmax(1).sort(1).values.numpy()
    return values


def sides(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of both, and the truth: 1 for members."""
    return np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)])


def _xgboost(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    try:
        from xgboost import XGBClassifier
    except ImportError:
        raise UsageError(
            "asr needs xgboost, which is not installed; pip install 'expunge[attack]', or set trees=sklearn."
        ) from None
    return XGBClassifier(random_state=seed, n_jobs=1).fit(x, y)


def _like_xgboost(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    """scikit-learn's trees with the other library's defaults: 100 of depth 6, rate 0.3, L2 strength 1."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=100, max_depth=6, max_leaf_nodes=None, learning_rate=0.3, l2_regularization=1.0, min_samples_leaf=4,
        early_stopping=False, random_state=seed,
    ).fit(x, y)  # fmt: skip


def _trees(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    """Fewer and flatter than the published ones, so that they fit what repeats."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=8, learning_rate=0.1, min_samples_leaf=20, early_stopping=False, random_state=seed
    ).fit(x, y)


def _logistic(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    logs = FunctionTransformer(lambda p: np.log(np.maximum(p, 1e-12)))
    return make_pipeline(logs, StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed)).fit(x, y)


_BOOSTERS: dict[str, Fit] = {"xgboost": _xgboost, "sklearn": _like_xgboost}
_FAIR: dict[str, Fit] = {"trees": _trees, "logistic": _logistic}
