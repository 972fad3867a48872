"""Per-sample gradients without a loop over samples, from the inputs and output gradients of each layer.

For a layer y = W a the gradient of one sample is the product of its input a and the gradient g of its output, so one
batched backward pass to the *outputs* of all layers gives the gradients of all samples; the weight gradients of a
batch, which sum over it, are never formed. The model must not mix samples: BatchNorm is in eval mode.

    linear      dW_n = g_n a_n^T          convolution   dW_n = g_n unfold(a_n)^T        over output positions
    BatchNorm   dgamma_n = sum g_n xhat_n,  dbeta_n = sum g_n                           with running statistics

Weights of any other module type (subclasses too: their forward may differ), and weights that are not used exactly once
through their module, are handled by `torch.func`.
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
class LayerRecord:
    """One layer in one forward pass; gradients g (n, ...) of its output are given per backward pass.

    Attributes:
        name: name of the module.
        module: the layer.
        a: its input (n, ...).
    """

    name: str
    module: nn.Module
    a: Tensor

    @property
    def has_matrix(self) -> bool:
        """Whether its weight gradient is a product of patches and output gradients (not so for BatchNorm)."""
        return not isinstance(self.module, _BatchNorm)

    @cached_property
    def patches(self) -> Tensor:
        """Inputs that the weight is multiplied with: (n, groups, L, in), L output positions or tokens."""
        return patches(self.module, self.a)

    def outputs(self, g: Tensor) -> Tensor:
        """Output gradients in the layout of `patches`: (n, groups, L, out)."""
        if isinstance(self.module, nn.Conv2d):
            return g.reshape(len(g), self.module.groups, -1, g[0, 0].numel()).transpose(2, 3)
        return g.reshape(len(g), 1, -1, g.shape[-1])

    def as_weight(self, products: Tensor) -> Tensor:
        """Reshape products of `outputs` and `patches` (groups, out, in) to the shape of the weight."""
        weight = self.module.get_parameter("weight")
        if isinstance(self.module, nn.Conv2d):
            return products.reshape(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        return products.reshape(weight.shape)

    def vectors(self, g: Tensor) -> dict[str, Tensor]:
        """Per-sample gradients (n, size) of the small parameters: biases, and weight and bias of BatchNorm."""
        if isinstance(self.module, _BatchNorm):
            flat = g.reshape(*g.shape[:2], -1)
            gradients = {"weight": (flat * self._normalised).sum(2), "bias": flat.sum(2)}
            return {name: value for name, value in gradients.items() if getattr(self.module, name) is not None}
        if getattr(self.module, "bias", None) is None:
            return {}
        return {"bias": self.outputs(g).sum(2).flatten(1)}

    @cached_property
    def _normalised(self) -> Tensor:
        return normalised(self.module, self.a)


class ReusableBuffer:
    """Memory that is reused: allocating new pages costs more time than a product that is written to them."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised, contiguous tensor; overwrites the tensor returned before."""
        size = math.prod(shape)
        if self._flat is None or len(self._flat) < size:
            self._flat = None  # else both would be held at once
            self._flat = like.new_empty(size)
        return self._flat[:size].view(*shape)


@dataclass(frozen=True)
class Buffers:
    """Buffers shared by all layers and batches."""

    patches: ReusableBuffer = field(default_factory=ReusableBuffer)
    products: ReusableBuffer = field(default_factory=ReusableBuffer)


def patches(module: nn.Module, a: Tensor, scratch: ReusableBuffer | None = None) -> Tensor:
    """Inputs (n, ...) of a layer, in the layout (n, groups, L, in) of its weight matrix; in `scratch` if given."""
    if isinstance(module, nn.Conv2d):
        return unfold(module, a, scratch)
    return a.reshape(len(a), 1, -1, a.shape[-1])


def unfold(module: nn.Conv2d, a: Tensor, scratch: ReusableBuffer | None = None) -> Tensor:
    """Input patches of every output position of a convolution: (n, groups, positions, kernel * in / groups).

    With channels innermost a row of a patch is contiguous: several times faster than `torch.nn.Unfold`.

    Raises:
        UsageError: for a padding other than zeros.
    """
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise UsageError(
            f"per-sample gradients need zero padding, got padding {module.padding!r} ({module.padding_mode})."
        )
    (kernel_y, kernel_x), (stride_y, stride_x), (dilation_y, dilation_x) = (
        module.kernel_size,
        module.stride,
        module.dilation,
    )
    top, left = module.padding
    padded = F.pad(a.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    n, rows, columns, channels = padded.shape
    out = (
        (rows - dilation_y * (kernel_y - 1) - 1) // stride_y + 1,
        (columns - dilation_x * (kernel_x - 1) - 1) // stride_x + 1,
    )
    each, row, column, channel = padded.stride()
    strides = (each, row * stride_y, column * stride_x, row * dilation_y, column * dilation_x, channel)
    windows = padded.as_strided((n, *out, kernel_y, kernel_x, channels), strides)
    if scratch is None:
        unfolded = windows.contiguous()
    else:
        unfolded = scratch.take(windows.shape, a).copy_(windows)
    unfolded = unfolded.view(n, out[0] * out[1], kernel_y * kernel_x, module.groups, channels // module.groups)
    return unfolded.permute(0, 3, 1, 2, 4).flatten(3)  # of one group: a view


def normalised(module: nn.Module, a: Tensor) -> Tensor:
    """Input of a BatchNorm layer normalised by its running statistics, (n, C, positions)."""
    x = a.reshape(*a.shape[:2], -1)
    mean, deviation = _statistics(module)
    return (x - mean[:, None]) / deviation[:, None]


def _statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and standard deviation of a BatchNorm layer, (C,)."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        raise UsageError("a BatchNorm layer without running statistics mixes samples: it has no per-sample gradients.")
    return module.running_mean, (module.running_var + module.eps).sqrt()


def supports_capture(module: nn.Module) -> bool:
    """Whether per-sample gradients of the module's own parameters follow from its inputs and output gradients."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    if "weight" not in names or not names <= {"weight", "bias"}:  # a reparametrised weight is not a parameter
        return False
    if type(module) is nn.Conv2d:
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    if type(module) in BATCH_NORMS:
        return isinstance(module.running_mean, Tensor)
    return type(module) is nn.Linear


@dataclass(eq=False)
class CapturedPass:
    """A forward pass and its layers; `backward` may be called once per vector until `last`.

    Attributes:
        logits: outputs (n, C).
        records: the captured layers.
        edges: their outputs in the graph.
    """

    logits: Tensor
    records: list[LayerRecord]
    edges: list[GradientEdge]

    def backward(self, vectors: Tensor, *, last: bool = False) -> tuple[Tensor, ...]:
        """Gradients of sum_c vectors[n, c] f_c(x_n) at the output of every layer, each (n, ...)."""
        if not self.edges:
            return ()
        return torch.autograd.grad(self.logits, self.edges, vectors.to(self.logits), retain_graph=not last)


class GradientCapture:
    """Captures inputs and output gradients of the layers of a model in eval mode.

    Args:
        model: the model.
        sample: a batch (B, ...), by which layers are selected.

    Attributes:
        names: captured modules in order of execution.
        rest: names of the parameters that are handled by `torch.func`.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self.model = model
        counts: dict[str, int] = {}
        seen: dict[str, tuple[Tensor, GradientEdge]] = {}
        modules = dict(model.named_modules())
        candidates = [name for name, module in modules.items() if supports_capture(module)]
        with _trainable(model), self._watching(candidates, counts, seen):
            logits = model(sample)
        nodes, uses = _graph(logits)
        own = {name: dict(module.named_parameters(recurse=False)) for name, module in modules.items()}

        def is_captured(name: str) -> bool:
            """Whether the module ran once, affects the logits, and is the only user of its parameters."""
            ran_once = counts[name] == 1 and name in seen and seen[name][1].node in nodes
            return ran_once and all(uses.get(id(p)) == 1 for p in own[name].values())

        self.names = [name for name in counts if is_captured(name)]
        capture = {id(p) for name in self.names for p in own[name].values()}
        self.rest = [name for name, p in model.named_parameters() if id(p) not in capture]

    def forward(self, x: Tensor, names: Sequence[str] | None = None) -> CapturedPass:
        """Forward pass over a batch (n, ...) that records the inputs of the layers `names`, by default all captured."""
        seen: dict[str, tuple[Tensor, GradientEdge]] = {}
        chosen = self.names if names is None else list(names)
        with _trainable(self.model), _affine_batchnorm(self.model), self._watching(chosen, {}, seen):
            logits = self.model(x)
        modules = dict(self.model.named_modules())
        records = [LayerRecord(name, modules[name], seen[name][0]) for name in chosen]
        return CapturedPass(logits, records, [seen[name][1] for name in chosen])

    def rest_rows(self, x: Tensor, vectors: Tensor | None = None) -> dict[str, Tensor]:
        """Per-sample gradients of the parameters `rest`: name -> (n, K, *shape).

        Args:
            x: the batch (n, ...).
            vectors: K combinations of logits per sample (n, K, C); all single logits by default.

        Raises:
            UsageError: if `torch.func` cannot differentiate the model.
        """
        if not self.rest:
            return {}
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        frozen = {name: value.detach() for name, value in tensors.items()}
        moving = {name: frozen[name] for name in self.rest}

        def rows(sample: Tensor, chosen: Tensor | None) -> Any:
            def logits(parameters: dict[str, Tensor]) -> Tensor:
                out: Tensor = torch.func.functional_call(self.model, {**frozen, **parameters}, (sample[None],))
                return out[0]

            out, pull = torch.func.vjp(logits, moving)[:2]
            directions = torch.eye(len(out), dtype=out.dtype, device=out.device) if chosen is None else chosen
            return torch.func.vmap(lambda vector: pull(vector)[0])(directions)

        gradients: dict[str, Tensor]
        try:
            with warnings.catch_warnings():  # about operations that vmap runs one by one: this is the slow path anyway
                warnings.filterwarnings("ignore", message="There is a performance drop")
                gradients = torch.func.vmap(rows, in_dims=(0, None if vectors is None else 0))(x, vectors)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"per-sample gradients of `{self.rest[0]}` cannot be computed: {reason}") from None
        return gradients

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
                    # The edge, not the tensor: an in-place ReLU after this layer would change the tensor.
                    seen[name] = (inputs[0].detach(), get_gradient_edge(output))

            hooks.append(modules[name].register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Within the context all parameters require gradients; otherwise the graph would not reach frozen layers."""
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
    """BatchNorm with running statistics as one multiplication and addition, whose backward pass is five times faster.

    Only the `forward` of the modules is replaced, so hooks run as usual.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and supports_capture(m) and not m.training]
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
    """Nodes of the autograd graph of the logits, and the number of uses of each parameter by id."""
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
