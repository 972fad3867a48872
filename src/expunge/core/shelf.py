"""Safe use of the cache folder, which may be missing, full, read-only, or writable by other users.

The cache saves time and is never required: a folder that cannot be used causes a warning, not an error. A folder that
other users can write is not read, because they could determine the results.
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
    """Why the content of `folder` cannot be trusted, in one sentence; None if it can, or if the folder does not exist.

    A folder is trusted if it belongs to this user (or to root) and no other user can write it; the user's primary group
    is trusted too. Systems without owners and modes (Windows) are not checked.
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
    """Hold the lock of the entry `path` of the cache.

    Args:
        path: The file of the entry; its folder is created.
        wait: Whether to wait for another process that holds the lock.

    Yields:
        None, or a sentence that says why nothing can be written; an existing entry can still be read.

    Raises:
        filelock.Timeout: If another process holds the lock, and `wait` is false.
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
