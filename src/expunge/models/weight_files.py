"""Reading the state dict of weight files: safetensors, PyTorch files, folders of `save_pretrained`.

Reading never executes code: PyTorch files are opened with `weights_only`, and statements of a file (the names of its
shards, its hash) are checked before they are used.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.core.errors import CheckpointError

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".bin", ".ckpt", ".th", ".tar", ".pkl", ".pickle", ".model", ".weights")
"""Suffixes of weight files; all but the first are written by `torch.save` (`.pth.tar` is not a tar archive)."""

INDEX = ".index.json"
_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""File names of the weights that `save_pretrained` and `Result.save` write; with `INDEX` appended, those of shards."""

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module", "network")
"""Keys under which training scripts store the weights, the most common first."""
_AVERAGES = ("model_ema", "ema", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "ema_model")

# The unpickler of torch.load raises these on bytes that are not a pickle.
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

# NumPy scalars (an accuracy, an epoch) are plain data that many scripts store with the weights.
_DATA: list[Any] = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)), type(np.dtype(np.int64))]


def read_state(path: str | Path) -> StateDict:
    """Read the state dict of a file, or of a folder that `save_pretrained` wrote, in one file or in shards.

    Raises:
        CheckpointError: if it is missing, truncated, of another type, contains code, or several state dicts.
    """
    source = _weights_of(Path(path))
    if source.name.endswith(INDEX):
        return _read_shards(source)
    return _read_file(source)


def _weights_of(path: Path) -> Path:
    """The file to read: the path itself, or the weights in a folder."""
    if path.is_dir():
        candidates = [path / (name + end) for name in _FOLDER for end in ("", INDEX) if (path / (name + end)).is_file()]
        if not candidates:
            raise CheckpointError(
                f"checkpoint {path} does not exist as a file, and the folder holds none of {', '.join(_FOLDER)}; pass "
                "the path of a .safetensors or .pt file."
            )
        return candidates[0]
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; pass the path of a .safetensors or .pt file.")
    if path.suffix.lower() not in SUFFIXES and not path.name.endswith(INDEX):
        raise CheckpointError(
            f"checkpoint {path} has an unknown type; allowed: {', '.join(SUFFIXES)}, and a folder that "
            "`save_pretrained` wrote."
        )
    return path


def _read_file(source: Path) -> StateDict:
    return _read_safetensors(source) if source.suffix.lower() == SAFETENSORS else _read_torch(source)


def _read_shards(index: Path) -> StateDict:
    """The tensors of all shards in an index file (`weight_map`: tensor name -> file name)."""
    try:
        stated = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(file) for name, file in stated.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {index} is not an index of shards ({error}); copy it again.") from None
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or file.startswith("."):
            raise CheckpointError(f"checkpoint {index} names the shard `{file}`, which is not a file of its folder.")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"checkpoint {index} lacks its shard {file}; copy the whole folder.")
        state |= _read_file(index.parent / file)
    missing = sorted(set(places) - set(state))
    if missing:
        raise CheckpointError(f"checkpoint {index}: its shards lack `{missing[0]}`; copy the whole folder again.")
    return StateDict(state)


def read_metadata_of(path: Path) -> dict[str, str]:
    """All metadata of a safetensors file; empty for other types."""
    if path.suffix.lower() != SAFETENSORS:
        return {}
    try:
        with safetensors.safe_open(str(path), framework="pt") as stream:
            return dict(stream.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error}).") from None


def _read_safetensors(source: Path) -> StateDict:
    try:
        return StateDict(load_file(source))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {source} is truncated or not a safetensors file ({error}); copy or write it again."
        ) from None


def _read_torch(source: Path) -> StateDict:
    _refuse_archives(source)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*_DATA, *_numpy_scalars()]):
            warnings.simplefilter("ignore")  # about foreign formats, which end in an error of ours anyhow
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"holds code or objects (`{code[1]}`)" if code else "holds code or is not a checkpoint"
        raise CheckpointError(
            f"checkpoint {source} {what} and is not opened, because that could run anything; where you trust it, save "
            "plain weights with torch.save(model.state_dict(), path), and pass that file."
        ) from None
    except _MALFORMED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {source} is truncated or not a checkpoint ({reason}); copy or write it again."
        ) from None
    return _state_dict_in(content, source)


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """NumPy's constructor of scalars, under the names that different versions of NumPy write."""
    scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    return [(scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]


def _state_dict_in(content: Any, source: Path) -> StateDict:
    """The state dict itself, or the one in a container; raises `CheckpointError` if there is none or several."""
    state = _as_state(content)
    if state is not None:
        return state
    inside = _state_dicts(content)
    for names in (_CONTAINERS, _AVERAGES):
        for name in names:
            if name in inside:
                return _from(inside, name)
    if len(inside) == 1:
        return _from(inside, next(iter(inside)))
    if inside:
        keys = ", ".join(f"`{name}`" for name in inside)
        raise CheckpointError(
            f"checkpoint {source} holds {len(inside)} state dicts ({keys}), and none has a usual name; save the one "
            "you mean with torch.save(checkpoint[key], path)."
        )
    keys = ", ".join(f"`{key}`" for key in list(content)[:6]) if isinstance(content, Mapping) and content else "nothing"
    raise CheckpointError(
        f"checkpoint {source} holds no state dict (it holds {keys}); save one with torch.save(model.state_dict())."
    )


def _from(inside: Mapping[str, StateDict], name: str) -> StateDict:
    inside[name].container = name
    return inside[name]


def _state_dicts(content: Any, prefix: str = "", depth: int = 3) -> dict[str, StateDict]:
    """State dicts by their key, outer before inner, without those of optimisers."""
    states: dict[str, StateDict] = {}
    if not isinstance(content, Mapping) or depth == 0:
        return states
    for key, value in content.items():
        if not isinstance(key, str) or "optim" in key.lower():
            continue
        state = _as_state(value)
        if state is not None:
            states[prefix + key] = state
        else:
            # A nested container, {"model": {"state_dict": ...}}, is named by its outer key if it has only one.
            inner = _state_dicts(value, "", depth - 1)
            states |= (
                {prefix + key: next(iter(inner.values()))}
                if len(inner) == 1
                else {f"{prefix}{key}.{name}": state for name, state in inner.items()}
            )
    return states


def _as_state(content: Any) -> StateDict | None:
    """A state dict with the versions of its modules (`_metadata`, read by load hooks), or None."""
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return None
    versions = getattr(content, "_metadata", None)
    if not isinstance(versions, Mapping):
        return StateDict(content)
    return StateDict(content, {str(name): dict(v) for name, v in versions.items() if isinstance(v, Mapping)})


class StateDict(dict[str, Tensor]):
    """Weights by name, with the format versions of their modules by module name.

    The latter are the attribute `_metadata`, which `torch.nn.Module.load_state_dict` and its load hooks read.

    Args:
        tensors: name -> tensor.
        versions: module name -> versions; those of `tensors` by default.

    Attributes:
        container: the key under which the file contained the weights.
    """

    container = ""

    def __init__(self, tensors: Mapping[str, Tensor], versions: Mapping[str, dict[str, Any]] | None = None) -> None:
        super().__init__(tensors)
        self._metadata = versions if versions is not None else getattr(tensors, "_metadata", None)

    def renamed(self, rename: Callable[[str], str]) -> StateDict:
        """The same tensors under other names; names of modules are changed accordingly."""
        versions = self._metadata
        if versions is not None:
            versions = {rename(f"{name}.x").rpartition(".")[0] if name else "": v for name, v in versions.items()}
        return StateDict({rename(name): value for name, value in self.items()}, versions)

    def without(self, names: Collection[str]) -> StateDict:
        """All tensors except these."""
        return StateDict({name: value for name, value in self.items() if name not in names}, self._metadata)


def _refuse_archives(source: Path) -> None:
    """Raise `CheckpointError` for archives that are not weights, or that were made to fill memory.

    PyTorch does not compress files, so an archive that unpacks to a much larger size is an attack.
    """
    with source.open("rb") as stream:
        first = stream.read(8)
    if first.startswith(b"\x89HDF"):
        raise CheckpointError(f"checkpoint {source} is an HDF5 file (Keras?), not PyTorch weights; convert it first.")
    if not zipfile.is_zipfile(source):
        return
    size = source.stat().st_size
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"checkpoint {source} is truncated ({error}); copy or write it again.") from None
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > 2 * size:
        raise CheckpointError(
            f"checkpoint {source} has {size:,} bytes that unpack to {unpacked:,}, which no checkpoint does; it is not "
            "opened: ask where it comes from."
        )
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"checkpoint {source} is a TorchScript archive, which holds code, and is not opened; where you trust it, "
            "save plain weights with torch.save(torch.jit.load(path).state_dict(), path), and pass that file."
        )
