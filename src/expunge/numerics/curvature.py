"""The diagonal of the Fisher information of a classifier, exact or sampled.

    F_j = (1/N) sum over x of sum over y of p(y|x) (d CE(f(x; w), y) / d w_j)^2               eval mode, at w

Samples are independent there, so one backward pass per vector holds the terms of a whole batch; their squares are
summed (`numerics.gradient_capture`). The sum over y is the diagonal of J^T (diag(p) - p p^T) J, J the Jacobian of the
logits. That matrix has rank C - 1, so C - 1 eigenvectors give it, with one pass less than there are classes, and
directions that no sample of a batch has are left out. Monte Carlo draws one y per sample from p instead: unbiased, one
pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.modes import evaluation_mode
from expunge.numerics.gradient_capture import Scratch, Tap, Tapped, Workspace, patches

Estimate = Literal["exact", "monte-carlo"]


def fisher_diagonal(
    model: nn.Module, split: Split, run: Run, *, estimate: Estimate = "exact", memory: float = 512.0
) -> dict[str, Tensor]:
    """Parameter name -> diagonal of its shape, float64. Labels are not read. memory: MiB for the gradients at hand."""
    sums = {name: torch.zeros(p.shape, dtype=torch.float64, device=run.device) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(run.seed_for("fisher"))
    with evaluation_mode(model):
        one = next(iter(split.batches(1, device=run.device))).x
        tapped = Tapped(model, one)
        size = batch_size(tapped, one, estimate, memory)
        work = Workspace()
        done = 0
        for batch in split.batches(size, device=run.device):
            _add_batch(sums, tapped, batch.x, estimate, generator, work)
            done += len(batch)
            run.report(f"{run.label}: Fisher information", done, len(split))
    return {name: value / len(split) for name, value in sums.items()}


def _add_batch(
    sums: dict[str, Tensor],
    tapped: Tapped,
    x: Tensor,
    estimate: Estimate,
    generator: torch.Generator,
    work: Workspace,
) -> None:
    seen = tapped.forward(x)
    p = seen.logits.detach().softmax(1)
    vectors = sampled(p, generator) if estimate == "monte-carlo" else all_classes(p)
    count = vectors.shape[1]
    layers = [Layer(tap, count, work) for tap in seen.taps]
    for k in range(count):
        for layer, g in zip(layers, seen.backward(vectors[:, k], last=k == count - 1), strict=True):
            layer.add(g)
    for layer in layers:
        for name, value in layer.squares().items():
            sums[f"{layer.tap.name}.{name}" if layer.tap.name else name] += value
    for name, rows in tapped.rest_rows(x, vectors).items():
        sums[name] += rows.detach().square().sum((0, 1))


def all_classes(p: Tensor) -> Tensor:
    """Vectors v (n, K, C), K < C, with sum_k v_k v_k^T = diag(p) - p p^T for every sample, p (n, C).

    That is the covariance of the cross-entropy's gradient p - e_y under y ~ p. Directions whose variance is nowhere
    above 1e-7 of the batch's mean are left out: float32 would not see them.
    """
    exact = p.double()
    values, vectors = torch.linalg.eigh(torch.diag_embed(exact) - exact.unsqueeze(2) * exact.unsqueeze(1))
    values = values.clamp(min=0).flip(1)  # the largest first
    count = int((values.amax(0) > 1e-7 * values.sum(1).mean()).sum())
    scaled = values.sqrt().unsqueeze(2) * vectors.transpose(1, 2).flip(1)
    return scaled[:, : max(1, min(count, p.shape[1] - 1))].to(p)


def sampled(p: Tensor, generator: torch.Generator) -> Tensor:
    """Vectors (n, 1, C): p - e_y for one y per sample, drawn from p."""
    y = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return (p - torch.zeros_like(p).scatter_(1, y, 1.0)).unsqueeze(1)


class Layer:
    """Sums the squared per-sample gradients of one layer over `count` backward passes."""

    def __init__(self, tap: Tap, count: int, work: Workspace) -> None:
        self.tap = tap
        self._work = work
        self._small: dict[str, Tensor] = {}
        self._matrix: Tensor | None = None
        self._once = count == 1
        self._by_pairs = not self._once and tap.has_matrix and pairs_are_cheaper(tap.patches.shape[2], count)

    def add(self, g: Tensor) -> None:
        """g: gradients of the layer's output, (n, ...)."""
        for name, rows in self.tap.vectors(g).items():
            squared = rows.square().sum(0)
            self._small[name] = self._small[name] + squared if name in self._small else squared
        if self.tap.has_matrix:
            out = self.tap.outputs(g)  # (n, G, L, O)
            more = pair_products(out) if self._by_pairs else squared_products(self._inputs(), out, self._work.products)
            self._matrix = more if self._matrix is None else self._matrix.add_(more)

    def _inputs(self) -> Tensor:
        """Patches: kept for all passes, or made for the only one where those of the layer before were."""
        return patches(self.tap.module, self.tap.a, self._work.patches) if self._once else self.tap.patches

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares per parameter, in its shape."""
        found = dict(self._small)
        if self._matrix is not None:
            total = from_pairs(self.tap.patches, self._matrix) if self._by_pairs else self._matrix
            found["weight"] = self.tap.as_weight(total)
        return found


def pairs_are_cheaper(positions: int, count: int) -> bool:
    """Whether squaring over pairs of positions beats forming the gradient of every sample, `count` times."""
    return positions + 1 <= 4 * count


def squared_products(a: Tensor, g: Tensor, scratch: Scratch) -> Tensor:
    """Sum over n of (g_n^T a_n)^2 for a (n, G, L, I) and g (n, G, L, O); (G, O, I)."""
    shape = (*a.shape[:2], g.shape[3], a.shape[3])
    rows = scratch.take(shape, a)
    torch.bmm(g.transpose(2, 3).flatten(0, 1), a.flatten(0, 1), out=rows.flatten(0, 1))
    return rows.square_().sum(0)


def pair_products(values: Tensor) -> Tensor:
    """(n, G, L, C) to products of positions l <= m: (pairs, n, G, C). Positions first: each row of pairs is whole."""
    by_position = values.permute(2, 0, 1, 3).contiguous()
    positions = len(by_position)
    products = values.new_empty(positions * (positions + 1) // 2, *by_position.shape[1:])
    done = 0
    for at in range(positions):
        # Straight into its place: gathering both factors first would take more time than multiplying them.
        torch.mul(by_position[at], by_position[at:], out=products[done : done + positions - at])
        done += positions - at
    return products


def from_pairs(a: Tensor, products: Tensor) -> Tensor:
    """(sum_l g_l a_l)^2 = sum over pairs l, m of (g_l g_m)(a_l a_m): one product per layer for all backward passes.

    a (n, G, L, I), products (pairs, n, G, O): sums of `pair_products(g)`. The result (G, O, I) is summed over n.
    """
    positions = a.shape[2]
    first, second = torch.triu_indices(positions, positions, device=a.device)
    twice = torch.where(first == second, 1.0, 2.0).to(a)  # each pair l < m stands for two
    left = (products * twice[:, None, None, None]).flatten(0, 1)
    return left.permute(1, 2, 0) @ pair_products(a).flatten(0, 1).transpose(0, 1)


def batch_size(tapped: Tapped, sample: Tensor, estimate: Estimate, memory: float) -> int:
    """Samples whose gradients, patches and products fit in the budget; at least one."""
    seen = tapped.forward(sample)
    count = 1 if estimate == "monte-carlo" else max(1, seen.logits.shape[1] - 1)
    floats = 0
    for tap, g in zip(seen.taps, seen.backward(torch.ones_like(seen.logits), last=True), strict=True):
        floats += tap.a.numel() + g.numel()
        if tap.has_matrix:
            out, (_, _, positions, inner) = tap.outputs(g).shape[3], tap.patches.shape
            pairs = positions * (positions + 1) // 2 * (inner + out) + g.numel() * positions
            floats += tap.patches.numel() + (pairs if pairs_are_cheaper(positions, count) else out * inner)
    named = dict(tapped.model.named_parameters())
    floats += sum(count * named[name].numel() for name in tapped.rest)
    return max(1, int(memory * 2**20 / (4 * max(floats, 1))))
