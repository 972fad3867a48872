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
from expunge.models.modes import evaluation_mode
from expunge.numerics.gradient_capture import Scratch, Tap, Tapped, Workspace, patches

BATCH = 24  # samples per pass while gradients are collected; the graph of a pass comes on top of the memory
UNFOLDED = 8  # samples whose patches are there at a time
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
        work = Workspace()
        for number, pieces in enumerate(plan, 1):
            # The first sweep takes the small parameters along: a sweep is a backward pass per sample and class.
            small = Small(tapped, columns // classes, classes) if number == 1 else None
            for layer in _collect(tapped, splits, run, pieces, classes, small, work):
                layer.add_to(kernel, WORKING * budget, work)
            if small is not None:
                small.add_to(kernel)
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


class Rows:
    """The gradients themselves of a layer with few inputs per position: (N, C, G, O, I).

    They are made batch by batch: all classes of a batch share one unfolding of its inputs and one product.
    """

    def __init__(self, module: nn.Module, samples: int, classes: int) -> None:
        self._module, self._samples, self._classes = module, samples, classes
        self._batch: Tensor | None = None
        self._rows: Tensor | None = None

    def add(self, out: Tensor, done: int, c: int) -> None:
        """out (n, G, L, O): gradients of class c at the layer's outputs, for a batch that starts with sample `done`."""
        if self._batch is None or len(self._batch) != len(out):
            self._batch = out.new_empty(*out.shape[:3], self._classes, out.shape[3])
        self._batch[..., c, :] = out

    def close(self, tap: Tap, done: int, work: Workspace) -> None:
        """The end of that batch."""
        if self._batch is None:
            return
        groups, _, classes, out = self._batch.shape[1:]
        for low in range(0, len(tap.a), UNFOLDED):
            a = patches(self._module, tap.a[low : low + UNFOLDED], work.patches)  # (n, G, L, I)
            g = self._batch[low : low + UNFOLDED].flatten(3).transpose(2, 3)  # (n, G, C O, L)
            products = work.products.take((len(a) * groups, g.shape[2], a.shape[3]), a)
            torch.bmm(g.flatten(0, 1), a.flatten(0, 1), out=products)
            if self._rows is None:
                self._rows = a.new_empty(self._samples, classes, groups, out, a.shape[3])
            at = slice(done + low, done + low + len(a))
            self._rows[at] = products.view(len(a), groups, classes, out, -1).transpose(1, 2)

    def add_to(self, kernel: Tensor, floats: float, work: Workspace) -> None:
        """kernel += what this layer contributes, with at most so many floats in work."""
        self._batch = None
        if self._rows is not None:
            add_gram(kernel, self._rows.flatten(0, 1).flatten(1))


class Factors:
    """What the gradients of a layer are made of: its inputs a (N, ...) and output gradients g (N, G, L, C, O)."""

    def __init__(self, module: nn.Module, samples: int, classes: int) -> None:
        self._module, self._samples, self._classes = module, samples, classes
        self._a: Tensor | None = None
        self._g: Tensor | None = None

    def add(self, out: Tensor, done: int, c: int) -> None:
        """As `Rows.add`; memory is taken once, at its final size."""
        if self._g is None:
            self._g = out.new_empty(self._samples, *out.shape[1:3], self._classes, out.shape[3])
        self._g[done : done + len(out), ..., c, :] = out

    def close(self, tap: Tap, done: int, work: Workspace) -> None:
        """As `Rows.close`."""
        if self._a is None:
            self._a = torch.empty_like(tap.a[:1].expand(self._samples, *tap.a.shape[1:]))
        self._a[done : done + len(tap.a)] = tap.a

    def add_to(self, kernel: Tensor, floats: float, work: Workspace) -> None:
        """As `Rows.add_to`."""
        if self._a is None or self._g is None:
            return
        inner = patches(self._module, self._a[:1]).shape[3]
        for group in range(self._g.shape[1]):
            inputs, g = Inputs(self._module, self._a, group, inner, work.patches), self._g[:, group]
            if pairs_are_cheaper(inner, g):
                _by_pairs(kernel, inputs, g, floats)
            else:
                _by_rows(kernel, inputs, g, floats, work.products)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of one group of a layer; patches are unfolded for a few samples at a time, being nine times larger."""

    module: nn.Module
    a: Tensor
    group: int
    inner: int
    scratch: Scratch

    def __len__(self) -> int:
        return len(self.a)

    def patches(self, low: int, high: int) -> Tensor:
        """(high - low, L, I). What was asked for before is lost."""
        return patches(self.module, self.a[low:high], self.scratch)[:, self.group]


def pairs_are_cheaper(inner: int, g: Tensor) -> bool:
    """g (N, L, C, O)."""
    samples, positions, classes, out = g.shape
    columns = samples * classes
    rows = columns**2 * out * inner
    # The 8: multiplying and summing the two products costs about so many operations per element.
    return (columns * positions) ** 2 * (out + 8) + (samples * positions) ** 2 * inner < rows


def _by_rows(kernel: Tensor, inputs: Inputs, g: Tensor, floats: float, scratch: Scratch) -> None:
    """g (N, L, C, O): gradients of a block of outputs for all columns, and their Gram matrix."""
    samples, _, classes, out = g.shape
    block = max(1, int(floats / (samples * classes * inputs.inner)))
    for low in range(0, out, block):
        here = g[..., low : low + block].flatten(2)  # (N, L, C o)
        rows = scratch.take((samples, here.shape[2], inputs.inner), g)
        for n in range(0, samples, UNFOLDED):
            at = slice(n, n + UNFOLDED)
            torch.bmm(here[at].transpose(1, 2), inputs.patches(n, n + UNFOLDED), out=rows[at])
        add_gram(kernel, rows.view(samples * classes, -1))


def _by_pairs(kernel: Tensor, inputs: Inputs, g: Tensor, floats: float) -> None:
    """g (N, L, C, O): block of samples against block of samples, over all pairs of positions."""
    samples, positions, classes, out = g.shape
    block = max(1, min(samples, int((floats / 2) ** 0.5 / (classes * positions))))
    for i in range(0, samples, block):
        left = g[i : i + block].reshape(-1, out)  # (n L C, O)
        here = inputs.patches(i, i + block).reshape(-1, inputs.inner).clone()  # (n L, I)
        for j in range(0, i + 1, block):
            right = left if j == i else g[j : j + block].reshape(-1, out)
            there = here if j == i else inputs.patches(j, j + block).reshape(-1, inputs.inner)
            shape = (len(here) // positions, positions, classes, len(there) // positions, positions, classes)
            products = (here @ there.T).view(*shape[:2], 1, *shape[3:5], 1)
            both = (left @ right.T).view(shape).mul_(products).sum((1, 4)).flatten(2).flatten(0, 1)
            rows, columns = slice(i * classes, i * classes + len(both)), slice(j * classes, j * classes + both.shape[1])
            kernel[rows, columns] += both
            if i != j:
                kernel[columns, rows] += both.T


def add_gram(kernel: Tensor, rows: Tensor, blocks: int = 4) -> None:
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
    as_rows: bool


def groups(tapped: Tapped, sample: Tensor, columns: int, floats: float) -> Iterator[list[Piece]]:
    """Layers with weight matrices, cut where they are too large, in groups whose collected values fit in `floats`.

    Raises `UsageError` if the inputs of a layer and one of its outputs do not fit.
    """
    pieces: list[Piece] = []
    room = floats
    for tap, as_rows, outputs, fixed, each in _sizes(tapped, sample, columns):
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
            pieces.append(Piece(tap.name, low, low + count, as_rows))
            room -= fixed + count * each
            low += count
    if pieces:
        yield pieces


def _sizes(tapped: Tapped, sample: Tensor, columns: int) -> Iterator[tuple[Tap, bool, int, int, int]]:
    """(layer, whether as `Rows`, outputs, floats for its inputs, floats per output), where there is a weight matrix."""
    seen = tapped.forward(sample)
    samples = columns // seen.logits.shape[1]
    for tap, g in zip(seen.taps, seen.backward(torch.ones_like(seen.logits), last=True), strict=True):
        if tap.has_matrix:
            out = tap.outputs(g)
            outputs, weight = out.shape[3], tap.module.get_parameter("weight").numel()
            if _keeps_rows(tap, out):
                yield tap, True, outputs, 0, columns * weight // outputs
            else:
                yield tap, False, outputs, tap.a.numel() * samples, columns * out.numel() // outputs


def _keeps_rows(tap: Tap, out: Tensor) -> bool:
    """Whether a layer has so few inputs per position that its gradients are smaller than what they are made of.

    out (n, groups, L, O). Told from the weight: unfolding the inputs only to count them takes longer than the rest.
    """
    inner = tap.module.get_parameter("weight")[0].numel()
    return inner <= out.shape[2]


def _collect(
    tapped: Tapped,
    splits: list[Split],
    run: Run,
    pieces: list[Piece],
    classes: int,
    small: Small | None,
    work: Workspace,
) -> Iterator[Rows | Factors]:
    """One sweep over all samples, one backward pass per class and batch; the layers are released one by one."""
    total = sum(len(split) for split in splits)
    modules = dict(tapped.model.named_modules())
    kept = [(Rows if piece.as_rows else Factors)(modules[piece.name], total, classes) for piece in pieces]
    names = [piece.name for piece in pieces]
    done = 0
    for batch in (batch for split in splits for batch in split.batches(BATCH, device=run.device)):
        seen = tapped.forward(batch.x, names if small is None else None)
        for c, vectors in enumerate(_unit_vectors(seen.logits)):
            gradients = seen.backward(vectors, last=c == classes - 1)
            found = {tap.name: (tap, g) for tap, g in zip(seen.taps, gradients, strict=True)}
            for layer, piece in zip(kept, pieces, strict=True):
                tap, g = found[piece.name]
                layer.add(tap.outputs(g)[..., piece.low : piece.high], done, c)
            if small is not None:
                small.add(seen.taps, gradients, done, c)
        taps = {tap.name: tap for tap in seen.taps}
        for layer, piece in zip(kept, pieces, strict=True):
            layer.close(taps[piece.name], done, work)
        if small is not None:
            small.close(batch.x, done)
        done += len(batch)
    while kept:
        yield kept.pop()


class Small:
    """Gradients of biases, BatchNorm, and what is left to `torch.func`: they fit in memory as they are."""

    def __init__(self, tapped: Tapped, samples: int, classes: int) -> None:
        self._tapped, self._samples, self._classes = tapped, samples, classes
        self._parts: dict[str, Tensor] = {}  # (N, C, P) each

    def add(self, taps: Sequence[Tap], gradients: Sequence[Tensor], done: int, c: int) -> None:
        """One class of the batch that begins with sample `done`."""
        for tap, g in zip(taps, gradients, strict=True):
            for name, rows in tap.vectors(g).items():
                self._part(f"{tap.name}.{name}", rows)[done : done + len(rows), c] = rows

    def close(self, x: Tensor, done: int) -> None:
        """The end of that batch, x."""
        for name, rows in self._tapped.rest_rows(x).items():
            flat = rows.detach().flatten(2)  # (n, C, P)
            self._part(name, flat)[done : done + len(flat)] = flat

    def add_to(self, kernel: Tensor) -> None:
        for rows in self._parts.values():
            add_gram(kernel, rows.flatten(0, 1))

    def _part(self, name: str, rows: Tensor) -> Tensor:
        if name not in self._parts:
            self._parts[name] = rows.new_empty(self._samples, self._classes, rows.shape[-1])
        return self._parts[name]


def _unit_vectors(logits: Tensor) -> Iterator[Tensor]:
    for c in range(logits.shape[1]):
        yield torch.nn.functional.one_hot(torch.tensor(c), logits.shape[1]).to(logits).expand_as(logits)
