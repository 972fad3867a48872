"""Gradients per sample without a loop over samples: what enters a layer, and what flows back out of it.

For a layer y = W a the gradient of one sample is the product of its input a and the gradient g of its output, so one
batched backward pass to the *outputs* of all layers holds the gradients of all samples; the weight gradients of a
batch, which would sum over it, are never formed. Samples must not meet inside the model: BatchNorm stays in eval mode.

    linear      dW_n = g_n a_n^T          convolution   dW_n = g_n unfold(a_n)^T        over output positions
    BatchNorm   dgamma_n = sum g_n xhat_n,  dbeta_n = sum g_n                           with running statistics

Weights of any other kind of module (subclasses too: their forward may do more), or that a pass uses otherwise than
once through their module, go through `torch.func` instead.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(eq=False)
class Tap:
    """One layer in one forward pass. a: its input (n, ...). Gradients g of its output (n, ...) come pass by pass."""

    name: str
    module: nn.Module
    a: Tensor

    @property
    def has_matrix(self) -> bool:
        """Whether its weight gradient is a product of patches and output gradients (BatchNorm's is not)."""
        return not isinstance(self.module, _BatchNorm)

    @cached_property
    def patches(self) -> Tensor:
        """Inputs as the weight meets them: (n, groups, L, in), L output positions or tokens."""
        return patches(self.module, self.a)

    def outputs(self, g: Tensor) -> Tensor:
        """Output gradients that fit `patches`: (n, groups, L, out)."""
        if isinstance(self.module, nn.Conv2d):
            return g.reshape(len(g), self.module.groups, -1, g[0, 0].numel()).transpose(2, 3)
        return g.reshape(len(g), 1, -1, g.shape[-1])

    def as_weight(self, products: Tensor) -> Tensor:
        """Products of `outputs` and `patches` (groups, out, in) in the shape of the weight."""
        weight = self.module.get_parameter("weight")
        if isinstance(self.module, nn.Conv2d):
            return products.reshape(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        return products.reshape(weight.shape)

    def vectors(self, g: Tensor) -> dict[str, Tensor]:
        """Per-sample gradients (n, size) of the small parameters: biases, and the affine pair of BatchNorm."""
        if isinstance(self.module, _BatchNorm):
            flat = g.reshape(*g.shape[:2], -1)
            found = {"weight": (flat * self._normalised).sum(2), "bias": flat.sum(2)}
            return {name: value for name, value in found.items() if getattr(self.module, name) is not None}
        if getattr(self.module, "bias", None) is None:
            return {}
        return {"bias": self.outputs(g).sum(2).flatten(1)}

    @cached_property
    def _normalised(self) -> Tensor:
        return normalised(self.module, self.a)


class Scratch:
    """Memory that is used again: fresh pages cost more time than a product that is written to them."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised, contiguous; what was taken before is lost."""
        size = math.prod(shape)
        if self._flat is None or len(self._flat) < size:
            self._flat = None  # or both would be held at once
            self._flat = like.new_empty(size)
        return self._flat[:size].view(*shape)


@dataclass(frozen=True)
class Workspace:
    """What all layers and batches take turns in: one kind of memory each."""

    patches: Scratch = field(default_factory=Scratch)
    products: Scratch = field(default_factory=Scratch)


def patches(module: nn.Module, a: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Inputs (n, ...) of a layer with a weight matrix as that meets them: (n, groups, L, in), perhaps in `scratch`."""
    if isinstance(module, nn.Conv2d):
        return unfold(module, a, scratch)
    return a.reshape(len(a), 1, -1, a.shape[-1])


def unfold(module: nn.Conv2d, a: Tensor, scratch: Scratch | None = None) -> Tensor:
    """(n, groups, positions, kernel * in / groups): the patch that each output position sees, channels innermost.

    With channels innermost a row of a patch is one piece of memory: several times faster than `torch.nn.Unfold`.
    """
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise UsageError(f"a convolution with padding {module.padding!r} ({module.padding_mode}) cannot be tapped.")
    (high, wide), (down, right), (apart, across) = module.kernel_size, module.stride, module.dilation
    top, left = module.padding
    padded = F.pad(a.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    n, rows, columns, channels = padded.shape
    out = ((rows - apart * (high - 1) - 1) // down + 1, (columns - across * (wide - 1) - 1) // right + 1)
    each, row, column, channel = padded.stride()
    strides = (each, row * down, column * right, row * apart, column * across, channel)
    windows = padded.as_strided((n, *out, high, wide, channels), strides)
    if scratch is None:
        found = windows.contiguous()
    else:
        found = scratch.take(windows.shape, a).copy_(windows)
    found = found.view(n, out[0] * out[1], high * wide, module.groups, channels // module.groups)
    return found.permute(0, 3, 1, 2, 4).flatten(3)  # of one group: a view


def normalised(module: nn.Module, a: Tensor) -> Tensor:
    """(n, C, positions): the input of a BatchNorm layer under its running statistics."""
    x = a.reshape(*a.shape[:2], -1)
    mean, deviation = _statistics(module)
    return (x - mean[:, None]) / deviation[:, None]


def _statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and standard deviation of a BatchNorm layer, (C,)."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        raise UsageError("a BatchNorm layer without running statistics mixes samples; it cannot be tapped.")
    return module.running_mean, (module.running_var + module.eps).sqrt()


def tappable(module: nn.Module) -> bool:
    """Whether the gradients of its own parameters can be told per sample from inputs and output gradients."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    if "weight" not in names or not names <= {"weight", "bias"}:  # a reparametrised weight is not a parameter
        return False
    if type(module) is nn.Conv2d:
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    if type(module) in BATCH_NORMS:
        return isinstance(module.running_mean, Tensor)
    return type(module) is nn.Linear


@dataclass(eq=False)
class Pass:
    """A forward pass and its layers; `backward` may be called once per vector until `last`."""

    logits: Tensor
    taps: list[Tap]
    edges: list[GradientEdge]

    def backward(self, vectors: Tensor, *, last: bool = False) -> tuple[Tensor, ...]:
        """Gradients of sum_c vectors[n, c] f_c(x_n) at the output of every layer, each (n, ...)."""
        if not self.edges:
            return ()
        return torch.autograd.grad(self.logits, self.edges, vectors.to(self.logits), retain_graph=not last)


class Tapped:
    """A model in eval mode whose layers are tapped.

    names: tapped modules in order of execution. rest: names of the parameters left to `torch.func`.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self.model = model
        counts: dict[str, int] = {}
        seen: dict[str, tuple[Tensor, GradientEdge]] = {}
        modules = dict(model.named_modules())
        able = [name for name, module in modules.items() if tappable(module)]
        with _trainable(model), self._watching(able, counts, seen):
            logits = model(sample)
        nodes, uses = _graph(logits)
        own = {name: dict(module.named_parameters(recurse=False)) for name, module in modules.items()}

        def alone(name: str) -> bool:
            """Whether the module ran once, matters, and is the only way by which its parameters do."""
            reached = counts[name] == 1 and name in seen and seen[name][1].node in nodes
            return reached and all(uses.get(id(p)) == 1 for p in own[name].values())

        self.names = [name for name in counts if alone(name)]
        tapped = {id(p) for name in self.names for p in own[name].values()}
        self.rest = [name for name, p in model.named_parameters() if id(p) not in tapped]

    def forward(self, x: Tensor, names: Sequence[str] | None = None) -> Pass:
        """One pass over a batch (n, ...) that remembers what the layers `names` (default: all tapped) were given."""
        seen: dict[str, tuple[Tensor, GradientEdge]] = {}
        chosen = self.names if names is None else list(names)
        with _trainable(self.model), _affine_batchnorm(self.model), self._watching(chosen, {}, seen):
            logits = self.model(x)
        modules = dict(self.model.named_modules())
        taps = [Tap(name, modules[name], seen[name][0]) for name in chosen]
        return Pass(logits, taps, [seen[name][1] for name in chosen])

    def rest_rows(self, x: Tensor, vectors: Tensor | None = None) -> dict[str, Tensor]:
        """Gradients of the parameters that are not tapped: name -> (n, K, *shape)."""
        if not self.rest:
            return {}
        everything = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        frozen = {name: value.detach() for name, value in everything.items()}
        moving = {name: frozen[name] for name in self.rest}

        def rows(sample: Tensor, chosen: Tensor | None) -> Any:
            def logits(parameters: dict[str, Tensor]) -> Tensor:
                out: Tensor = torch.func.functional_call(self.model, {**frozen, **parameters}, (sample[None],))
                return out[0]

            out, pull = torch.func.vjp(logits, moving)[:2]
            wanted = torch.eye(len(out), dtype=out.dtype, device=out.device) if chosen is None else chosen
            return torch.func.vmap(lambda vector: pull(vector)[0])(wanted)

        found: dict[str, Tensor]
        try:
            with warnings.catch_warnings():  # of operations that vmap runs one by one: this is the slow path anyway
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found = torch.func.vmap(rows, in_dims=(0, None if vectors is None else 0))(x, vectors)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"per-sample gradients of `{self.rest[0]}` cannot be computed: {reason}") from None
        return found

    @contextmanager
    def _watching(
        self, names: Sequence[str], counts: dict[str, int], seen: dict[str, tuple[Tensor, GradientEdge]]
    ) -> Iterator[None]:
        modules = dict(self.model.named_modules())
        hooks = []
        for name in names:

            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:
                counts[name] = counts.get(name, 0) + 1
                if inputs and isinstance(output, Tensor) and output.requires_grad:
                    # The edge, not the tensor: an in-place ReLU behind this layer would change what the tensor means.
                    seen[name] = (inputs[0].detach(), get_gradient_edge(output))

            hooks.append(modules[name].register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Gradients for frozen parameters too, or no graph would lead to their layers."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def _affine_batchnorm(model: nn.Module) -> Iterator[None]:
    """BatchNorm with running statistics as one multiplication and addition: its own backward pass is five times slower.

    Replaced are the `forward` of the modules, so hooks see what they always see.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and tappable(m) and not m.training]
    try:
        for norm in norms:
            norm.forward = partial(_affine, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            del norm.forward


def _affine(norm: _BatchNorm, x: Tensor) -> Tensor:
    mean, deviation = _statistics(norm)
    scale = norm.weight / deviation
    shape = (-1, *(1,) * (x.dim() - 2))
    return torch.addcmul((norm.bias - mean * scale).reshape(shape), x, scale.reshape(shape))


def _graph(logits: Tensor) -> tuple[set[Node], dict[int, int]]:
    """The graph behind the logits: its nodes, and the number of uses of each parameter by id."""
    nodes: set[Node] = set()
    uses: dict[int, int] = {}
    waiting = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for after, _ in node.next_functions:
            waiting.append(after)
            variable = getattr(after, "variable", None)
            if variable is not None:
                uses[id(variable)] = uses.get(id(variable), 0) + 1
    return nodes, uses
