"""What the cache holds: entries, where each came from, and how they are removed.

    <cache>/data/<key>/                 decoded samples
    <cache>/models/<key>.safetensors    trained models
    <cache>/rows/<key>.npz              numbers per sample: scores of shadow models, memorisation
    <cache>/attacks/<key>.safetensors   adversarial images made of samples
    <cache>/precision/<key>.json        timings of this machine; nothing of any sample
    <cache>/samples/<hash>.hashes       which samples entries hold: sorted 64-bit hashes of their content

Whoever writes an entry records its origin beside it (`record`): the data, the command, the samples. So what is made of
a sample is known later, when the sample has to go. Only files of these folders whose names are hashes count as entries:
whatever else lies in the cache folder is neither listed nor removed, and links are never followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from expunge.core.errors import ExpungeError, UsageError, unknown
from expunge.core.files import write_bytes

if TYPE_CHECKING:
    import numpy as np

KINDS: Mapping[str, str] = {
    "data": "decoded samples",
    "models": "trained model",
    "rows": "numbers per sample",
    "attacks": "adversarial images",
    "precision": "timings",
    "hashes": "names of source files",
}
_FOLDERS = {"hashes": Path("data", "hashes")}
_SAMPLES, _ORIGIN = "samples", "origin"
# `.part-` folders are what a killed process left; a file with a dot before its hash is one that was being written.
_NAME = re.compile(r"(?:\.?([0-9a-f]{16,64}(?:-\d+)?)(?:\..*)?)|(\.part-\w{8})")
_COMMANDS = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True)
class Origin:
    """Where an entry came from.

    Attributes:
        data: Name of the data set, as the split calls it; "" where there is none.
        form: dtype and shape of one sample, such as `uint8 1x28x28`.
        samples: Name of the list of samples in `<cache>/samples`; None where the samples are not known (data that
            stream).
        count: Number of samples.
        command: What made it: program and command without arguments, which may name persons.
        made_at: When, ISO 8601 in UTC.
    """

    data: str
    form: str
    samples: str | None
    count: int
    command: str
    made_at: str


@dataclass(frozen=True)
class Entry:
    """One entry of the cache: its files, their bytes on disk, when it was written, and its origin if it is known."""

    kind: str
    key: str
    paths: tuple[Path, ...]
    bytes: int
    written_at: datetime
    origin: Origin | None

    @property
    def name(self) -> str:
        """`models/0123456789ab`: enough to tell it from others."""
        return f"{self.kind}/{self.key[:12]}"


class InUse(ExpungeError):
    """An entry that another process holds, or that cannot be deleted."""


def record(path: Path, root: Path, *, data: str = "", form: str = "", samples: np.ndarray | None = None) -> None:
    """Record where the entry at `path` came from; where that cannot be written, its origin stays unknown.

    Args:
        path: The file of the entry, or its folder.
        root: The cache.
        data: Name of the data set.
        form: dtype and shape of one sample.
        samples: Content hashes (n,) of the samples that the entry holds or was computed from; uint64.
    """
    count = 0 if samples is None else len(samples)
    with contextlib.suppress(ExpungeError):
        listed = None if samples is None else _keep_samples(samples, root)
        origin = Origin(data, form, listed, count, command(), datetime.now(UTC).isoformat(timespec="seconds"))
        write_bytes(_origin_path(path), json.dumps(asdict(origin)).encode())


def command() -> str:
    """The program that runs, with its command and without arguments: `expunge requests fulfil`.

    Words count as the command up to the first option, at most two.
    """
    program = Path(sys.argv[0] if sys.argv else "").name
    if program == "__main__.py":
        program = Path(sys.argv[0]).resolve().parent.parent.name
    if program != "expunge":
        return "python"
    words: list[str] = []
    for word in sys.argv[1:3]:
        if not _COMMANDS.fullmatch(word) or (words and words[0] not in ("requests", "cache")):
            break
        words.append(word)
    return " ".join([program, *words])


def samples_of(origin: Origin, root: Path) -> np.ndarray | None:
    """Sorted content hashes (n,) of the samples of an entry, uint64; None where they are not known or damaged."""
    import numpy as np

    if origin.samples is None or not re.fullmatch(r"[0-9a-f]{64}", origin.samples):
        return None
    try:
        content = (root / _SAMPLES / f"{origin.samples}.hashes").read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != origin.samples:
        return None
    return np.frombuffer(content, dtype="<u8")


def entries(root: Path, *, kinds: Collection[str] = ()) -> list[Entry]:
    """All entries below the cache `root`, oldest first.

    Args:
        root: The cache.
        kinds: Only of these kinds; none: of all.

    Raises:
        UsageError: If a kind is not known.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    result = [entry for kind in KINDS if not kinds or kind in kinds for entry in _entries_of(root, kind)]
    return sorted(result, key=lambda entry: (entry.written_at, entry.kind, entry.key))


def remove(entry: Entry, root: Path) -> None:
    """Delete all files of an entry, its origin last, so that a killed deletion can be told what is left.

    Raises:
        InUse: If another process works on it, a file cannot be deleted, or its content lives on under another name.
    """
    lock = entry.paths[0].parent / f"{entry.key}.lock"
    held = FileLock(lock, timeout=0) if lock.exists() and not lock.is_symlink() else None
    try:
        if held is not None:
            held.acquire()
    except (Timeout, OSError):
        raise InUse(f"{entry.name} is in use by another process; run the same command again later.") from None
    try:
        for path in sorted(entry.paths, key=lambda path: path.name.endswith(_ORIGIN)):
            _delete(path, entry.name)
    finally:
        if held is not None:
            held.release()
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)
    _drop_unused_samples(root, entry)


def _entries_of(root: Path, kind: str) -> Iterator[Entry]:
    folder = root / _FOLDERS.get(kind, kind)
    if folder.is_symlink() or folder.parent.is_symlink():
        return  # whatever it leads to is not in the cache
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    files: dict[str, list[Path]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            files.setdefault(match[1] or match[2], []).append(folder / name)
    for key, paths in files.items():
        content = [path for path in paths if path.suffix != ".lock"]
        if content:
            inside = [file for path in content for file in _inside(path)]
            times = [file.lstat().st_mtime for file in inside if file.exists() or file.is_symlink()]
            yield Entry(
                kind=kind,
                key=key,
                paths=tuple(content),
                bytes=sum(file.lstat().st_size for file in inside if file.exists() or file.is_symlink()),
                written_at=datetime.fromtimestamp(max(times, default=0.0), UTC),
                origin=_read_origin(_origin_path(content[0])),
            )


def _inside(path: Path) -> list[Path]:
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def _origin_path(path: Path) -> Path:
    if path.is_dir() and not path.is_symlink():
        return path / _ORIGIN
    return path.parent / f"{path.name.partition('.')[0]}.{_ORIGIN}"


def _read_origin(path: Path) -> Origin | None:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        listed = values["samples"]
        return Origin(
            str(values["data"]), str(values["form"]), None if listed is None else str(listed), int(values["count"]),
            str(values["command"]), datetime.fromisoformat(values["made_at"]).isoformat(),
        )  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep_samples(samples: np.ndarray, root: Path) -> str:
    import numpy as np

    content = np.unique(samples.astype("<u8")).tobytes()
    name = hashlib.sha256(content).hexdigest()
    path = root / _SAMPLES / f"{name}.hashes"
    if not path.exists():
        write_bytes(path, content)
    return name


def _delete(path: Path, name: str) -> None:
    try:
        if path.is_symlink():
            path.unlink()  # the link alone
        elif path.is_dir():
            for inner in sorted(_inside(path), key=lambda inner: inner.name == _ORIGIN):
                _delete(inner, name)
            shutil.rmtree(path)
        else:
            shared = path.lstat().st_nlink > 1
            path.unlink()
            if shared:
                raise InUse(f"{path} had a second name, under which its content lives on; delete that too.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InUse(f"{name} cannot be deleted ({error.strerror}: {path}); run the same command again later.") from None


def _drop_unused_samples(root: Path, removed: Entry) -> None:
    """Delete the list of samples of a removed entry where no other entry is about it."""
    listed = None if removed.origin is None else removed.origin.samples
    if listed is None or not re.fullmatch(r"[0-9a-f]{64}", listed) or (root / _SAMPLES).is_symlink():
        return
    if not any(entry.origin is not None and entry.origin.samples == listed for entry in entries(root)):
        with contextlib.suppress(OSError):
            (root / _SAMPLES / f"{listed}.hashes").unlink(missing_ok=True)


def days(text: str) -> float:
    """Days in `12h`, `30d` or `4w`. Raises `UsageError`.

    >>> days("12h"), days("30d"), days("4w")
    (0.5, 30.0, 28.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw])", text.strip())
    if match is None:
        raise UsageError(f"an age is a number with h, d or w (hours, days, weeks), such as 30d; got {text!r}.")
    return float(match[1]) * {"h": 1 / 24, "d": 1.0, "w": 7.0}[match[2]]
