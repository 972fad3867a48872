"""The anatomy of any classifier: extractor, head, blocks, BatchNorm layers; automatic, overridable by name.

Found by watching one forward pass, so nothing has to be wrapped or subclassed. A model class may state its own with
`expunge_anatomy = {"head": "fc2", "extractor": "fc1", "blocks": ["conv1", "conv2", "fc1"]}`, each key optional.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from expunge.core.errors import UsageError, unknown
from expunge.models.contract import Adapted, inside
from expunge.models.initial import reset_parameters
from expunge.models.modes import evaluation_mode, frozen_batchnorm
from expunge.models.trace import Representation, execution_order, logits_of, weights_beyond

__all__ = [
    "Anatomy",
    "anatomy",
    "execution_order",
    "frozen_batchnorm",
    "reset_parameters",
    "set_trainable",
]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Parts of `model`, by module name.

    head: turns the representation into logits. extractor: the module whose output is the representation, or None
    where that is simply the input of the head. blocks: the modules with weights in order of execution, without the
    head; stages of a residual net stay whole. batchnorms: BatchNorm layers. shape: of one representation.
    head_suffices: whether the head alone, applied to the representation, gives the model's logits.
    """

    model: nn.Module
    head: str
    extractor: str | None
    blocks: tuple[str, ...]
    batchnorms: tuple[str, ...]
    shape: tuple[int, ...]
    head_suffices: bool
    representation: Representation

    @property
    def head_module(self) -> nn.Module:
        return self.model.get_submodule(self.head)

    def features(self, x: Tensor) -> Tensor:
        """Representations (B, d) of inputs, with gradients if they are enabled; the rest of the pass is skipped."""
        return self.representation.of(self.model, x).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of representations (B, d): the head alone.

        Raises `UsageError` where the model does more than that between the representation and its logits.
        """
        if not self.head_suffices:
            raise UsageError(
                f"the head `{self.head}` alone does not turn the output of `{self.extractor or 'the extractor'}` into "
                "the model's logits; name the module that does with head=..."
            )
        out: Tensor = self.head_module(features.reshape(-1, *self.shape))
        return out

    def last_blocks(self, k: int) -> tuple[str, ...]:
        """The last k blocks before the head; a normalisation layer counts with the block that it follows.

        Raises `UsageError` if there are fewer.
        """
        starts = [i for i, name in enumerate(self.blocks) if not isinstance(self.model.get_submodule(name), NORMS)]
        if not 1 <= k <= len(starts):
            raise UsageError(f"the model has {len(starts)} blocks, got k = {k}; allowed: 1 to {len(starts)}.")
        return self.blocks[starts[-k] :]


def anatomy(model: nn.Module, sample: Tensor, *, head: str | None = None, extractor: str | None = None) -> Anatomy:
    """Find the parts of `model` from forward passes over `sample` (B, *input_shape); modes and hooks are restored.

    head, extractor: names that override what is found; a name that is no module of the model raises `UsageError`, as
    does a model that does not return logits (B, classes), or whose head cannot be told.
    """
    names = dict(model.named_modules())
    stated = dict(getattr(type(model), "expunge_anatomy", {}))
    if isinstance(model, Adapted):  # users know the names inside their network
        stated = {
            part: inside(model, name) if isinstance(name, str) else [inside(model, each) for each in name]
            for part, name in getattr(type(model.net), "expunge_anatomy", stated).items()
        }
        head, extractor = (None if name is None else inside(model, name) for name in (head, extractor))
    ran = execution_order(model, sample)
    found = head or stated.get("head")
    head_name = found or _last_with_weights(names, ran)
    extractor = extractor or (stated.get("extractor") if head is None else None)
    for given in (head_name, extractor, *stated.get("blocks", ())):
        if given is not None and given not in names:
            raise unknown("module", given, [name for name in names if name])
    if found is None:
        _require_last(model, sample, head_name)
    point = extractor or head_name
    if point not in ran:
        raise UsageError(f"module `{point}` does not run in a forward pass; name one that does: {', '.join(ran)}.")
    representation = Representation(point, before=extractor is None, runs=ran.count(point))
    shape, suffices = _check_head(model, sample, representation, model.get_submodule(head_name))
    return Anatomy(
        model=model,
        head=head_name,
        extractor=extractor,
        blocks=tuple(stated.get("blocks") or _blocks(names, list(dict.fromkeys(ran)), head_name)),
        batchnorms=tuple(name for name, module in names.items() if isinstance(module, _BatchNorm)),
        shape=shape,
        head_suffices=suffices,
        representation=representation,
    )


def _last_with_weights(names: dict[str, nn.Module], ran: list[str]) -> str:
    """The last leaf with weights that ran: it produced the logits."""
    leaves = [n for n in ran if not any(names[n].children()) and _size(names[n])]
    if not leaves:
        raise UsageError("no head was found: no module with weights runs in the model; name one with head=...")
    return leaves[-1]


def _require_last(model: nn.Module, sample: Tensor, head: str) -> None:
    """A weight that bypasses the supposed head means that it is not the head: better no answer than a wrong one."""
    beyond = weights_beyond(model, sample, head)
    if beyond:
        raise UsageError(
            f"no head was found: the logits depend on `{beyond[0]}` beside the last module `{head}`; name the module "
            "that turns the representation into logits with head=..."
        )


def _check_head(
    model: nn.Module, sample: Tensor, representation: Representation, head: nn.Module
) -> tuple[tuple[int, ...], bool]:
    """Shape of one representation, and whether the head alone turns representations into the logits."""
    with evaluation_mode(model), torch.no_grad():
        found = representation.of(model, sample)
        try:
            logits: Any = head(found)
        except (RuntimeError, ValueError, TypeError):  # another width: a layer in between
            return tuple(found.shape[1:]), False
        expected = logits_of(model, sample)
    same = isinstance(logits, Tensor) and logits.shape == expected.shape
    return tuple(found.shape[1:]), same and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)


def _blocks(names: dict[str, nn.Module], ran: list[str], head: str) -> list[str]:
    """Modules with weights in the order they ran; a wrapper that holds most of the weights is opened."""

    def inside(parent: str) -> list[str]:
        prefix = f"{parent}." if parent else ""
        found: list[str] = []
        for child in (f"{prefix}{name}" for name, _ in names[parent].named_children()):
            if child == head or child not in names or not _size(names[child]):
                continue
            # A list of modules does not run itself; what contains the head is no block.
            whole = child in ran and not head.startswith(f"{child}.")
            found += [child] if whole else inside(child)
        return sorted(found, key=ran.index)

    blocks = inside("")
    while blocks:
        largest = max(blocks, key=lambda name: _size(names[name]))
        parts = inside(largest)
        while len(parts) == 1 and inside(parts[0]):
            parts = inside(parts[0])
        # A wrapper such as `features` or `backbone` holds nearly everything; the last stage of a ResNet 75 %.
        if len(parts) < 2 or _size(names[largest]) < 0.9 * sum(_size(names[name]) for name in blocks):
            break
        at = blocks.index(largest)
        blocks[at : at + 1] = parts
    return blocks


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Only the weights inside these modules require gradients (BatchNorm statistics follow the mode, not this).

    Raises `UsageError` for an unknown name, before anything is changed.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise unknown("module", name, [n for n in known if n])
    model.requires_grad_(False)
    for name in chosen:
        known[name].requires_grad_(True)
