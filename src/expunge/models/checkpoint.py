"""Weights on disk: safetensors, or `weights_only`. Loading never executes anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import secrets
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.core.errors import CheckpointError, ExpungeError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# What the unpickler of torch.load raises on bytes that are no pickle: its opcodes fail wherever they happen to.
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


def weights_hash(model: nn.Module) -> str:
    """Hex sha256 over names, types, shapes and bytes of the state dict, in key order."""
    return state_hash(model.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """`weights_hash` of the model with this state dict, e.g. what `read_weights` returns."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict as safetensors; the file appears whole or not at all.

    Tied tensors are stored under each of their names. Raises `ExpungeError` if the place cannot be written.
    """
    target = Path(path)
    # A clone per tensor: safetensors refuses memory shared between names.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, part, metadata=dict(metadata or {}))
        part.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        raise ExpungeError(f"cannot write {target} ({error}); free some space or choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):  # there is no part after success, and no folder after some failures
            part.unlink()
    return target


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises `CheckpointError` if it is missing, truncated, foreign, or holds code."""
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"checkpoint {source} does not exist; pass the path of a .safetensors or .pt file.")
    if source.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"checkpoint {source} has an unknown type; allowed: {', '.join(SUFFIXES)}.")
    state = _read_safetensors(source) if source.suffix.lower() == ".safetensors" else _read_torch(source)
    for name, value in state.items():
        if not _all_finite(value):
            raise CheckpointError(
                f"checkpoint {source}: tensor `{name}` holds NaN or infinite values; the training that wrote it "
                "diverged: pass an earlier checkpoint, or train again with a lower learning rate."
            )
    return state


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file into `model` (strictly) and return it. Raises `CheckpointError` and names what does not match."""
    own = model.state_dict()
    state = _without_wrapper(read_weights(path), own)
    missing = [name for name in own if name not in state]
    extra = sorted(name for name in state if name not in own)  # safetensors keeps no order
    shapes = [name for name in own if name in state and state[name].shape != own[name].shape]
    findings = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(extra)}"] if extra else []),
        *([_some([_shapes(name, state, own) for name in shapes])] if shapes else []),
    ]
    if findings:
        raise CheckpointError(
            f"checkpoint {path} does not fit the model: {'; '.join(findings)}. {_advice(own, state, missing, shapes)}"
        )
    model.load_state_dict(state)
    return model


def _without_wrapper(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix that DataParallel or torch.compile put before every one of them."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], shapes: list[str]) -> str:
    """The likely cause: only the layer with one row per class differs, or the architecture does."""
    last = next((name for name in reversed(list(own)) if own[name].ndim), "")
    heads = {last, f"{last.rpartition('.')[0]}.weight"}
    if shapes and not missing and set(shapes) <= heads:
        have, want = len(state[last]), len(own[last])
        return f"The checkpoint was made for {have} classes, the model for {want}: choose the data it was trained on."
    return "Check the architecture, its options and the number of classes."


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other types."""
    if Path(path).suffix.lower() != ".safetensors":
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
        raise CheckpointError(
            f"checkpoint {source} is truncated or not a safetensors file ({error}); copy or write it again."
        ) from None


def _umask() -> int:
    """What the user withholds from new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _all_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())  # float8 knows no isfinite


def _refuse_bomb(source: Path) -> None:
    """PyTorch never compresses what it saves, so what unpacks to far more was made to fill memory."""
    if not zipfile.is_zipfile(source):
        return
    size = source.stat().st_size
    try:
        with zipfile.ZipFile(source) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"checkpoint {source} is truncated ({error}); copy or write it again.") from None
    if unpacked > 2 * size:
        raise CheckpointError(
            f"checkpoint {source} has {size:,} bytes that unpack to {unpacked:,}, which no checkpoint does; it is not "
            "opened: ask where it comes from."
        )


def _read_torch(source: Path) -> dict[str, Tensor]:
    _refuse_bomb(source)
    try:
        with warnings.catch_warnings():
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
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise CheckpointError(f"checkpoint {source} holds no state dict; save one with torch.save(model.state_dict()).")
    return dict(content)


def _shapes(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
