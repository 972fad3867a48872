"""Memorisation of single samples, estimated from many models trained on random subsets.

Paper      Feldman & Zhang, "What Neural Networks Memorize and Why", NeurIPS 2020, arXiv:2008.03703;
           definition of Feldman, "Does Learning Require Memorization?", STOC 2020, arXiv:1906.05271
Notation   A: the training; S: the training set of n samples; t models, each trained on a random subset of `share` n

    mem(i)   = P[A(S)(x_i) = y_i] - P[A(S without i)(x_i) = y_i]                                in [-1, 1]
    estimate = share of correct predictions of i among the models trained with i, minus that among the other models

As in the paper, the probabilities are over the subset too, so the estimate is of memorisation for a training set of
`share` n samples instead of n: scores are somewhat larger than at full size.
Error      standard error of a difference of two proportions with one success and one failure added to each (Agresti &
           Caffo, The American Statistician 54, 2000): unlike the plain one it is not 0 where all models agree
Cost       t trainings and t predictions. Per model n bits are cached, not the model
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.identity import code_hash
from expunge.core.run import Progress, Run
from expunge.core.seeds import global_generators, torch_generator
from expunge.data.origin import origin_of
from expunge.data.scores import SampleScores
from expunge.data.split import Split
from expunge.models.initial import reset_parameters
from expunge.training.cache import training_key
from expunge.training.inference import predict
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe
from expunge.training.rows import ArrayCache

WHAT = "memorise"

Start = Literal["drawn", "given"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated memorisation per sample, all (n,); NaN for samples that were in all subsets or in none.

    Attributes:
        score: memorisation in [-1, 1].
        error: its standard error.
        inside: share of correct predictions among the models trained with the sample.
        outside: the same among the other models.
        models_in: number of models trained with the sample.
        models_out: number of the other models.
    """

    score: np.ndarray
    error: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    models_in: np.ndarray
    models_out: np.ndarray


def estimate(correct: np.ndarray, member: np.ndarray) -> Estimate:
    """Estimate memorisation.

    Args:
        correct: bool (models, n), whether the prediction is correct.
        member: bool (models, n), whether the sample was in the training subset.

    Raises:
        UsageError: if the shapes differ.

    >>> found = estimate(np.array([[1, 1], [1, 0]], bool), np.array([[1, 1], [0, 0]], bool))
    >>> found.score
    array([0., 1.])
    """
    is_correct, member = np.asarray(correct, dtype=bool), np.asarray(member, dtype=bool)
    if is_correct.ndim != 2 or is_correct.shape != member.shape:
        raise UsageError(
            f"`correct` and `member` must be two (models, samples) matrices of one shape, got {is_correct.shape} and "
            f"{member.shape}."
        )
    models_in, models_out = member.sum(0), (~member).sum(0)
    hits_in, hits_out = (is_correct & member).sum(0), (is_correct & ~member).sum(0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: not known
        inside, outside = hits_in / models_in, hits_out / models_out
    variance = _variance(hits_in, models_in) + _variance(hits_out, models_out)
    error = np.where((models_in > 0) & (models_out > 0), np.sqrt(variance), np.nan)
    return Estimate(inside - outside, error, inside, outside, models_in, models_out)


def _variance(hits: np.ndarray, trials: np.ndarray) -> np.ndarray:
    share = (hits + 1) / (trials + 2)
    return share * (1 - share) / (trials + 2)


def subset(data: Split, share: float, seed: int, number: int) -> Split:
    """The random subset of model `number`: int(share * n) samples in the order of the data.

    Raises:
        UsageError: if it has no sample or all of them.
    """
    count = int(share * len(data))
    if not 0 < count < len(data):
        raise UsageError(
            f"`share` {share:g} of {len(data)} samples leaves a model without samples in or out; choose another share."
        )
    order = torch.randperm(len(data), generator=torch_generator(seed, WHAT, "subset", number))
    return data.take(data.index[order[:count].sort().values], f"subset {number}")


def memorisation(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    run: Run,
    *,
    models: int = 40,
    share: float = 0.7,
    start: Start = "drawn",
) -> SampleScores:
    """Estimate memorisation of all samples of `data`.

    With `run.cache`, the predictions of every finished model are cached under a hash of everything that determines
    them. A stopped call continues from there, and processes that compute the same scores at once share the work.

    Args:
        model: architecture, and initial weights if `start` is "given"; it is copied.
        data: the samples.
        recipe: how the models are trained.
        run: device, cache and seeds.
        models: number of models, at least 2; a later call with more models reuses the cached ones.
        share: size of each subset as a share of the data, in (0, 1).
        start: initial weights of each model: random ("drawn", as in the paper), or those of `model` ("given"), for a
            model that was pre-trained on other data.

    Returns:
        Scores with the columns score, error, inside, outside, models_in and models_out (see `Estimate`).

    Raises:
        UsageError: for too few models or an unusable share.
    """
    if models < 2:
        raise UsageError(f"`models` must be at least 2, one with a sample and one without, got {models}.")
    members = [subset(data, share, run.seed, number) for number in range(models)]
    trainings = [
        _SubsetTraining(model, data, members[number], recipe, run, number, models, start) for number in range(models)
    ]
    correct = np.stack(_collect(trainings, ArrayCache(run.cache, origin_of(data))))
    member = np.stack([torch.isin(data.index, part.index).numpy() for part in members])
    estimates = estimate(correct, member)
    unknown = int(np.isnan(estimates.score).sum())
    note = f"{unknown} of {len(data)} samples were in all models or in none, so their score is empty; use more models."
    facts = {"by": "subsampling", "models": models, "share": share, "start": start}
    return SampleScores.of(data, "subsampling", vars(estimates), facts=facts, notes=(note,) if unknown else ())


@dataclass(frozen=True, eq=False)
class _SubsetTraining:
    """The training of one of the models, of which only the predictions are kept."""

    model: nn.Module
    data: Split
    part: Split
    recipe: Recipe
    outer: Run
    number: int
    models: int
    start: Start

    def key_and_student(self) -> tuple[str, nn.Module, Run]:
        """Cache key, the model with its initial weights, and its run."""
        run = self._run()
        student = copy.deepcopy(self.model)
        if self.start == "drawn":
            reset_parameters(student, seed=run.seed_for("start"))
        trained = training_key(student, self.part, self.recipe, run.seed, WHAT, run.precision)
        facts = json.dumps([code_hash(__name__), trained, self.data.content_hash()])
        return hashlib.sha256(facts.encode()).hexdigest(), student, run

    def row(self, student: nn.Module, run: Run) -> np.ndarray:
        """Train the model; bool (n,): whether its prediction of each sample of the data is correct."""
        with global_generators(run.device):
            train_model(student, self.part, self.recipe, run, purpose=WHAT)
        return answers(student, self.data, run.device).numpy()

    def _run(self) -> Run:
        epochs, outer = self.recipe.epochs, self.outer

        def progress(event: Progress) -> None:
            done = self.number * epochs + event.done
            outer.report(f"{WHAT}: epochs of {self.models} models", done, self.models * epochs, event.numbers)

        return Run(
            seed=outer.seed_for(WHAT, self.number),
            device=outer.device,
            precision=outer.precision,
            compile=outer.compile,
            label=f"model {self.number + 1} of {self.models}",
            progress=progress,
        )


def answers(model: nn.Module, data: Split, device: torch.device | str) -> Tensor:
    """Bool (n,), on the CPU: whether the predictions equal the labels of the split."""
    return predict(model, data, device).argmax(1).cpu() == data.y


def _collect(trainings: list[_SubsetTraining], rows: ArrayCache) -> list[np.ndarray]:
    """Rows of all models; first those that no other process works on, then those that others have finished or left."""
    results: dict[int, np.ndarray] = {}
    for wait in (False, True):
        for training in trainings:
            if training.number in results:
                continue
            key, student, run = training.key_and_student()
            try:
                with rows.locked(key, wait=wait):
                    results[training.number] = _cached_row(rows, key, len(training.data), training, student, run)
            except Timeout:
                continue
    return [results[number] for number in range(len(trainings))]


def _cached_row(
    rows: ArrayCache, key: str, count: int, training: _SubsetTraining, student: nn.Module, run: Run
) -> np.ndarray:
    stored = rows.get(key)
    if stored is not None and {"bits", "seconds"} <= set(stored):
        training.outer.count_seconds(float(stored["seconds"]))
        return np.unpackbits(stored["bits"], count=count).astype(bool)
    row = training.row(student, run)
    rows.put(key, bits=np.packbits(row), seconds=np.array(run.elapsed()))
    return row
