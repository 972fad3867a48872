"""Linear centred kernel alignment (CKA) of the representations of a model and the retrained model.

Paper      Kornblith, Norouzi, Lee, Hinton, ICML 2019, arXiv:1905.00414; unbiased estimator: Song et al., JMLR 2012
Notation   X (n, p), Y (n, q) representations of the same samples by the two models, K = X X', L = Y Y'

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    biased     HSIC(K, L) = ||Xc' Yc||_F^2,  columns centred
    unbiased   HSIC(K, L) = tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1,  ~: zero diagonal

Both follow from sums over samples (`Moments`), in float64: p p, q q and p q numbers are kept, neither K nor X.
With fewer samples than dimensions the biased CKA is near 1 for any two models; the unbiased one is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.options import Field
from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.metrics.base import REFERENCE, Evaluation, Metric, Value, metric, missing

BATCH = 512  # samples whose sums are taken at a time
_FEWEST = 4  # samples that the unbiased estimator needs
EQUAL_ROWS = "one of the models gives all samples the same representation"


@metric("cka")
class CKA(Metric):
    """Linear CKA of the representations that enter the head, model against retrained model, per split; 1 is equal.

    Invariant to rotation and scale of the representations, so models trained with different seeds may score high:
    compare it with the original's. Unbiased values may be slightly negative for unrelated representations.
    """

    requires_reference: ClassVar[bool] = True
    on_request: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    estimator: Literal["biased", "unbiased"] = Field("biased", description="of HSIC; `biased` is the usual one")
    samples: int = Field(10000, ge=_FEWEST, description="maximal samples per split, drawn by the evaluation's seed")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for name in evaluation.present(("forget", "retain", "test")):
            split = random_subset(evaluation.splits[name], self.samples, evaluation.seed)
            if len(split) < _FEWEST:
                why = f"{len(split)} samples; the estimator needs {_FEWEST}"
                yield from missing(why, "ratio", "higher", f"{name}_cka")
                continue
            moments = Moments()
            pair = (evaluation.features(source, name, split).split(BATCH) for source in (model, REFERENCE))
            for x, y in zip(*pair, strict=True):
                moments.add(x.to(evaluation.device), y.to(evaluation.device))
            value = moments.cka(unbiased=self.estimator == "unbiased")
            if value is None:
                yield from missing(EQUAL_ROWS, "ratio", "higher", f"{name}_cka")
            else:
                yield Value(f"{name}_cka", value, "ratio", "higher")


class Moments:
    """Sums over samples from which both estimators follow.

    Representations are shifted by a constant, the mean of the first batch: neither estimator depends on the shift, but
    without it large means would cause cancellation. In the names of the sums x is a representation and |x| its squared
    norm: "x|y|" is the sum of x_i |y_i|^2.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = {}

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: x (B, p) and y (B, q), representations of the same samples."""
        x, y = x.double(), y.double()
        size = {"raw x": x.square().sum(), "raw y": y.square().sum()}
        if self._shift is None:
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        norm = {"x": x.square().sum(1), "y": y.square().sum(1)}
        new = {"x": x.sum(0), "y": y.sum(0), "xx": x.T @ x, "yy": y.T @ y, "xy": x.T @ y, **size}
        for a in "xy":
            new |= {f"|{a}|": norm[a].sum(), f"x|{a}|": norm[a] @ x, f"y|{a}|": norm[a] @ y}
            new |= {f"|{a}||{b}|": norm[a] @ norm[b] for b in "xy"}
        self._sums = {name: self._sums[name] + v for name, v in new.items()} if self._sums else new
        self.count += len(x)

    def cka(self, *, unbiased: bool) -> float | None:
        """CKA of all added samples.

        Returns:
            None if a model gives all samples the same representation, or an unbiased HSIC(K, K) is not positive.
        """
        hsic = self._unbiased if unbiased else self._biased
        own = {a: float(hsic(a, a)) for a in "xy"}
        # Equal representations differ by rounding: 1e-6 of their norm counts as zero.
        if any(own[a] <= 1e-24 * float(self._sums[f"raw {a}"]) ** 2 for a in "xy"):
            return None
        return float(hsic("x", "y")) / (own["x"] * own["y"]) ** 0.5

    def _biased(self, a: str, b: str) -> Tensor:
        s = self._sums
        return (s[a + b] - torch.outer(s[a], s[b]) / self.count).square().sum()

    def _unbiased(self, a: str, b: str) -> Tensor:
        s, n = self._sums, self.count
        diagonal = s[f"|{a}||{b}|"]
        trace = s[a + b].square().sum() - diagonal
        ones = (s[a] @ s[a] - s[f"|{a}|"]) * (s[b] @ s[b] - s[f"|{b}|"])
        mixed = s[a] @ s[a + b] @ s[b] - s[a] @ s[f"{a}|{b}|"] - s[b] @ s[f"{b}|{a}|"] + diagonal
        return trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed


def random_subset(split: Split, most: int, seed: int) -> Split:
    """At most `most` random samples of a split, in its order."""
    if len(split) <= most:
        return split
    order = torch.randperm(len(split), generator=torch_generator(seed, "cka", split.name))
    return split.take(split.index[order[:most].sort().values])
