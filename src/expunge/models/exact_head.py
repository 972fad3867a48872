"""A linear head in closed form on a frozen backbone, kept with the sufficient statistics of the data it was fitted on.

Notation   h(x) in R^d what the backbone gives, n_c, s_c = sum of h over class c, M = sum of h h^T over all samples,
           n = sum of n_c, m = sum of s_c / n; float64

    ridge   w_c = (M - n m m^T + ridge I)^-1 (s_c - n_c m),   b_c = n_c / n - w_c.m       one-hot targets, bias free
            logits: scale (w_c.h + b_c)
    lda     S = (M - sum of s_c s_c^T / n_c + ridge I) / (n - classes present),  u_c = s_c / n_c
            w_c = S^-1 u_c,   b_c = -1/2 u_c.S^-1 u_c + log(n_c / n)

Adding or taking away a sample changes n_c, s_c and M by its own terms (of a float64 pass), so that deletion followed by
solving again gives what fitting on the rest gives, up to rounding. A class without samples has w_c = 0, and -10^4 for
its logit.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from expunge.core.errors import UsageError

Kind = Literal["ridge", "lda"]
ABSENT = -1e4  # logit of a class without samples


class ExactHead(nn.Module):
    """Representations (B, d) to logits (B, classes), and the statistics that its weights follow from."""

    counts: Tensor
    sums: Tensor
    moments: Tensor

    def __init__(self, features: int, classes: int, kind: Kind = "ridge", ridge: float = 1.0, scale: float = 10.0):
        """No samples yet.

        Args:
            features: d, >= 1.
            classes: Number of classes, >= 1.
            kind: "ridge" (regression on one-hot targets) or "lda" (one covariance for all classes).
            ridge: Added to the diagonal of the scatter matrix, > 0, in units of squared representations.
            scale: Factor on the logits of ridge regression, > 0, which would otherwise lie in about [0, 1].
        """
        super().__init__()
        if kind not in ("ridge", "lda"):
            raise UsageError(f"an exact head is of kind `ridge` or `lda`, got {kind!r}.")
        if not ridge > 0 or not scale > 0:
            raise UsageError(f"an exact head needs ridge > 0 and scale > 0, got {ridge} and {scale}.")
        self.kind, self.ridge, self.scale = kind, float(ridge), float(scale)
        self.weight = nn.Parameter(torch.zeros(classes, features, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(classes, features, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(features, features, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        """Representations (B, d) of any float type to logits (B, classes), float32."""
        logits = nn.functional.linear(h.double(), self.weight, self.bias)
        return logits.float()

    def update(self, h: Tensor, y: Tensor, sign: int) -> None:
        """Add (sign 1) or take away (-1) samples: representations (B, d), labels (B,)."""
        rows = h.detach().double()
        ones = torch.ones(len(y), dtype=torch.float64, device=rows.device)
        self.counts.index_add_(0, y, ones, alpha=sign)
        self.sums.index_add_(0, y, rows, alpha=sign)
        self.moments.add_(rows.T @ rows, alpha=sign)

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weights (classes, d) and bias (classes,) that follow from the statistics.

        Raises:
            UsageError: If no sample is left, or the scatter matrix is not positive definite by rounding.
        """
        n = self.counts.sum()
        if float(n) < 1:
            raise UsageError("an exact head needs at least one sample; nothing would be left of its training data.")
        present = self.counts > 0.5
        eye = torch.eye(len(self.moments), dtype=torch.float64, device=self.moments.device)
        mean = self.sums.sum(0) / n
        if self.kind == "ridge":
            scatter = self.moments - n * torch.outer(mean, mean) + self.ridge * eye
            weight = self._solve(scatter, self.sums - self.counts[:, None] * mean)
            weight, bias = self.scale * weight, self.scale * (self.counts / n - weight @ mean)
        else:
            means = self.sums / self.counts.clamp(min=1)[:, None]
            scatter = self.moments - (self.counts[:, None] * means).T @ means + self.ridge * eye
            weight = self._solve(scatter / (n - present.sum()).clamp(min=1), means)
            bias = -0.5 * (weight * means).sum(1) + (self.counts / n).clamp(min=1e-300).log()
        return torch.where(present[:, None], weight, 0.0), torch.where(present, bias, ABSENT)

    def _solve(self, scatter: Tensor, rows: Tensor) -> Tensor:
        factor, bad = torch.linalg.cholesky_ex((scatter + scatter.T) / 2)
        if int(bad):
            raise UsageError(
                f"the statistics of the head are not those of a data set any more: with ridge = {self.ridge:g} they "
                "cannot be solved. Were samples taken away that were never added? Fit the head again, or raise `ridge`."
            )
        return torch.cholesky_solve(rows.T, factor).T

    @torch.no_grad()
    def solve(self) -> None:
        """Set the weights to what the statistics say."""
        weight, bias = self.solution()
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    @torch.no_grad()
    def is_solved(self) -> bool:
        """Whether the weights are those of the statistics: nothing else has trained them since."""
        weight, bias = self.solution()
        return torch.allclose(self.weight, weight, rtol=1e-8, atol=1e-10) and torch.allclose(
            self.bias, bias, rtol=1e-8, atol=1e-10
        )


class HeadOnBackbone(nn.Module):
    """A frozen backbone in eval mode, and an `ExactHead` on what it gives, flattened to (B, d)."""

    expunge_anatomy = {"head": "head"}  # noqa: RUF012  # as `models.anatomy` reads it

    def __init__(self, backbone: nn.Module, head: ExactHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone.requires_grad_(False), head
        self.train(backbone.training)

    def features(self, x: Tensor) -> Tensor:
        """Representations (B, d) of inputs; no gradient flows into the backbone."""
        with torch.no_grad():
            h: Tensor = self.backbone(x)
        return h.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def train(self, mode: bool = True) -> HeadOnBackbone:
        super().train(mode)
        self.backbone.eval()  # a representation must depend on its sample alone
        return self


class DoublePasses:
    """Representations in float64, of a copy of the backbone, for the statistics.

    In float32 their last digits depend on which samples share a batch, and what is taken away would not be what was
    added.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = copy.deepcopy(backbone).double().eval()

    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        """What the backbone gives for a batch (B, ...), or a tree of tensors, float64."""
        return self._backbone(tree_map(lambda t: t.double() if t.is_floating_point() else t, x))


def exact_part(model: nn.Module) -> HeadOnBackbone | None:
    """The model, or what is inside an adapter, if its head is an exact one."""
    return next((module for module in model.modules() if isinstance(module, HeadOnBackbone)), None)
