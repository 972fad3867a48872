"""Independent work in processes: results, errors, a killed worker, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.pool import in_processes


def scaled(factor: int, item: int) -> tuple[int, int]:
    return factor * item, os.getpid()


def broken(_: None, item: int) -> int:
    if item == 1:
        raise ExpungeError("the second one cannot be done.")
    return item


def killed(_: None, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_results_do_not_depend_on_the_number_of_jobs() -> None:
    here = list(in_processes(scaled, [1, 2, 3], shared=10))
    there = list(in_processes(scaled, [1, 2, 3], shared=10, jobs=2))
    assert [value for value, _ in here] == [10, 20, 30] == sorted(value for value, _ in there)
    assert {process for _, process in here} == {os.getpid()}
    assert os.getpid() not in {process for _, process in there}


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_raised_here(jobs: int) -> None:
    with pytest.raises(ExpungeError, match="second one"):
        list(in_processes(broken, [0, 1, 2, 3], jobs=jobs))


def test_a_killed_worker_does_not_hang() -> None:
    with pytest.raises(ExpungeError, match="a worker was killed"):
        list(in_processes(killed, [0, 1, 2, 3], jobs=2))


def test_leaving_early_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    work = in_processes(scaled, list(range(50)), shared=1, jobs=2)
    next(work)
    work.close()
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(5)
    assert set(multiprocessing.active_children()) <= before


def named(folder: str, item: int) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "from tests.core.test_pool import named\nfrom expunge.core.pool import in_processes\n"
        f"list(in_processes(named, [1, 2], shared={str(tmp_path)!r}, jobs=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    _until(lambda: not any(_runs(worker) for worker in workers))


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
