"""From a study to cells, and from one cell to its record. Shared stages are built once and kept by content."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.evaluate import Scores, evaluate
from expunge.api.prepare import pick_device
from expunge.api.record import CellRecord, cell_from_result, curves, score_rows
from expunge.api.result import Result, versions
from expunge.api.unlearn import unlearn
from expunge.bench.recipe import DataPart, Study
from expunge.core.errors import UsageError
from expunge.core.options import build, to_dict
from expunge.core.run import Progress, Run
from expunge.core.seeds import torch_generator
from expunge.data.convert import harmonise_classes
from expunge.data.sources import load_pair
from expunge.data.split import ResidentStore, Split
from expunge.methods.base import Method
from expunge.metrics.base import REFERENCE
from expunge.models.anatomy import anatomy, reset_parameters
from expunge.models.build import build_model
from expunge.scenarios.base import Forgetting, Scenario
from expunge.scenarios.selections import class_number, draw
from expunge.training.cache import train_cached
from expunge.training.recipe import Recipe

FORMAT = 1  # raise when a cell of equal settings would give another record


@dataclass(frozen=True)
class Cell:
    """One point of the grid. id: content address of everything that decides the result; labels are not part of it."""

    id: str
    scenario_label: str
    scenario: Scenario
    method_label: str
    method: Method
    seeds: dict[str, int]


def cells(study: Study, fingerprint: str) -> list[Cell]:
    """All cells, in the order of the recipe: scenario, seed, method. fingerprint: content hash of the data."""
    found = []
    for scenario_label, scenario in study.named_scenarios():
        for seeds in study.seed_rows():
            for method_label, method in study.named_methods():
                facts = {
                    "format": FORMAT,
                    "data": {**study.data.model_dump(mode="json"), "source": fingerprint},
                    "model": study.model.model_dump(mode="json"),
                    "pretrain": study.pretrain.model_dump(mode="json") if study.pretrain else None,
                    "train": to_dict(study.recipe()),
                    "scenario": [scenario.card.name, to_dict(scenario)],
                    "method": [method.card.name, to_dict(method)],
                    "seeds": seeds,
                    "metrics": study.metrics,
                    "precision": study.precision,
                }
                digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
                found.append(Cell(digest[:32], scenario_label, scenario, method_label, method, seeds))
    return found


@dataclass
class Workbench:
    """Loads and trains what cells share, once per process; trained models are kept on disk by content."""

    study: Study
    cache: Path
    progress: Callable[[Progress], None] | None = None
    _pair: tuple[Split, Split] | None = None
    _data: dict[int, tuple[Split, Split | None, Split]] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)

    def source(self) -> tuple[Split, Split]:
        if self._pair is None:
            self._pair = load_source(self.study.data)
        return self._pair

    def fingerprint(self) -> str:
        train, test = self.source()
        return hashlib.sha256((train.content_hash() + test.content_hash()).encode()).hexdigest()

    def data(self, seed: int) -> tuple[Split, Split | None, Split]:
        """(train, validation or None, test) of one data seed."""
        if seed not in self._data:
            part = self.study.data
            at = seed if part.resample else 0
            train, test = self.source()
            train = balanced(train, part.train_size, at, "train size")
            test = balanced(test, part.test_size, at, "test size")
            validation = None
            if part.validation:
                held = balanced(train, max(1, int(part.validation * len(train))), at, "validation")
                keep = ~torch.isin(train.index, held.index)
                train, validation = train.take(train.index[keep], "train"), held.named("validation")
            self._data[seed] = (train, validation, test.named("test"))
        return self._data[seed]

    def forgetting(self, cell: Cell) -> Forgetting:
        key = f"{cell.scenario}{cell.seeds['data']}"
        return self._once(key, lambda: cell.scenario.split(self.data(cell.seeds["data"])[0], cell.seeds["data"]))  # type: ignore[no-any-return]

    def start(self, cell: Cell, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The start checkpoint: freshly drawn, or a pretrained body with a new head."""
        seed, spec = cell.seeds["train"], self.study.model

        def make() -> nn.Module:
            fresh = build_model(spec.name, num_classes=classes, input_shape=shape, seed=seed, options=spec.options)
            if self.study.pretrain is None:
                return fresh
            return self._pretrained(fresh, shape, seed)

        return self._once(f"start{seed}{shape}{classes}", make)  # type: ignore[no-any-return]

    def _pretrained(self, fresh: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
        part, spec = self.study.pretrain, self.study.model
        if part is None:
            raise UsageError("the study has no `pretrain` block.")
        asked = DataPart(source=part.source, classes=part.classes, normalise=self.study.data.normalise)
        train, _ = load_source(replace_size(asked, part.train_size))
        train = balanced(train, part.train_size, part.seed, "pretrain train_size")
        body = build_model(
            spec.name, num_classes=train.num_classes, input_shape=shape, seed=part.seed, options=spec.options
        )
        recipe = build(Recipe, part.recipe, "pretrain.recipe")
        train_cached(body, train, recipe, self._run(part.seed), purpose="pretrain")
        head = anatomy(body, next(iter(train.batches(2))).x).head
        trained = {k: v.cpu() for k, v in body.state_dict().items() if not k.startswith(f"{head}.")}
        fresh.load_state_dict({**fresh.state_dict(), **trained})
        reset_parameters(fresh, [head], seed=seed)
        return fresh

    def original(self, cell: Cell) -> nn.Module:
        """The model that remembers: trained on all of the scenario's training set, noisy labels included."""
        forgetting = self.forgetting(cell)
        key = f"original{forgetting.train.content_hash()}{cell.seeds['train']}"

        def make() -> nn.Module:
            import copy

            shape, classes = forgetting.train.input_shape, forgetting.train.num_classes
            model = copy.deepcopy(self.start(cell, shape, classes))
            run = self._run(cell.seeds["train"])
            return train_cached(model, forgetting.train, self.study.recipe(), run, purpose="train").cpu().eval()

        return self._once(key, make)  # type: ignore[no-any-return]

    def reference(self, cell: Cell, method: Method) -> Result:
        """The retrained model of this scenario and these seeds."""
        key = f"retrain{cell.scenario}{cell.seeds}{method}"
        return self._once(key, lambda: self.apply(cell, method, cell.seeds["train"]))  # type: ignore[no-any-return]

    def apply(self, cell: Cell, method: Method, seed: int) -> Result:
        forgetting = self.forgetting(cell)
        _, validation, _ = self.data(cell.seeds["data"])
        start = self.start(cell, forgetting.train.input_shape, forgetting.train.num_classes)
        initial: dict[str, Tensor] = start.state_dict()
        return unlearn(
            self.original(cell),
            forget=forgetting.forget,
            retain=forgetting.retain,
            validation=validation,
            method=method,
            recipe=self.study.recipe(),
            initial=initial,
            seed=seed,
            device=self.study.device,
            precision=self.study.precision,
            progress=self.progress,
            cache=self.cache,
        )

    def record(self, cell: Cell) -> CellRecord:
        """Run one cell, whatever it takes of shared stages, and measure it."""
        forgetting = self.forgetting(cell)
        _, validation, test = self.data(cell.seeds["data"])
        retrain = next(m for _, m in self.study.named_methods() if m.card.name == "retrain")
        reference = self.reference(cell, retrain)
        is_reference = cell.method == retrain
        result = reference if is_reference else self.apply(cell, cell.method, cell.seeds["unlearn"])
        name = REFERENCE if is_reference else "unlearned"
        models: dict[str, Any] = {REFERENCE: reference, name: result}
        scores: Scores = evaluate(
            models,
            forget=forgetting.forget,
            retain=forgetting.retain,
            test=test,
            validation=validation,
            metrics=self.study.metrics,
            seed=cell.seeds["evaluate"],
            device=self.study.device,
        )
        return cell_from_result(
            result.record(),
            id=cell.id,
            study=self.study.name,
            data={
                "name": self.study.data.source,
                "classes": test.num_classes,
                "class_names": list(test.store.classes),
                "train": len(forgetting.train),
                "test": len(test),
                "validation": 0 if validation is None else len(validation),
            },
            model={
                "name": self.study.model.name,
                "options": dict(self.study.model.options),
                "parameters": sum(p.numel() for p in result.model.parameters()),
            },
            scenario={"label": cell.scenario_label, **forgetting.describe()},
            method={
                "label": cell.method_label,
                "name": cell.method.card.name,
                "options": to_dict(cell.method),
                "tags": list(cell.method.card.tags),
                "cite": cell.method.card.paper.cite if cell.method.card.paper else "",
            },
            seeds=cell.seeds,
            scores=score_rows(scores, name),
            curves=curves(scores, name),
            provenance={
                "versions": versions(),
                "recipe": to_dict(self.study.recipe()),
                "hashes": result.facts["data"],
                "original": result.facts["original"],
                "hardware": hardware(self.study.device),
                "peak_memory_mb": peak_memory_mb(),
            },
        )

    def _run(self, seed: int) -> Run:
        return Run(
            seed=seed,
            device=pick_device(self.study.device),
            precision=self.study.precision,
            label="original",
            progress=self.progress,
            cache=self.cache,
        )

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def replace_size(part: DataPart, size: int) -> DataPart:
    return part.model_copy(update={"train_size": size})


def load_source(part: DataPart) -> tuple[Split, Split]:
    """(train, test) of the named classes, renumbered. `UsageError` if the source has no test samples."""
    train, test = load_pair(part.source, normalise=part.normalise, image_size=part.image_size)
    if test is None:
        raise UsageError(f"data source `{part.source}` has no test samples; a study needs train and test.")
    train, test = harmonise_classes([train, test])
    if part.classes is None:
        return train, test
    numbers = [class_number(train, c) for c in part.classes]
    return only_classes(train, numbers), only_classes(test, numbers)


def only_classes(split: Split, numbers: list[int]) -> Split:
    """A store of its own with these classes as 0..n-1; ids stay."""
    chosen = split.index[torch.isin(split.y, torch.tensor(numbers))]
    store = split.store
    if not isinstance(store, ResidentStore):
        raise UsageError("a subset of classes needs data that fit in memory; raise EXPUNGE_RESIDENT_BYTES.")
    new_number = torch.full((split.num_classes,), -1, dtype=torch.long)
    new_number[torch.tensor(numbers)] = torch.arange(len(numbers))
    smaller = ResidentStore(
        store.samples[chosen],
        new_number[store.labels[chosen]],
        classes=[store.classes[n] for n in numbers],
        ids=store.ids[chosen.numpy()],
        columns={name: values[chosen.numpy()] for name, values in store.columns.items()},
        normalisation=store.normalisation,
        name=store.name,
    )
    smaller.resize = store.resize
    return Split.whole(smaller, split.name)


def balanced(split: Split, size: int, seed: int, what: str) -> Split:
    """`size` samples with equal numbers per class (the first classes get the remainder); 0: all."""
    if size == 0 or size == len(split):
        return split
    if size > len(split):
        raise UsageError(f"{what} asks for {size} samples, but there are only {len(split)}.")
    labels = split.y
    present = labels.unique().tolist()
    generator = torch_generator(seed, "subset", what)
    parts = []
    for rank, label in enumerate(present):
        members = split.index[labels == label]
        count = size // len(present) + (rank < size % len(present))
        parts.append(draw(members, min(count, len(members)), generator))
    return split.take(torch.cat(parts).sort().values)


def hardware(device: str) -> str:
    chosen = pick_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1024**2 if sys.platform == "darwin" else 1024), 1)


