"""Inexpensive proxies of memorisation from the training dynamics of a single training.

Papers     Toneva et al., "An Empirical Study of Example Forgetting", ICLR 2019, arXiv:1812.05159 (forgetting events);
           Jiang et al., "Characterizing Structural Regularities of Labeled Data", ICML 2021, arXiv:2002.03206 (means
           over training of confidence and correctness); used as proxies of memorisation by Zhao et al.,
           "Scalability of memorization-based machine unlearning", 2024, arXiv:2410.16516
Notation   p_e(i): probability of the label of sample i after epoch e = 1..E; c_e(i) = 1 if it is predicted, else 0

    confidence  score(i) = 1 - mean over e of p_e(i)        in [0, 1]
    events      score(i) = 1 - mean over e of c_e(i)        in [0, 1]

Samples that are learned late, or learned and forgotten again, have large scores, as memorised samples do.
Deviates   c and p are computed on the whole set after every epoch, in eval mode, so that all samples are evaluated with
           the same weights and without augmentation; Toneva et al. take them from the training batches
Cost       one training, and one prediction pass per epoch
Limits     a proxy: it ranks samples, and its values are not memorisation. A sample that is never learned ranks highest,
           although it is not memorised
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from expunge.core.errors import CheckpointError, UsageError
from expunge.core.identity import code_hash
from expunge.core.run import Run
from expunge.core.seeds import global_generators
from expunge.data.origin import origin_of
from expunge.data.scores import SampleScores
from expunge.data.split import Split
from expunge.training.cache import training_key
from expunge.training.inference import predict
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe
from expunge.training.rows import ArrayCache

PURPOSE = "train"  # the same training as `expunge train`


@dataclass(frozen=True, eq=False)
class Dynamics:
    """Training dynamics of n samples.

    Attributes:
        correct: bool (epochs, n), whether the prediction was correct.
        probability: float32 (epochs, n) in [0, 1], of the sample's label.
    """

    correct: np.ndarray
    probability: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Numbers per sample (n,): confidences, and those of `learning_events`."""
        return {
            "confidence": self.probability[-1].astype(np.float64),
            "mean_confidence": self.probability.mean(0, dtype=np.float64),
            **learning_events(self.correct),
        }


def learning_events(correct: np.ndarray) -> dict[str, np.ndarray]:
    """Learning events of every sample (Toneva et al., 2019).

    Args:
        correct: bool (epochs, n), at least one epoch.

    Returns:
        Each (n,). `learned`: share of the epochs after which the prediction was correct, in [0, 1].
        `forgetting_events`: number of times that a correct prediction was followed by a wrong one. `first_learned`:
        first epoch with a correct prediction, counted from 1; epochs + 1 if there was none.

    Raises:
        UsageError: for another shape.

    >>> learning_events(np.array([[0], [1], [0], [1]], bool))["forgetting_events"]
    array([1])
    """
    is_correct = np.asarray(correct, dtype=bool)
    if is_correct.ndim != 2 or not len(is_correct):
        raise UsageError(
            f"`correct` must be an (epochs, samples) matrix of at least one epoch, got {is_correct.shape}."
        )
    first = np.where(is_correct.any(0), is_correct.argmax(0) + 1, len(is_correct) + 1)
    return {
        "learned": is_correct.mean(0),
        "forgetting_events": (is_correct[:-1] & ~is_correct[1:]).sum(0),
        "first_learned": first,
    }


def record_dynamics(model: nn.Module, data: Split, recipe: Recipe, run: Run) -> Dynamics:
    """Train a copy of `model` on `data` and evaluate every sample after every epoch.

    With `run.cache`, epochs are cached by content: a stopped call continues after its last finished epoch.

    Raises:
        UsageError: if the recipe has no epochs.
    """
    if recipe.epochs < 1:
        raise UsageError("a training of 0 epochs has no training dynamics; set `epochs` to at least 1.")
    student, rows = copy.deepcopy(model), ArrayCache(run.cache, origin_of(data))
    trained = training_key(student, data, recipe, run.seed, PURPOSE, run.precision)
    key = hashlib.sha256(json.dumps([code_hash(__name__), "dynamics", trained]).encode()).hexdigest()
    with rows.locked(key):
        seen = _stored(rows, key, recipe.epochs)
        if len(seen) < recipe.epochs:
            seen = _record(student, data, recipe, run, rows, key, seen)
    return Dynamics(np.stack([c for c, _ in seen]), np.stack([p for _, p in seen]))


Seen = list[tuple[np.ndarray, np.ndarray]]


def _stored(rows: ArrayCache, key: str, epochs: int) -> Seen:
    """The cached epochs 1, 2, .. up to the first that is missing."""
    seen: Seen = []
    for epoch in range(1, epochs + 1):
        stored = rows.get(f"{key}-{epoch}")
        if stored is None or not {"correct", "probability"} <= set(stored):
            break
        seen.append((stored["correct"], stored["probability"]))
    return seen


def _record(
    student: nn.Module, data: Split, recipe: Recipe, outer: Run, rows: ArrayCache, key: str, seen: Seen
) -> Seen:
    by_epoch, state = dict(enumerate(seen, start=1)), rows.state(key)
    fresh = copy.deepcopy(student)

    def record_epoch(epoch: int, model: nn.Module) -> None:
        correct, probability = _evaluate(model, data, outer)
        rows.put(f"{key}-{epoch}", correct=correct, probability=probability)
        by_epoch[epoch] = (correct, probability)

    with global_generators(outer.device):
        try:
            train_model(student, data, recipe, _inner(outer), purpose=PURPOSE, resume=state, after_epoch=record_epoch)
        except CheckpointError:
            by_epoch.clear()
        if len(by_epoch) < recipe.epochs:  # the state was damaged, or is ahead of the complete epochs
            train_model(fresh, data, recipe, _inner(outer), purpose=PURPOSE, after_epoch=record_epoch)
    if state is not None:
        state.unlink(missing_ok=True)
    return [by_epoch[epoch] for epoch in range(1, recipe.epochs + 1)]


def _inner(outer: Run) -> Run:
    """A run without a time budget, because fewer epochs would give other scores."""
    return Run(
        seed=outer.seed,
        device=outer.device,
        precision=outer.precision,
        compile=outer.compile,
        label="memorise",
        progress=outer.progress,
        cancelled=outer.cancelled,
    )


def _evaluate(model: nn.Module, data: Split, run: Run) -> tuple[np.ndarray, np.ndarray]:
    logits = predict(model, data, run.device).cpu()
    labels = data.y
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (logits.argmax(1) == labels).numpy(), probability.numpy()


def dynamics_scores(
    model: nn.Module, data: Split, recipe: Recipe, run: Run, *, by: Literal["confidence", "events"]
) -> SampleScores:
    """Scores of all samples by one of the two proxies, with the columns of both."""
    columns = record_dynamics(model, data, recipe, run).columns()
    score = 1 - columns["mean_confidence" if by == "confidence" else "learned"]
    return SampleScores.of(data, by, {"score": score, **columns}, facts={"by": by})
