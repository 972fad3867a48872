"""From a study to its cells, each with a content address."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.bench.recipe import Study
from expunge.core.errors import UsageError
from expunge.core.options import describe, to_dict
from expunge.data.cache import file_hash
from expunge.methods.base import Method
from expunge.metrics.base import Metric
from expunge.scenarios.base import Scenario

FORMAT = 3  # raise when a cell of equal settings would give another record


@dataclass(frozen=True)
class Cell:
    """One point of the grid. id: content address of everything that decides the result; labels are not part of it."""

    id: str
    scenario_label: str
    scenario: Scenario
    method_label: str
    method: Method
    seeds: dict[str, int]

    @property
    def group(self) -> tuple[str, tuple[int, ...]]:
        """Cells of one group share an original model and a retrained reference."""
        return self.scenario_label, tuple(self.seeds.values())


def expand(study: Study, fingerprint: str) -> list[Cell]:
    """All cells, in the order of the recipe: scenario, seeds, method (retrain first).

    fingerprint: content hash of the data source. Files that the recipe names (a model's source, ids to forget) count
    by their content. The device is not part of an id: a study may go on on another machine.
    """
    methods = study.named_methods()
    reference = study.reference()
    shared = {
        "format": FORMAT,
        "data": {**study.data.model_dump(mode="json"), "source": fingerprint},
        "model": study.model.model_dump(mode="json"),
        "pretrain": study.pretrain.model_dump(mode="json") if study.pretrain else None,
        "train": to_dict(study.recipe()),
        "reference": to_dict(reference) if reference else None,
        "metrics": [[metric.card.name, counted(metric)] for metric in study.named_metrics()],
        "curves": study.curves,
        "projection": study.projection,
        "precision": study.precision,
        "files": files(study),
    }
    found = []
    for scenario_label, scenario in study.named_scenarios():
        for seeds in study.seed_rows():
            for method_label, method in methods:
                own = {
                    "scenario": [scenario.card.name, to_dict(scenario)],
                    "method": [method.card.name, to_dict(method)],
                    "seeds": seeds,
                }
                found.append(
                    Cell(address({**shared, **own}), scenario_label, scenario, method_label, method, dict(seeds))
                )
    if len({cell.id for cell in found}) != len(found):
        raise UsageError("two cells of the study have equal settings; remove the double method, scenario or seed.")
    return found


def counted(metric: Metric) -> dict[str, Any]:
    """Options of a metric that are part of an id."""
    default = {option.name: option.default for option in describe(type(metric))}
    return {k: v for k, v in to_dict(metric).items() if k not in metric.later or v != default[k]}


def address(facts: dict[str, Any]) -> str:
    """32 hex digits of the sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def files(study: Study) -> dict[str, str]:
    """Path -> sha256 of the files that decide results: a model's source file, files of ids, scores or features."""
    found = {}
    place, _, function = study.model.name.rpartition(":")
    if function and place.endswith(".py") and Path(place).is_file():
        found[place] = file_hash(Path(place))
    for _, scenario in study.named_scenarios():
        for text in _texts(to_dict(scenario)):
            if Path(text).suffix.lower() in (".csv", ".json", ".txt", ".npy", ".parquet") and Path(text).is_file():
                found[text] = file_hash(Path(text))
    return found


def _texts(options: dict[str, Any]) -> Iterator[str]:
    yield from (value for value in options.values() if isinstance(value, str))
