"""Attack success rate: does an attack trained on training against test samples classify D_f as training data?

Paper      Shen et al., LAF, ICLR 2024, arXiv:2404.00506 (ASR); the authors' code, MIA with XGBoost
Features   the softmax outputs of a sample, sorted: no label, no shadow model

`asr` is the number of the authors' code with its sample counts. Its neutral value is the share of members among the
scored samples, 50 to 79 % in their tasks, and its trees overfit; so `asr-balanced` runs the attack with equal sides,
cross-validation, equal classes and an interval.
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
from expunge.metrics.base import Evaluation, Metric, Value, metric, missing
from expunge.metrics.membership import histogram_weights, matched
from expunge.numerics.statistics import auc_interval, mean_of_shares, wilson

BATCH = 32  # batch size in which the authors iterate over the test set
_TOO_FEW = 10  # samples of a side below which nothing is fitted

Fit = Callable[[np.ndarray, np.ndarray, int], Any]


@dataclass(frozen=True)
class SampleCounts:
    """Numbers of samples that the published attack uses.

    Attributes:
        members: retained samples it is trained on.
        others: test samples it is trained on, the first of the test set.
        judged: test samples that are scored, which follow these.
    """

    members: int
    others: int
    judged: int


def published_rows(forget: int, retain: int, test: int, rows: int = 5024) -> SampleCounts:
    """Sample counts of the authors' code; if the test set has at most `rows` samples, half of it is trained on.

    >>> published_rows(5000, 45000, 10000)
    SampleCounts(members=5000, others=5024, judged=4976)
    """
    others = rows if test > rows else test // 2
    return SampleCounts(min(others, forget, retain), others, min(math.ceil(forget / BATCH) * BATCH, test - others))


@metric("asr")
class PublishedASR(Metric):
    """Accuracy of the published attack on D_f (labelled members) and unused test samples; near the retrained is best.

    Gradient-boosted trees are trained on |D_f| retained samples, at most `rows`, against the first `rows` test samples.
    `asr_neutral` is the share of members among the scored samples: the accuracy of always answering "member". The
    retained samples are the first of those that the scenario's authors used, if it knows them (`laf-task`); else they
    are drawn by the evaluation's seed. The trees are seeded, unlike the published ones.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    on_request: ClassVar[bool] = True
    rows: int = Field(5024, ge=_TOO_FEW, description="number of test samples, the first ones, to train on")
    held_out: float = Field(0.01, ge=0, lt=1, description="share of the attack's training data that is not used")
    trees: Literal["xgboost", "sklearn"] = Field(
        "xgboost", description="library; scikit-learn's have the same settings"
    )
    augment: str = Field(
        "none", description="augmentation of the members; the authors use random crops of CIFAR-10 and SVHN"
    )

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        sizes = [len(evaluation.splits[name]) for name in ("forget", "retain", "test")]
        counts = published_rows(sizes[0], sizes[1], sizes[2], self.rows)
        if min(counts.members, counts.others, counts.judged) < _TOO_FEW:
            why = (
                f"the attack needs {_TOO_FEW} samples of each kind; there are {counts.members} retained and "
                f"{counts.others} test samples to train on, and {counts.judged} to score"
            )
            yield from missing(why, "fraction", "reference", "asr", "asr_neutral")
            return
        rng = numpy_generator(evaluation.seed, "asr")
        sample = rng.permutation(sizes[1])
        if evaluation.sample is not None:
            sample = evaluation.rows("retain", evaluation.sample).numpy()
        sample = sample[: counts.members]
        known = outputs(self._logits(evaluation, model, "retain"))[sample]
        unseen = outputs(evaluation.logits(model, "test"))
        x, y = sides(known, unseen[: counts.others])
        training_rows = np.sort(rng.permutation(len(x))[: len(x) - round(self.held_out * len(x))])
        attack = _BOOSTERS[self.trees](x[training_rows], y[training_rows], int(rng.integers(2**31)))
        fresh = unseen[counts.others : counts.others + counts.judged]
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
    """The attack with balanced classes; 0.5: D_f cannot be separated from test samples of its classes.

    The attack is trained on retained (1) against test (0) samples, equally many of each class, in `folds` folds: every
    sample is scored by an attack that was not trained on it. Test samples are weighted to the classes of D_f.
    `asr_balanced`: mean of the shares of D_f classified as members and of test samples classified as non-members;
    `asr_auc`: area under the ROC of D_f against test samples; both with a 95 % interval over the samples.
    `asr_validation`: accuracy on held-out retained and test samples. If that is 0.5, the attack has no power, and the
    other two numbers mean nothing.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain", "test")
    on_request: ClassVar[bool] = True
    folds: int = Field(5, ge=2, description="folds of the cross-validation")
    samples: int = Field(5000, ge=_TOO_FEW, description="maximal number of samples of either side to train on")
    attack: Literal["trees", "logistic"] = Field("trees", description="scikit-learn's boosted trees, or a linear model")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        forget, retain, test = (outputs(evaluation.logits(model, name)) for name in ("forget", "retain", "test"))
        labels = {name: evaluation.labels(name).numpy() for name in ("forget", "retain", "test")}
        rng = numpy_generator(evaluation.seed, "asr", "balanced")
        known, unseen = matched(labels["retain"], labels["test"], rng)
        if len(known) > self.samples:
            known, unseen = (side[np.sort(rng.permutation(len(side))[: self.samples])] for side in (known, unseen))
        judged = np.isin(labels["test"], labels["forget"])
        if min(len(known), len(forget), int(judged.sum())) < max(_TOO_FEW, self.folds):
            why = (
                f"the attack needs {max(_TOO_FEW, self.folds)} samples of each kind; there are {len(known)} of each "
                f"side to train on, {len(forget)} forgotten ones and {int(judged.sum())} test samples of their classes"
            )
            yield from missing(why, "fraction", "half", "asr_balanced", "asr_auc")
            yield from missing(why, "fraction", "reference", "asr_validation")
            return
        scores = self._scores((forget, retain[known], test), unseen, rng)
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
        """P(member) of D_f, of the retained samples and of all test samples, each by the attack of its own fold.

        Args:
            features: of these three sets, each (n, classes).
            unseen: rows of the test set that the attacks are trained on, in addition to the retained samples.
            rng: of folds and attacks.
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
    """Softmax outputs per sample in ascending order, float64 (n, classes), of logits (n, classes)."""
    values: np.ndarray = logits.double().softmax(1).sort(1).values.numpy()
    return values


def sides(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of members and others concatenated, and targets: 1 for members, 0 for others."""
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
    """Trees of scikit-learn with the defaults of XGBoost: 100 of depth 6, rate 0.3, L2 strength 1."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=100, max_depth=6, max_leaf_nodes=None, learning_rate=0.3, l2_regularization=1.0, min_samples_leaf=4,
        early_stopping=False, random_state=seed,
    ).fit(x, y)  # fmt: skip


def _trees(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    """Fewer and shallower trees than the published ones, which overfit less."""
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
