"""The diagonal of the Fisher information of a classifier, exact or sampled.

    F_j = (1/N) sum over x of sum over y of p(y|x) (d CE(f(x; w), y) / d w_j)^2               eval mode, at w

Samples are independent in eval mode, so one backward pass per vector gives the terms of a whole batch; their squares
are summed (`numerics.gradient_capture`). The sum over y is the diagonal of J^T (diag(p) - p p^T) J, J the Jacobian of
the logits. That matrix has rank C - 1, so C - 1 eigenvectors suffice, one pass less than there are classes, and
directions that no sample of a batch has are skipped. Monte Carlo draws one y per sample from p instead: unbiased, one
pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.modes import evaluation_mode
from expunge.numerics.gradient_capture import Buffers, GradientCapture, LayerRecord, ReusableBuffer, patches

Estimate = Literal["exact", "monte-carlo"]


def fisher_diagonal(
    model: nn.Module, split: Split, run: Run, *, estimate: Estimate = "exact", memory: float = 512.0
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information over the samples of a split; labels are not read.

    Args:
        model: classifier with logits (B, C).
        split: the samples.
        run: device, progress and the seed of the Monte Carlo estimate.
        estimate: "exact", the sum over all classes, or "monte-carlo", one sampled class per sample.
        memory: MiB for per-sample gradients; affects speed only.

    Returns:
        Parameter name -> values >= 0 in its shape, float64.
    """
    sums = {name: torch.zeros(p.shape, dtype=torch.float64, device=run.device) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(run.seed_for("fisher"))
    with evaluation_mode(model):
        sample = next(iter(split.batches(1, device=run.device))).x
        capture = GradientCapture(model, sample)
        size = batch_size(capture, sample, estimate, memory)
        work = Buffers()
        done = 0
        for batch in split.batches(size, device=run.device):
            _add_batch(sums, capture, batch.x, estimate, generator, work)
            done += len(batch)
            run.report(f"{run.label}: Fisher information", done, len(split))
    return {name: value / len(split) for name, value in sums.items()}


def _add_batch(
    sums: dict[str, Tensor],
    capture: GradientCapture,
    x: Tensor,
    estimate: Estimate,
    generator: torch.Generator,
    work: Buffers,
) -> None:
    seen = capture.forward(x)
    p = seen.logits.detach().softmax(1)
    vectors = sampled(p, generator) if estimate == "monte-carlo" else all_classes(p)
    count = vectors.shape[1]
    layers = [LayerSquares(record, count, work) for record in seen.records]
    for k in range(count):
        for layer, g in zip(layers, seen.backward(vectors[:, k], last=k == count - 1), strict=True):
            layer.add(g)
    for layer in layers:
        for name, value in layer.squares().items():
            sums[f"{layer.record.name}.{name}" if layer.record.name else name] += value
    for name, rows in capture.rest_rows(x, vectors).items():
        sums[name] += rows.detach().square().sum((0, 1))


def all_classes(p: Tensor) -> Tensor:
    """Vectors v (n, K, C), K < C, with sum_k v_k v_k^T = diag(p) - p p^T for probabilities p (n, C) of every sample.

    That is the covariance of the cross-entropy's gradient p - e_y under y ~ p. Directions whose variance is below 1e-7
    of the batch's mean for all samples are dropped: they vanish in float32.
    """
    exact = p.double()
    values, vectors = torch.linalg.eigh(torch.diag_embed(exact) - exact.unsqueeze(2) * exact.unsqueeze(1))
    values = values.clamp(min=0).flip(1)  # the largest first
    count = int((values.amax(0) > 1e-7 * values.sum(1).mean()).sum())
    scaled = values.sqrt().unsqueeze(2) * vectors.transpose(1, 2).flip(1)
    return scaled[:, : max(1, min(count, p.shape[1] - 1))].to(p)


def sampled(p: Tensor, generator: torch.Generator) -> Tensor:
    """Vectors p - e_y (n, 1, C) for one y per sample, drawn from p (n, C)."""
    y = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return (p - torch.zeros_like(p).scatter_(1, y, 1.0)).unsqueeze(1)


class LayerSquares:
    """Sums the squared per-sample gradients of one layer over `count` backward passes."""

    def __init__(self, record: LayerRecord, count: int, work: Buffers) -> None:
        self.record = record
        self._work = work
        self._small: dict[str, Tensor] = {}
        self._matrix: Tensor | None = None
        self._once = count == 1
        self._by_pairs = not self._once and record.has_matrix and pairs_are_cheaper(record.patches.shape[2], count)

    def add(self, g: Tensor) -> None:
        """Add the squares of one backward pass, given the gradients g (n, ...) of the layer's output."""
        for name, rows in self.record.vectors(g).items():
            squared = rows.square().sum(0)
            self._small[name] = self._small[name] + squared if name in self._small else squared
        if self.record.has_matrix:
            out = self.record.outputs(g)  # (n, G, L, O)
            more = pair_products(out) if self._by_pairs else squared_products(self._inputs(), out, self._work.products)
            self._matrix = more if self._matrix is None else self._matrix.add_(more)

    def _inputs(self) -> Tensor:
        """Patches: kept for all passes, or, for a single pass, computed in the shared buffer."""
        return patches(self.record.module, self.record.a, self._work.patches) if self._once else self.record.patches

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares per parameter, in its shape."""
        sums = dict(self._small)
        if self._matrix is not None:
            total = from_pairs(self.record.patches, self._matrix) if self._by_pairs else self._matrix
            sums["weight"] = self.record.as_weight(total)
        return sums


def pairs_are_cheaper(positions: int, count: int) -> bool:
    """Whether squaring over pairs of positions beats forming the gradient of every sample, `count` times."""
    return positions + 1 <= 4 * count


def squared_products(a: Tensor, g: Tensor, scratch: ReusableBuffer) -> Tensor:
    """Sum over n of (g_n^T a_n)^2 for a (n, G, L, I) and g (n, G, L, O); (G, O, I)."""
    shape = (*a.shape[:2], g.shape[3], a.shape[3])
    rows = scratch.take(shape, a)
    torch.bmm(g.transpose(2, 3).flatten(0, 1), a.flatten(0, 1), out=rows.flatten(0, 1))
    return rows.square_().sum(0)


def pair_products(values: Tensor) -> Tensor:
    """Products of positions l <= m of values (n, G, L, C): (pairs, n, G, C), positions first for contiguous rows."""
    by_position = values.permute(2, 0, 1, 3).contiguous()
    positions = len(by_position)
    products = values.new_empty(positions * (positions + 1) // 2, *by_position.shape[1:])
    done = 0
    for position in range(positions):
        # Written in place: gathering both factors first would take more time than multiplying them.
        torch.mul(by_position[position], by_position[position:], out=products[done : done + positions - position])
        done += positions - position
    return products


def from_pairs(a: Tensor, products: Tensor) -> Tensor:
    """Squared gradients from products over pairs of positions, one product per layer for all backward passes.

    (sum_l g_l a_l)^2 = sum over pairs l, m of (g_l g_m)(a_l a_m).

    Args:
        a: patches (n, G, L, I).
        products: sums of `pair_products(g)`, (pairs, n, G, O).

    Returns:
        Squares (G, O, I), summed over n.
    """
    positions = a.shape[2]
    first, second = torch.triu_indices(positions, positions, device=a.device)
    twice = torch.where(first == second, 1.0, 2.0).to(a)  # each pair l < m counts twice
    left = (products * twice[:, None, None, None]).flatten(0, 1)
    return left.permute(1, 2, 0) @ pair_products(a).flatten(0, 1).transpose(0, 1)


def batch_size(capture: GradientCapture, sample: Tensor, estimate: Estimate, memory: float) -> int:
    """Samples whose gradients, patches and products fit in the budget; at least one."""
    seen = capture.forward(sample)
    count = 1 if estimate == "monte-carlo" else max(1, seen.logits.shape[1] - 1)
    floats = 0
    for record, g in zip(seen.records, seen.backward(torch.ones_like(seen.logits), last=True), strict=True):
        floats += record.a.numel() + g.numel()
        if record.has_matrix:
            out, (_, _, positions, inner) = record.outputs(g).shape[3], record.patches.shape
            pairs = positions * (positions + 1) // 2 * (inner + out) + g.numel() * positions
            floats += record.patches.numel() + (pairs if pairs_are_cheaper(positions, count) else out * inner)
    named = dict(capture.model.named_parameters())
    floats += sum(count * named[name].numel() for name in capture.rest)
    return max(1, int(memory * 2**20 / (4 * max(floats, 1))))
