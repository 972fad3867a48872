"""The anatomy of any classifier: extractor, head, blocks, BatchNorm layers; automatic, overridable by name.

Found by watching one forward pass, so nothing has to be wrapped or subclassed. A model class may state its own with
`expunge_anatomy = {"head": "fc2", "blocks": ["conv1", "conv2", "fc1"]}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError, unknown
from expunge.core.seeds import derive
from expunge.training.modes import evaluation_mode


class _Enough(Exception):
    """Raised by a hook to end a forward pass once the representation is known."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Parts of `model`, by module name.

    head: turns the representation into logits. extractor: the module whose output is the representation, or None
    where it is simply the input of the head. blocks: computational blocks in order of execution, without the head.
    batchnorms: BatchNorm layers.
    """

    model: nn.Module
    head: str
    extractor: str | None
    blocks: tuple[str, ...]
    batchnorms: tuple[str, ...]

    @property
    def head_module(self) -> nn.Module:
        return self.model.get_submodule(self.head)

    def features(self, x: Tensor) -> Tensor:
        """Representations (B, d) of inputs, with gradients if they are enabled; the rest of the pass is skipped."""
        caught: list[Tensor] = []

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            caught.append(inputs[0])
            raise _Enough

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            caught.append(output)
            raise _Enough

        if self.extractor is None:
            handle = self.head_module.register_forward_pre_hook(before)
        else:
            handle = self.model.get_submodule(self.extractor).register_forward_hook(after)
        try:
            self.model(x)
        except _Enough:
            pass
        finally:
            handle.remove()
        if not caught:
            raise UsageError(f"`{self.extractor or self.head}` does not run in a forward pass; name another module.")
        return caught[0].flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of representations: the head alone."""
        return self.head_module(features)

    def last_blocks(self, k: int) -> tuple[str, ...]:
        """The last k blocks before the head. Raises `UsageError` if there are fewer."""
        if not 1 <= k <= len(self.blocks):
            raise UsageError(f"the model has {len(self.blocks)} blocks, got k = {k}; allowed: 1 to {len(self.blocks)}.")
        return self.blocks[-k:]


def anatomy(model: nn.Module, sample: Tensor, *, head: str | None = None, extractor: str | None = None) -> Anatomy:
    """Find the parts of `model` from one forward pass over `sample` (B, *input_shape); modes and hooks are restored.

    Raises `UsageError` for a name that is no module of the model, and where no head can be found.
    """
    stated = getattr(type(model), "expunge_anatomy", {})
    names = dict(model.named_modules())
    ran = execution_order(model, sample)
    chosen = head or stated.get("head") or _last_parameterised(names, ran)
    for given in (chosen, extractor):
        if given is not None and given not in names:
            raise unknown("module", given, [name for name in names if name])
    blocks = tuple(stated.get("blocks") or _blocks(model, ran, chosen))
    norms = tuple(name for name, module in names.items() if isinstance(module, _BatchNorm))
    return Anatomy(model, chosen, extractor, blocks, norms)


def execution_order(model: nn.Module, sample: Tensor) -> list[str]:
    """Names of the modules in the order in which they finished, inner before outer, each once."""
    order: list[str] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: None if name in order else order.append(name)

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(watch(name)))
        with evaluation_mode(model), torch.no_grad():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _last_parameterised(names: dict[str, nn.Module], ran: list[str]) -> str:
    """The last leaf with weights that ran: it produced the logits."""
    leaves = [n for n in ran if not any(names[n].children()) and any(True for _ in names[n].parameters())]
    if not leaves:
        raise UsageError("no head was found: the model has no module with weights; name one with head=...")
    return leaves[-1]


def _blocks(model: nn.Module, ran: list[str], head: str) -> list[str]:
    """Children with weights in the order they ran; a container that holds most of the net is opened once more."""
    names = dict(model.named_modules())

    def children(parent: str) -> list[str]:
        prefix = f"{parent}." if parent else ""
        direct = [f"{prefix}{name}" for name, _ in names[parent].named_children()]
        kept = [n for n in direct if n in ran and any(True for _ in names[n].parameters())]
        return sorted((n for n in kept if n != head and not head.startswith(f"{n}.")), key=ran.index)

    def size(name: str) -> int:
        return sum(p.numel() for p in names[name].parameters())

    blocks = children("")
    # A wrapper such as `features` or `backbone` that holds nearly everything is opened; stages of a ResNet are not.
    while len(blocks) and isinstance(names[max(blocks, key=size)], (nn.Sequential, nn.Module)):
        largest = max(blocks, key=size)
        inside = children(largest)
        if len(inside) < 2 or size(largest) < 0.9 * sum(map(size, blocks)):
            break
        at = blocks.index(largest)
        blocks[at : at + 1] = inside
    return blocks


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Only the parameters inside these modules require gradients."""
    chosen = list(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name == c or name.startswith(f"{c}.") for c in chosen))


def reset_parameters(model: nn.Module, names: Iterable[str] | None = None, *, seed: int = 0) -> None:
    """Draw weights and BatchNorm statistics anew, by each module's own rule, in the named modules (default: all).

    The global random state is left alone. Raises `UsageError` naming a module that has weights of its own and no
    `reset_parameters`: then pass the start weights instead (`initial=...`).
    """
    roots = [""] if names is None else list(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        for root in roots:
            for name, module in model.get_submodule(root).named_modules(prefix=root):
                own = list(module.parameters(recurse=False))
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
                elif callable(getattr(module, "_reset_parameters", None)):
                    module._reset_parameters()
                elif own:
                    raise UsageError(
                        f"module `{name or type(model).__name__}` has weights but no reset_parameters(); "
                        "pass the start weights as initial=..."
                    )
