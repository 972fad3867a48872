"""Weights on disk: safetensors, or `weights_only`. Loading never executes anything."""

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
from expunge.models.matching import Match, closest, match, own_tensors, shape_of
from expunge.models.weight_files import StateDict, read_metadata_of, read_state

_HASH = "expunge.sha256"
"""Metadata of the files written here: `state_hash` of their weights."""


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
    """`save_state` of the model's state dict."""
    return save_state(model.state_dict(), path, metadata)


def save_state(weights: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict as safetensors; the file appears whole or not at all.

    Tied tensors are stored under each of their names. Raises `ExpungeError` if the place cannot be written.
    """
    target = Path(path)
    # A clone per tensor: safetensors refuses memory shared between names.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The format is what other readers, such as `from_pretrained`, ask for.
        save_file(state, part, metadata={**(metadata or {}), "format": "pt", _HASH: state_hash(state)})
        _sort_metadata(part)
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


def read_weights(path: str | Path) -> StateDict:
    """The state dict in a file, or in a folder that `save_pretrained` wrote (also in shards).

    A file of ours carries the hash of its weights, which is checked. Whether the values are finite is checked by
    `load_weights`, because some models hold infinite constants.

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
    """Load a file into `model` and return it.

    What `model.load_state_dict(strict=True)` takes is taken, with the module's own load hooks, and so are the prefixes
    that wrappers put before the names, where the rest fits (`models.matching`). The model stays as it was if not.

    Raises:
        CheckpointError: names what does not match, or which values are not finite.
    """
    load_matched(model, path)
    return model


def load_matched(model: nn.Module, path: str | Path) -> Match:
    """`load_weights`, and how the names of the file were read."""
    state = read_weights(path)
    try:
        found = match(model, state)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    own = own_tensors(model)
    if found is None:
        differences = _differences(closest(model, state), own)
        raise CheckpointError(
            f"checkpoint {path} does not fit the model: {differences} `expunge inspect MODEL --checkpoint {path}` "
            "compares all names."
        )
    _check_values(found.state, own, dict(model.named_buffers()), path)
    if len(found.left_out) > 0 and any("." in name for name in found.left_out):
        warnings.warn(
            f"checkpoint {path}: {len(found.left_out)} tensors belong to no part of the model and were left out "
            f"({_some(list(found.left_out))}).",
            stacklevel=3,
        )
    model.load_state_dict(found.state)
    return found


def _check_values(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], buffers: Mapping[str, Tensor], path: str | Path
) -> None:
    """`CheckpointError` for values that are not finite, or of a kind that the model's tensor cannot hold.

    A buffer may hold infinite constants, such as an attention mask: where the model itself has them.
    """
    for name, value in state.items():
        mine = own.get(name)
        if value.is_quantized or (mine is not None and not _holds(mine, value, name)):
            kind = f"{value.dtype}".removeprefix("torch.")
            raise CheckpointError(
                f"checkpoint {path}: tensor `{name}` holds {kind} values, which the model's "
                f"{f'{mine.dtype}'.removeprefix('torch.') if mine is not None else 'tensors'} cannot take; pass the "
                "weights before they were quantised or converted."
            )
        if _all_finite(value):
            continue
        constant = name in buffers and not is_lazy(buffers[name]) and buffers[name].shape == value.shape
        if not constant or not torch.equal(torch.isfinite(buffers[name]).cpu(), torch.isfinite(value)):
            raise CheckpointError(
                f"checkpoint {path}: tensor `{name}` holds NaN or infinite values; the training that wrote it "
                "diverged: pass an earlier checkpoint, or train again with a lower learning rate."
            )


def _holds(mine: Tensor, value: Tensor, name: str) -> bool:
    """Whether values of this type keep their meaning in the model's tensor; precision may get lost, whole parts not."""
    if mine.is_complex() or value.is_complex():
        return mine.is_complex()
    if mine.is_floating_point():
        return value.is_floating_point()
    if not value.is_floating_point():
        return True
    # Averaged state dicts (federated training) hold a fractional count of batches, which nothing depends on.
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
    """The likely cause: only the layer with one row per class differs, or the architecture does."""
    last = next((name for name in reversed(list(own)) if own[name].ndim), "")
    heads = {last, f"{last.rpartition('.')[0]}.weight"}
    if shapes and not missing and set(shapes) <= heads:
        have, want = len(state[last]), len(own[last])
        return f"The checkpoint was made for {have} classes, the model for {want}: choose the data it was trained on."
    return "Check the architecture, its options and the number of classes."


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `save_weights` was given as metadata, from a safetensors file; empty for other types."""
    return {name: value for name, value in read_metadata_of(Path(path)).items() if name not in (_HASH, "format")}


def _sort_metadata(path: Path) -> None:
    """Metadata in the order of their names: safetensors writes them in another one each time, and the bytes differ."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))


def _umask() -> int:
    """What the user withholds from new files; it can only be read by setting it."""
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
