"""Weights on disk: safetensors, or `weights_only`. Loading never executes anything."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.core.errors import CheckpointError, ExpungeError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weights_hash(model: nn.Module) -> str:
    """Hex sha256 over names, types, shapes and bytes of the state dict, in key order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict as safetensors; the file appears whole or not at all.

    Tied tensors are stored under each of their names. Raises `ExpungeError` if the place cannot be written.
    """
    target = Path(path)
    # A clone per tensor: safetensors refuses memory shared between names.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    part = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        save_file(state, part, metadata=dict(metadata or {}))
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise ExpungeError(f"cannot write {target} ({error}); free some space or choose another folder.") from None
    return target


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises `CheckpointError` if it is missing, truncated, foreign, or holds code."""
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"checkpoint {source} does not exist; pass the path of a .safetensors or .pt file.")
    if source.suffix not in SUFFIXES:
        raise CheckpointError(f"checkpoint {source} has an unknown type; allowed: {', '.join(SUFFIXES)}.")
    state = _read_safetensors(source) if source.suffix == ".safetensors" else _read_torch(source)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"checkpoint {source}: tensor `{name}` holds NaN or infinite values.")
    return state


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file into `model` (strictly) and return it. Raises `CheckpointError` and names what does not match."""
    state = read_weights(path)
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    findings = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(extra)}"] if extra else []),
        *([_some(shapes)] if shapes else []),
    ]
    if findings:
        raise CheckpointError(
            f"checkpoint {path} does not fit the model: {'; '.join(findings)}. "
            "Check the architecture, its options and the number of classes."
        )
    model.load_state_dict(state)
    return model


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other types."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(str(path), framework="pt") as stream:
            return dict(stream.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error}).") from None


def _read_safetensors(source: Path) -> dict[str, Tensor]:
    try:
        return load_file(source)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {source} is truncated or not a safetensors file ({error}).") from None


def _read_torch(source: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"checkpoint {source} holds code or is not a checkpoint, and is not opened; save plain weights with "
            "torch.save(model.state_dict(), path) where you trust it, and pass that file."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {source} is truncated or not a checkpoint ({reason}).") from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise CheckpointError(f"checkpoint {source} holds no state dict; save one with torch.save(model.state_dict()).")
    return dict(content)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
