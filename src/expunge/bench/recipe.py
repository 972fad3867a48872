"""The study recipe: one YAML file that is the whole comparison. Typed, validated, composable with `extends`.

    name: demo
    data: {source: digits, validation: 0.1}
    model: {name: small-cnn}
    train: {epochs: 20, batch_size: 64, lr: 0.05}
    scenarios: ["class:3", {name: random, amount: 0.1, label: a random tenth}]
    methods: [finetune, {name: scrub, label: SCRUB+R, rewind: true}]
    seeds: [0, 1, 2]
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field, ValidationError

from expunge.core.errors import UsageError, nearest
from expunge.core.run import Precision
from expunge.data.sources import Normalise
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.metrics import METRICS
from expunge.scenarios.base import Scenario, make_scenario, parse_scenario
from expunge.training.recipe import Recipe

SEEDS = ("data", "train", "unlearn", "evaluate")


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataPart(_Part):
    """Which samples. Sizes are drawn class-balanced by the data seed; 0: all."""

    source: str = Field(description="catalogue name, hf:<id>, or a path")
    classes: tuple[int | str, ...] | None = Field(None, description="keep only these classes, renumbered; none: all")
    train_size: int = Field(0, ge=0, description="training samples (validation included); 0: all")
    test_size: int = Field(0, ge=0, description="test samples; 0: all")
    validation: float = Field(0.0, ge=0, lt=1, description="share of the training samples held out of training")
    normalise: Normalise = Field("standard", description="pixel constants")
    image_size: int | None = Field(None, description="side of the square images; none: as they are")
    resample: bool = Field(False, description="draw subsets and validation anew for every data seed")


class ModelPart(_Part):
    """Which architecture."""

    name: str = Field(description="catalogue name, package.module:function, or path/to/file.py:function")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the factory")


class PretrainPart(_Part):
    """Train the body on other data first; the head is then drawn anew (SCRUB paper)."""

    source: str = Field(description="as in `data`")
    classes: tuple[int | str, ...] | None = Field(None, description="keep only these classes")
    train_size: int = Field(0, ge=0, description="samples; 0: all")
    recipe: dict[str, Any] = Field(default_factory=dict, description="training recipe of the pretraining")
    seed: int = Field(1, description="of the pretraining")


class Seeds(_Part):
    """One list per source of randomness; lists of equal length are paired, a single value is repeated."""

    data: tuple[int, ...] = (0,)
    train: tuple[int, ...] = (0,)
    unlearn: tuple[int, ...] = (0,)
    evaluate: tuple[int, ...] = (0,)

    def rows(self) -> list[dict[str, int]]:
        length = max(len(getattr(self, name)) for name in SEEDS)
        columns = {}
        for name in SEEDS:
            values = getattr(self, name)
            if len(values) not in (1, length):
                raise UsageError(f"seeds: `{name}` has {len(values)} values, the longest list {length}; pair or repeat.")
            columns[name] = values * length if len(values) == 1 else values
        return [{name: columns[name][i] for name in SEEDS} for i in range(length)]


class Study(_Part):
    """A grid: data x model x scenarios x methods x seeds, always with a retrained reference."""

    name: str = Field(min_length=1, description="short name; part of no result")
    title: str = Field("", description="heading of the report")
    about: str = Field("", description="what was reduced against the published setting, and why")
    data: DataPart
    model: ModelPart
    pretrain: PretrainPart | None = None
    train: dict[str, Any] = Field(default_factory=dict, description="training recipe, see `Recipe`")
    scenarios: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="`class:3`, or a mapping with `name`")
    methods: Literal["all"] | tuple[str | dict[str, Any], ...] = Field(description="`all`, names, or mappings with `name`")
    options: dict[str, dict[str, Any]] = Field(default_factory=dict, description="method -> options, where listed by name")
    skip: tuple[str, ...] = Field((), description="methods that `all` leaves out")
    seeds: tuple[int, ...] | Seeds = Field((0,), description="paired seeds, or one list per source of randomness")
    metrics: tuple[str, ...] | None = Field(None, description="none: every metric whose inputs are there")
    device: str = "auto"
    precision: Precision = "float32"

    @pydantic.field_validator("methods", "scenarios", "seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def recipe(self) -> Recipe:
        return _within("train", lambda: Recipe(**self.train))

    def seed_rows(self) -> list[dict[str, int]]:
        seeds = self.seeds
        return seeds.rows() if isinstance(seeds, Seeds) else [dict.fromkeys(SEEDS, seed) for seed in seeds]

    def named_scenarios(self) -> list[tuple[str, Scenario]]:
        """(label, scenario), in order."""
        found = []
        for i, item in enumerate(self.scenarios):
            given = dict(item) if isinstance(item, dict) else {}
            label = str(given.pop("label", item if isinstance(item, str) else ""))
            name = str(given.pop("name", ""))
            made = _within(
                f"scenarios[{i}]",
                lambda item=item, name=name, given=given: (
                    parse_scenario(item) if isinstance(item, str) else make_scenario(name, given)
                ),
            )
            found.append((label or _label(name, given), made))
        return _distinct("scenario", found)

    def named_methods(self) -> list[tuple[str, Method]]:
        """(label, method), in order; `retrain` comes first whatever the recipe says: it is the reference."""
        items: Iterable[str | dict[str, Any]] = (
            [n for n in METHODS.names() if n not in self.skip] if self.methods == "all" else self.methods
        )
        found = []
        for i, item in enumerate(items):
            given = dict(item) if isinstance(item, dict) else {"name": item, **self.options.get(item, {})}
            label, name = str(given.pop("label", "")), str(given.pop("name", ""))
            made = _within(f"methods[{i}]", lambda name=name, given=given: make_method(name, **given))
            found.append((label or (name if isinstance(item, str) else _label(name, given)), made))
        if not any(method.card.name == "retrain" for _, method in found):
            found.insert(0, ("retrain", make_method("retrain")))
        found.sort(key=lambda pair: pair[1].card.name != "retrain")
        return _distinct("method", found)

    def checked(self) -> Study:
        """Everything that can be wrong is found now, not in the tenth hour."""
        self.recipe()
        self.named_scenarios()
        self.named_methods()
        self.seed_rows()
        for name in self.metrics or ():
            METRICS.load(name)
        stray = set(self.options) - set(METHODS.names())
        if stray:
            raise UsageError(f"options: unknown method `{min(stray)}`; {nearest(min(stray), METHODS.names())}.")
        return self


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Read a recipe; `overrides` are `key.subkey=value` strings in YAML syntax. Raises `UsageError` naming file and key."""
    content = _read(Path(path), ())
    for text in overrides:
        override(content, text)
    return parse_study(content, str(path))


def parse_study(content: Mapping[str, Any], where: str = "study") -> Study:
    try:
        return Study.model_validate(content).checked()
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def override(content: dict[str, Any], text: str) -> None:
    """Set one value in place: `train.epochs=3`, `seeds=[0, 1]`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"expected key=value, got `{text}`; for example train.epochs=3.")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UsageError(f"`{key}` cannot be set: `{parent}` is not a mapping.")
        place = inner
    place[last] = yaml.safe_load(value)


def json_schema() -> str:
    """JSON Schema of a recipe, so that editors complete it."""
    return json.dumps(Study.model_json_schema(), indent=2)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UsageError(f"{path} extends itself; remove one `extends`.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist; `expunge reproduce --list` shows the built-in ones.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"recipe {path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path} must be a mapping of keys to values.")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    return _merge(_read(path.parent / str(parent), (*seen, path.resolve())), content)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced."""
    merged = copy.deepcopy(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _within(where: str, make: Any) -> Any:
    try:
        return make()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _label(name: str, given: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{name} ({options})" if options else name


def _distinct(kind: str, found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    labels = [label for label, _ in found]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UsageError(f"two {kind}s are labelled `{twice[0]}`; give one of them another `label`.")
    return found


def _explain(error: ValidationError) -> str:
    sentences = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            allowed = _fields_at(item["loc"][:-1])
            sentences.append(f"unknown key `{path}`; {nearest(str(item['loc'][-1]), allowed)}.")
        elif item["type"] == "missing":
            sentences.append(f"`{path}` is required.")
        else:
            message = item["msg"].removeprefix("Input ")
            sentences.append(f"`{path}` {message[:1].lower()}{message[1:]}, got {item['input']!r}.")
    return " ".join(sentences)


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[pydantic.BaseModel]] = {
        "data": DataPart,
        "model": ModelPart,
        "pretrain": PretrainPart,
        "seeds": Seeds,
    }
    return list((parts.get(str(path[0]), Study) if path else Study).model_fields)
