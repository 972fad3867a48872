"""The cache folder as something that may be missing, full, read-only, or in other hands.

What is kept there saves time and is never needed: a folder that cannot be used costs a sentence, not the work. A folder
that others can write is not even read, because whoever writes there decides what comes out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

ADVICE = "set EXPUNGE_CACHE to a folder of your own"


def doubt(folder: Path) -> str | None:
    """Why what is kept in `folder` cannot be believed, in one sentence; None if it can, or if there is nothing yet.

    A folder is believed if it belongs to this user (or to root) and nobody else can write it; the user's own primary
    group does not count as somebody else. Systems without owners and modes (Windows) are not asked.
    """
    if not hasattr(os, "getuid"):
        return None
    for place in (folder, folder.parent):
        try:
            facts = place.stat()
        except OSError:
            continue
        if facts.st_uid not in (os.getuid(), 0):
            return f"the cache {place} belongs to another user and is not used; {ADVICE}."
        shared = facts.st_mode & stat.S_ISVTX and place == folder.parent  # /tmp: others cannot replace what is in it
        by_all = facts.st_mode & stat.S_IWOTH and not shared
        by_group = facts.st_mode & stat.S_IWGRP and facts.st_gid not in (os.getgid(), 0) and not shared
        if by_all or by_group:
            return f"the cache {place} can be written by other users and is not used; forbid that, or {ADVICE}."
    return None


@contextmanager
def claimed(path: Path, *, wait: bool = True) -> Iterator[str | None]:
    """Hold the entry `path` of the cache against other processes.

    Args:
        path: The file that is kept; its folder is made.
        wait: Wait for a process that holds it.

    Yields:
        None, or a sentence that says why nothing can be written there; what is there can be read all the same.

    Raises:
        filelock.Timeout: Another process holds it, and `wait` is false.
    """
    lock = FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0)
    problem = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        problem = f"nothing is kept in the cache {path.parent} ({error.strerror or error}); {ADVICE}."
    try:
        yield problem
    finally:
        lock.release()
