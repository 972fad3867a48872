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
from expunge.core.identity import code_hash
from expunge.core.options import describe, to_dict
from expunge.data.cache import file_hash
from expunge.methods.base import Method
from expunge.metrics.base import Metric
from expunge.models.build import factory
from expunge.scenarios.base import Scenario


@dataclass(frozen=True)
class Cell:
    """One point of the grid; labels are no part of its addresses.

    id: content address of everything that decides the record, the source of the code included. model: of everything
    that decides the unlearned model, so without metrics: a metric that is added later asks the same model. scores: one
    id per metric of the study, of the model and that metric. reference: `model` of the retrained model of the group.
    """

    id: str
    scenario_label: str
    scenario: Scenario
    method_label: str
    method: Method
    seeds: dict[str, int]
    model: str = ""
    scores: tuple[str, ...] = ()
    reference: str = ""

    @property
    def group(self) -> tuple[str, tuple[int, ...]]:
        """Cells of one group share an original model and a retrained reference."""
        return self.scenario_label, tuple(self.seeds.values())


def expand(study: Study, fingerprint: str) -> list[Cell]:
    """All cells, in the order of the study: scenario, seeds, method (retrain first).

    fingerprint: content hash of the data source. Files that the study names (ids to forget) count by their content,
    and so does the source of the model, the methods, scenarios and metrics (`core.identity`). The device is not part of
    an id: a study may go on on another machine.
    """
    methods = study.named_methods()
    reference = study.reference()
    shared = {
        "data": {**study.data.model_dump(mode="json"), "source": fingerprint},
        "model": study.model.model_dump(mode="json"),
        "pretrain": study.pretrain.model_dump(mode="json") if study.pretrain else None,
        "train": to_dict(study.recipe()),
        "reference": to_dict(reference) if reference else None,
        "precision": study.precision,
        "files": files(study),
        "code": [code_hash(factory(study.model.name)), code_hash("expunge.training.loop", type(reference))],
    }
    metrics = [[item.card.name, counted(item), code_hash(type(item))] for item in study.named_metrics()]
    scores = {
        "metrics": metrics,
        "curves": study.curves,
        "projection": study.projection,
    }
    cells = []
    for scenario_label, scenario in study.named_scenarios():
        for seeds in study.seed_rows():
            retrained = ""  # the first method of a study that has a reference
            for method_label, method in methods:
                facts = {
                    "scenario": [scenario.card.name, to_dict(scenario), code_hash(type(scenario))],
                    "method": [method.card.name, to_dict(method), code_hash(type(method))],
                    "seeds": seeds,
                }
                model = address({**shared, **facts})
                retrained = retrained or (model if method == reference else "")
                cells.append(
                    Cell(
                        id=address({"model": model, **scores}),
                        scenario_label=scenario_label,
                        scenario=scenario,
                        method_label=method_label,
                        method=method,
                        seeds=dict(seeds),
                        model=model,
                        scores=tuple(address({"model": model, "metric": metric}) for metric in metrics),
                        reference=retrained,
                    )
                )
    if len({cell.id for cell in cells}) != len(cells):
        raise UsageError("two cells of the study have equal settings; remove the double method, scenario or seed.")
    return cells


def counted(metric: Metric) -> dict[str, Any]:
    """Options of a metric that are part of an id."""
    default = {option.name: option.default for option in describe(type(metric))}
    return {k: v for k, v in to_dict(metric).items() if k not in metric.later or v != default[k]}


def address(facts: dict[str, Any]) -> str:
    """32 hex digits of the sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def files(study: Study) -> dict[str, str]:
    """Path -> sha256 of the files of data that decide results: ids, scores or features."""
    paths = {}
    for _, scenario in study.named_scenarios():
        for text in _texts(to_dict(scenario)):
            if Path(text).suffix.lower() in (".csv", ".json", ".txt", ".npy", ".parquet") and Path(text).is_file():
                paths[text] = file_hash(Path(text))
    return paths


def _texts(options: dict[str, Any]) -> Iterator[str]:
    yield from (value for value in options.values() if isinstance(value, str))
