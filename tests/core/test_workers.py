"""Independent work in processes: results, errors, a killed worker, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.workers import in_processes


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
