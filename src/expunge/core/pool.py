"""Worker processes for independent work, with one thread each, from a fork server with preloaded modules.

On a CPU, single-threaded processes are the fastest way to train many small models (several threads per model, or `vmap`
over stacked convolutions, are slower).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from expunge.core.errors import ExpungeError

Item = TypeVar("Item")
R = TypeVar("R")

_shared: dict[str, Any] = {}


def in_processes(
    function: Callable[[Any, Item], R],
    items: Sequence[Item],
    *,
    shared: Any = None,
    jobs: int = 1,
    preload: Sequence[str] = (),
) -> Iterator[R]:
    """Yield `function(shared, item)` of every item, in the order in which they finish.

    Leaving the iteration early, also by Ctrl-C, ends the workers, and so does an error.

    Args:
        function: a function of a module, so that workers can import it.
        items: the arguments.
        shared: sent to every worker once.
        jobs: number of processes; 1: in this process, in order.
        preload: modules that the fork server loads once for all workers.

    Raises:
        ExpungeError: if a worker is killed. Errors of `function` are raised unchanged.
    """
    import torch

    if jobs == 1 or len(items) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: results do not depend on the number of jobs
        try:
            for item in items:
                yield function(shared, item)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(jobs, len(items)), mp_context=context, initializer=_begin, initargs=(shared,))
    finished = False
    try:
        with without_main_module():
            futures = [pool.submit(_call, function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
        finished = True
    except BrokenProcessPool:
        raise ExpungeError(
            "a worker was killed (out of memory?); finished work is kept: run it again, perhaps with fewer jobs."
        ) from None
    finally:
        if not finished:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
        pool.shutdown()


@contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the caller's `__main__`, which workers would import and so run an unguarded script again."""
    main = sys.modules["__main__"]
    space = vars(main)
    hidden: dict[str, object] = {name: space.pop(name) for name in ("__file__", "__spec__") if name in space}
    main.__spec__ = None
    try:
        yield
    finally:
        space.update(hidden)


def end_with_parent() -> None:
    """Make this worker end when its parent ends, for any reason."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin(shared: Any) -> None:
    import torch

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(1)
    _shared["value"] = shared


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared["value"], item)
