"""The measured models of one `expunge unlearn` as the records that reports read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from expunge.api.evaluate import Scores
from expunge.api.record import CellRecord, cell_from_result, curves, data_facts, method_facts, request_rows, score_rows
from expunge.api.result import versions
from expunge.api.saved import Data
from expunge.cli.jobs import Unlearn
from expunge.methods import METHODS
from expunge.models.checkpoint import weights_hash
from expunge.scenarios.base import ForgetSplit

_EMPTY = {"status": "finished", "seconds": 0.0, "stages": {}, "needs": {}, "notes": [], "details": {}, "history": []}


def make_cells(
    job: Unlearn,
    data: Data,
    split: ForgetSplit,
    scores: Scores,
    records: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Any],
) -> list[CellRecord]:
    """One record per measured model: original, unlearned and, if it was made, retrained."""
    models = scores.evaluation.models
    names = {"original": "original", "unlearned": job.method.partition("/")[0], "retrained": "retrain"}
    labels = {**names, "unlearned": job.method}
    cells = []
    for model in models:
        record = {**_EMPTY, **records.get(model, {})}
        parts: dict[str, Any] = {
            "data": data_facts(job.data, split, data.test, data.validation),
            "model": {"name": job.model, "parameters": sum(p.numel() for p in models[model].parameters())},
            "scenario": {"label": job.forget, **split.describe()},
            "method": method_facts(labels[model], METHODS.card(names[model]), record.get("options", {})),
            "seeds": {
                "data": job.split_seed,
                "train": int(training.get("seed", 0)),
                "unlearn": job.seed,
                "evaluate": job.seed,
            },
            "scores": score_rows(scores, model) + request_rows(record["details"]),
            "curves": curves(scores.evaluation, model),
            "provenance": {
                "versions": versions(),
                "weights": weights_hash(models[model]),
                "device": str(scores.evaluation.device),
                "recipe": training.get("recipe"),
            },
        }
        address = json.dumps([parts[key] for key in ("data", "model", "scenario", "method", "seeds")], sort_keys=True)
        identity = hashlib.sha256(f"{address}{parts['provenance']['weights']}".encode()).hexdigest()[:16]
        cell = cell_from_result(record, id=identity, **parts)
        cells.append(cell.model_copy(update={"seconds": None}) if model not in records else cell)
    return cells
