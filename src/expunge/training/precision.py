"""The precision of forward and backward passes: bfloat16 if it is measurably faster, else float32.

Instruction sets alone do not decide: a processor that multiplies bfloat16 natively can still be slower for a small
network or an unfavourable batch size. So `auto` times one batch in each precision, once per machine, model and batch
shape, and stores the decision in the cache folder. Two runs with the same decision are bit-equal; the decision is part
of every result and of every cache key. Master weights, BatchNorm statistics and losses are float32 in both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.run import Precision
from expunge.core.seeds import global_generators
from expunge.core.shelf import doubt
from expunge.data.cache import cache_root
from expunge.data.split import Split
from expunge.models.layout import channels_last
from expunge.models.modes import lone_samples

FASTER = 0.8
"""bfloat16 is chosen only if a batch takes at most this share of its float32 time."""

SMALL_SECONDS = 0.005
"""Below this float32 time per batch, overhead dominates and bfloat16 is not timed."""


def resolve_precision(
    wanted: Precision | None, model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> Precision:
    """The precision that a run uses.

    Args:
        wanted: `float32` and `bfloat16` are returned unchanged; `auto` (or None) is decided by measurement.
        model: the network that will be trained; a copy of it is timed.
        split: the samples it will be trained on; its first `batch_size` samples are the timed batch.
        batch_size: samples per step.
        device: where the run happens.

    Returns:
        `float32` or `bfloat16`.
    """
    if wanted is not None and wanted != "auto":
        return wanted
    if not native_bfloat16(device) or len(split) == 0:
        return "float32"
    batch = next(iter(split.take(split.index[:batch_size]).batches(batch_size, device=device)))
    path = cache_root() / "precision" / f"{_key(model, batch.x, device)}.json"
    stored = _read(path)
    if stored is not None:
        return stored
    decision, seconds = measure(model, batch.x, split.num_classes, device)
    _write(path, decision, seconds, batch.x.shape)
    return _read(path) or decision


def native_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware (AMX, AVX512-BF16, NVIDIA Ampere and newer)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return bool(instruction_sets() & {"amx_bf16", "avx512_bf16"})


def instruction_sets() -> set[str]:
    """The processor's instruction sets that are relevant to matrix products, as torch reports them."""
    probes = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    others = {"avx2": "_is_avx2_supported", "avx512": "_is_avx512_supported"}
    return {
        name
        for name, probe in {**probes, **others}.items()
        if callable(getattr(torch.cpu, probe, None)) and getattr(torch.cpu, probe)()
    }


def measure(model: nn.Module, x: Tensor, num_classes: int, device: torch.device) -> tuple[Precision, dict[str, float]]:
    """Time one training step in both precisions.

    Args:
        model: any network that returns logits (B, classes).
        x: one batch (B, ...), on `device`.
        num_classes: number of classes, for arbitrary labels.
        device: where to time.

    Returns:
        The decision, and seconds per batch by precision (only `float32` if that was below `SMALL_SECONDS`).
        A network that fails or is not finite in bfloat16 is trained in float32.
    """
    student = copy.deepcopy(model).to(device).train()
    channels_last(student, x.shape[1:])
    labels = torch.arange(len(x), device=device) % num_classes
    seconds: dict[str, float] = {}
    with global_generators(device), lone_samples(student):
        _step(student, x, labels, device, "float32")
        seconds["float32"] = min(_step(student, x, labels, device, "float32") for _ in range(2))
        if seconds["float32"] < SMALL_SECONDS:
            return "float32", seconds
        try:
            _step(student, x, labels, device, "bfloat16")
            seconds["bfloat16"] = min(_step(student, x, labels, device, "bfloat16") for _ in range(2))
        except (RuntimeError, FloatingPointError):
            return "float32", seconds
    return _decided(seconds), seconds


def _step(model: nn.Module, x: Tensor, labels: Tensor, device: torch.device, precision: str) -> float:
    """Seconds of one forward and backward pass; raises `FloatingPointError` if its loss is not finite.

    On the CPU these are CPU seconds, so that other programs on the machine do not affect the decision.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(x)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    if not bool(torch.isfinite(loss)):  # reading the loss also waits for the device
        raise FloatingPointError("the loss is not finite")
    return clock() - start


def _key(model: nn.Module, x: Tensor, device: torch.device) -> str:
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    facts = [
        machine(device),
        torch.__version__,
        torch.get_num_threads(),
        repr(model),
        shapes,
        tuple(x.shape),
        str(x.dtype),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def machine(device: torch.device) -> str:
    """The name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: Path) -> Precision | None:
    """A kept decision; None where there is none, or where the file is damaged, another's, or in a doubtful folder."""
    if doubt(path.parent) is not None:
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        seconds = {str(name): float(value) for name, value in stored["seconds"].items()}
        decision, seal = _decided(seconds), stored.pop("seal")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    sound = stored.get("key") == path.stem and seal == _seal(stored) and stored.get("precision") == decision
    return decision if sound else None


def _write(path: Path, decision: Precision, seconds: dict[str, float], shape: Sequence[int]) -> None:
    """Keep a decision; the first one stays, so that two processes that measure at once agree afterwards."""
    content = {"key": path.stem, "precision": decision, "seconds": seconds, "batch": list(shape)}
    if doubt(path.parent) is not None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and _read(path) is None:
            path.unlink()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            json.dump({**content, "seal": _seal(content)}, out)
    except OSError:
        return  # the decision is part of the result all the same; the next run measures again


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _decided(seconds: Mapping[str, float]) -> Precision:
    """What the seconds per batch of each precision say; without those of bfloat16 it was slow, or not finite."""
    return "bfloat16" if seconds.get("bfloat16", math.inf) <= FASTER * seconds["float32"] else "float32"
