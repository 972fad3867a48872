"""From the settings of a command to data, models and what is known about a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge.cli.fields import read_yaml, typed_options
from expunge.cli.jobs import Audit, Evaluate, Memorise, Repair, Train, Unlearn
from expunge.core import distributed
from expunge.core.errors import CheckpointError, DataError, UsageError
from expunge.core.seeds import torch_generator
from expunge.data.sources import load_pair
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights, weights_hash
from expunge.scenarios.base import Forgetting, parse_scenario
from expunge.training.recipe import Recipe

Job = Train | Unlearn | Evaluate | Audit | Memorise | Repair


class HasData(Protocol):
    """Settings that name data; `test` and `validation` are read where they have them."""

    @property
    def data(self) -> str: ...
    @property
    def data_options(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Data:
    """train: what the original was trained on. validation: samples that it never saw."""

    train: Split
    test: Split | None
    validation: Split | None = None


def load_data(job: HasData, *, holdout: float = 0.0, split_seed: int = 0) -> Data:
    """The data of a job; `holdout` of the training part becomes validation data."""
    with distributed.current().in_turn():
        return _load_data(job, holdout, split_seed)


def _load_data(job: HasData, holdout: float, split_seed: int) -> Data:
    try:
        train, test = load_pair(job.data, **job.data_options)
    except DataError as error:
        raise DataError(f"{error} `expunge inspect {job.data}` shows how the data are read.") from None
    other = getattr(job, "test", None)
    if other is not None:
        test = _extra(other, job, train)
    held = None
    if holdout:
        train, held = hold_out(train, holdout, split_seed)
    own = getattr(job, "validation", None)
    return Data(train, test, _extra(own, job, train) if own is not None else held)


def _extra(spec: str, job: HasData, train: Split) -> Split:
    """Test or validation data of their own, normalised as the training data are."""
    first, second = load_pair(spec, **job.data_options)
    chosen = second if second is not None else first
    if second is None and Path(spec).resolve() == Path(job.data).resolve():
        raise UsageError(
            f"`{spec}` is what the model was trained on, so it cannot measure anything unseen; name other data, "
            "or train with `--holdout 0.1`."
        )
    chosen.store.normalisation = train.store.normalisation
    return chosen


def hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """A random part is kept out of training: (the rest, the part), both in ascending order."""
    count = int(fraction * len(train))
    if not 0 < count < len(train):
        raise DataError(
            f"`holdout` {fraction:g} of {len(train)} samples leaves one side empty; choose another fraction."
        )
    order = torch.randperm(len(train), generator=torch_generator(seed, "holdout"))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return train.take(train.index[kept]), train.take(train.index[held], "validation")


def split_data(job: Train | Unlearn | Evaluate | Audit | Memorise, train: Split) -> Forgetting:
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


def literals(values: dict[str, Any]) -> dict[str, Any]:
    """Text of `name=value` as YAML reads it, for receivers whose types are not known here: numbers, lists, true."""
    import yaml

    made = {}
    for name, value in values.items():
        try:
            made[name] = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError:
            made[name] = value
    return made


def facts_beside(checkpoint: Path) -> dict[str, Any]:
    """What the result.json beside a checkpoint tells; empty for weights of other origin."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "result.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it, or pass what it told by options.") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is damaged (no mapping); delete it, or pass what it told by options.")
    return facts


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about, as far as a result.json beside it tells."""

    facts: dict[str, Any]

    @classmethod
    def beside(cls, checkpoint: Path) -> Training:
        """Empty for weights of other origin."""
        facts = facts_beside(checkpoint).get("training", {})
        if not isinstance(facts, dict):
            raise CheckpointError(f"result.json beside {checkpoint} is damaged; delete it or pass --recipe.")
        return cls(facts)

    @property
    def holdout(self) -> float:
        return float(self.facts.get("holdout", 0.0))

    def matches(self, train: Split) -> bool:
        """Whether these are exactly the samples and labels the model was trained on; True if nothing is known."""
        return self.facts.get("data", "") in ("", train.content_hash())

    def recipe(self, given: Path | None) -> Recipe | None:
        if given is not None:
            values = read_yaml(given)
            try:
                return Recipe(**typed_options(Recipe, values))
            except UsageError as error:
                raise UsageError(f"{given}: {error}") from None
        return Recipe(**self.facts["recipe"]) if "recipe" in self.facts else None

    def start(self, job: Unlearn | Audit | Repair, train: Split) -> dict[str, Tensor] | None:
        """The weights training started from: --initial, or rebuilt from the facts and verified by their hash."""
        given = getattr(job, "initial", None)
        if given is not None:
            return build(job, train, weights=given).state_dict()
        if "start" not in self.facts:
            return None
        pretrained = self.facts.get("checkpoint")
        if pretrained is not None and not Path(pretrained).is_file():
            return None
        model = build(job, train, seed=int(self.facts["seed"]), weights=Path(pretrained) if pretrained else None)
        return model.state_dict() if weights_hash(model) == self.facts["start"] else None

    @property
    def pretrained(self) -> bool:
        return self.facts.get("checkpoint") is not None
