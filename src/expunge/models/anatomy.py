"""The structure of a classifier: extractor, head, blocks and BatchNorm layers, detected or given by name.

It is detected from a forward pass, so nothing has to be wrapped or subclassed. A model class may state its own with
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
    """Structure of a model, by module names.

    Attributes:
        model: the classifier.
        head: module that maps the representation to logits.
        extractor: module whose output is the representation; None if that is the input of the head.
        blocks: modules with weights in order of execution, without the head; the stages of a residual network are
            single blocks.
        batchnorms: BatchNorm layers.
        shape: shape of the representation of one sample.
        head_suffices: whether the head alone maps the representation to the model's logits.
        representation: point of the forward pass at which it is read.
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
        """The head."""
        return self.model.get_submodule(self.head)

    def features(self, x: Tensor) -> Tensor:
        """Representations (B, d) of inputs (B, ...), with gradients if enabled; the rest of the pass is skipped."""
        return self.representation.of(self.model, x).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of representations (B, d), by the head alone.

        Raises:
            UsageError: if there are further operations between the representation and the logits.
        """
        if not self.head_suffices:
            raise UsageError(
                f"the head `{self.head}` alone does not turn the output of `{self.extractor or 'the extractor'}` into "
                "the model's logits; name the module that does with head=..."
            )
        out: Tensor = self.head_module(features.reshape(-1, *self.shape))
        return out

    def last_blocks(self, k: int) -> tuple[str, ...]:
        """Names of the last k blocks before the head; a normalisation layer belongs to the block before it.

        Raises:
            UsageError: if there are fewer than k blocks.
        """
        starts = [i for i, name in enumerate(self.blocks) if not isinstance(self.model.get_submodule(name), NORMS)]
        if not 1 <= k <= len(starts):
            raise UsageError(f"the model has {len(starts)} blocks, got k = {k}; allowed: 1 to {len(starts)}.")
        return self.blocks[starts[-k] :]


def anatomy(model: nn.Module, sample: Tensor, *, head: str | None = None, extractor: str | None = None) -> Anatomy:
    """Detect the structure of a model by forward passes; modes and hooks are restored.

    Args:
        model: the classifier.
        sample: a batch (B, *input_shape).
        head: name of the head, in place of the detected one.
        extractor: name of the extractor, likewise.

    Raises:
        UsageError: for unknown names, if the model does not return logits (B, classes), or if the classification head
            cannot be identified.
    """
    names = dict(model.named_modules())
    stated = dict(getattr(type(model), "expunge_anatomy", {}))
    if isinstance(model, Adapted):  # names given by users are those of their network
        stated = {
            part: inside(model, name) if isinstance(name, str) else [inside(model, each) for each in name]
            for part, name in getattr(type(model.net), "expunge_anatomy", stated).items()
        }
        head, extractor = (None if name is None else inside(model, name) for name in (head, extractor))
    ran = execution_order(model, sample)
    stated_head = head or stated.get("head")
    head_name = stated_head or _last_with_weights(names, ran)
    extractor = extractor or (stated.get("extractor") if head is None else None)
    for module_name in (head_name, extractor, *stated.get("blocks", ())):
        if module_name is not None and module_name not in names:
            raise unknown("module", module_name, [name for name in names if name])
    if stated_head is None:
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
    """The last executed leaf module with weights, which computes the logits."""
    leaves = [n for n in ran if not any(names[n].children()) and _size(names[n])]
    if not leaves:
        raise UsageError("no head was found: no module with weights runs in the model; name one with head=...")
    return leaves[-1]


def _require_last(model: nn.Module, sample: Tensor, head: str) -> None:
    """Raise `UsageError` if a weight acts on the logits other than through the supposed head."""
    beyond = weights_beyond(model, sample, head)
    if beyond:
        raise UsageError(
            f"no head was found: the logits depend on `{beyond[0]}` besides the last module `{head}`; name the module "
            "that turns the representation into logits with head=..."
        )


def _check_head(
    model: nn.Module, sample: Tensor, representation: Representation, head: nn.Module
) -> tuple[tuple[int, ...], bool]:
    """Shape of one representation, and whether the head alone maps representations to the logits."""
    with evaluation_mode(model), torch.no_grad():
        features = representation.of(model, sample)
        try:
            logits: Any = head(features)
        except (RuntimeError, ValueError, TypeError):  # another width: a layer in between
            return tuple(features.shape[1:]), False
        expected = logits_of(model, sample)
    same = isinstance(logits, Tensor) and logits.shape == expected.shape
    return tuple(features.shape[1:]), same and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)


def _blocks(names: dict[str, nn.Module], ran: list[str], head: str) -> list[str]:
    """Modules with weights in order of execution; a module with nearly all weights is replaced by its children."""

    def inside(parent: str) -> list[str]:
        prefix = f"{parent}." if parent else ""
        blocks_inside: list[str] = []
        for child in (f"{prefix}{name}" for name, _ in names[parent].named_children()):
            if child == head or child not in names or not _size(names[child]):
                continue
            # A list of modules is not executed itself, and a module that contains the head is no block.
            is_block = child in ran and not head.startswith(f"{child}.")
            blocks_inside += [child] if is_block else inside(child)
        return sorted(blocks_inside, key=ran.index)

    blocks = inside("")
    while blocks:
        largest = max(blocks, key=lambda name: _size(names[name]))
        parts = inside(largest)
        while len(parts) == 1 and inside(parts[0]):
            parts = inside(parts[0])
        # A wrapper such as `features` or `backbone` has nearly all weights; the last stage of a ResNet 75 %.
        if len(parts) < 2 or _size(names[largest]) < 0.9 * sum(_size(names[name]) for name in blocks):
            break
        index = blocks.index(largest)
        blocks[index : index + 1] = parts
    return blocks


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Let only the weights of these modules require gradients; BatchNorm statistics depend on the mode instead.

    Raises:
        UsageError: for an unknown name; nothing is changed then.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise unknown("module", name, [n for n in known if n])
    model.requires_grad_(False)
    for name in chosen:
        known[name].requires_grad_(True)
