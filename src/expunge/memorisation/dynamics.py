"""Cheap proxies of memorisation: how a single training learned each sample.

Papers     Toneva et al., "An Empirical Study of Example Forgetting", ICLR 2019, arXiv:1812.05159 (forgetting events);
           Jiang et al., "Characterizing Structural Regularities of Labeled Data", ICML 2021, arXiv:2002.03206 (means
           over training of confidence and correctness); used as proxies of memorisation by Zhao et al.,
           "Scalability of memorization-based machine unlearning", 2024, arXiv:2410.16516
Notation   after epoch e = 1..E the model gives the label of sample i the probability p_e(i), and c_e(i) says whether it
           is its arg-max

    confidence  score(i) = 1 - mean over e of p_e(i)        in [0, 1]
    events      score(i) = 1 - mean over e of c_e(i)        in [0, 1]

Samples that are learned late, or learned and forgotten again, have large scores, as memorised ones do.
Deviates   c and p are read from the whole set after every epoch, in evaluation mode, so that all samples are judged by
           the same weights and without augmentation; Toneva et al. read them from the training batches as they pass
Cost       one training, and one prediction pass per epoch
Limits     a proxy: it ranks samples, and its values are not memorisation. A sample that is never learned at all ranks
           highest, although nothing of it is memorised
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

PURPOSE = "train"  # the very training of `expunge train`


@dataclass(frozen=True, eq=False)
class Dynamics:
    """correct: bool (epochs, n). probability: float32 (epochs, n) in [0, 1], of the sample's label."""

    correct: np.ndarray
    probability: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is told of a sample; `learning_events` and the confidences, all (n,)."""
        return {
            "confidence": self.probability[-1].astype(np.float64),
            "mean_confidence": self.probability.mean(0, dtype=np.float64),
            **learning_events(self.correct),
        }


def learning_events(correct: np.ndarray) -> dict[str, np.ndarray]:
    """From a boolean matrix (epochs, samples), for every sample:

    learned: share of the epochs after which it was answered correctly, in [0, 1]. forgetting_events: how often a
    correct answer was followed by a wrong one. first_learned: first epoch with a correct answer, 1-based; epochs + 1
    if there was none.

    >>> learning_events(np.array([[0], [1], [0], [1]], bool))["forgetting_events"]
    array([1])
    """
    right = np.asarray(correct, dtype=bool)
    if right.ndim != 2 or not len(right):
        raise UsageError(f"`correct` must be an (epochs, samples) matrix of at least one epoch, got {right.shape}.")
    first = np.where(right.any(0), right.argmax(0) + 1, len(right) + 1)
    return {
        "learned": right.mean(0),
        "forgetting_events": (right[:-1] & ~right[1:]).sum(0),
        "first_learned": first,
    }


def record_dynamics(model: nn.Module, data: Split, recipe: Recipe, run: Run) -> Dynamics:
    """Train a copy of `model` on `data` and watch every sample after every epoch.

    With `run.cache`, epochs are kept by content: a stopped call goes on after its last finished one.
    """
    if recipe.epochs < 1:
        raise UsageError("learning cannot be watched in a training of 0 epochs; set `epochs` to at least 1.")
    student, rows = copy.deepcopy(model), ArrayCache(run.cache, origin_of(data))
    trained = training_key(student, data, recipe, run.seed, PURPOSE, run.precision)
    key = hashlib.sha256(json.dumps([code_hash(__name__), "dynamics", trained]).encode()).hexdigest()
    with rows.locked(key):
        seen = _stored(rows, key, recipe.epochs)
        if len(seen) < recipe.epochs:
            seen = _watch(student, data, recipe, run, rows, key, seen)
    return Dynamics(np.stack([c for c, _ in seen]), np.stack([p for _, p in seen]))


Seen = list[tuple[np.ndarray, np.ndarray]]


def _stored(rows: ArrayCache, key: str, epochs: int) -> Seen:
    """The epochs 1, 2, .. that are there without a gap."""
    seen: Seen = []
    for epoch in range(1, epochs + 1):
        stored = rows.get(f"{key}-{epoch}")
        if stored is None or not {"correct", "probability"} <= set(stored):
            break
        seen.append((stored["correct"], stored["probability"]))
    return seen


def _watch(student: nn.Module, data: Split, recipe: Recipe, outer: Run, rows: ArrayCache, key: str, seen: Seen) -> Seen:
    found, state = dict(enumerate(seen, start=1)), rows.state(key)
    fresh = copy.deepcopy(student)

    def look(epoch: int, model: nn.Module) -> None:
        correct, probability = _look(model, data, outer)
        rows.put(f"{key}-{epoch}", correct=correct, probability=probability)
        found[epoch] = (correct, probability)

    with global_generators(outer.device):
        try:
            train_model(student, data, recipe, _inner(outer), purpose=PURPOSE, resume=state, after_epoch=look)
        except CheckpointError:
            found.clear()
        if len(found) < recipe.epochs:  # the state was damaged, or is ahead of the epochs that are whole
            train_model(fresh, data, recipe, _inner(outer), purpose=PURPOSE, after_epoch=look)
    if state is not None:
        state.unlink(missing_ok=True)
    return [found[epoch] for epoch in range(1, recipe.epochs + 1)]


def _inner(outer: Run) -> Run:
    """A run without a time budget: half of the epochs would make other scores."""
    return Run(
        seed=outer.seed,
        device=outer.device,
        precision=outer.precision,
        compile=outer.compile,
        label="memorise",
        progress=outer.progress,
        cancelled=outer.cancelled,
    )


def _look(model: nn.Module, data: Split, run: Run) -> tuple[np.ndarray, np.ndarray]:
    logits = predict(model, data, run.device).cpu()
    labels = data.y
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (logits.argmax(1) == labels).numpy(), probability.numpy()


def dynamics_scores(
    model: nn.Module, data: Split, recipe: Recipe, run: Run, *, by: Literal["confidence", "events"]
) -> SampleScores:
    """Scores by one of the two proxies; the columns of both are there, `score` first."""
    columns = record_dynamics(model, data, recipe, run).columns()
    score = 1 - columns["mean_confidence" if by == "confidence" else "learned"]
    return SampleScores.of(data, by, {"score": score, **columns}, facts={"by": by})
