"""The state of a run after an epoch, in a file from which an equal call continues with an equal result.

The file is valid only for the call that wrote it: it contains the key of everything that determines the result (data,
weights, options, code), and the hash of its content. Loading it never executes code.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

OVERHEAD = 0.05
"""Largest share of a run's time spent on writing its state; the state after the first epoch is always written."""


class Stateful(Protocol):
    """An object that a method carries from epoch to epoch: an optimiser, a module, `Values`, endless batches."""

    def state_dict(self) -> Any:
        """The state, as tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore a state."""


class Values(SimpleNamespace):
    """Plain numbers that a method carries from epoch to epoch, as attributes.

    >>> seen = Values(lowest=1.0, waited=0)
    >>> seen.load_state_dict({"lowest": 0.5, "waited": 2})
    >>> seen.waited
    2
    """

    def state_dict(self) -> dict[str, Any]:
        """The attributes."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Set the attributes."""
        vars(self).update(state_dict)


class Generator:
    """A random generator that is used over several epochs, with a state."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state of the generator."""
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], /) -> None:
        """Restore a state."""
        self._generator.set_state(state_dict["state"])


class Resume:
    """The files in which a run stores its state.

    Args:
        path: The main file. The names of further files begin with its name and a dot.
        key: Identifies the work; a file with another key is not changed until this run writes its own.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._due = 0.0

    def second(self) -> Resume:
        """The files of a second try of the same work."""
        return Resume(self.path.with_name(f"{self.path.name}.second"), f"{self.key} second")

    def read(self, part: str = "") -> tuple[dict[str, Any] | None, str]:
        """Read a state.

        Args:
            part: Name of a further file.

        Returns:
            The state, or None and, if there is a file that cannot be used, the reason.
        """
        import torch

        path = self._file(part)
        if not path.exists():
            return None, ""
        again = "so the work begins again"
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            key, digest, state = stored["key"], stored["digest"], dict(stored["state"])
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError):
            return None, f"{path} is damaged, {again}."
        if key != self.key:
            return None, f"{path} is of other data, weights, options or code, {again}."
        if digest != content_hash(state):
            return None, f"{path} is damaged, {again}."
        return state, ""

    def due(self) -> bool:
        """Whether the state should be written now."""
        return time.perf_counter() >= self._due

    def write(self, state: Mapping[str, Any], part: str = "") -> float:
        """Write the file atomically.

        Returns:
            Seconds that it took.

        Raises:
            ExpungeError: If it cannot be written.
        """
        import torch

        start, path = time.perf_counter(), self._file(part)
        half = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"key": self.key, "digest": content_hash(state), "state": dict(state)}, half)
            half.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            half.unlink(missing_ok=True)
            reason = str(error).splitlines()[0]
            raise ExpungeError(f"cannot write {path} ({reason}); free some space or choose another folder.") from None
        seconds = time.perf_counter() - start
        self._due = time.perf_counter() + seconds / OVERHEAD
        return seconds

    def _file(self, part: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{part}") if part else self.path


def remove_state(path: Path) -> None:
    """Remove the files of a state, once the result is stored."""
    for file in state_files(path):
        file.unlink(missing_ok=True)


def state_files(path: Path) -> list[Path]:
    """The existing files of a state."""
    if not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.iterdir() if f"{file.name}.".startswith(f"{path.name}."))


def content_hash(value: Any) -> str:
    """Hex SHA-256 over a tree of mappings, sequences, tensors and plain values."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} names\x1f".encode())
        for name, item in value.items():
            digest.update(f"{name!r}\x1f".encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} items\x1f".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r}\x1f".encode())
