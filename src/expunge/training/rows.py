"""Small arrays that a training left behind, kept by content: what is asked of many models without keeping a model."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from expunge.core.errors import ExpungeError


class Rows:
    """`<cache>/rows/<key>.npz`. Without a cache nothing is kept, and every `get` is None."""

    def __init__(self, cache: Path | None) -> None:
        self.folder = None if cache is None else cache / "rows"

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """What was put under `key`; None if nothing was, or if it is damaged (archives carry check sums)."""
        if self.folder is None:
            return None
        try:
            # Opened here, because numpy leaves the file of a damaged archive open.
            with self._path(key).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, **arrays: np.ndarray) -> None:
        """The file appears whole or not at all; `ExpungeError` where it cannot be written."""
        if self.folder is None:
            return
        part = self._path(key).with_suffix(f".{secrets.token_hex(6)}.part")  # two processes may have the same to tell
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays)
            part.replace(self._path(key))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ExpungeError(f"cannot write to {self.folder} ({error.strerror}); free some space.") from None

    def state(self, key: str) -> Path | None:
        """Where the training of `key` keeps the state that it goes on from."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{key}.state"

    @contextmanager
    def locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold `key` against other processes; without `wait`, raises `filelock.Timeout` if one has it."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key}.lock", timeout=-1 if wait else 0):
            yield

    def _path(self, key: str) -> Path:
        return (self.folder or Path()) / f"{key}.npz"
