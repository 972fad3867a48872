"""The neural tangent kernel of a classifier at its weights, without its Jacobian.

G has one column per sample and class, sample by sample: the gradient of that logit with respect to all weights, in eval
mode. Only the inputs and output gradients of as many layers as fit the budget are held at a time; the Gram matrix G^T G
is the sum of the layers' contributions. For a layer with L output positions, O outputs and I inputs per position either

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
from expunge.numerics.gradient_capture import Buffers, GradientCapture, LayerRecord, ReusableBuffer, patches

BATCH = 24  # samples per pass while gradients are collected; the graph of a pass needs further memory
UNFOLDED = 8  # samples whose patches are held at a time
COLLECTED = 0.43  # share of the memory for one sweep; less means more sweeps, thus more backward passes
WORKING = 0.15  # share of the memory for blocks of products; less costs little, until blocks are too thin


def gram_matrix(model: nn.Module, splits: list[Split], run: Run, *, memory: float = 640.0) -> Tensor:
    """Gram matrix G^T G over the samples of all splits, in order.

    Args:
        model: classifier.
        splits: the samples.
        run: device and progress.
        memory: budget in MiB.

    Returns:
        (M, M), float64, on the run's device; M = samples x classes.

    Raises:
        UsageError: if a single layer does not fit the budget.
    """
    with evaluation_mode(model):
        first = next(iter(splits[0].batches(1, device=run.device))).x
        capture = GradientCapture(model, first)
        classes = int(capture.forward(first).logits.shape[1])
        columns = classes * sum(len(split) for split in splits)
        kernel = torch.zeros(columns, columns, dtype=torch.float64, device=run.device)
        budget = memory * 2**20 / 4 - 3 * columns**2  # floats: the kernel itself and one float32 block of it
        plan = list(groups(capture, first, columns, COLLECTED * budget)) or [[]]
        work = Buffers()
        for number, pieces in enumerate(plan, 1):
            # The small parameters are part of the first sweep: a sweep is a backward pass per sample and class.
            small = SmallParameters(capture, columns // classes, classes) if number == 1 else None
            for layer in _collect(capture, splits, run, pieces, classes, small, work):
                layer.add_to(kernel, WORKING * budget, work)
            if small is not None:
                small.add_to(kernel)
            run.report(f"{run.label}: kernel", number, len(plan))
    return kernel


def product(model: nn.Module, splits: list[Split], vector: Tensor, run: Run) -> dict[str, Tensor]:
    """Product G v for v (M,): parameter name -> tensor of its shape, float64."""
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


class LayerGradients:
    """Explicit gradients (N, C, G, O, I) of a layer with few inputs per position.

    They are computed batch by batch: all classes of a batch share one unfolding of its inputs and one product.
    """

    def __init__(self, module: nn.Module, samples: int, classes: int) -> None:
        self._module, self._samples, self._classes = module, samples, classes
        self._batch: Tensor | None = None
        self._rows: Tensor | None = None

    def add(self, out: Tensor, done: int, c: int) -> None:
        """Add gradients `out` (n, G, L, O) of class c at the layer's outputs, for a batch from sample `done` on."""
        if self._batch is None or len(self._batch) != len(out):
            self._batch = out.new_empty(*out.shape[:3], self._classes, out.shape[3])
        self._batch[..., c, :] = out

    def close(self, record: LayerRecord, done: int, work: Buffers) -> None:
        """Finish the batch from sample `done` on."""
        if self._batch is None:
            return
        groups, _, classes, out = self._batch.shape[1:]
        for low in range(0, len(record.a), UNFOLDED):
            a = patches(self._module, record.a[low : low + UNFOLDED], work.patches)  # (n, G, L, I)
            g = self._batch[low : low + UNFOLDED].flatten(3).transpose(2, 3)  # (n, G, C O, L)
            products = work.products.take((len(a) * groups, g.shape[2], a.shape[3]), a)
            torch.bmm(g.flatten(0, 1), a.flatten(0, 1), out=products)
            if self._rows is None:
                self._rows = a.new_empty(self._samples, classes, groups, out, a.shape[3])
            at = slice(done + low, done + low + len(a))
            self._rows[at] = products.view(len(a), groups, classes, out, -1).transpose(1, 2)

    def add_to(self, kernel: Tensor, floats: float, work: Buffers) -> None:
        """Add this layer's contribution to `kernel` (M, M), with at most `floats` temporary values."""
        self._batch = None
        if self._rows is not None:
            add_gram(kernel, self._rows.flatten(0, 1).flatten(1))


class LayerFactors:
    """Gradients of a layer as factors: its inputs a (N, ...) and output gradients g (N, G, L, C, O)."""

    def __init__(self, module: nn.Module, samples: int, classes: int) -> None:
        self._module, self._samples, self._classes = module, samples, classes
        self._a: Tensor | None = None
        self._g: Tensor | None = None

    def add(self, out: Tensor, done: int, c: int) -> None:
        """As `LayerGradients.add`; memory is allocated once, at its final size."""
        if self._g is None:
            self._g = out.new_empty(self._samples, *out.shape[1:3], self._classes, out.shape[3])
        self._g[done : done + len(out), ..., c, :] = out

    def close(self, record: LayerRecord, done: int, work: Buffers) -> None:
        """As `LayerGradients.close`."""
        if self._a is None:
            self._a = torch.empty_like(record.a[:1].expand(self._samples, *record.a.shape[1:]))
        self._a[done : done + len(record.a)] = record.a

    def add_to(self, kernel: Tensor, floats: float, work: Buffers) -> None:
        """As `LayerGradients.add_to`."""
        if self._a is None or self._g is None:
            return
        inner = patches(self._module, self._a[:1]).shape[3]
        for group in range(self._g.shape[1]):
            inputs, g = GroupInputs(self._module, self._a, group, inner, work.patches), self._g[:, group]
            if pairs_are_cheaper(inner, g):
                _by_pairs(kernel, inputs, g, floats)
            else:
                _by_rows(kernel, inputs, g, floats, work.products)


@dataclass(frozen=True, eq=False)
class GroupInputs:
    """Inputs of one group of a layer; patches, nine times larger, are unfolded for a few samples at a time."""

    module: nn.Module
    a: Tensor
    group: int
    inner: int
    scratch: ReusableBuffer

    def __len__(self) -> int:
        return len(self.a)

    def patches(self, low: int, high: int) -> Tensor:
        """Patches (high - low, L, I) of some samples; overwrites the patches returned before."""
        return patches(self.module, self.a[low:high], self.scratch)[:, self.group]


def pairs_are_cheaper(inner: int, g: Tensor) -> bool:
    """Whether products over pairs of positions cost less than explicit gradients; g (N, L, C, O)."""
    samples, positions, classes, out = g.shape
    columns = samples * classes
    rows = columns**2 * out * inner
    # Multiplying and summing the two products costs about 8 operations per element.
    return (columns * positions) ** 2 * (out + 8) + (samples * positions) ** 2 * inner < rows


def _by_rows(kernel: Tensor, inputs: GroupInputs, g: Tensor, floats: float, scratch: ReusableBuffer) -> None:
    """Explicit gradients of a block of outputs for all columns, and their Gram matrix; g (N, L, C, O)."""
    samples, _, classes, out = g.shape
    block = max(1, int(floats / (samples * classes * inputs.inner)))
    for low in range(0, out, block):
        block_gradients = g[..., low : low + block].flatten(2)  # (N, L, C o)
        rows = scratch.take((samples, block_gradients.shape[2], inputs.inner), g)
        for n in range(0, samples, UNFOLDED):
            batch = slice(n, n + UNFOLDED)
            torch.bmm(block_gradients[batch].transpose(1, 2), inputs.patches(n, n + UNFOLDED), out=rows[batch])
        add_gram(kernel, rows.view(samples * classes, -1))


def _by_pairs(kernel: Tensor, inputs: GroupInputs, g: Tensor, floats: float) -> None:
    """Blocks of samples against blocks of samples, over all pairs of positions; g (N, L, C, O)."""
    samples, positions, classes, out = g.shape
    block = max(1, min(samples, int((floats / 2) ** 0.5 / (classes * positions))))
    for i in range(0, samples, block):
        left = g[i : i + block].reshape(-1, out)  # (n L C, O)
        left_inputs = inputs.patches(i, i + block).reshape(-1, inputs.inner).clone()  # (n L, I)
        for j in range(0, i + 1, block):
            right = left if j == i else g[j : j + block].reshape(-1, out)
            right_inputs = left_inputs if j == i else inputs.patches(j, j + block).reshape(-1, inputs.inner)
            shape = (
                len(left_inputs) // positions,
                positions,
                classes,
                len(right_inputs) // positions,
                positions,
                classes,
            )
            products = (left_inputs @ right_inputs.T).view(*shape[:2], 1, *shape[3:5], 1)
            both = (left @ right.T).view(shape).mul_(products).sum((1, 4)).flatten(2).flatten(0, 1)
            rows, columns = slice(i * classes, i * classes + len(both)), slice(j * classes, j * classes + both.shape[1])
            kernel[rows, columns] += both
            if i != j:
                kernel[columns, rows] += both.T


def add_gram(kernel: Tensor, rows: Tensor, blocks: int = 4) -> None:
    """Add rows rows^T to `kernel` for rows (M, P); only half of the symmetric product is computed."""
    edges = torch.linspace(0, len(rows), blocks + 1).long().tolist()
    for i in range(blocks):
        for j in range(i + 1):
            rows_i, rows_j = slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1])
            part = rows[rows_i] @ rows[rows_j].T
            kernel[rows_i, rows_j] += part
            if i != j:
                kernel[rows_j, rows_i] += part.T


@dataclass(frozen=True)
class LayerPart:
    """Outputs `low` to `high` of the layer `name`, collected in one sweep, explicitly if `as_rows`."""

    name: str
    low: int
    high: int
    as_rows: bool


def groups(capture: GradientCapture, sample: Tensor, columns: int, floats: float) -> Iterator[list[LayerPart]]:
    """Layers with weight matrices, split if too large, in groups whose collected values fit in `floats`.

    Raises:
        UsageError: if the inputs of a layer and one of its outputs do not fit.
    """
    pieces: list[LayerPart] = []
    remaining = floats
    for record, as_rows, outputs, fixed, each in _sizes(capture, sample, columns):
        if fixed + each > floats:
            needed = 4 * (fixed + each) / COLLECTED / 2**20
            raise UsageError(
                f"ntk: layer `{record.name}` needs {needed:.1f} MiB for {columns} columns; raise `memory`, or use "
                "fewer samples."
            )
        low = 0
        while low < outputs:
            count = min(outputs - low, int((remaining - fixed) // each))
            if count <= 0 or (low == 0 and count < outputs and pieces):
                yield pieces
                pieces, remaining = [], floats
                continue
            pieces.append(LayerPart(record.name, low, low + count, as_rows))
            remaining -= fixed + count * each
            low += count
    if pieces:
        yield pieces


def _sizes(capture: GradientCapture, sample: Tensor, columns: int) -> Iterator[tuple[LayerRecord, bool, int, int, int]]:
    """Per layer with a weight matrix: layer, explicit or not, outputs, floats for its inputs, floats per output."""
    seen = capture.forward(sample)
    samples = columns // seen.logits.shape[1]
    for record, g in zip(seen.records, seen.backward(torch.ones_like(seen.logits), last=True), strict=True):
        if record.has_matrix:
            out = record.outputs(g)
            outputs, weight = out.shape[3], record.module.get_parameter("weight").numel()
            if _keeps_rows(record, out):
                yield record, True, outputs, 0, columns * weight // outputs
            else:
                yield record, False, outputs, record.a.numel() * samples, columns * out.numel() // outputs


def _keeps_rows(record: LayerRecord, out: Tensor) -> bool:
    """Whether a layer has so few inputs per position that its gradients need less memory than their factors.

    Computed from the weight and the output gradients (n, groups, L, O): unfolding the inputs to count them is slow.
    """
    inner = record.module.get_parameter("weight")[0].numel()
    return inner <= out.shape[2]


def _collect(
    capture: GradientCapture,
    splits: list[Split],
    run: Run,
    pieces: list[LayerPart],
    classes: int,
    small: SmallParameters | None,
    work: Buffers,
) -> Iterator[LayerGradients | LayerFactors]:
    """One sweep over all samples, one backward pass per class and batch; the layers are released one by one."""
    total = sum(len(split) for split in splits)
    modules = dict(capture.model.named_modules())
    collected = [
        (LayerGradients if piece.as_rows else LayerFactors)(modules[piece.name], total, classes) for piece in pieces
    ]
    names = [piece.name for piece in pieces]
    done = 0
    for batch in (batch for split in splits for batch in split.batches(BATCH, device=run.device)):
        seen = capture.forward(batch.x, names if small is None else None)
        for c, vectors in enumerate(_unit_vectors(seen.logits)):
            gradients = seen.backward(vectors, last=c == classes - 1)
            by_name = {record.name: (record, g) for record, g in zip(seen.records, gradients, strict=True)}
            for layer, piece in zip(collected, pieces, strict=True):
                record, g = by_name[piece.name]
                layer.add(record.outputs(g)[..., piece.low : piece.high], done, c)
            if small is not None:
                small.add(seen.records, gradients, done, c)
        records = {record.name: record for record in seen.records}
        for layer, piece in zip(collected, pieces, strict=True):
            layer.close(records[piece.name], done, work)
        if small is not None:
            small.close(batch.x, done)
        done += len(batch)
    while collected:
        yield collected.pop()


class SmallParameters:
    """Gradients of biases, BatchNorm and the parameters handled by `torch.func`, which fit in memory."""

    def __init__(self, capture: GradientCapture, samples: int, classes: int) -> None:
        self._capture, self._samples, self._classes = capture, samples, classes
        self._parts: dict[str, Tensor] = {}  # (N, C, P) each

    def add(self, records: Sequence[LayerRecord], gradients: Sequence[Tensor], done: int, c: int) -> None:
        """Add class c of the batch from sample `done` on."""
        for record, g in zip(records, gradients, strict=True):
            for name, rows in record.vectors(g).items():
                self._part(f"{record.name}.{name}", rows)[done : done + len(rows), c] = rows

    def close(self, x: Tensor, done: int) -> None:
        """Finish that batch, x."""
        for name, rows in self._capture.rest_rows(x).items():
            flat = rows.detach().flatten(2)  # (n, C, P)
            self._part(name, flat)[done : done + len(flat)] = flat

    def add_to(self, kernel: Tensor) -> None:
        """Add their contribution to `kernel` (M, M)."""
        for rows in self._parts.values():
            add_gram(kernel, rows.flatten(0, 1))

    def _part(self, name: str, rows: Tensor) -> Tensor:
        if name not in self._parts:
            self._parts[name] = rows.new_empty(self._samples, self._classes, rows.shape[-1])
        return self._parts[name]


def _unit_vectors(logits: Tensor) -> Iterator[Tensor]:
    for c in range(logits.shape[1]):
        yield torch.nn.functional.one_hot(torch.tensor(c), logits.shape[1]).to(logits).expand_as(logits)
