"""From a folder back to a trained model; and from whatever a verb is given to one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.effect import Effect
from expunge.api.prepare import as_module, as_splits
from expunge.api.result import Result
from expunge.api.trained import INITIAL, RECORD, ROWS, WEIGHTS, TrainedModel, check_unseen, hold_out
from expunge.core import distributed
from expunge.core.errors import CheckpointError, DataError, UsageError
from expunge.core.needs import Needs
from expunge.data.sources import load_pair
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights, read_weights, state_hash, weights_hash
from expunge.scenarios.base import Forgetting, parse_scenario
from expunge.training.recipe import make_recipe

SETTINGS = "settings.json"


def as_trained(model: Any, what: str = "model") -> TrainedModel:
    """What every verb makes of its model: a `TrainedModel` or result, a folder, or a module of which nothing is known.

    Raises:
        UsageError: If `model` is none of these.
        CheckpointError: If a folder holds no model, or a damaged one.
    """
    if isinstance(model, TrainedModel):
        return model
    if isinstance(model, (str, Path)):
        if not Path(model).exists():
            raise UsageError(
                f"{what}: there is no folder {model}; pass one that `expunge train`, `expunge unlearn` or .save() "
                "wrote, a trained model, or a torch.nn.Module."
            )
        return load(model)
    return TrainedModel(model=as_module(model, what))


def load(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    held_out: Any = None,
    test: Any = None,
    parent: TrainedModel | None = None,
) -> TrainedModel:
    """The trained model in a folder that `expunge train`, `expunge unlearn` or `.save()` wrote.

    The command line writes down how model and data are made, so such a folder needs no further argument as long as
    the data are where they were. After `.save()` pass the architecture as `model`, and the data if they are needed.

    Args:
        folder: The folder, or the `model.safetensors` in it.
        model: A module of the architecture; it is filled with the weights.
        data: The data the first model of the chain was trained on; checked by content against what is written down.
        held_out: Held-out data; default: what the folder tells of.
        test: Test data; default: what the folder tells of.
        parent: The model that this one was unlearned from; default: the checkpoint that the settings name.

    Returns:
        A `Result` where the folder holds a history, else a `TrainedModel`.

    Raises:
        CheckpointError: If the folder holds no model of ours, is damaged, or its weights are not those of its record.
        UsageError: If the architecture is not written down and `model` is missing.
        DataError: If `data` are not what the model was trained on.
    """
    place = Path(folder)
    place = place.parent if place.name == WEIGHTS else place
    record = _record(place)
    job = _settings(place)
    known = _Data.of(job, record) if data is None and job is not None else None
    splits = as_splits({"train": data, "validation": held_out, "test": test})
    if known is not None:
        splits = {**known.splits(), **splits}
    check_unseen(splits)
    module = _module(place, job, splits.get("train"), model)
    load_weights(module, place / WEIGHTS)
    if weights_hash(module) != record.get("weights", weights_hash(module)):
        raise CheckpointError(
            f"{place / WEIGHTS} does not hold the weights that {RECORD} beside it tells of; one of them was replaced "
            "or damaged: restore the folder, or save the model again."
        )
    before = parent if parent is not None else _parent(job, record)
    parts = _parts(place, record, splits, known)
    training = record.get("training") or {}
    recipe = record.get("recipe") or training.get("recipe")
    common: dict[str, Any] = {
        "model": module,
        "train": parts.get("train"),
        "held_out": splits.get("validation", parts.get("held_out")),
        "test": splits.get("test"),
        "recipe": None if recipe is None else make_recipe(recipe),
        "initial": _initial(place, job, training, module, splits.get("train")),
        "seed": training.get("seed", record.get("seed")),
        "parent": before,
        "given": splits["train"] if "held_out" in parts else None,
    }
    return _made(record, common, parts, known)


def load_result(folder: str | Path, **known: Any) -> Result:
    """`load`, where nothing but a result will do."""
    loaded = load(folder, **known)
    if not isinstance(loaded, Result):
        raise CheckpointError(f"{folder} holds a model that was trained elsewhere, no result; use expunge.load(...).")
    return loaded


_RUN = ("status", "seconds", "stages", "needs", "weights", "notes", "details", "effect", "history", "format")


def _made(
    record: Mapping[str, Any], common: dict[str, Any], parts: Mapping[str, Split], known: _Data | None
) -> TrainedModel:
    facts = {name: value for name, value in record.items() if name not in _RUN}
    if "history" not in record:
        return TrainedModel(**common, facts=facts)
    return Result(
        **common,
        facts=facts,
        history=list(record["history"]),
        seconds=float(record["seconds"]),
        status=str(record["status"]),
        needs=Needs(**record["needs"]),
        stages=dict(record["stages"]),
        notes=list(record["notes"]),
        details=dict(record["details"]),
        effect=None if record.get("effect") is None else Effect.of_record(record["effect"]),
        forget=parts.get("forget"),
        forgetting=known.forgetting if known is not None and "forget" in parts else None,
    )


def _record(place: Path) -> dict[str, Any]:
    path = place / RECORD
    if not path.is_file() or not (place / WEIGHTS).is_file():
        raise CheckpointError(
            f"{place} holds no {WEIGHTS} with its {RECORD}; name a folder that `expunge train`, `expunge unlearn` or "
            ".save() wrote, or load the weights into a module and use expunge.TrainedModel.of(module, ...)."
        )
    record = read_mapping(path)
    if record.get("format") != 1:
        raise CheckpointError(
            f"{path} has format {record.get('format')!r}, and this version of Expunge reads 1; use the version that "
            "wrote it."
        )
    return record


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: If the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or make the folder again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged (no mapping); restore it, or make the folder again.")
    return content


def _settings(place: Path) -> dict[str, Any] | None:
    """The settings of the command that wrote the folder; None where Python did."""
    return read_mapping(place / SETTINGS) if (place / SETTINGS).is_file() else None


def _module(place: Path, job: Mapping[str, Any] | None, train: Split | None, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model
    if job is None or train is None:
        raise UsageError(f"{place} does not say how its model is built; pass model=... of the same architecture.")
    return _built(job, train)


def _built(job: Mapping[str, Any], train: Split, seed: int = 0) -> nn.Module:
    return build_model(
        str(job["model"]),
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        seed=seed,
        options=literals(job.get("model_options") or {}),
    )


def _initial(
    place: Path, job: Mapping[str, Any] | None, training: Mapping[str, Any], module: nn.Module, train: Split | None
) -> dict[str, Tensor] | None:
    """The weights training started from: kept beside the model, or drawn again and verified by their hash."""
    if (place / INITIAL).is_file():
        return read_weights(place / INITIAL)
    if job is None or train is None or "start" not in training:
        return None
    return start_weights(job, training, train)


def start_weights(job: Mapping[str, Any], training: Mapping[str, Any], train: Split) -> dict[str, Tensor] | None:
    """The start weights that `training` tells of, built again; None if they cannot be, or would be others."""
    checkpoint = training.get("checkpoint")
    if checkpoint is not None and not Path(checkpoint).is_file():
        return None
    model = _built(job, train, seed=int(training["seed"]))
    if checkpoint is not None:
        load_weights(model, checkpoint)
    state = model.state_dict()
    return dict(state) if state_hash(state) == training["start"] else None


def _parent(job: Mapping[str, Any] | None, record: Mapping[str, Any]) -> TrainedModel | None:
    """The model that a folder of the command line was unlearned from, if it is still what it was."""
    checkpoint = Path(str((job or {}).get("checkpoint")))
    if job is None or "method" not in job or not checkpoint.is_file():
        return None
    if (checkpoint.parent / RECORD).is_file() and checkpoint.name == WEIGHTS:
        parent = load(checkpoint)
        return parent if weights_hash(parent.model) == record.get("original") else None
    return None


def _parts(
    place: Path, record: Mapping[str, Any], splits: Mapping[str, Split], known: _Data | None
) -> dict[str, Split]:
    """What the model was trained on or still knows, and what it forgot, checked by content."""
    train = splits.get("train")
    if train is None:
        return {}
    if known is not None and known.forgetting is not None:
        known.check(record)
        return known.parts(record)
    written = record.get("data") or {}
    if (place / ROWS).is_file():
        rows = read_mapping(place / ROWS)
        if rows.get("origin") != train.content_hash():
            raise DataError(
                f"data are not those the first model of {place} was trained on; pass these, in their order."
            )
        unknown = torch.zeros(len(train), dtype=torch.bool)
        unknown[torch.tensor(rows["without"], dtype=torch.long)] = True
        parts = {"train": train.take(train.index[~unknown])}
        for name in ("forget", "held_out"):
            if name in rows:
                parts[name] = train.take(train.index[torch.tensor(rows[name], dtype=torch.long)], name)
        return parts
    expected = written.get("train", written.get("retain", ""))
    if expected and expected != train.content_hash():
        raise DataError(f"data are not those the model in {place} was trained on; pass these, in their order.")
    return {"train": train}


@dataclass(frozen=True)
class _Data:
    """Data as the settings of a command describe them."""

    whole: Split
    held_out: Split | None
    test: Split | None
    forgetting: Forgetting | None

    @classmethod
    def of(cls, job: Mapping[str, Any], record: Mapping[str, Any]) -> _Data | None:
        """None where the data are no longer where they were."""
        training = record.get("training") or {}
        spec = str(job["data"])
        options = literals(job.get("data_options") or {})
        if not spec.startswith("hf:") and ("/" in spec or "." in spec) and not Path(spec).exists():
            return None
        with distributed.current().in_turn():
            train, test = load_pair(spec, **options)
        held = None
        holdout = float(job.get("holdout", training.get("holdout", 0.0)))
        if holdout:
            seed = int(job["split_seed"] if "holdout" in job else training.get("split_seed", 0))
            train, held = hold_out(train, holdout, seed)
        forgetting = None
        if job.get("forget") is not None:
            forgetting = parse_scenario(str(job["forget"])).split(train, int(job.get("split_seed", 0)))
        return cls(train, held, test, forgetting)

    def splits(self) -> dict[str, Split]:
        given = {"train": self.whole, "validation": self.held_out, "test": self.test}
        return as_splits(given)

    def parts(self, record: Mapping[str, Any]) -> dict[str, Split]:
        split = self.forgetting
        assert split is not None  # noqa: S101  # callers have looked
        if record.get("kind") != "train":
            return {"train": split.retain, "forget": split.forget}
        retained = record["data"]["train"] == split.retain.content_hash()
        return {"train": split.retain if retained else split.train}

    def check(self, record: Mapping[str, Any]) -> None:
        split = self.forgetting
        written = record.get("data") or {}
        if split is None:
            return
        hashes = {"forget": {split.forget.content_hash()}, "train": {split.train.content_hash()}}
        hashes["train"].add(split.retain.content_hash())
        for name, allowed in hashes.items():
            if written.get(name) and written[name] not in allowed:
                raise DataError("the data changed since this folder was written; restore them, or pass data=...")


def literals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Text of `name=value` as YAML reads it, for receivers whose types are not known here: numbers, lists, true."""
    import yaml

    made = {}
    for name, value in values.items():
        try:
            made[name] = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError:
            made[name] = value
    return made
