"""Saving and loading of weights: safetensors, or PyTorch files with `weights_only`. Loading never executes code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.core.errors import CheckpointError, ExpungeError
from expunge.models.matching import WeightMatch, closest, match, own_tensors, shape_of
from expunge.models.weight_files import StateDict, read_metadata_of, read_state

_HASH = "expunge.sha256"
"""Metadata of the files written here: `state_hash` of their weights."""


def weights_hash(model: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of the state dict, in the order of the names."""
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
    """`save_state` of the model's state dict."""
    return save_state(model.state_dict(), path, metadata)


def save_state(weights: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a state dict as safetensors, atomically; tied tensors are stored under each of their names.

    Args:
        weights: the state dict.
        path: the file; its folder is created.
        metadata: text stored in the header of the file.

    Returns:
        The path.

    Raises:
        ExpungeError: if the file cannot be written.
    """
    target = Path(path)
    # A clone per tensor: safetensors refuses memory shared between names.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Other readers, such as `from_pretrained`, require the format.
        save_file(state, part, metadata={**(metadata or {}), "format": "pt", _HASH: state_hash(state)})
        _sort_metadata(part)
        part.chmod(0o666 & ~_umask())  # safetensors creates files that only the owner can read
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        raise ExpungeError(f"cannot write {target} ({error}); free some space or choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):  # there is no part after success, and no folder after some failures
            part.unlink()
    return target


def read_weights(path: str | Path) -> StateDict:
    """Read the state dict of a file, or of a folder that `save_pretrained` wrote (also in shards).

    Files written by `save_state` contain the hash of their weights, which is checked. Whether values are finite is
    checked by `load_weights`, because some models have infinite constants.

    Raises:
        CheckpointError: it is missing, truncated, changed, foreign, or holds code.
    """
    state = read_state(path)
    stated = read_metadata_of(Path(path)).get(_HASH) if Path(path).is_file() else None
    if stated is not None and stated != state_hash(state):
        raise CheckpointError(
            f"checkpoint {path} was changed or damaged after it was written: the hash of its weights is not the one "
            "that it states; restore it from a backup, or make it again."
        )
    return state


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a file into `model` and return it.

    Accepts everything that `model.load_state_dict(strict=True)` accepts, including the module's load hooks, and names
    with the prefixes of wrappers (`models.matching`). The model is not changed if loading fails.

    Raises:
        CheckpointError: naming what does not match, or values that are not finite.
    """
    load_matched(model, path)
    return model


def load_matched(model: nn.Module, path: str | Path) -> WeightMatch:
    """`load_weights`; returns how the names of the file were matched."""
    state = read_weights(path)
    try:
        matched = match(model, state)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    own = own_tensors(model)
    if matched is None:
        differences = _differences(closest(model, state), own)
        raise CheckpointError(
            f"checkpoint {path} does not fit the model: {differences} `expunge inspect MODEL --checkpoint {path}` "
            "compares all names."
        )
    _check_values(matched.state, own, dict(model.named_buffers()), path)
    if len(matched.left_out) > 0 and any("." in name for name in matched.left_out):
        warnings.warn(
            f"checkpoint {path}: {len(matched.left_out)} tensors belong to no part of the model and were left out "
            f"({_some(list(matched.left_out))}).",
            stacklevel=3,
        )
    model.load_state_dict(matched.state)
    return matched


def _check_values(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], buffers: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raise `CheckpointError` for values that are not finite, or of a type that the model's tensor cannot represent.

    A buffer may contain infinite constants, such as an attention mask, if the model's own buffer does.
    """
    for name, value in state.items():
        target = own.get(name)
        if value.is_quantized or (target is not None and not _holds(target, value, name)):
            kind = f"{value.dtype}".removeprefix("torch.")
            raise CheckpointError(
                f"checkpoint {path}: tensor `{name}` holds {kind} values, which the model's "
                f"{f'{target.dtype}'.removeprefix('torch.') if target is not None else 'tensors'} cannot take; pass "
                "the weights before they were quantised or converted."
            )
        if _all_finite(value):
            continue
        constant = name in buffers and not is_lazy(buffers[name]) and buffers[name].shape == value.shape
        if not constant or not torch.equal(torch.isfinite(buffers[name]).cpu(), torch.isfinite(value)):
            raise CheckpointError(
                f"checkpoint {path}: tensor `{name}` holds NaN or infinite values; the training that wrote it "
                "diverged: pass an earlier checkpoint, or train again with a lower learning rate."
            )


def _holds(target: Tensor, value: Tensor, name: str) -> bool:
    """Whether the model's tensor can represent values of this type, apart from precision."""
    if target.is_complex() or value.is_complex():
        return target.is_complex()
    if target.is_floating_point():
        return value.is_floating_point()
    if not value.is_floating_point():
        return True
    # Averaged state dicts (federated training) contain a fractional count of batches, on which nothing depends.
    return name.endswith("num_batches_tracked") or torch.equal(value, value.round())


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in state]
    extra = sorted(name for name in state if name not in own)  # safetensors keeps no order
    shapes = [n for n in own if n in state and shape_of(own[n]) not in (None, tuple(state[n].shape))]
    findings = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(extra)}"] if extra else []),
        *([_some([_shapes(name, state, own) for name in shapes])] if shapes else []),
    ]
    return f"{'; '.join(findings)}. {_advice(own, state, missing, shapes)}"


def _advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], shapes: list[str]) -> str:
    """The likely cause: another number of classes, or another architecture."""
    last = next((name for name in reversed(list(own)) if own[name].ndim), "")
    heads = {last, f"{last.rpartition('.')[0]}.weight"}
    if shapes and not missing and set(shapes) <= heads:
        have, want = len(state[last]), len(own[last])
        return f"The checkpoint was made for {have} classes, the model for {want}: choose the data it was trained on."
    return "Check the architecture, its options and the number of classes."


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata given to `save_weights`, from a safetensors file; empty for other types."""
    return {name: value for name, value in read_metadata_of(Path(path)).items() if name not in (_HASH, "format")}


def _sort_metadata(path: Path) -> None:
    """Sort the metadata by name, for reproducible files: safetensors writes them in random order."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _all_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())  # float8 knows no isfinite


def _shapes(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
