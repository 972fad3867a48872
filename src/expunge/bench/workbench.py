"""What cells share, built once per process: data, originals, references; trained models are kept on disk by content."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from expunge.api.experiment import Experiment
from expunge.api.prepare import pick_device, warm_up
from expunge.api.record import CellRecord, curves, request_rows
from expunge.api.result import Result, versions
from expunge.api.trained import TrainedModel
from expunge.bench.cells import Cell
from expunge.bench.kept import KeptModels
from expunge.bench.projection import projection
from expunge.bench.recipe import DataPart, Study
from expunge.bench.samples import load_source, parts, sized
from expunge.core.errors import Cancelled, ExpungeError
from expunge.core.options import build, to_dict
from expunge.core.run import Progress, Run
from expunge.data.split import Split
from expunge.methods.base import Method
from expunge.metrics.base import ORIGINAL, REFERENCE, Evaluation, measure
from expunge.models.anatomy import anatomy, reset_parameters
from expunge.models.build import build_model
from expunge.models.checkpoint import weights_hash
from expunge.scenarios.base import ForgetSplit
from expunge.training.cache import train_cached
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trained:
    """An original model and what its training took."""

    model: nn.Module
    weights: str
    seconds: float
    epochs: int


class SharedEvaluation(Evaluation):
    """An evaluation that takes what cells of a group share, predictions of the original and the reference, from it."""

    def __init__(self, shared: dict[str, Tensor], *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._shared = shared

    def logits(self, model: str, split: str) -> Tensor:
        if model not in (ORIGINAL, REFERENCE):
            return super().logits(model, split)
        key = f"{model} {split}"
        if key not in self._shared:
            self._shared[key] = super().logits(model, split)
        return self._shared[key]


@dataclass
class Workbench:
    """Runs cells of one study. cache: folder of trained models. stages: key -> facts of what was built for them.

    folder: of the study, where unlearned models are kept; None: none are.
    """

    study: Study
    cache: Path
    progress: Callable[[Progress], None] | None = None
    folder: Path | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)

    def source(self) -> tuple[Split, Split]:
        """Training and test data of the study."""
        return self._once("source", lambda: load_source(self.study.data))

    def fingerprint(self) -> str:
        """Content hash of the data source."""
        train, test = self.source()
        return hashlib.sha256((train.content_hash() + test.content_hash()).encode()).hexdigest()

    def data(self, seed: int) -> tuple[Split, Split | None, Split]:
        """(train, validation or None, test) of one data seed."""
        return self._once(f"data {seed}", lambda: parts(self.source(), self.study.data, seed))

    def forgetting(self, cell: Cell) -> ForgetSplit:
        """The forget and retain split of a cell."""
        seed = cell.seeds["data"]
        return self._once(f"forgetting {cell.group}", lambda: cell.scenario.split(self.data(seed)[0], seed))

    def start(self, cell: Cell) -> nn.Module:
        """The start checkpoint: freshly drawn, or a pretrained body with a new head."""
        train, seed = self.forgetting(cell).train, cell.seeds["train"]
        shape, classes = train.input_shape, train.num_classes

        def make() -> nn.Module:
            fresh = self._fresh(shape, classes, seed)
            return fresh if self.study.pretrain is None else self._pretrained(fresh, shape, seed)

        return self._once(f"start {seed} {shape} {classes}", make)

    def original(self, cell: Cell) -> Trained:
        """The model that remembers: trained on all of the scenario's training set, noisy labels included."""
        train, seed = self.forgetting(cell).train, cell.seeds["train"]
        key = f"original {train.content_hash()} {seed}"

        def make() -> Trained:
            start, recipe = self.start(cell), self.study.recipe()
            run = self._run(seed, "original", start, train, recipe)
            warm_up()
            trained = train_cached(copy.deepcopy(start), train, recipe, run)
            model = trained.cpu().eval()
            seconds = run.elapsed() + run.cached_seconds
            original = Trained(model, weights_hash(model), seconds, len(run.history))
            facts = {"kind": "original", "weights": original.weights, "seconds": seconds, "epochs": original.epochs}
            self.stages[key] = {**facts, "seed": seed, "data": train.content_hash()}
            return original

        return self._once(key, make)

    def reference(self, cell: Cell) -> Result | None:
        """The retrained model of this scenario and these seeds; None in a study that goes without."""
        method = self.study.reference()
        if method is None:
            return None
        return self._once(
            f"reference {cell.group}", lambda: self._result(cell, cell.reference, method, cell.seeds["train"])
        )

    @property
    def kept(self) -> KeptModels:
        """The unlearned models of earlier runs."""
        return KeptModels(self.folder, self.study.keep, 1e9 * self.study.keep_gb)

    def _result(self, cell: Cell, model: str, method: Method, seed: int) -> Result:
        """The model `model` of a cell: a kept one, or the method runs."""
        train = self.forgetting(cell).train
        stored = self.kept.load(model, lambda: self._fresh(train.input_shape, train.num_classes, 0))
        return self.apply(cell, method, seed) if stored is None else stored

    def apply(self, cell: Cell, method: Method, seed: int) -> Result:
        """One method on this cell's scenario and models."""
        return self._experiment(cell, method, seed).unlearn()

    def _experiment(self, cell: Cell, method: Method, seed: int) -> Experiment:
        forgetting = self.forgetting(cell)
        _, validation, test = self.data(cell.seeds["data"])
        trained = TrainedModel(
            model=self.original(cell).model,
            train=forgetting.train,
            held_out=validation,
            test=test,
            recipe=self.study.recipe(),
            initial=self.start(cell).state_dict(),
            seed=cell.seeds["train"],
        )
        return Experiment(
            trained, forgetting, method, seed, device=self.study.device, precision=self.study.precision,
            cache=self.cache, progress=self.progress,
        )  # fmt: skip

    def attempt(self, cell: Cell) -> CellRecord | str:
        """`record`, or the sentence of its failure: one broken cell must not cost a study its other cells."""
        try:
            return self.record(cell)
        except Cancelled:
            raise
        except ExpungeError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # a method of a third party may fail in any way
            return f"{type(error).__name__}: {error}"

    def record(self, cell: Cell) -> CellRecord:
        """Run one cell, whatever it takes of shared stages, and measure it."""
        reference = self.reference(cell)
        if reference is not None and cell.method == self.study.reference():
            name, result = REFERENCE, reference
        else:
            name, result = "unlearned", self._result(cell, cell.model, cell.method, cell.seeds["unlearn"])
        evaluation = self._evaluation(cell, reference, name, result)
        scores = self._scores(cell, evaluation, name)
        record = result.record()
        why = ""
        if cell.method.same_tensors and (name != REFERENCE or self.study.keep == "all"):
            nearness = functools.cache(lambda: gap(evaluation, name))
            why = self.kept.store(cell.model, result, scores, group=str(cell.group), gap=nearness)
        experiment = self._experiment(cell, cell.method, cell.seeds["unlearn"])
        original = self.original(cell)
        return experiment.cell(
            {**record, "notes": [*record["notes"], *([why] if why else [])]},
            id=cell.id,
            study=self.study.name,
            scores=[row for score in cell.scores for row in scores[score]] + request_rows(result.details),
            curves={
                **(scores["curves"] if self.study.curves else {}),
                **({"projection": scores["projection"]} if self.study.projection else {}),
            },
            data=experiment.splits["test"].store.name,  # not the path it was read from, which is the reader's own
            scenario=cell.scenario_label,
            method=(cell.method_label, cell.method.card, to_dict(cell.method)),
            model={
                "name": self.study.model.name,
                "options": dict(self.study.model.options),
                "parameters": sum(p.numel() for p in result.model.parameters()),
            },
            seeds=cell.seeds,
            provenance={
                "model": cell.model,
                "versions": versions(),
                "recipe": to_dict(self.study.recipe()),
                "hashes": result.facts["data"],
                "original": original.weights,
                "original_seconds": original.seconds,
                "device": str(pick_device(self.study.device)),
                "hardware": hardware(self.study.device),
                "peak_memory_mb": peak_memory_mb(),
            },
        )

    def _evaluation(self, cell: Cell, reference: Result | None, name: str, result: Result) -> Evaluation:
        splits = self._experiment(cell, cell.method, cell.seeds["unlearn"]).splits
        shared: dict[str, Tensor] = self._once(f"predictions {cell.group}", dict)
        results = {**({} if reference is None else {REFERENCE: reference}), name: result}
        return SharedEvaluation(
            shared,
            {ORIGINAL: self.original(cell).model, **{key: entry.model for key, entry in results.items()}},
            splits,
            device=pick_device(self.study.device),
            seed=cell.seeds["evaluate"],
            seconds={key: entry.seconds for key, entry in results.items()},
            sample=self.forgetting(cell).sample,
        )

    def _scores(self, cell: Cell, evaluation: Evaluation, name: str) -> dict[str, Any]:
        """Score id -> rows of this cell's model (the reference has its own cell); what is known is not computed."""
        stored, requested = self.kept.scores(cell.model), self.study.asked_metrics()
        left = {s: m for s, m in zip(cell.scores, self.study.named_metrics(), strict=True) if s not in stored}
        for score, values in zip(left, measure(evaluation, list(left.values()), name, requested), strict=True):
            stored[score] = [asdict(value) for value in values]
        if self.study.curves and "curves" not in stored:
            stored["curves"] = curves(evaluation, name)
        if self.study.projection and "projection" not in stored:
            stored["projection"] = projection(evaluation, name)
        return stored

    def _pretrained(self, fresh: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
        part = self.study.pretrain
        if part is None:
            return fresh
        source = DataPart(
            source=part.source or self.study.data.source,
            classes=part.classes,
            normalise=self.study.data.normalise,
            image_size=self.study.data.image_size,
        )
        train = sized(load_source(source)[0], part.train_size, "balanced", part.seed, "pretrain.train_size")
        body = self._fresh(shape, train.num_classes, part.seed)
        recipe = build(Recipe, part.recipe, "pretrain.recipe")
        train_cached(body, train, recipe, self._run(part.seed, "pretraining", body, train, recipe), purpose="pretrain")
        head = anatomy(body.cpu(), next(iter(train.batches(2))).x).head
        body_weights = {name: value for name, value in body.state_dict().items() if not name.startswith(f"{head}.")}
        fresh.load_state_dict({**fresh.state_dict(), **body_weights})
        reset_parameters(fresh, [head], seed=seed)
        return fresh

    def _fresh(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        spec = self.study.model
        return build_model(spec.name, num_classes=classes, input_shape=shape, seed=seed, options=spec.options)

    def _run(self, seed: int, label: str, model: nn.Module, data: Split, recipe: Recipe) -> Run:
        device = pick_device(self.study.device)
        return Run(
            seed=seed,
            device=device,
            precision=resolve_precision(self.study.precision, model, data, recipe.batch_size, device),
            label=label,
            progress=self.progress,
            cache=self.cache,
        )

    def _once(self, key: str, make: Callable[[], T]) -> T:
        """The thing kept under `key`; a failure is kept too, so a broken reference is not trained for every cell."""
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except ExpungeError as error:
                self._kept[key] = error
        if isinstance(self._kept[key], ExpungeError):
            raise self._kept[key]
        value: T = self._kept[key]
        return value


def gap(evaluation: Evaluation, model: str) -> float:
    """Mean absolute difference of the accuracies on forget, retained and test samples to those of the retrained model.

    Infinite without a retrained model.
    """
    if not evaluation.has_reference:
        return math.inf
    both = [
        [float(evaluation.correct(name, split).double().mean()) for name in (model, REFERENCE)]
        for split in evaluation.present(("forget", "retain", "test"))
    ]
    return sum(abs(value - other) for value, other in both) / len(both)


def hardware(device: str) -> str:
    """The device in words."""
    chosen = pick_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1024**2 if sys.platform == "darwin" else 1024), 1)
