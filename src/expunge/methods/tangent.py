"""The neural tangent kernel of a classifier at its weights, without its Jacobian.

G has one column per sample and class (sample-major): the gradient of that logit with respect to all weights, eval mode.
Kept at a time are only the inputs and output gradients of as many layers as fit the budget; the Gram matrix G^T G is
the sum of what each layer contributes. For a layer with L output positions, O outputs and I inputs per position either

    rows      g_nc a_n^T, a block of outputs at a time:     M^2 O I           M = columns, N = samples
    pairs     sum over l, m of (g_nc,l . g_nd,m)(a_n,l . a_n,m):   (M L)^2 O + (N L)^2 I

is cheaper. G v is the gradient of sum v_nc f_c(x_n): one ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.taps import Tap, Tapped, patches
from expunge.models.modes import evaluation_mode

BATCH = 16  # samples per pass while gradients are collected; the graph of a pass comes on top of the memory
COLLECTED = 0.43  # of the memory: what one sweep keeps; less means more sweeps, thus more backward passes
WORKING = 0.15  # of the memory: blocks of products; less costs little, down to blocks too thin for a matrix product


def gram_matrix(model: nn.Module, splits: list[Split], run: Run, *, memory: float = 640.0) -> Tensor:
    """G^T G over the samples of all splits, in order, (M, M) float64 on the run's device. memory: MiB at hand.

    Raises `UsageError` if a single layer does not fit the budget.
    """
    with evaluation_mode(model):
        first = next(iter(splits[0].batches(1, device=run.device))).x
        tapped = Tapped(model, first)
        classes = int(tapped.forward(first).logits.shape[1])
        columns = classes * sum(len(split) for split in splits)
        kernel = torch.zeros(columns, columns, dtype=torch.float64, device=run.device)
        budget = memory * 2**20 / 4 - 3 * columns**2  # floats: the kernel itself and one float32 block of it
        plan = list(groups(tapped, first, columns, COLLECTED * budget)) or [[]]
        for number, pieces in enumerate(plan, 1):
            # The first sweep takes the small parameters along: a sweep is a backward pass per sample and class.
            small = Small(tapped) if number == 1 else None
            for layer in _collect(tapped, splits, run, pieces, classes, small):
                layer.add_to(kernel, WORKING * budget)
            if small is not None:
                add_gram(kernel, torch.cat(small.rows))
            run.report(f"{run.label}: kernel", number, len(plan))
    return kernel


def product(model: nn.Module, splits: list[Split], vector: Tensor, run: Run) -> dict[str, Tensor]:
    """G v for v (M,): parameter name -> tensor of its shape, float64."""
    named = dict(model.named_parameters())
    parameters = [p.requires_grad_(True) for p in named.values()]
    total = {name: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for name, p in named.items()}
    done = 0
    with evaluation_mode(model), torch.enable_grad():
        for split in splits:
            for batch in split.batches(256, device=run.device):
                logits = model(batch.x)
                weights = vector[done : done + logits.numel()].reshape(logits.shape).to(logits)
                gradients = torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient
                done += logits.numel()
    return total


@dataclass(eq=False)
class Collected:
    """One layer over all samples: its inputs a (N, ...) and output gradients g (M, G, O, L), or its rows (M, P)."""

    module: nn.Module
    a: Tensor | None = None
    g: Tensor | None = None
    rows: Tensor | None = None

    def add_to(self, kernel: Tensor, floats: float) -> None:
        """kernel += what this layer contributes, with at most so many floats in work."""
        if self.rows is not None:
            add_gram(kernel, self.rows)
        elif self.a is not None and self.g is not None:
            inner = patches(self.module, self.a[:1]).shape[2]
            way = _by_pairs if pairs_are_cheaper(len(self.a), inner, self.g) else _by_rows
            for group in range(self.g.shape[1]):
                way(kernel, Inputs(self.module, self.a, group, inner), self.g[:, group], floats)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of one group of a layer; patches are unfolded for a few samples at a time, being nine times larger."""

    module: nn.Module
    a: Tensor
    group: int
    inner: int

    def __len__(self) -> int:
        return len(self.a)

    def patches(self, low: int, high: int) -> Tensor:
        """(high - low, I, L)."""
        return patches(self.module, self.a[low:high])[:, self.group]


def pairs_are_cheaper(samples: int, inner: int, g: Tensor) -> bool:
    columns, out, positions = g.shape[0], g.shape[2], g.shape[3]
    rows = columns**2 * out * inner
    # The 8: multiplying and summing the two products costs about so many operations per element.
    return (columns * positions) ** 2 * (out + 8) + (samples * positions) ** 2 * inner < rows


def _by_rows(kernel: Tensor, inputs: Inputs, g: Tensor, floats: float) -> None:
    """g (M, O, L): gradients of a block of outputs for all columns, and their Gram matrix."""
    columns, out = g.shape[:2]
    classes = columns // len(inputs)
    block = max(1, int(floats / (columns * inputs.inner)))
    for low in range(0, out, block):
        here = g[:, low : low + block]
        rows = torch.empty(columns, here.shape[1], inputs.inner, device=g.device, dtype=g.dtype)
        for n in range(0, len(inputs), BATCH):
            a = inputs.patches(n, n + BATCH)
            at = slice(n * classes, (n + BATCH) * classes)
            some = here[at].reshape(len(a), -1, here.shape[2])
            rows[at] = torch.bmm(some, a.transpose(1, 2)).reshape(-1, *rows.shape[1:])
        add_gram(kernel, rows.flatten(1))


def _by_pairs(kernel: Tensor, inputs: Inputs, g: Tensor, floats: float) -> None:
    """g (M, O, L): block of samples against block of samples, over all pairs of positions."""
    samples, positions = len(inputs), g.shape[2]
    classes = len(g) // samples
    block = max(1, min(samples, int((floats / 2) ** 0.5 / (classes * positions))))
    outs = g.transpose(1, 2).reshape(samples, classes, positions, -1)  # (N, C, L, O)

    def places(low: int) -> Tensor:
        return inputs.patches(low, low + block).transpose(1, 2).flatten(0, 1)  # (n L, I)

    for i in range(0, samples, block):
        here = places(i)
        for j in range(0, i + 1, block):
            there = here if j == i else places(j)
            products = (here @ there.T).reshape(-1, 1, positions, len(there) // positions, 1, positions)
            left, right = outs[i : i + block].flatten(0, 2), outs[j : j + block].flatten(0, 2)
            shape = (-1, classes, positions, len(right) // (classes * positions), classes, positions)
            both = (left @ right.T).reshape(shape).mul_(products).sum((2, 5)).flatten(0, 1).flatten(1)
            rows, columns = slice(i * classes, i * classes + len(both)), slice(j * classes, j * classes + both.shape[1])
            kernel[rows, columns] += both
            if i != j:
                kernel[columns, rows] += both.T


def add_gram(kernel: Tensor, rows: Tensor, blocks: int = 6) -> None:
    """kernel += rows rows^T for rows (M, P); of the symmetric product only one half is computed."""
    edges = torch.linspace(0, len(rows), blocks + 1).long().tolist()
    for i in range(blocks):
        for j in range(i + 1):
            here, there = slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1])
            part = rows[here] @ rows[there].T
            kernel[here, there] += part
            if i != j:
                kernel[there, here] += part.T


@dataclass(frozen=True)
class Piece:
    """Outputs `low` to `high` of a layer: what of it is collected in one sweep."""

    name: str
    low: int
    high: int


def groups(tapped: Tapped, sample: Tensor, columns: int, floats: float) -> Iterator[list[Piece]]:
    """Layers with weight matrices, cut where they are too large, in groups whose collected values fit in `floats`.

    Raises `UsageError` if the inputs of a layer and one of its outputs do not fit.
    """
    pieces: list[Piece] = []
    room = floats
    for tap, outputs, fixed, each in _sizes(tapped, sample, columns):
        if fixed + each > floats:
            needed = 4 * (fixed + each) / COLLECTED / 2**20
            raise UsageError(
                f"ntk: layer `{tap.name}` needs {needed:.1f} MiB for {columns} columns; raise `memory`, or use fewer "
                "samples."
            )
        low = 0
        while low < outputs:
            count = min(outputs - low, int((room - fixed) // each))
            if count <= 0 or (low == 0 and count < outputs and pieces):
                yield pieces
                pieces, room = [], floats
                continue
            pieces.append(Piece(tap.name, low, low + count))
            room -= fixed + count * each
            low += count
    if pieces:
        yield pieces


def _sizes(tapped: Tapped, sample: Tensor, columns: int) -> Iterator[tuple[Tap, int, int, int]]:
    """(layer, outputs, floats for its inputs, floats per output) of every layer with a weight matrix."""
    seen = tapped.forward(sample)
    samples = columns // seen.logits.shape[1]
    for tap, g in zip(seen.taps, seen.backward(torch.ones_like(seen.logits), last=True), strict=True):
        if tap.has_matrix:
            out = tap.outputs(g)
            outputs, weight = out.shape[2], tap.module.get_parameter("weight").numel()
            if _keeps_rows(tap, out):
                yield tap, outputs, 0, columns * weight // outputs
            else:
                yield tap, outputs, tap.a.numel() * samples, columns * out.numel() // outputs


def _keeps_rows(tap: Tap, out: Tensor) -> bool:
    """Whether a layer has so few inputs per position that its gradients are smaller than what they are made of.

    out (n, groups, O, L). Told from the weight: unfolding the inputs only to count them takes longer than the rest.
    """
    inner = tap.module.get_parameter("weight")[0].numel()
    return inner <= out.shape[3]


def _collect(
    tapped: Tapped, splits: list[Split], run: Run, pieces: list[Piece], classes: int, small: Small | None
) -> Iterator[Collected]:
    """One sweep over all samples, one backward pass per class and batch; the layers are released one by one."""
    total = sum(len(split) for split in splits)
    modules = dict(tapped.model.named_modules())
    kept = [Collected(modules[piece.name]) for piece in pieces]
    names = [piece.name for piece in pieces]
    done = 0
    for batch in (batch for split in splits for batch in split.batches(BATCH, device=run.device)):
        seen = tapped.forward(batch.x, names if small is None else None)
        for c, vectors in enumerate(_unit_vectors(seen.logits)):
            gradients = seen.backward(vectors, last=c == classes - 1)
            found = {tap.name: (tap, g) for tap, g in zip(seen.taps, gradients, strict=True)}
            for layer, piece in zip(kept, pieces, strict=True):
                tap, g = found[piece.name]
                _keep(layer, tap, tap.outputs(g)[:, :, piece.low : piece.high], done, c, classes, total)
            if small is not None:
                small.add(seen.taps, gradients)
        if small is not None:
            small.close(batch.x, classes)
        done += len(batch)
    while kept:
        yield kept.pop()


def _keep(layer: Collected, tap: Tap, out: Tensor, done: int, c: int, classes: int, total: int) -> None:
    """Write what one backward pass gave; memory is taken once, at its final size."""
    n = len(out)
    at = slice(done * classes + c, (done + n) * classes, classes)
    if _keeps_rows(tap, out):
        rows = (out @ tap.patches.transpose(2, 3)).flatten(1)
        if layer.rows is None:
            layer.rows = rows.new_empty(total * classes, rows.shape[1])
        layer.rows[at] = rows
        return
    if layer.g is None or layer.a is None:
        layer.g = out.new_empty(total * classes, *out.shape[1:])
        layer.a = out.new_empty(total, *tap.a.shape[1:])
    layer.g[at] = out
    if c == 0:
        layer.a[done : done + n] = tap.a


class Small:
    """Rows of biases, BatchNorm, and what is left to `torch.func`: their gradients fit in memory as they are."""

    def __init__(self, tapped: Tapped) -> None:
        self.rows: list[Tensor] = []
        self._tapped = tapped
        self._per_class: list[Tensor] = []

    def add(self, taps: Sequence[Tap], gradients: Sequence[Tensor]) -> None:
        """One class of one batch."""
        found = [v for tap, g in zip(taps, gradients, strict=True) for v in tap.vectors(g).values()]
        if found:
            self._per_class.append(torch.cat(found, 1))

    def close(self, x: Tensor, classes: int) -> None:
        """The end of a batch: rows (n classes, P), sample-major."""
        parts = [torch.stack(self._per_class, 1)] if self._per_class else []
        parts += [value.detach().flatten(2) for value in self._tapped.rest_rows(x).values()]
        self.rows.append(torch.cat(parts, 2).flatten(0, 1) if parts else x.new_zeros(len(x) * classes, 1))
        self._per_class = []


def _unit_vectors(logits: Tensor) -> Iterator[Tensor]:
    for c in range(logits.shape[1]):
        yield torch.nn.functional.one_hot(torch.tensor(c), logits.shape[1]).to(logits).expand_as(logits)
