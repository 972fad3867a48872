"""The study: one YAML file that is the whole comparison. Typed, validated, composable with `extends`.

    name: demo
    data: {source: digits, validation: 0.1}
    model: {name: small-cnn}
    train: {epochs: 20, batch_size: 64, lr: 0.05}
    scenarios: ["class:3", {name: random, amount: 0.1, label: a random tenth}]
    methods: [finetune, {name: scrub, label: SCRUB+R, rewind: true}]
    seeds: [0, 1, 2]

Short forms: `model: mlp`, `data: digits`, `seeds: 3` (the seeds 0, 1, 2), and a single name where a list is asked for.

Reading files, merging and error sentences: `bench.reading`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from expunge.core.errors import UsageError, nearest
from expunge.core.options import build, option_names
from expunge.core.run import Precision
from expunge.core.user_code import split_preset
from expunge.data.sources import Normalise
from expunge.methods import METHODS
from expunge.methods.base import IterativeMethod, Method, make_method
from expunge.metrics import METRICS
from expunge.metrics.base import Metric, default_metrics
from expunge.scenarios import SCENARIOS
from expunge.scenarios.base import Scenario, make_scenario, parse_scenario
from expunge.training.recipe import Recipe

SEEDS = ("data", "train", "unlearn", "evaluate")
T = TypeVar("T")
Keep = Literal["none", "best", "all"]
Items = tuple[str | dict[str, Any], ...]


class _Part(pydantic.BaseModel):
    """A block of the study. short: the key that a plain text stands for (`model: mlp` is `model: {name: mlp}`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    short: ClassVar[str | None] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {cls.short: value} if cls.short is not None and isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the short form, and no required key, for it may stand in the extended study."""
        schema = handler.resolve_ref_schema(handler(core))
        schema.pop("required", None)
        return {"anyOf": [{"type": "string"}, schema]} if cls.short is not None else schema


class DataPart(_Part):
    """Which samples; a source must have training and test samples."""

    short: ClassVar[str | None] = "source"

    source: str = Field(description="catalogue name, hf:<id>, or a path")
    classes: tuple[int | str, ...] | None = Field(None, description="keep only these classes, renumbered; none: all")
    train_size: int = Field(0, ge=0, description="training samples (validation included); 0: all")
    test_size: int = Field(0, ge=0, description="test samples; 0: all")
    draw: Literal["balanced", "prefix"] = Field(
        "balanced", description="how sizes are met: equal numbers per class, drawn by the data seed, or the first ones"
    )
    test_from: Literal["test", "train"] = Field(
        "test", description="`train`: test samples drawn from the training source, leaks included, as some papers do"
    )
    validation: float = Field(0.0, ge=0, lt=1, description="share of the training samples held out of training")
    normalise: Normalise = Field(
        "standard",
        description="pixel constants: the known ones, none, computed from the training samples, or those of a paper",
    )
    image_size: int | None = Field(None, ge=1, description="side of the square images; none: as they are")
    resample: bool = Field(False, description="draw subsets and validation anew for every data seed")


class ModelPart(_Part):
    """Which architecture."""

    short: ClassVar[str | None] = "name"

    name: str = Field(description="catalogue name, package.module:function, or path/to/file.py:function")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the factory")


class PretrainPart(_Part):
    """Train the body on other data first; the head is then drawn anew (SCRUB paper)."""

    source: str | None = Field(None, description="as in `data`; none: the same source, e.g. its other classes")
    classes: tuple[int | str, ...] | None = Field(None, description="keep only these classes")
    train_size: int = Field(0, ge=0, description="samples; 0: all")
    recipe: dict[str, Any] = Field(default_factory=dict, description="training recipe of the pretraining")
    seed: int = Field(1, description="of the pretraining")


class Seeds(_Part):
    """One list per source of randomness; lists of equal length are paired, a single value is repeated."""

    data: tuple[int, ...] = Field((0,), min_length=1)
    train: tuple[int, ...] = Field((0,), min_length=1)
    unlearn: tuple[int, ...] = Field((0,), min_length=1)
    evaluate: tuple[int, ...] = Field((0,), min_length=1)

    def rows(self) -> list[dict[str, int]]:
        """One mapping source -> seed per repetition."""
        length = max(len(getattr(self, name)) for name in SEEDS)
        columns = {}
        for name in SEEDS:
            values = getattr(self, name)
            if len(values) not in (1, length):
                raise UsageError(
                    f"seeds: `{name}` has {len(values)} values, the longest list {length}; pair or repeat."
                )
            columns[name] = values * length if len(values) == 1 else values
        return [{name: columns[name][i] for name in SEEDS} for i in range(length)]


class Space(_Part):
    """Values that tuning may choose from: a list, or a range. Bounds that are whole numbers give whole numbers."""

    values: tuple[Any, ...] | None = Field(None, min_length=1, description="a list, instead of low and high")
    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="draw evenly on a logarithmic scale")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A plain list is a list of values."""
        return {"values": tuple(value)} if isinstance(value, (list, tuple)) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = super().__get_pydantic_json_schema__(core, handler)
        return {"anyOf": [{"type": "array", "minItems": 1}, schema]}

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Space:
        if (self.values is None) == (self.low is None or self.high is None):
            raise ValueError("give either `values` (or a plain list), or `low` and `high`")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, got {self.low} and {self.high}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"with `log`, `low` must be positive, got {self.low}")
        return self


class TunePart(_Part):
    """What `expunge tune` may try. Part of no result."""

    trials: int = Field(12, ge=1, description="per method, the study's own options included")
    seeds: tuple[int, ...] = Field((100,), min_length=1, description="of data and training; not those of the study")
    rule: Literal["match", "rf-jsd"] = Field("match", description="how forgetting is judged without a retrained model")
    spaces: dict[str, dict[str, Space] | None] = Field(
        default_factory=dict,
        description="method label -> option -> values; a method without: its rates within a factor of ten, its epochs; "
        "null takes back what an extended study says",
    )


class PublishedPart(_Part):
    """Published numbers that one scenario is compared with."""

    table: str = Field(pattern="^[^/]+/[^/]+$", description="paper/table")
    scenario: str = Field("", description="label of the scenario; none: all")


class Study(_Part):
    """A grid: data x model x scenarios x methods x seeds, always with a retrained reference."""

    name: str = Field(min_length=1, description="short name; part of no result")
    title: str = Field("", description="heading of the report")
    about: str = Field("", description="what was reduced against the published setting, and why")
    data: DataPart
    model: ModelPart
    pretrain: PretrainPart | None = None
    train: dict[str, Any] = Field(default_factory=dict, description="training recipe, see `Recipe`")
    scenarios: Items = Field(min_length=1, description="`class:3`, or a mapping with `name`")
    methods: Literal["all"] | Items = Field(description="`all`, names, `name/preset`, or mappings with `name`")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="method -> options, for methods listed by bare name and by `all`"
    )
    max_drop: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="guard of every method that states no `max_drop`; none: off, for a study shows what a method does",
    )
    skip: tuple[str, ...] = Field((), description="methods that `all` leaves out")
    retrain: bool = Field(
        True, description="train the exact reference; false only where nobody could: nothing is then compared with it"
    )
    seeds: tuple[int, ...] | Seeds = Field(
        (0,), description="paired seeds, or one list per source of randomness; a number n: the seeds 0 to n - 1"
    )
    metrics: Items | None = Field(
        None,
        description="names, or mappings with `name`; `default`, or none: all whose inputs are there, but costly ones",
    )
    curves: bool = Field(True, description="keep sampled losses and confusion counts for the plots of the report")
    published: tuple[str | PublishedPart, ...] = Field(
        (), description="published numbers the report shows beside ours: paper/table; part of no result"
    )
    keep: Keep = Field(
        "none",
        description="unlearned models that stay in `models/` of the study's folder, so that metrics added later are "
        "measured without unlearning again: all, the one nearest to the retrained model per scenario and seeds, or "
        "none; part of no result",
    )
    keep_gb: float = Field(10.0, gt=0, description="gigabytes that kept models may take together")
    projection: bool = Field(False, description="keep representations in two dimensions for a plot of the report")
    tune: TunePart = Field(default_factory=lambda: TunePart(), description="search spaces of `expunge tune`")
    device: str = "auto"
    precision: Precision = "auto"

    @pydantic.field_validator("methods", "scenarios", "seeds", "metrics", "published", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if info.field_name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
            return tuple(range(value))
        if isinstance(value, str) and value != "all":
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    def recipe(self) -> Recipe:
        """The training recipe of the study."""
        return _make("train", Recipe, self.train)

    def seed_rows(self) -> list[dict[str, int]]:
        """One mapping of purpose -> seed per repetition."""
        seeds = self.seeds
        rows = seeds.rows() if isinstance(seeds, Seeds) else [dict.fromkeys(SEEDS, seed) for seed in seeds]
        if not rows:
            raise UsageError("`seeds` is empty; give at least one.")
        if any(rows.count(row) > 1 for row in rows):
            raise UsageError("`seeds` names the same seeds twice; every repetition needs its own.")
        return rows

    def named_scenarios(self) -> list[tuple[str, Scenario]]:
        """(label, scenario), in order."""
        scenarios = []
        for i, item in enumerate(self.scenarios):
            where = f"scenarios[{i}]"
            if isinstance(item, str):
                with _within(where):
                    scenarios.append((item, parse_scenario(item)))
                continue
            name, label, options = _parts(where, item)
            with _within(where):
                name = SCENARIOS.named(name)
                cls = SCENARIOS.load(name)
            _check_keys(where, cls, options)
            with _within(where):
                scenarios.append((label or _label(name, options), make_scenario(name, options)))
        return _distinct("scenario", scenarios)

    def named_methods(self) -> list[tuple[str, Method]]:
        """(label, method); `retrain` comes first and is always there, unless the study goes without a reference."""
        methods = []
        for where, label, name, options in self.method_items():
            with _within(where):
                name = METHODS.named(name)
                cls = METHODS.load(split_preset(name)[0])
            _check_keys(where, cls, options)
            with _within(where):
                guarded = issubclass(cls, IterativeMethod) and cls.card.name != "retrain"
                usual = {"max_drop": self.max_drop} if guarded else {}
                # As written, and else as the class has it: a study does not scale what it compares.
                methods.append((label, replace(make_method(name, **{**usual, **options}))))  # type: ignore[type-var]
        methods.sort(key=lambda pair: pair[1].card.name != "retrain")
        return _distinct("method", methods)

    def method_items(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """(place in the study, label, name, options as written) of every method, not checked yet."""
        items = list(self._listed_methods())
        listed = any(_name(item) == "retrain" for _, item in items)
        if listed and not self.retrain:
            raise UsageError("`retrain: false` says that nothing is trained again, but `methods` lists retrain.")
        if not self.retrain and self.keep == "best":
            raise UsageError("`keep: best` is the model nearest to the retrained one, and `retrain: false`; keep all.")
        if not listed and self.retrain:
            items.append(("retrain", "retrain"))
        entries = []
        for where, item in items:
            name, label, options = (item, item, {}) if isinstance(item, str) else _parts(where, item)
            if isinstance(item, str) and item in self.options:
                where, options = f"options.{item}", self.options[item]
            entries.append((where, label or _label(name, options), name, options))
        return entries

    def reference(self) -> Method | None:
        """The method whose result the others are compared with."""
        return self.named_methods()[0][1] if self.retrain else None

    def named_metrics(self) -> list[Metric]:
        """What is measured, of that what can be; `asked_metrics` must be possible."""
        use_defaults, requested = self.metrics is None or "default" in self.metrics, self.asked_metrics()
        named = {metric.card.name for metric in requested}  # their options replace the defaults
        return [*(m for m in default_metrics() if use_defaults and m.card.name not in named), *requested]

    def asked_metrics(self) -> list[Metric]:
        """The metrics that the study names."""
        metrics = []
        for i, item in enumerate(self.metrics or ()):
            where = f"metrics[{i}]"
            if item == "default":
                continue
            name, _, options = (item, "", {}) if isinstance(item, str) else _parts(where, item)
            with _within(where):
                cls = METRICS.load(METRICS.named(name))
            metrics.append(_make(where, cls, options))
        return metrics

    def references(self) -> list[tuple[str, str]]:
        """(paper/table, label of the scenario, or "" for all) of the published numbers to compare with."""
        labels = [label for label, _ in self.named_scenarios()]
        references = []
        for i, item in enumerate(self.published):
            table, scenario = (item, "") if isinstance(item, str) else (item.table, item.scenario)
            if scenario and scenario not in labels:
                raise UsageError(f"`published[{i}].scenario` is `{scenario}`; {nearest(scenario, labels)}.")
            references.append((table, scenario))
        return references

    def checked(self) -> Study:
        """Everything that can be wrong is found now, not in the tenth hour."""
        for kind, names in (("options", self.options), ("skip", self.skip)):
            for name in names:
                if name not in METHODS.names():
                    raise UsageError(f"unknown key `{kind}.{name}`; {nearest(name, METHODS.names())}.")
        self.recipe()
        if self.pretrain is not None:
            _make("pretrain.recipe", Recipe, self.pretrain.recipe)
        self.named_scenarios()
        self.named_methods()
        self.named_metrics()
        self.seed_rows()
        self.references()
        return self

    def check_options_used(self, names: Iterable[str]) -> None:
        """Raise `UsageError` if no method of the study takes up `options.NAME`."""
        listed = [item for _, item in self._listed_methods()]
        for name in names:
            if name in listed or (name == "retrain" and self.retrain and "retrain" not in map(_name, listed)):
                continue
            forms = [item for item in listed if _name(item) == name]
            where = (
                f"it is listed as {forms[0]!r}: give its options there"
                if forms
                else "it is not among `methods`: list it, or leave the options out"
            )
            raise UsageError(f"`options.{name}` is taken up by no method; {where}.")

    def _listed_methods(self) -> Iterable[tuple[str, str | dict[str, Any]]]:
        if self.methods == "all":
            left_out = (*self.skip, *(() if self.retrain else ("retrain",)))
            return [(f"method `{n}`", n) for n in METHODS.usable() if n not in left_out]
        return [(f"methods[{i}]", item) for i, item in enumerate(self.methods)]


def _parts(where: str, item: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """(name, label or "", options) of a mapping in a list."""
    entry = dict(item)
    if "name" not in entry:
        raise UsageError(f"`{where}.name` is required.")
    return str(entry.pop("name")), str(entry.pop("label", "")), entry


def _check_keys(where: str, cls: type, entry: Mapping[str, Any]) -> None:
    for key in entry:
        if key not in option_names(cls):
            raise UsageError(f"unknown key `{where}.{key}`; {nearest(str(key), option_names(cls))}.")


def _make(where: str, cls: type[T], options: Mapping[str, Any]) -> T:
    _check_keys(where, cls, options)
    with _within(where):
        return build(cls, options)


@contextmanager
def _within(where: str) -> Iterator[None]:
    """An error inside says where in the study it came from."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _name(item: str | Mapping[str, Any]) -> str:
    """The method's name without its preset."""
    return split_preset(str(item if isinstance(item, str) else item.get("name", "")))[0]


def _label(name: str, entry_options: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in entry_options.items())
    return f"{name} ({options})" if options else name


def _distinct(kind: str, entries: list[tuple[str, T]]) -> list[tuple[str, T]]:
    """Two of one label would be one row of the table; two of one setting would be computed once and shown twice."""
    labels: dict[str, T] = {}
    for label, thing in entries:
        if label in labels:
            raise UsageError(f"two {kind}s are labelled `{label}`; give one of them another `label`.")
        same = next((other for other, earlier in labels.items() if earlier == thing), None)
        if same is not None:
            raise UsageError(f"the {kind}s `{same}` and `{label}` have equal settings; remove one of them.")
        labels[label] = thing
    return entries
