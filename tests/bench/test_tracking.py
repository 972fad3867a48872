"""Trackers: every cell once, whatever happens to the study or to the tracker; a real MLflow where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.api.record import CellRecord
from expunge.bench.reading import parse_study
from expunge.bench.run import cells, run_study
from expunge.bench.tracking import Forgiving, MLflow, export_mlflow, metrics, opener, parameters
from expunge.core.errors import ExpungeError, UsageError

with_mlflow = [
    pytest.mark.skipif(
        importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("sqlalchemy") is None,
        reason="needs the extra `tracking` (mlflow-skinny, sqlalchemy, alembic)",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # within MLflow
]


def record(method: str = "scrub", **more: Any) -> CellRecord:
    scores = [
        {"metric": "forget_accuracy", "unit": "fraction", "group": "", "value": 0.25},
        {"metric": "class_accuracy", "unit": "fraction", "group": "a", "value": 0.5},
        {"metric": "mia_auc", "unit": "fraction", "group": "", "value": float("nan")},
    ]
    given: dict[str, Any] = {
        "id": f"cell-{method}", "study": "toy", "scenario": {"label": "class:3", "options": {"target": 3}},
        "method": {"label": method, "name": method, "options": {"lr": 0.1, "clip": None}}, "data": {"name": "digits"},
        "seeds": {"data": 1, "unlearn": 2}, "seconds": 1.5, "stages": {"vae": 0.5}, "scores": scores,
        "history": [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25}],
    }  # fmt: skip
    return CellRecord(**{**given, **more})


def test_what_is_written_of_a_cell() -> None:
    assert parameters(record()) == {
        "method": "scrub", "scenario": "class:3", "data": "digits", "seed_data": "1", "seed_unlearn": "2",
        "method.lr": "0.1", "scenario.target": "3",
    }  # fmt: skip
    assert metrics(record()) == [
        ("forget_accuracy", 0.25, 0),
        ("seconds", 1.5, 0),
        ("stage_seconds/vae", 0.5, 0),
        ("epoch/loss", 0.5, 1),
        ("epoch/loss", 0.25, 2),
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_shows_every_cell_once_and_earlier_ones_again(tiny: dict[str, Any], tmp_path: Path, jobs: int) -> None:
    tiny["seeds"], tiny["scenarios"] = [0], ["class:1"]
    seen: list[str] = []
    found = run_study(parse_study(tiny), tmp_path, jobs=jobs, watch=lambda one: seen.append(one.id))
    assert sorted(seen) == sorted(one.id for one in found.records)
    again: list[str] = []
    run_study(parse_study(tiny), tmp_path, watch=lambda one: again.append(one.id))
    assert sorted(again) == sorted(seen)


def test_a_tracker_that_fails_costs_a_remark(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["seeds"], tiny["scenarios"] = [0], ["class:1"]
    calls, remarks = [], []

    class Broken:
        def log(self, record: CellRecord) -> bool:
            calls.append(record.id)
            raise ConnectionError("nobody answers\nat all")

    found = run_study(parse_study(tiny), tmp_path, watch=Forgiving(Broken, remarks.append))
    assert not found.failed()
    assert len(calls) == 1
    assert remarks == [
        "the tracker failed and gets nothing more (nobody answers); the study goes on. "
        "`expunge export RUN --mlflow` writes what is missing."
    ]


def test_a_missing_package_and_an_unknown_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"extra `tracking`: pip install 'expunge\[tracking\]'"):
        opener("mlflow", "toy")
    with pytest.raises(UsageError, match="did you mean `mlflow`"):
        opener("mlfow", "toy")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return mlflow.MlflowClient()


def runs(client: Any, study: str) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name(study).experiment_id]))


class TestMLflow:
    pytestmark = with_mlflow

    def test_one_run_per_cell(self, client: Any) -> None:
        tracker = MLflow("toy")
        assert tracker.log(record())
        assert not tracker.log(record())
        assert not MLflow("toy").log(record())
        (run,) = runs(client, "toy")
        assert run.info.status == "FINISHED"
        assert run.data.params == parameters(record())
        assert run.data.metrics["forget_accuracy"] == 0.25
        assert run.data.metrics["seconds"] == 1.5
        history = client.get_metric_history(run.info.run_id, "epoch/loss")
        assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
        assert run.data.tags["expunge.cell"] == "cell-scrub"

    def test_a_failed_cell_that_is_done_later_stays_one_run(self, client: Any) -> None:
        failed = record(state="failed", status="failed", error="diverged", scores=[], history=[])
        assert MLflow("toy").log(failed)
        assert runs(client, "toy")[0].info.status == "FAILED"
        assert MLflow("toy").log(record())
        (run,) = runs(client, "toy")
        assert (run.info.status, run.data.tags["expunge.error"]) == ("FINISHED", "")

    def test_resume_and_export_add_nothing(self, client: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
        tiny["seeds"], tiny["scenarios"] = [0], ["class:1"]
        remarks: list[str] = []
        for _ in range(2):
            watch = Forgiving(opener("mlflow", "tiny"), remarks.append)
            found = run_study(parse_study(tiny), tmp_path / "study", watch=watch)
        assert not remarks
        assert len(runs(client, "tiny")) == len(found.records)
        assert export_mlflow("tiny", cells(tmp_path / "study")) == 0
        assert export_mlflow("other", cells(tmp_path / "study")) == len(found.records)

    def test_a_server_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlflow

        mlflow.set_tracking_uri("http://127.0.0.1:9")
        with pytest.raises(ExpungeError, match="MLflow did not take the runs"):
            export_mlflow("toy", [record()])
        remarks: list[str] = []
        Forgiving(opener("mlflow", "toy"), remarks.append)(record())
        assert "the study goes on" in remarks[0]
