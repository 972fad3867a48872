"""Metrics declare what they read and receive shared predictions: one forward pass per (model, split)."""

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
"""Which value is good: higher, lower, close to the retrained reference, or close to one half (an attack guessing)."""

REFERENCE = "retrained"  # the name of the retrained model among the evaluated ones
ORIGINAL = "original"  # and of the model before unlearning
SPLITS = ("forget", "retain", "test", "validation")


@dataclass(frozen=True)
class Value:
    """One number. low, high: its 95 % interval where there is one. group: e.g. a class name.

    note: why there is no number, where `value` is NaN (`missing`).
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
    """Values that cannot be had: NaN, with the reason."""
    return [Value(name, math.nan, unit, direction, group=group, note=why) for name in names]


class Evaluation:
    """Models, splits, and everything computed from the two, once.

    models: name -> model; the one named "retrained" is the reference. seconds: name -> seconds of unlearning.
    world: processes that share the predictions; what is computed from these, each computes for itself.
    sample: positions in the store of the retained samples that the published attack learns from; None: it draws some.
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
        """(len(split), classes), float32, CPU."""
        key = (model, split)
        if key not in self._logits:
            with visiting(self.models[model], self.device) as module:
                self._logits[key] = predict(module, self.splits[split], self.device, world=self.world).cpu()
        return self._logits[key]

    def augmented(self, model: str, split: str, augment: Augment, seed: int) -> Tensor:
        """Logits of randomly augmented samples, (len(split), classes), float32, CPU; computed anew in every call."""
        parts = []
        with visiting(self.models[model], self.device) as module, evaluation_mode(module), torch.inference_mode():
            for batch in self.splits[split].batches(EVAL_BATCH, seed=seed, augment=augment, device=self.device):
                parts.append(module(batch.x).float().cpu())
        return torch.cat(parts)

    def features(self, model: str, split: str, part: Split | None = None) -> Tensor:
        """What enters the model's head, (len(split), d), float32, CPU; of an ensemble, of its members side by side.

        The pass that finds them gives the logits, too: who needs both asks for the features first. part: some of the
        split's samples, where only these are wanted. Raises `UsageError` if the head cannot be identified.
        """
        return self.both(model, split, part)[1]

    def both(self, model: str, split: str, part: Split | None = None) -> tuple[Tensor, Tensor]:
        """Logits and features of a split, or of a part of it."""
        key, whole = (model, split), self.splits[split]
        if key not in self._features:
            if part is not None and len(part) < len(whole):  # what is kept is of whole splits
                return self._look(model, part)
            logits, self._features[key] = self._look(model, whole)
            self._logits.setdefault(key, logits)
        if part is None:
            return self._logits[key], self._features[key]
        rows = _positions(whole.index, part.index)
        return self._logits[key][rows], self._features[key][rows]

    def _look(self, model: str, split: Split) -> tuple[Tensor, Tensor]:
        with visiting(self.models[model], self.device) as module:
            if model not in self._points:
                self._points[model] = points_of(module, next(iter(split.batches(2, device=self.device))).x)
            return with_features(module, split, self._points[model], self.device, self.world)

    def labels(self, split: str) -> Tensor:
        return self.splits[split].y

    def true_labels(self, split: str) -> Tensor | None:
        """Long (len(split),): labels as they were before the scenario changed some; None where it changed none.

        A scenario that spoils labels does so in the splits; their store keeps the true ones.
        """
        part = self.splits[split]
        truth = part.store.labels[part.index]
        return None if torch.equal(truth, part.y) else truth

    def rows(self, split: str, positions: Tensor) -> Tensor:
        """Where samples are in a split. positions: long (n,), in the store. `UsageError` if one is not in the split."""
        index = self.splits[split].index
        if not bool(torch.isin(positions, index).all()):
            raise UsageError(f"some of the {len(positions)} positions are not in the {split} set; leave them out.")
        return _positions(index, positions)

    def correct(self, model: str, split: str) -> Tensor:
        """Bool (len(split),): arg-max equals the label."""
        return self.logits(model, split).argmax(1) == self.labels(split)

    def losses(self, model: str, split: str) -> Tensor:
        """Cross-entropy per sample, float64 (len(split),)."""
        return F.cross_entropy(self.logits(model, split).double(), self.labels(split), reduction="none")

    def present(self, names: Iterable[str] = SPLITS) -> list[str]:
        return [name for name in names if name in self.splits]

    @property
    def has_reference(self) -> bool:
        return REFERENCE in self.models

    def removed_classes(self) -> Tensor:
        """Classes that occur in the forget but not in the retain split."""
        if "forget" not in self.splits or "retain" not in self.splits:
            return torch.empty(0, dtype=torch.long)
        forget, retain = self.labels("forget").unique(), self.labels("retain").unique()
        return forget[~torch.isin(forget, retain)]


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The model on `device` inside the block, and at home again after it."""
    home = next((p.device for p in model.parameters()), device)
    model.to(device)
    try:
        yield model
    finally:
        model.to(home)


def _positions(whole: Tensor, part: Tensor) -> Tensor:
    """Where each element of `part` is in `whole`; both long (n,), part within whole."""
    order = whole.argsort()
    return order[torch.searchsorted(whole[order], part)]


class Metric(ABC):
    """requires: splits it cannot do without. Options are fields, as for methods.

    on_request: measured only where it is named, because it costs much more than a look at predictions.
    reads_features: measured first, so that one pass gives predictions and features.
    later: options that came after studies had been run. At their default they are no part of a cell's id, so that
    what was measured without them is still found.
    """

    card: ClassVar[Card]
    requires: ClassVar[tuple[str, ...]] = ()
    requires_reference: ClassVar[bool] = False
    on_request: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    later: ClassVar[tuple[str, ...]] = ()

    def applies(self, evaluation: Evaluation) -> bool:
        return all(name in evaluation.splits for name in self.requires) and (
            evaluation.has_reference or not self.requires_reference
        )

    @abstractmethod
    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        """Values of one model."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def metric(name: str, *, summary: str = "", needs: str = "") -> Callable[[type[C]], type[C]]:
    """Class decorator: validated frozen dataclass, registered under `name`."""

    def decorate(cls: type[C]) -> type[C]:
        made = options(cls)
        made.card = METRICS.card(name) if not summary else Card(name=name, summary=summary, needs=needs)
        METRICS.add(made.card, made)
        return made

    return decorate


def default_metrics() -> list[Metric]:
    """Every registered metric with its defaults, without those that are measured on request only."""
    found = [build(METRICS.load(name), {}, name) for name in METRICS.usable()]
    return [metric for metric in found if not metric.on_request]


def check_applies(metrics: Iterable[Metric], evaluation: Evaluation) -> None:
    """`UsageError` for the first metric whose inputs are missing."""
    for one in metrics:
        if not one.applies(evaluation):
            raise UsageError(f"{one.card.name} needs {one.card.needs}; pass them or leave the metric out.")


def measure(
    evaluation: Evaluation, metrics: Sequence[Metric], model: str, asked: Collection[Metric] = ()
) -> list[list[Value]]:
    """Values of one model.

    Args:
        evaluation: The models and splits.
        metrics: What to measure.
        model: Name of the model.
        asked: Those that were asked for by name.

    Returns:
        A list per metric, in order. It is empty where the inputs of the metric are missing, and a value that cannot be
        had (`missing`) is left out, unless the metric was asked for.

    Raises:
        UsageError: If the inputs of a metric that was asked for are missing.
    """
    check_applies([one for one in metrics if one in asked], evaluation)
    values: list[list[Value]] = [[] for _ in metrics]
    for i in sorted(range(len(metrics)), key=lambda i: not metrics[i].reads_features):
        if metrics[i].applies(evaluation):
            measured = metrics[i].compute(evaluation, model)
            values[i] = [value for value in measured if metrics[i] in asked or not value.note]
    return values
