"""Importance of weights: the mean square, or the mean absolute value, of the gradients of a loss over samples.

Paper      squares of batch gradients: Foster, Schoepf, Brintrup, AAAI 2024, arXiv:2308.07707; a loss without labels:
           Foster et al., arXiv:2402.19308; gradients per sample: arXiv:2510.26714

    I_j = mean over u of (d L_u / d w_j)^2        ("square")   or of |d L_u / d w_j|   ("absolute"); eval mode
    u     a batch, with L_u the mean of its losses (as published), or a single sample
    L     CE(f(x), y)  |  ||f(x)||_2^2  |  ||f(x)||_2

Over batches, I depends on their size and composition: gradients of different classes cancel. Batches of several splits
contain each in proportion, as shuffled batches of their union do. Over samples, I depends on the samples alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import Split
from expunge.models.modes import evaluation_mode
from expunge.numerics.curvature import batch_size as fitting_batch
from expunge.numerics.gradient_capture import GradientCapture, LayerRecord

Loss = Literal["cross-entropy", "squared norm", "norm"]
Unit = Literal["batch", "sample"]
Moment = Literal["square", "absolute"]


@dataclass(frozen=True, eq=False)
class Importance:
    """Moments over all training data of one model, and the settings of their computation.

    Attributes:
        loss: loss whose gradients are taken.
        unit: gradients per batch or per sample.
        moment: square or absolute value.
        batch_size: samples per batch.
        samples: number of samples.
        weights: hash of the model's weights.
        values: moments by parameter name, float64.
    """

    loss: Loss
    unit: Unit
    moment: Moment
    batch_size: int
    samples: int
    weights: str
    values: Mapping[str, Tensor]

    def facts(self) -> dict[str, Any]:
        """All attributes except the values, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "values"}


MEMORY = 512.0  # MiB for the gradients of single samples


def gradient_moments(
    model: nn.Module,
    splits: Sequence[Split],
    run: Run,
    *,
    loss: Loss = "cross-entropy",
    unit: Unit = "batch",
    moment: Moment = "square",
    batch_size: int = 64,
    purpose: str = "importance",
) -> dict[str, Tensor]:
    """Moments of the gradients over the union of `splits`.

    Args:
        model: a classifier with logits (B, classes); frozen parameters are included.
        splits: the samples; labels are read for the cross-entropy alone.
        run: device, progress and seeds.
        loss: "cross-entropy", "squared norm" or "norm" of the logits.
        unit: "batch" or "sample".
        moment: "square" or "absolute".
        batch_size: samples per batch if `unit` is "batch"; without effect on single samples.
        purpose: name of the stream of random numbers that shuffles the batches.

    Returns:
        Parameter name -> moments in its shape, float64, >= 0.
    """
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    sums = {name: torch.zeros(p.shape, dtype=torch.float64, device=run.device) for name, p in model.named_parameters()}
    try:
        model.requires_grad_(True)
        with evaluation_mode(model):
            if unit == "batch":
                count = _over_batches(sums, model, splits, run, loss, moment, batch_size, purpose)
            else:
                count = _over_samples(sums, model, splits, run, loss, moment)
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(flags[name])
    return {name: value / max(count, 1) for name, value in sums.items()}


def _over_batches(
    sums: dict[str, Tensor],
    model: nn.Module,
    splits: Sequence[Split],
    run: Run,
    loss: Loss,
    moment: Moment,
    size: int,
    purpose: str,
) -> int:
    count = 0
    parameters = list(model.parameters())
    for whole in mixed_batches(splits, size, seed=run.seed_for(purpose, "shuffle"), device=run.device):
        parts = [part for part in whole if part is not None]
        logits = model(torch.cat([part.x for part in parts])).float()
        if loss == "cross-entropy":
            value = F.cross_entropy(logits, torch.cat([part.y for part in parts]))
        else:
            value = (logits.norm(dim=1) if loss == "norm" else logits.square().sum(1)).mean()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(_moment(gradient.detach(), moment))
        count += 1
    return count


def _over_samples(
    sums: dict[str, Tensor], model: nn.Module, splits: Sequence[Split], run: Run, loss: Loss, moment: Moment
) -> int:
    count = sum(len(split) for split in splits)
    sample = next(iter(next(split for split in splits if len(split)).batches(1, device=run.device))).x
    capture = GradientCapture(model, sample)
    size = fitting_batch(capture, sample, "monte-carlo", MEMORY)
    done = 0
    for split in splits:
        for batch in split.batches(size, device=run.device):
            seen = capture.forward(batch.x)
            vectors = _slopes(seen.logits.detach().float(), batch.y if loss == "cross-entropy" else None, loss)
            for record, g in zip(seen.records, seen.backward(vectors, last=True), strict=True):
                for name, value in _layer(record, g, moment).items():
                    sums[f"{record.name}.{name}" if record.name else name] += value
            for name, rows in capture.rest_rows(batch.x, vectors.unsqueeze(1)).items():
                sums[name] += _moment(rows.detach()[:, 0], moment).sum(0)
            done += len(batch)
            run.report(f"{run.label}: importance", done, count)
    return count


def _slopes(logits: Tensor, labels: Tensor | None, loss: Loss) -> Tensor:
    """Gradients (n, C) of each sample's loss with respect to its logits (n, C)."""
    if labels is not None:
        return logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return 2 * logits if loss == "squared norm" else logits / logits.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _layer(record: LayerRecord, g: Tensor, moment: Moment) -> dict[str, Tensor]:
    """Moments of one layer's gradients, summed over the samples, from the gradients g (n, ...) of its output."""
    moments = {name: _moment(rows, moment).sum(0) for name, rows in record.vectors(g).items()}
    if record.has_matrix:
        rows = record.outputs(g).transpose(2, 3) @ record.patches  # (n, groups, out, in)
        moments["weight"] = record.as_weight(_moment(rows, moment).sum(0))
    return moments


def _moment(gradients: Tensor, moment: Moment) -> Tensor:
    return gradients.square() if moment == "square" else gradients.abs()
