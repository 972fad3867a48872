"""The base class of metrics, and the evaluation that shares predictions: one forward pass per (model, split)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, dataclass_transform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.distributed import ALONE, World
from expunge.core.errors import UsageError
from expunge.core.options import Field, build, options
from expunge.core.registry import Card
from expunge.data.split import Augment, Split
from expunge.metrics import METRICS
from expunge.metrics.features import Points, points_of, with_features
from expunge.models.modes import evaluation_mode
from expunge.training.inference import EVAL_BATCH, predict

C = TypeVar("C", bound="Metric")
Unit = Literal["fraction", "nats", "seconds", "ratio", "count", "distance"]
Direction = Literal["higher", "lower", "reference", "half"]
"""Which value is good: higher, lower, close to the retrained reference, or close to one half (chance)."""

REFERENCE = "retrained"  # name of the retrained model among the evaluated models
ORIGINAL = "original"  # name of the model before unlearning
SPLITS = ("forget", "retain", "test", "validation")


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        metric: name of the number; a metric may have several.
        value: the number; NaN if it is missing.
        unit: its unit.
        direction: which values are good.
        low: lower end of its 95 % interval, if there is one.
        high: upper end.
        group: what it belongs to, e.g. a class name.
        note: why there is no number, if `value` is NaN.
    """

    metric: str
    value: float
    unit: Unit
    direction: Direction
    low: float | None = None
    high: float | None = None
    group: str = ""
    note: str = ""


def missing(why: str, unit: Unit, direction: Direction, *names: str, group: str = "") -> list[Value]:
    """NaN values for numbers that cannot be computed; `why` is the reason."""
    return [Value(name, math.nan, unit, direction, group=group, note=why) for name in names]


class Evaluation:
    """Models, splits, and everything computed from them, cached.

    Args:
        models: name -> model; the one named "retrained" is the reference.
        splits: name -> split.
        device: where predictions are computed; models are moved there and back.
        seed: of random subsets and of attacks.
        seconds: name -> seconds of unlearning.
        world: processes that share the predictions.
        sample: positions in the store of the retained samples that the published attack is trained on; None: random
            ones.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        splits: Mapping[str, Split],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        seconds: Mapping[str, float] | None = None,
        world: World = ALONE,
        sample: Tensor | None = None,
    ) -> None:
        self.models = dict(models)
        self.splits = dict(splits)
        self.device = torch.device(device)
        self.seed = seed
        self.seconds = dict(seconds or {})
        self.world = world
        self.sample = sample
        self._logits: dict[tuple[str, str], Tensor] = {}
        self._features: dict[tuple[str, str], Tensor] = {}
        self._points: dict[str, Points] = {}

    def logits(self, model: str, split: str) -> Tensor:
        """Logits (len(split), classes), float32, CPU."""
        key = (model, split)
        if key not in self._logits:
            with on_device(self.models[model], self.device) as module:
                self._logits[key] = predict(module, self.splits[split], self.device, world=self.world).cpu()
        return self._logits[key]

    def augmented(self, model: str, split: str, augment: Augment, seed: int) -> Tensor:
        """Logits of randomly augmented samples, (len(split), classes), float32, CPU; not cached."""
        parts = []
        with on_device(self.models[model], self.device) as module, evaluation_mode(module), torch.inference_mode():
            for batch in self.splits[split].batches(EVAL_BATCH, seed=seed, augment=augment, device=self.device):
                parts.append(module(batch.x).float().cpu())
        return torch.cat(parts)

    def features(self, model: str, split: str, part: Split | None = None) -> Tensor:
        """Input of the model's head, (len(split), d), float32, CPU; of an ensemble, its members' concatenated.

        The same pass caches the logits: if both are needed, ask for the features first.

        Args:
            model: name of the model.
            split: name of the split.
            part: a subset of the split, if only its features are needed.

        Raises:
            UsageError: if the classification head cannot be identified.
        """
        return self.both(model, split, part)[1]

    def both(self, model: str, split: str, part: Split | None = None) -> tuple[Tensor, Tensor]:
        """Logits and features of a split, or of the subset `part`; arguments and errors as in `features`."""
        key, whole = (model, split), self.splits[split]
        if key not in self._features:
            if part is not None and len(part) < len(whole):  # only whole splits are cached
                return self._look(model, part)
            logits, self._features[key] = self._look(model, whole)
            self._logits.setdefault(key, logits)
        if part is None:
            return self._logits[key], self._features[key]
        rows = _positions(whole.index, part.index)
        return self._logits[key][rows], self._features[key][rows]

    def _look(self, model: str, split: Split) -> tuple[Tensor, Tensor]:
        with on_device(self.models[model], self.device) as module:
            if model not in self._points:
                self._points[model] = points_of(module, next(iter(split.batches(2, device=self.device))).x)
            return with_features(module, split, self._points[model], self.device, self.world)

    def labels(self, split: str) -> Tensor:
        """Labels (len(split),), as the scenario gives them."""
        return self.splits[split].y

    def true_labels(self, split: str) -> Tensor | None:
        """Labels (len(split),) before the scenario changed some; None if it changed none.

        A scenario that corrupts labels does so in the splits; their store keeps the true ones.
        """
        part = self.splits[split]
        truth = part.store.labels[part.index]
        return None if torch.equal(truth, part.y) else truth

    def rows(self, split: str, positions: Tensor) -> Tensor:
        """Rows in a split (n,) of samples given by their positions in the store (n,).

        Raises:
            UsageError: if a sample is not in the split.
        """
        index = self.splits[split].index
        if not bool(torch.isin(positions, index).all()):
            raise UsageError(f"some of the {len(positions)} positions are not in the {split} set; omit them.")
        return _positions(index, positions)

    def correct(self, model: str, split: str) -> Tensor:
        """Bool (len(split),): arg-max equals the label."""
        return self.logits(model, split).argmax(1) == self.labels(split)

    def losses(self, model: str, split: str) -> Tensor:
        """Cross-entropy per sample, float64 (len(split),)."""
        return F.cross_entropy(self.logits(model, split).double(), self.labels(split), reduction="none")

    def present(self, names: Iterable[str] = SPLITS) -> list[str]:
        """The names of the given splits, out of `names`."""
        return [name for name in names if name in self.splits]

    @property
    def has_reference(self) -> bool:
        """Whether a retrained model is among the models."""
        return REFERENCE in self.models

    def removed_classes(self) -> Tensor:
        """Classes (k,) that occur in the forget but not in the retain split."""
        if "forget" not in self.splits or "retain" not in self.splits:
            return torch.empty(0, dtype=torch.long)
        forget, retain = self.labels("forget").unique(), self.labels("retain").unique()
        return forget[~torch.isin(forget, retain)]


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The model on `device` within the context, and on its own device afterwards."""
    previous = next((p.device for p in model.parameters()), device)
    model.to(device)
    try:
        yield model
    finally:
        model.to(previous)


def _positions(whole: Tensor, part: Tensor) -> Tensor:
    """Position in `whole` of each element of `part`, a subset of it."""
    order = whole.argsort()
    return order[torch.searchsorted(whole[order], part)]


class Metric(ABC):
    """A metric: frozen options (fields) and `compute`.

    Attributes:
        card: name, summary and required inputs, from the registry.
        requires: splits without which it cannot be computed.
        requires_reference: whether it needs a retrained model.
        on_request: measured only if named, because it costs much more than predictions.
        reads_features: measured first, so that one pass gives predictions and features.
        later: options added after studies had been run. At their default they are not part of a cell's id, so that
            earlier results remain valid.
    """

    card: ClassVar[Card]
    requires: ClassVar[tuple[str, ...]] = ()
    requires_reference: ClassVar[bool] = False
    on_request: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    later: ClassVar[tuple[str, ...]] = ()

    def applies(self, evaluation: Evaluation) -> bool:
        """Whether the required splits and models are there."""
        return all(name in evaluation.splits for name in self.requires) and (
            evaluation.has_reference or not self.requires_reference
        )

    @abstractmethod
    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        """Values of one model."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def metric(name: str, *, summary: str = "", needs: str = "") -> Callable[[type[C]], type[C]]:
    """Class decorator: make the class a validated frozen dataclass and register it under `name`.

    Args:
        name: what users write, e.g. "mia-auc".
        summary: one line for listings; built-in metrics have their card in `expunge.metrics` and give only `name`.
        needs: the required inputs, in a few words.
    """

    def decorate(cls: type[C]) -> type[C]:
        built = options(cls)
        built.card = METRICS.card(name) if not summary else Card(name=name, summary=summary, needs=needs)
        METRICS.add(built.card, built)
        return built

    return decorate


def default_metrics() -> list[Metric]:
    """All registered metrics with default options, except those measured on request only."""
    built = [build(METRICS.load(name), {}, name) for name in METRICS.usable()]
    return [metric for metric in built if not metric.on_request]


def check_applies(metrics: Iterable[Metric], evaluation: Evaluation) -> None:
    """Raise `UsageError` for the first metric whose inputs are missing."""
    for metric in metrics:
        if not metric.applies(evaluation):
            raise UsageError(f"{metric.card.name} needs {metric.card.needs}; pass them or omit the metric.")


def measure(
    evaluation: Evaluation, metrics: Sequence[Metric], model: str, asked: Collection[Metric] = ()
) -> list[list[Value]]:
    """Compute metrics of one model.

    Args:
        evaluation: models, splits and their predictions.
        metrics: what to compute.
        model: name of the model.
        asked: those that were requested by name: missing inputs are an error, and missing numbers are NaN with the
            reason. For all others both are omitted.

    Returns:
        A list per metric, in order; empty if inputs of the metric are missing.

    Raises:
        UsageError: if the inputs of a metric in `asked` are missing.
    """
    check_applies([metric for metric in metrics if metric in asked], evaluation)
    values: list[list[Value]] = [[] for _ in metrics]
    for i in sorted(range(len(metrics)), key=lambda i: not metrics[i].reads_features):
        if metrics[i].applies(evaluation):
            measured = metrics[i].compute(evaluation, model)
            values[i] = [value for value in measured if metrics[i] in asked or not value.note]
    return values
