"""Cells of a study as runs of an experiment tracker: one run per cell, ever, however often the study goes on.

MLflow (extra `tracking`): the experiment is named after the study, and the tracking server comes from MLflow's own
environment variable `MLFLOW_TRACKING_URI`; without it MLflow writes its default store in the current folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from expunge.api.record import CellRecord
from expunge.core.errors import ExpungeError, UsageError, unknown

TRACKERS = ("mlflow",)
CELL = "expunge.cell"  # tag: the content address by which a run is found again
_MOST = 1000  # metrics that MLflow takes at once
# Where the user has not said otherwise: a server that does not answer costs seconds, not minutes, and nothing is sent
# to anybody but the server.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracker(Protocol):
    """Takes finished and failed cells, each as often as it is offered."""

    def log(self, record: CellRecord) -> bool:
        """Whether something was written; False if the tracker has this cell already."""
        ...


class Forgiving:
    """A tracker that may fail: then it says so once and takes nothing more, and the study goes on."""

    def __init__(self, open_tracker: Callable[[], Tracker], remark: Callable[[str], None]) -> None:
        self._open, self._remark = open_tracker, remark
        self._tracker: Tracker | None = None
        self._broken = False

    def __call__(self, record: CellRecord) -> None:
        if self._broken:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open()
            self._tracker.log(record)
        except Exception as error:  # noqa: BLE001 - whatever a server or its client does must not cost results
            self._broken = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._remark(
                f"the tracker failed and gets nothing more ({reason}); the study goes on. "
                "`expunge export RUN --mlflow` writes what is missing."
            )


def opener(name: str, study: str) -> Callable[[], Tracker]:
    """What opens the tracker `name`. `UsageError` now if it does not exist or its package is missing."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    _client()
    return lambda: MLflow(study)


def _client() -> Any:
    """The module mlflow, quiet and with an eye on the clock."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        import mlflow
        import mlflow.entities
    except ImportError as error:
        raise UsageError(f"MLflow needs the extra `tracking`: pip install 'expunge[tracking]' ({error}).") from None
    for name in ("mlflow.store.db.utils", "alembic"):  # they tell about every table they create
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


class MLflow:
    """One MLflow run per cell. A failed cell is a run with status FAILED, which becomes FINISHED once it is done."""

    def __init__(self, study: str) -> None:
        self._mlflow = _client()
        self._client = self._mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(study)
        self._experiment = experiment.experiment_id if experiment is not None else self._client.create_experiment(study)
        self._known = dict(self._runs())  # cell -> (run id, status)

    def log(self, record: CellRecord) -> bool:
        """Write one finished cell as a run."""
        run, status = self._known.get(record.id, (None, ""))
        final_status = "FINISHED" if record.state == "done" else "FAILED"
        if status == final_status or status == "FINISHED":
            return False
        if run is None:
            name = f"{record.method['label']} · {record.scenario['label']} · {_seeds(record)}"
            run = str(self._client.create_run(self._experiment, tags={CELL: record.id}, run_name=name).info.run_id)
            self._known[record.id] = (run, "RUNNING")
        self._write(run, record)
        self._client.set_terminated(run, final_status)
        self._known[record.id] = (run, final_status)
        return True

    def _runs(self) -> Iterator[tuple[str, tuple[str, str]]]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=_MOST, page_token=token)
            for run in page:
                if CELL in run.data.tags:
                    yield run.data.tags[CELL], (str(run.info.run_id), str(run.info.status))
            token = page.token
            if not token:
                return

    def _write(self, run: str, record: CellRecord) -> None:
        make = self._mlflow.entities
        now = int(time.time() * 1000)
        rows = [make.Metric(name, value, now, step) for name, value, step in metrics(record)]
        params = [make.Param(name, value) for name, value in parameters(record).items()]
        self._client.log_batch(
            run, params=params[:100], tags=[make.RunTag(name, value) for name, value in tags(record).items()]
        )
        for at in range(0, len(rows), _MOST):
            self._client.log_batch(run, metrics=rows[at : at + _MOST])


def parameters(record: CellRecord) -> dict[str, str]:
    """Settings of a cell: method, scenario and their options, seeds, data, model."""
    parameters_: dict[str, Any] = {
        "method": record.method.get("label", ""),
        "scenario": record.scenario.get("label", ""),
        "data": record.data.get("name"),
        "model": record.model.get("name"),
        **{f"seed_{name}": seed for name, seed in record.seeds.items()},
        **{f"method.{name}": value for name, value in dict(record.method.get("options", {})).items()},
        **{f"scenario.{name}": value for name, value in dict(record.scenario.get("options", {})).items()},
    }
    return {_name(name): str(value)[:500] for name, value in parameters_.items() if value is not None}


def metrics(record: CellRecord) -> list[tuple[str, float, int]]:
    """(name, value, step): every score without groups, seconds of unlearning and of its stages, and the history."""
    rows = [(row["metric"], row["value"], 0) for row in record.measured if not row["group"]]
    if record.seconds is not None and not any(name == "seconds" for name, _, _ in rows):
        rows.append(("seconds", record.seconds, 0))
    rows += [(f"stage_seconds/{name}", value, 0) for name, value in record.stages.items()]
    for at, row in enumerate(record.history):
        step = int(row.get("epoch", at + 1))
        rows += [(f"epoch/{name}", value, step) for name, value in row.items() if name != "epoch"]
    return [(_name(name), float(value), step) for name, value, step in rows if math.isfinite(value)]


def tags(record: CellRecord) -> dict[str, str]:
    """What a run is found by: the cell, its study, how it ended, versions and machine."""
    versions = {f"version.{k}": str(v) for k, v in dict(record.provenance.get("versions", {})).items()}
    values = {
        CELL: record.id,
        "expunge.study": record.study,
        "expunge.method": str(record.method.get("name", "")),
        "expunge.status": record.status,
        "expunge.error": record.error,
        "expunge.hardware": str(record.provenance.get("hardware", "")),
        **versions,
    }
    return {_name(name): value[:1000] for name, value in values.items()}


def export_mlflow(study: str, records: list[CellRecord]) -> int:
    """Write the cells that MLflow does not have yet; how many. `ExpungeError` if MLflow refuses."""
    mlflow = _client()
    try:
        tracker = MLflow(study)
        return sum(tracker.log(record) for record in records if record.status != "missing")
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ExpungeError(f"MLflow did not take the runs ({reason}); check MLFLOW_TRACKING_URI.") from None


def _seeds(record: CellRecord) -> str:
    values = list(dict.fromkeys(record.seeds.values()))
    return f"seed {values[0]}" if len(values) == 1 else f"seeds {', '.join(map(str, record.seeds.values()))}"


def _name(text: str) -> str:
    """Letters, digits and the few signs that MLflow allows in a name."""
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]
