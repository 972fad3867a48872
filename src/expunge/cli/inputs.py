"""From the settings of a command to data, models and what is known about a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from expunge.api.fit import settle_normalisation
from expunge.api.prepare import pick_device
from expunge.api.saved import Data, facts_beside, kept_importance, literals, read_data, share_test, start_weights
from expunge.api.trained import TrainedModel
from expunge.cli import console
from expunge.cli.fields import read_yaml, typed_options
from expunge.cli.folder import SETTINGS, read_json
from expunge.cli.jobs import Audit, Evaluate, Memorise, Repair, Train, Unlearn
from expunge.core.errors import CheckpointError, UsageError
from expunge.core.options import to_dict
from expunge.data.duplicates import copies_among
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights
from expunge.scenarios.base import ForgetSplit, parse_scenario
from expunge.training.recipe import Recipe

Job = Train | Unlearn | Evaluate | Audit | Memorise | Repair
J = TypeVar("J")


class HasData(Protocol):
    """Settings that name data; `test` and `validation` are read where they have them."""

    @property
    def data(self) -> str:
        """What names the data."""

    @property
    def data_options(self) -> dict[str, Any]:
        """Options of the data."""


def load_data(job: HasData, *, holdout: float = 0.0, split_seed: int = 0) -> Data:
    """The data of a job; `holdout` of the training part becomes validation data."""
    return read_data(vars(job), holdout=holdout, split_seed=split_seed)


def data_of(job: HasData, training: dict[str, Any]) -> Data:
    """The data of a job, with the part held out that the training of its checkpoint held out."""
    holdout, seed = float(training.get("holdout", 0.0)), int(training.get("split_seed", 0))
    return load_data(job, holdout=holdout, split_seed=seed)


def data_for(job: J, checkpoint: Path) -> tuple[J, Data]:
    """The data for a checkpoint of the job, read as its model wants them; and the job with what that takes.

    Of a checkpoint that says nothing about its training, the preprocessing of pixels is not known: where the job does
    not state it, the training accuracy decides (`settle_normalisation`).
    """
    settings: Any = job
    training = training_of(checkpoint)
    data = data_of(settings, training)
    if training or "normalise" in settings.data_options:
        return job, data
    model, other_splits = build(settings, data.train, weights=checkpoint), [data.test, data.validation]
    taken, note = settle_normalisation(model, data.train, other_splits, device=pick_device(settings.device))
    if not taken:
        return job, data
    console.say(f"note: {note}")
    return replace(settings, data_options={**settings.data_options, "normalise": taken}), data


def without_held_out(data: Data, unlearned: Path | None) -> Data:
    """Test data without the samples that were held out of the test data of that time when a checkpoint was unlearned.

    Where the test data are others now, only copies of these samples are left out.
    """
    settings = read_json(unlearned.parent / SETTINGS) if unlearned is not None else None
    if settings is None or data.test is None or settings.get("validation") or data.validation is not None:
        return data
    fraction = float(settings.get("test_held_out") or 0.0)
    known = facts_beside(unlearned).get("data", {}).get("validation") if unlearned is not None else None
    test, held_out = share_test(data.test, fraction)
    if known is None or (held_out is not None and held_out.content_hash() == known):
        return replace(data, test=test)
    held_out = read_data(settings).validation
    if held_out is None:
        return data
    copies = copies_among(data.test, held_out)
    if not bool(copies.any()):
        return data
    if bool(copies.all()):
        raise UsageError(f"all test samples were held out when {unlearned} was made; name others with --test.")
    console.say(f"note: {int(copies.sum()):,} test samples are left out; they were held out when {unlearned} was made.")
    return replace(data, test=data.test.take(data.test.index[~copies]))


def split_data(job: Train | Unlearn | Evaluate | Audit | Memorise, train: Split) -> ForgetSplit:
    """The scenario of `--forget`, applied to the training data."""
    return parse_scenario(str(job.forget)).split(train, job.split_seed)


def build(job: Job, train: Split, *, seed: int = 0, weights: Path | None = None) -> nn.Module:
    """The model of a job, freshly initialised or with the weights of a checkpoint."""
    model = build_model(
        job.model,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        seed=seed,
        options=literals(job.model_options),
    )
    return model if weights is None else load_weights(model, weights)


def training_of(checkpoint: Path) -> dict[str, Any]:
    """How a checkpoint was trained, as the result.json beside it tells; empty for weights of other origin."""
    training = facts_beside(checkpoint).get("training", {})
    if not isinstance(training, dict):
        raise CheckpointError(f"result.json beside {checkpoint} is damaged; delete it or pass --recipe.")
    return training


def recipe_of(path: Path | None, training: dict[str, Any]) -> Recipe | None:
    """The recipe in the file `given`, else that of the training; None if it is not known."""
    if path is None:
        return Recipe(**training["recipe"]) if "recipe" in training else None
    try:
        return Recipe(**typed_options(Recipe, read_yaml(path)))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def original(job: Unlearn | Audit | Repair, checkpoint: Path, *, data: Data, train: Split) -> TrainedModel:
    """The model in a checkpoint, with what is known of its training.

    Args:
        job: Names the model; `recipe` and `initial` of it come before what is written down.
        checkpoint: The weights; a result.json beside them tells of the training.
        data: The data of the job.
        train: What the model was trained on, with the labels it learned.
    """
    training = training_of(checkpoint)
    initial = getattr(job, "initial", None)
    if initial is None:
        start = start_weights(to_dict(job), training, train)
    else:
        start = build(job, train, weights=initial).state_dict()
    return TrainedModel(
        model=build(job, train, weights=checkpoint),
        train=train,
        held_out=data.validation,
        test=data.test,
        recipe=recipe_of(job.recipe, training),
        initial=start,
        seed=training.get("seed"),
        importance=kept_importance(checkpoint if checkpoint.is_dir() else checkpoint.parent, facts_beside(checkpoint)),
        facts={"training": training, "drawn": initial is None and training.get("checkpoint") is None},
    )


def for_references(trained: TrainedModel) -> TrainedModel:
    """The same model for training references: where its initial weights were drawn, each reference draws its own.

    Those of a model that was fine-tuned from a checkpoint, or that `--initial` names, are kept.
    """
    return replace(trained, initial=None) if trained.facts["drawn"] else trained


def is_trained_on(trained: TrainedModel) -> bool:
    """Whether `train` is exactly what is written down of the training; True if nothing is."""
    written = trained.facts["training"].get("data", "")
    return written == "" or (trained.train is not None and written == trained.train.content_hash())
