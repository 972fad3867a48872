"""Checks shared by the entry points: devices, models, and whether data and model fit together."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from expunge.core.distributed import World, current
from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.data.convert import as_split, harmonise_classes
from expunge.data.duplicates import copies_among
from expunge.data.split import Split
from expunge.models.contract import adapted, plain_module
from expunge.models.modes import evaluation_mode


def pick_device(device: str | torch.device) -> torch.device:
    """`auto`: the first CUDA device, else the CPU. `UsageError` if the named one is not there.

    Processes that share a run have one GPU each: `auto` and `cuda` mean the one of this process.
    """
    world = current()
    if world.size > 1 and str(device) != "cpu":
        return _own_gpu(str(device), world)
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device `{device}` cannot be used ({reason}); allowed: auto, cpu, cuda, cuda:N.") from None
    return chosen


def _own_gpu(device: str, world: World) -> torch.device:
    count = torch.cuda.device_count()
    if device == "auto" and count == 0:
        return torch.device("cpu")
    if device not in ("auto", "cuda"):
        raise UsageError(f"device `{device}` cannot be shared by {world.size} processes; allowed: auto, cpu, cuda.")
    if world.local >= count:
        raise UsageError(
            f"there is no GPU for process {world.local + 1} of this machine, it has {count}; start one process per GPU "
            "(`torchrun --nproc-per-node gpu`), or pass the device `cpu`."
        )
    torch.cuda.set_device(world.local)
    return torch.device("cuda", world.local)


@functools.cache
def warm_up() -> None:
    """The first optimiser of a process imports torch's compiler, for seconds; that must not count as training time."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


@contextmanager
def compiling() -> Iterator[None]:
    """A failure of `torch.compile` (no C++ compiler, an operation it does not know) in one sentence."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExpungeError(f"the model cannot be compiled ({reason}); leave out `compile`.") from None


def check_compile(wanted: bool, world: World) -> None:
    """Raise `UsageError` if `compile` is requested and several processes share the run."""
    if wanted and world.size > 1:
        raise UsageError(f"`compile` is not offered where {world.size} processes share a run; leave it out.")


def as_module(model: Any, what: str = "model") -> nn.Module:
    """An `nn.Module`, or the one inside a result of `train` or `unlearn`, without DDP or `torch.compile` around it.

    Raises `UsageError` for TorchScript, quantised, lazy and sharded modules.
    """
    inner = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    if not isinstance(inner, nn.Module):
        raise UsageError(f"{what} must be a torch.nn.Module, got {type(model).__name__}.")
    return plain_module(inner, what)


def as_classifier(
    model: nn.Module, splits: Mapping[str, Split], device: torch.device, *, trains: bool = False
) -> tuple[nn.Module, list[str]]:
    """The model as a function to logits (B, classes), and remarks for the user; mostly it is one already.

    trains: whether it will be trained, so that its outputs in train mode matter too. Raises `DataError` where the
    samples are refused or the outputs cannot be read as logits (see `models.contract`).
    """
    if not splits:
        return model, []
    name, split = next(iter(splits.items()))
    batch = next(iter(split.batches(2, device=device)))
    with _on(model, device), _refusals(model, name, batch.x):
        return adapted(model, batch.x, trains=trains)


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block the model is on `device`."""
    home = next((p.device for p in model.parameters()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def _refusals(model: nn.Module, name: str, x: torch.Tensor) -> Iterator[None]:
    """What a forward pass raises, in one sentence."""
    try:
        yield
    except ExpungeError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        types = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
        advice = "Check the input shape and the channel order."
        if x.dim() == 4 and x.shape[1] == 1 and "3 channels" in reason:
            advice = "Grey images are read with three channels by mode=RGB (--data-set mode=RGB)."
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            advice = f"Samples of {kind} reach the model as such; pass floats if it takes measurements, not tokens."
        elif types:
            kind = str(types.pop()).removeprefix("torch.")
            advice = f"Its weights are {kind}, and the samples are float32: pass model.float()."
        raise DataError(f"the model refuses {name} samples of shape {tuple(x.shape[1:])}: {reason}. {advice}") from None


def check_trainable(model: nn.Module) -> None:
    """`UsageError` if no parameter may change."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        count = sum(1 for _ in model.parameters())
        raise UsageError(
            f"the model has no parameter to train ({count} parameters, all frozen); set requires_grad=True on some."
            if count
            else "the model has no parameters, so there is nothing to train; choose another model."
        )


def as_splits(given: Mapping[str, Any]) -> dict[str, Split]:
    """Everything that was given, as splits that agree on the number of classes. `DataError` on an empty one."""
    splits = {name: as_split(data, name=name).named(name) for name, data in given.items() if data is not None}
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"the {name} set is empty; it needs at least one sample.")
    return dict(zip(splits, harmonise_classes(list(splits.values())), strict=True))


def check_disjoint(splits: Mapping[str, Split]) -> list[str]:
    """`DataError` if the forget set shares samples with another split; returns notes on what was let pass.

    Splits of one data set are compared by position; exact copies at other positions are noted. Separate data sets (two
    Subsets, two arrays) are compared by content: where at least half of the forget set is in the other set too, it was
    not taken out of it, and that is an error; fewer equal samples may be true duplicates, and are noted.
    """
    forget = splits.get("forget")
    notes: list[str] = []
    if forget is None:
        return notes
    for name, split in splits.items():
        if name == "forget":
            continue
        if split.store is forget.store:
            shared, certain = torch.isin(forget.index, split.index), True
        else:
            shared = copies_among(forget, split)
            certain = 2 * int(shared.sum()) >= len(forget)
        count = int(shared.sum())
        if count and certain:
            raise DataError(
                f"{count} samples are in both the forget and the {name} set (first: position "
                f"{int(forget.index[shared][0])}); a sample is either forgotten or kept."
            )
        if count:
            notes.append(f"{count} of {len(forget)} samples to forget also occur in the {name} set, by content.")
        elif split.store is forget.store and (note := _note_on_copies(forget, split, name)):
            notes.append(note)
    return notes


def _note_on_copies(forget: Split, other: Split, name: str) -> str:
    """A sentence about samples that stay and are exact copies of samples to forget; empty if there are none."""
    copies = copies_among(other, forget)
    count = int(copies.sum())
    if not count:
        return ""
    first = other.take(other.index[copies][:1])
    number = "1 sample" if count == 1 else f"{count} samples"
    are = "is a duplicate" if count == 1 else "are duplicates"
    return (
        f"{number} of the {name} set {are} of samples to forget, byte for byte (first: {first.ids[0]}), so that what "
        "they teach stays; forget them too with the option with_copies of the scenario, for example --forget "
        f"ids:{forget.ids[0]},with_copies=true."
    )


def check_fit(model: nn.Module, splits: Mapping[str, Split], device: torch.device) -> int:
    """Run two samples through a model and return its number of classes.

    Raises `DataError` if the input shape is refused, if the output is not (batch, classes) logits, if a label is
    outside the classes, and `UsageError` if weights or outputs are not finite.
    """
    classes = 0
    for name, split in splits.items():
        batch = next(iter(split.take(split.index[:2]).batches(2, device=device)))
        with _on(model, device), _refusals(model, name, batch.x), evaluation_mode(model), torch.inference_mode():
            logits = model(batch.x)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(batch):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise DataError(f"the model must return logits of shape (batch, classes), got {got}.")
        if not bool(torch.isfinite(logits).all()):
            raise UsageError("the model's outputs are not finite; its weights may hold NaN: check the checkpoint.")
        classes = logits.shape[1]
        if split.has_labels and int(split.y.max()) >= classes:
            raise DataError(
                f"the {name} set has label {int(split.y.max())}, but the model has {classes} classes "
                f"(0..{classes - 1})."
            )
    return classes
