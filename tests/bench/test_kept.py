"""Kept models: a metric that is added later is measured on them, and no method runs; limits, damage, the best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from expunge.api.record import CellRecord
from expunge.api.saved import load_result
from expunge.bench.kept import FOLDER, SCORES
from expunge.bench.reading import parse_study
from expunge.bench.run import StudyResult, run_study
from expunge.bench.workbench import Workbench
from expunge.core.errors import UsageError


@pytest.fixture
def small(tiny: dict[str, Any]) -> dict[str, Any]:
    """Four cells that keep their models."""
    return {
        **tiny,
        "scenarios": ["class:1"],
        "methods": ["finetune", {"name": "scrub", "epochs": 2}, "neggrad"],
        "options": {"finetune": {"epochs": 1}},
        "seeds": [0],
        "metrics": ["accuracy"],
        "keep": "all",
    }


def run(study: dict[str, Any], folder: Path, **more: Any) -> StudyResult:
    result = run_study(parse_study(study), folder, **more)
    assert not result.failed(), [record.error for record in result.failed()]
    return result


def kept(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / FOLDER).glob("*/result.json")}


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a method ran")


def names(record: CellRecord) -> set[str]:
    return {row["metric"] for row in record.scores}


def test_a_metric_added_later_runs_no_method(small, tmp_path, monkeypatch) -> None:
    before = run(small, tmp_path / "study").records
    assert kept(tmp_path / "study") == {record.provenance["model"] for record in before}
    with monkeypatch.context() as patched:
        patched.setattr(Workbench, "apply", refuse)
        patched.setattr("expunge.metrics.accuracy.Accuracy.compute", refuse)
        after = run({**small, "metrics": ["accuracy", "loss", "gap"]}, tmp_path / "study").records
    assert [record.id for record in before] != [record.id for record in after]
    for old, new in zip(before, after, strict=True):
        assert (old.provenance["model"], old.history, old.seconds) == (
            new.provenance["model"], new.history, new.seconds,
        )  # fmt: skip
        assert [row for row in new.scores if row["metric"] in names(old)] == old.scores
        assert {"average_gap", "forget_loss"} & (names(new) - names(old))
    fresh = run({**small, "metrics": ["accuracy", "loss", "gap"], "keep": "none"}, tmp_path / "fresh").records
    assert [record.scores for record in fresh] == [record.scores for record in after]
    assert not (tmp_path / "fresh" / FOLDER).exists()


def test_kept_models_load_with_their_facts(small, tmp_path) -> None:
    records = run({**small, "methods": ["scrub"]}, tmp_path).records
    study = Workbench(parse_study(small), tmp_path)
    record = next(record for record in records if record.method["name"] == "scrub")
    place = tmp_path / FOLDER / record.provenance["model"]
    result = load_result(place, model=study._fresh((6,), 3, 0))
    assert result.facts["method"] == "scrub"
    assert result.record()["history"] == record.history


def test_damaged_and_replaced_models_are_made_again(small, tmp_path) -> None:
    before = run(small, tmp_path).records
    weights = [path / "model.safetensors" for path in sorted((tmp_path / FOLDER).iterdir()) if path.is_dir()]
    weights[0].write_bytes(weights[1].read_bytes())  # those of another model
    weights[2].write_bytes(b"nothing")
    (weights[3].parent / SCORES).write_text("[")
    after = run({**small, "curves": False}, tmp_path).records
    skip = {"seconds", "scale_up"}
    for old, new in zip(before, after, strict=True):
        assert [row for row in old.scores if row["metric"] not in skip] == [
            row for row in new.scores if row["metric"] not in skip
        ]
        assert new.curves == {}


def test_the_best_is_kept_and_the_limit_is_named(small, tmp_path) -> None:
    records = run({**small, "keep": "best", "metrics": ["accuracy", "gap"]}, tmp_path / "best").records
    gaps = {
        record.provenance["model"]: next(row["value"] for row in record.scores if row["metric"] == "average_gap")
        for record in records
        if record.method["name"] != "retrain"
    }
    assert kept(tmp_path / "best") == {min(gaps, key=lambda model: gaps[model])}
    records = run({**small, "keep_gb": 1e-9}, tmp_path / "full").records
    assert all("would exceed `keep_gb`" in record.notes[-1] for record in records)
    with pytest.raises(UsageError, match="keep: best"):
        parse_study({**small, "retrain": False, "keep": "best"})


def test_force_makes_models_again(small, tmp_path, monkeypatch) -> None:
    run(small, tmp_path)
    ran = []
    sound = Workbench.apply
    monkeypatch.setattr(Workbench, "apply", lambda self, *rest: ran.append(1) or sound(self, *rest))
    run(small, tmp_path, again=True)
    assert len(ran) == 4


def test_a_named_metric_without_a_value_says_why(small, tmp_path) -> None:
    records = run({**small, "metrics": ["accuracy", "drift"]}, tmp_path)
    rows = [row for record in records.records for row in record.scores if row["note"]]
    assert len(rows) >= 4
    assert all(row["value"] is None or math.isnan(row["value"]) for row in rows)
    assert {row["note"] for row in rows} == {"the model has no BatchNorm statistics"}
    table = records.frame()
    assert table["note"].str.len().gt(0).any()
    json.loads(records.records[0].model_dump_json())
