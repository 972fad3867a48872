"""Cache of small arrays computed from trained models, such as their outputs on some samples, without the models."""

from __future__ import annotations

import hashlib
import logging
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from expunge.core.entries import record
from expunge.core.shelf import claimed, doubt
from expunge.data.origin import Facts

log = logging.getLogger(__name__)
_SEAL = "_seal"
_warned: set[str] = set()


class ArrayCache:
    """Arrays by key, in `<cache>/rows/<key>.npz`; without a trusted cache folder nothing is stored.

    Args:
        cache: the cache folder, or None.
        origin: the samples that the numbers describe, recorded with every entry.
    """

    def __init__(self, cache: Path | None, origin: Facts | None = None) -> None:
        self._root, self._origin = cache, origin
        self.folder = None if cache is None else cache / "rows"
        doubted = None if self.folder is None else doubt(self.folder)
        if doubted is not None:
            _warn_once(doubted)
            self.folder = None

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of `key`; None if there are none, or if the file is damaged or belongs to another key."""
        if self.folder is None:
            return None
        try:
            # Opened here, because numpy leaves the file of a damaged archive open.
            with self._path(key).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        seal = arrays.pop(_SEAL, None)
        return arrays if seal is not None and str(seal) == _sealed(key, arrays) else None

    def put(self, key: str, **arrays: np.ndarray) -> None:
        """Store arrays atomically; failure to write is logged once as a warning."""
        if self.folder is None:
            return
        part = self._path(key).with_suffix(f".{secrets.token_hex(6)}.part")  # two processes may write the same key
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **{_SEAL: np.array(_sealed(key, arrays))}, **arrays)
            part.replace(self._path(key))
            self._record(key)
        except OSError as error:
            _warn_once(f"nothing is stored in the cache {self.folder} ({error.strerror or error}).")
            try:
                part.unlink(missing_ok=True)
            except OSError:
                return

    def state(self, key: str) -> Path | None:
        """File for the state from which the training of `key` can be resumed; None if it cannot be written."""
        if self.folder is None:
            return None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / f"{key}.state.part").touch()
            (self.folder / f"{key}.state.part").unlink()
        except OSError as error:
            _warn_once(f"nothing is stored in the cache {self.folder} ({error.strerror or error}).")
            return None
        self._record(key)
        return self.folder / f"{key}.state"

    @contextmanager
    def locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of `key`; with `wait=False`, raises `filelock.Timeout` if another process holds it."""
        if self.folder is None:
            yield
            return
        with claimed(self._path(key), wait=wait) as problem:
            if problem is not None:
                _warn_once(problem)
            yield

    def _record(self, key: str) -> None:
        if self._root is not None and self._origin is not None:
            record(self._path(key), self._root, **self._origin)

    def _path(self, key: str) -> Path:
        return (self.folder or Path()) / f"{key}.npz"


def _sealed(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Hex SHA-256 over the key and all values, so that an entry is valid for its own key only."""
    digest = hashlib.sha256(key.encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"\x1f{name}\x1f{values.dtype}\x1f{values.shape}\x1f".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _warn_once(sentence: str) -> None:
    """Log a warning once per process."""
    if sentence not in _warned:
        _warned.add(sentence)
        log.warning("%s", sentence)
