"""The store: what it keeps, what it says when it cannot, and that only one process works on a study."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from expunge.api.record import CellRecord
from expunge.bench.cells import expand
from expunge.bench.reading import parse_study
from expunge.bench.run import run_study, status
from expunge.bench.store import FILE, CellStore
from expunge.core.errors import DataError, ExpungeError


@pytest.fixture
def planned(tiny, tmp_path):
    """An open store with a plan, and its cells."""
    study = parse_study(tiny)
    grid = expand(study, "data")
    store = CellStore(tmp_path, create=True)
    store.plan(grid, study.model_dump_json())
    yield store, grid, study
    store.close()


def finished(cell):
    return CellRecord(
        id=cell.id, scenario={"label": "old"}, method={"label": "old"}, seeds=cell.seeds, seconds=1.0, status="finished"
    )


def test_unfinished_and_failed_cells_are_records_that_say_so(planned):
    store, grid, _ = planned
    store.start(grid[0].id)
    store.finish(grid[0].id, finished(grid[0]))
    store.start(grid[1].id)
    store.fail(grid[1].id, "it diverged.")
    store.start(grid[2].id)
    records = store.records()
    assert [r.id for r in records] == [cell.id for cell in grid]
    assert [(r.state, r.status, r.error) for r in records[:4]] == [
        ("done", "finished", ""),
        ("failed", "failed", "it diverged."),
        ("failed", "missing", "not finished (running)"),
        ("failed", "missing", "not finished (pending)"),
    ]
    assert store.counts() == {"done": 1, "running": 1, "pending": 13, "failed": 1}


def test_labels_come_from_the_newest_recipe(planned):
    store, grid, _ = planned
    store.finish(grid[0].id, finished(grid[0]))
    record = store.records()[0]
    assert (record.scenario["label"], record.method["label"]) == ("class:1", "retrain")


def test_planning_again_keeps_finished_cells_and_retries_the_others(planned, tiny):
    store, grid, _ = planned
    store.finish(grid[0].id, finished(grid[0]))
    store.fail(grid[1].id, "no.")
    store.start(grid[2].id)
    smaller = parse_study({**tiny, "methods": ["original"]})
    store.plan(expand(smaller, "data"), smaller.model_dump_json())
    assert store.counts() == {"done": 1, "pending": 7}
    store.plan(grid, "{}")
    assert store.counts() == {"done": 1, "pending": 15}
    assert store.attempts(grid[2].id) == 0


def test_a_running_cell_names_its_owner(planned):
    import os

    store, grid, _ = planned
    store.start(grid[0].id)
    owner, started = store.running()[grid[0].id]
    assert owner.endswith(f":{os.getpid()}")
    assert started > 1.7e9


def test_status_counts_cells_of_a_dead_process_as_pending(planned):
    store, grid, _ = planned
    store.start(grid[0].id)
    assert status(store.path.parent) == {"pending": 16}
    with store.claimed():
        assert status(store.path.parent) == {"running": 1, "pending": 15}


def test_only_one_process_works_on_a_study(planned, tiny, tmp_path):
    store, _, study = planned
    code = (
        "import sys; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(ExpungeError, match="another process is working on"):
            run_study(study, tmp_path)
    finally:
        other.kill()
        other.communicate()
    with store.claimed():  # the claim has ended with the process
        pass


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no study"):
        status(tmp_path)


def test_an_unwritable_folder_is_one_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpungeError, match="cannot be read or written"):
        run_study(parse_study(tiny), tmp_path / "file" / "study")


def test_a_damaged_store_is_one_sentence(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ExpungeError, match="cannot be read or written"):
        status(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path):
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("CREATE TABLE cells (id TEXT)")
    database.commit()
    database.close()
    with pytest.raises(DataError, match="another version"):
        status(tmp_path)


def test_a_full_disk_keeps_what_is_finished(planned):
    store, grid, _ = planned
    store.finish(grid[0].id, finished(grid[0]))
    store._db.execute("PRAGMA max_page_count = 1")  # the smallest SQLite allows: no page more than there are
    large = finished(grid[1]).model_copy(update={"notes": ["x" * 4000] * 200})
    with pytest.raises(ExpungeError, match=r"full.*Finished cells are kept"):
        store.finish(grid[1].id, large)
    assert store.counts() == {"done": 1, "pending": 15}
    store.start(grid[1].id)  # the connection is still of use


def test_stages_are_kept_once(planned):
    store, _, _ = planned
    store.keep_stages({"a": {"seconds": 1.0}})
    store.keep_stages({"a": {"seconds": 2.0}, "b": {"seconds": 3.0}})
    assert store.stages() == {"a": {"seconds": 1.0}, "b": {"seconds": 3.0}}
