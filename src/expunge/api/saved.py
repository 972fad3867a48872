"""From a folder back to a trained model; and from whatever a verb is given to one."""

from __future__ import annotations

import copy
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
from expunge.api.trained import IMPORTANCE, INITIAL, PARENT, RECORD, ROWS, WEIGHTS, TrainedModel, check_unseen, hold_out
from expunge.core import distributed
from expunge.core.errors import CheckpointError, DataError, UsageError
from expunge.core.needs import Needs
from expunge.data.sources import DataOptions, load_beside, load_data, load_pair, open_source
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights, read_weights, state_hash, weights_hash
from expunge.numerics.gradient_moments import Importance
from expunge.scenarios.base import ForgetSplit, parse_scenario
from expunge.training.recipe import make_recipe

FEWEST = 20
"""Test samples below which none of them are held out."""

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
    the data are where they were. After `.save()` pass the architecture as `model`; data that were read from a file or
    a catalogue are read again, other data must be given again as `data` where they are needed.

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
    training = record.get("training") or {}
    described = _described(job, training) if data is None and job is not None else None
    forgetting = None
    again = {} if job is not None else _read_again(place, record, {"train": data, "held_out": held_out, "test": test})
    splits = as_splits({"train": data, "validation": held_out, "test": test} | again)
    if described is not None:
        splits = {**described[0].splits(), **splits}
        forgetting = described[1]
    check_unseen(splits)
    module = _module(place, job, splits.get("train"), model)
    load_weights(module, place / WEIGHTS)
    if weights_hash(module) != record.get("weights", weights_hash(module)):
        raise CheckpointError(
            f"{place / WEIGHTS} does not hold the weights that {RECORD} beside it tells of; one of them was replaced "
            "or damaged: restore the folder, or save the model again."
        )
    before = parent
    if before is None and (place / PARENT).is_dir():
        first = splits.get("train") if data is None else data
        before = load(place / PARENT, model=copy.deepcopy(module), data=first, held_out=held_out, test=test)
    elif before is None:
        before = _parent(job, record)
    parts = _parts(place, record, splits) if forgetting is None else _partition(record, forgetting)
    recipe = record.get("recipe") or training.get("recipe")
    common: dict[str, Any] = {
        "model": module,
        "train": parts.get("train"),
        "held_out": splits.get("validation", parts.get("held_out")),
        "test": splits.get("test"),
        "recipe": None if recipe is None else make_recipe(recipe),
        "initial": _initial(place, job, training, module, splits.get("train")),
        "seed": record.get("training_seed", training.get("seed", record.get("seed"))),
        "importance": kept_importance(place, record),
        "parent": before,
        "given": splits["train"] if "held_out" in parts else None,
    }
    if "forget" in parts:
        common |= {"forget": parts["forget"], "forgetting": forgetting}
    return _made(record, common)


def _read_again(place: Path, record: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Split]:
    """The data that the record describes and nobody gave, by name, those that are still where they were.

    Raises:
        DataError: If they are not what they were.
    """
    splits: dict[str, Split] = {}
    for name, source in (record.get("sources") or {}).items():
        options = {key: value for key, value in source.items() if key != "hash"}
        try:
            split = None if given.get(name) is not None else load_data(**options)
        except (DataError, UsageError):
            continue
        if split is not None and split.content_hash() != source["hash"]:
            raise DataError(
                f"{source['spec']} changed since {place} was written; restore it, or pass "
                f"{'data' if name == 'train' else name}=... to expunge.load."
            )
        if split is not None:
            splits["validation" if name == "held_out" else name] = split
    return splits


def load_result(folder: str | Path, **known: Any) -> Result:
    """`load`, where nothing but a result will do."""
    loaded = load(folder, **known)
    if not isinstance(loaded, Result):
        raise CheckpointError(f"{folder} holds a model that was trained elsewhere, no result; use expunge.load(...).")
    return loaded


_RUN = (
    "importance",
    "sources",
    "training_seed",
    "status",
    "seconds",
    "stages",
    "needs",
    "weights",
    "notes",
    "details",
    "effect",
    "history",
    "format",
)


def _made(record: Mapping[str, Any], common: dict[str, Any]) -> TrainedModel:
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
    return None if job is None or train is None else start_weights(job, training, train)


def kept_importance(place: Path, record: Mapping[str, Any]) -> Importance | None:
    """The importance of the training data beside a model; None where there is none.

    Raises:
        CheckpointError: If the file is damaged or the record does not tell what it holds.
    """
    if not (place / IMPORTANCE).is_file():
        return None
    values = read_weights(place / IMPORTANCE)
    try:
        return Importance(**record["importance"], values=values)
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{place / RECORD} does not tell what {IMPORTANCE} beside it holds; restore the folder, or train again."
        ) from None


def start_weights(job: Mapping[str, Any], training: Mapping[str, Any], train: Split) -> dict[str, Tensor] | None:
    """The weights that a training of the command line started from, built again.

    Args:
        job: Settings that name the model.
        training: What was written down of the training; empty for weights of other origin.
        train: Data of the shape that the model takes.

    Returns:
        The state dict, or None if it is not known, cannot be built, or would be another one.
    """
    if "start" not in training:
        return None
    checkpoint = training.get("checkpoint")
    if checkpoint is not None and not Path(checkpoint).is_file():
        return None
    model = _built(job, train, seed=int(training["seed"]))
    if checkpoint is not None:
        load_weights(model, checkpoint)
    state = model.state_dict()
    return dict(state) if state_hash(state) == training["start"] else None


def facts_beside(checkpoint: Path) -> dict[str, Any]:
    """What the result.json beside a checkpoint tells; empty for weights of other origin."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / RECORD
    return read_mapping(path) if path.exists() else {}


def _parent(job: Mapping[str, Any] | None, record: Mapping[str, Any]) -> TrainedModel | None:
    """The model that a folder of the command line was unlearned from, if it is still what it was."""
    checkpoint = Path(str((job or {}).get("checkpoint")))
    if job is None or "method" not in job or not checkpoint.is_file():
        return None
    if (checkpoint.parent / RECORD).is_file() and checkpoint.name == WEIGHTS:
        parent = load(checkpoint)
        return parent if weights_hash(parent.model) == record.get("original") else None
    return None


def _parts(place: Path, record: Mapping[str, Any], splits: Mapping[str, Split]) -> dict[str, Split]:
    """What the model was trained on or still knows, and what it forgot, checked by content."""
    train = splits.get("train")
    if train is None:
        return {}
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
class Data:
    """Data as the settings of a command name them.

    Attributes:
        train: What a model is trained on, without what is held out.
        test: Samples that no model saw, where the source or a setting names some.
        validation: Held-out samples.
    """

    train: Split
    test: Split | None
    validation: Split | None = None

    def splits(self) -> dict[str, Split]:
        """Those that there are, by name."""
        return as_splits({"train": self.train, "validation": self.validation, "test": self.test})


def read_data(job: Mapping[str, Any], *, holdout: float = 0.0, split_seed: int = 0) -> Data:
    """The data that settings name: `data` and `data_options`; `test` and `validation` where they have them.

    Args:
        job: The settings of a command.
        holdout: Fraction of the training part that becomes validation data.
        split_seed: Of that draw.

    Raises:
        DataError: If data cannot be read.
        UsageError: If `test` or `validation` name the training data.
    """
    with distributed.current().main_first():
        spec, options = str(job["data"]), dict(job.get("data_options") or {})
        try:
            train, test = load_pair(spec, **options)
        except DataError as error:
            raise DataError(f"{error} `expunge inspect {spec}` shows how the data are read.") from None
        if job.get("test") is not None:
            test = _extra(str(job["test"]), spec, options, train)
        held = None
        if holdout:
            train, held = hold_out(train, holdout, split_seed)
        if job.get("validation") is not None:
            held = _extra(str(job["validation"]), spec, options, train)
        if held is None and test is not None:
            test, held = share_test(test, float(job.get("test_held_out") or 0.0))
        return Data(train, test, held)


def share_test(test: Split, fraction: float) -> tuple[Split, Split | None]:
    """Hold a part of the test samples out for methods, guard and effect: (what is left to measure with, that part).

    Always the same part for the same data and fraction, so that later commands leave it out, too. Nothing is held out
    where either side would have fewer than `FEWEST` samples.
    """
    count = int(fraction * len(test))
    if min(count, len(test) - count) < FEWEST:
        return test, None
    return hold_out(test, fraction, 0)


def _extra(spec: str, training: str, options: Mapping[str, Any], train: Split) -> Split:
    """Test or validation data of their own, normalised as the training data are."""
    same = Path(spec).resolve() == Path(training).resolve()
    if same and open_source(spec, DataOptions.of(options)).test_part is None:
        raise UsageError(
            f"`{spec}` is what the model was trained on, so it cannot measure anything unseen; name other data, "
            "or train with `--holdout 0.1`."
        )
    return load_beside(spec, train, **options)


def _described(job: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[Data, ForgetSplit | None] | None:
    """Data and partition of the settings beside a result; None where the data are no longer where they were."""
    spec = str(job["data"])
    if not spec.startswith("hf:") and ("/" in spec or "." in spec) and not Path(spec).exists():
        return None
    own = "holdout" in job  # of `expunge train`; other commands find it in what was written down of the training
    source = job if own else training
    found = read_data(job, holdout=float(source.get("holdout") or 0.0), split_seed=int(source.get("split_seed") or 0))
    forgetting = None
    if job.get("forget") is not None:
        forgetting = parse_scenario(str(job["forget"])).split(found.train, int(job.get("split_seed", 0)))
    return found, forgetting


def _partition(record: Mapping[str, Any], split: ForgetSplit) -> dict[str, Split]:
    """What a folder of the command line was trained on or still knows, and what it forgot, checked by content."""
    written = record.get("data") or {}
    trains = (
        {"train": split.train} if record.get("kind") == "train" else {"train": split.retain, "forget": split.forget}
    )
    if record.get("kind") == "train" and written.get("train") == split.retain.content_hash():
        trains = {"train": split.retain}
    expected = {"train": written.get("train", written.get("retain")), "forget": written.get("forget")}
    for name, part in trains.items():
        if expected[name] and expected[name] != part.content_hash():
            raise DataError("the data changed since this folder was written; restore them, or pass data=...")
    return trains


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
