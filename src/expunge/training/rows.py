"""Small arrays that a training left behind, kept by content: what is asked of many models without keeping a model."""

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
_told: set[str] = set()


class Rows:
    """`<cache>/rows/<key>.npz`. Without a cache, or with one that cannot be believed, every `get` is None.

    origin: which samples the numbers are about, recorded beside every entry.
    """

    def __init__(self, cache: Path | None, origin: Facts | None = None) -> None:
        self._root, self._origin = cache, origin
        self.folder = None if cache is None else cache / "rows"
        doubted = None if self.folder is None else doubt(self.folder)
        if doubted is not None:
            _tell(doubted)
            self.folder = None

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """What was put under `key`; None if nothing was, or if it is damaged or was put under another key."""
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
        """The file appears whole or not at all; where it cannot be written, that is said once and nothing is kept."""
        if self.folder is None:
            return
        part = self._path(key).with_suffix(f".{secrets.token_hex(6)}.part")  # two processes may have the same to tell
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **{_SEAL: np.array(_sealed(key, arrays))}, **arrays)
            part.replace(self._path(key))
            self._record(key)
        except OSError as error:
            _tell(f"nothing is kept in the cache {self.folder} ({error.strerror or error}).")
            try:
                part.unlink(missing_ok=True)
            except OSError:
                return

    def state(self, key: str) -> Path | None:
        """Where the training of `key` keeps the state that it goes on from; None where it can keep none."""
        if self.folder is None:
            return None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / f"{key}.state.part").touch()
            (self.folder / f"{key}.state.part").unlink()
        except OSError as error:
            _tell(f"nothing is kept in the cache {self.folder} ({error.strerror or error}).")
            return None
        self._record(key)
        return self.folder / f"{key}.state"

    @contextmanager
    def locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold `key` against other processes; without `wait`, raises `filelock.Timeout` if one has it."""
        if self.folder is None:
            yield
            return
        with claimed(self._path(key), wait=wait) as problem:
            if problem is not None:
                _tell(problem)
            yield

    def _record(self, key: str) -> None:
        if self._root is not None and self._origin is not None:
            record(self._path(key), self._root, **self._origin)

    def _path(self, key: str) -> Path:
        return (self.folder or Path()) / f"{key}.npz"


def _sealed(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Hex sha256 over the key and all values, so that an entry counts for its own question only."""
    digest = hashlib.sha256(key.encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"\x1f{name}\x1f{values.dtype}\x1f{values.shape}\x1f".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _tell(sentence: str) -> None:
    """A warning, once per process."""
    if sentence not in _told:
        _told.add(sentence)
        log.warning("%s", sentence)
