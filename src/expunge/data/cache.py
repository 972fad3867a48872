"""Cache of decoded samples, addressed by the hash of their source.

Layout: `<cache>/data/<key>/samples.npy` (memory-mapped) with `meta.json` (its SHA-256), and
`<cache>/data/hashes/*.json`, the hashes of source files by size and time, so that an unchanged file is read once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from expunge.core.entries import record
from expunge.core.errors import DataError
from expunge.core.identity import code_hash
from expunge.core.shelf import doubt
from expunge.data.hashing import row_hashes

log = logging.getLogger(__name__)
_DECODERS = "expunge.data.sources"  # which imports every module that decodes


def cache_root() -> Path:
    """The cache folder: `$EXPUNGE_CACHE`, else `expunge` in the user's cache folder."""
    if given := os.environ.get("EXPUNGE_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "expunge"


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file; raises `DataError` if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


def source_key(files: Sequence[Path], root: Path, facts: object, cache: Path) -> str:
    """Hex SHA-256 over the content of files, their names below `root`, and the facts that determine the decoding.

    Args:
        files: the source files.
        root: folder to which names are relative.
        facts: decoding options, ready for JSON.
        cache: the cache folder, with the hashes of unchanged files.

    Raises:
        DataError: if a file cannot be read.
    """
    index = cache / "data" / "hashes" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]}.json"
    known = _read_json(index)
    fresh: dict[str, object] = {}
    digest = hashlib.sha256(json.dumps([code_hash(_DECODERS), facts], sort_keys=True, default=str).encode())
    for path in files:
        name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
        entry = known.get(name)
        if not (isinstance(entry, list) and entry[:2] == [state.st_size, state.st_mtime_ns] and len(entry) == 3):
            entry = [state.st_size, state.st_mtime_ns, file_hash(path)]
        fresh[name] = entry
        digest.update(f"{name}\x1f{entry[2]}\x1f".encode())
    merged = {**known, **fresh}
    if merged != known:
        try:
            _write_json(index, merged)
            record(index, cache, data=str(root.resolve()), form="names")
        except OSError as error:
            log.warning("the cache %s cannot be written (%s); continuing without it.", cache, error.strerror or error)
    return digest.hexdigest()


def cached_array(key: str, cache: Path, make: Callable[[], np.ndarray], *, name: str = "") -> np.ndarray:
    """The array stored under `key`, memory-mapped copy-on-write; computed by `make` and stored if absent or damaged.

    `name` is the name of the data, recorded with the entry.
    """
    folder = cache / "data" / key
    doubted = doubt(cache / "data")
    if doubted is not None:
        log.warning("%s", doubted)
        return make()
    stored = _load(folder)
    if stored is not None:
        return stored
    array = make()
    try:
        _store(folder, array)
        form = f"{array.dtype} {'x'.join(map(str, array.shape[1:]))}"
        record(folder, cache, data=name, form=form, samples=row_hashes(array))
    except OSError as error:
        log.warning("the cache %s cannot be written (%s); continuing without it.", cache, error.strerror or error)
        return array
    return _load(folder) if (folder / "meta.json").exists() else array  # type: ignore[return-value]


def array_hash(array: np.ndarray) -> str:
    """Hex SHA-256 of the values of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() if array.size else "empty"


def _load(folder: Path) -> np.ndarray | None:
    meta = _read_json(folder / "meta.json")
    if not meta:
        return None
    try:
        # Mode "c": writable for torch, yet the file never changes.
        array: np.ndarray = np.load(folder / "samples.npy", mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = np.empty(0)
    if array_hash(array) != meta.get("sha256"):
        log.warning("the cached data %s are damaged and are decoded again.", folder)
        return None
    return array


def _store(folder: Path, array: np.ndarray) -> None:
    """Write to a temporary folder and rename it, so that a killed process leaves no incomplete entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        np.save(part / "samples.npy", array, allow_pickle=False)
        _write_json(part / "meta.json", {"sha256": array_hash(array), "shape": list(array.shape)})
        shutil.rmtree(folder, ignore_errors=True)
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():  # otherwise another process was faster, with an equal entry
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(content, out)
    Path(part).replace(path)
