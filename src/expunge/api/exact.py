"""Fit a head in closed form on a frozen backbone, so that samples can be deleted from it exactly, in milliseconds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from expunge.api.prepare import as_splits, pick_device
from expunge.api.saved import as_trained
from expunge.api.trained import TrainedModel, check_unseen
from expunge.core.errors import DataError, UsageError
from expunge.core.version import versions
from expunge.data.split import Split
from expunge.models.anatomy import anatomy
from expunge.models.checkpoint import weights_hash
from expunge.models.exact_head import DoublePasses, ExactHead, HeadOnBackbone, Kind


def fit_head(
    backbone: Any,
    data: Any,
    *,
    kind: Kind = "ridge",
    ridge: float = 1.0,
    scale: float = 10.0,
    cut: bool = True,
    held_out: Any = None,
    test: Any = None,
    device: str = "auto",
) -> TrainedModel:
    """A classifier that `unlearn(..., method="exact-head")` deletes from exactly; the backbone stays as it is.

    Exact with regard to the head: what fitting on the remaining samples would give, up to rounding. Nothing is said
    about the backbone, which must not have been trained on samples that may have to be forgotten.

    Args:
        backbone: Any `nn.Module`, or a trained model, whose copy is frozen.
        data: What the head is fitted on: a split, a map-style data set, or (X, y); with labels.
        kind: "ridge" (regression on one-hot targets) or "lda" (linear discriminant analysis).
        ridge: Added to the diagonal of the scatter matrix, > 0; it does not follow the data, so deletion keeps it.
        scale: Factor on the logits of ridge regression, > 0.
        cut: Whether `backbone` is a classifier whose own head is cut off; False: its outputs are the representation.
        held_out: Samples that are not fitted on, kept with the result.
        test: Samples that are not fitted on, kept for measuring.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The trained model, which knows its data; its module is a `HeadOnBackbone` that keeps the statistics.

    Raises:
        UsageError: For an unknown kind, values out of range, or a classifier whose head cannot be told.
        DataError: Without labels, or if data and backbone do not fit together.
    """
    source = as_trained(backbone, "backbone").model
    target = pick_device(device)
    splits = as_splits({"train": data, "validation": held_out, "test": test})
    if "train" not in splits:
        raise UsageError("nothing to fit the head on: pass data (a split, a map-style data set, or (X, y)).")
    split = splits["train"]
    check_unseen(splits)
    if not split.has_labels:
        raise DataError("the head is fitted to labels, which the data do not have.")
    twin = copy.deepcopy(source).to(target).eval()
    if cut:
        twin = _without_head(twin, split, target)
    model = fitted(twin, split, kind=kind, ridge=ridge, scale=scale)
    return TrainedModel(
        model=model.to(next((p.device for p in source.parameters()), torch.device("cpu"))),
        train=split,
        held_out=splits.get("validation"),
        test=splits.get("test"),
        facts={
            "kind": "exact head",
            "head": {"kind": kind, "ridge": ridge, "scale": scale},
            "backbone": weights_hash(source),
            "data": {name: part.content_hash() for name, part in splits.items()},
            "sizes": {name: len(part) for name, part in splits.items()},
            "versions": versions(),
        },
    )


def fitted(backbone: nn.Module, split: Split, *, kind: Kind, ridge: float, scale: float) -> HeadOnBackbone:
    """A head on `backbone` (frozen, in place), fitted to `split` on the backbone's device.

    Raises:
        DataError: If the backbone does not give one row per sample.
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    model: HeadOnBackbone | None = None
    passes = DoublePasses(backbone)
    for batch in split.batches(256, device=device):
        h = passes(batch.x)
        if not isinstance(h, torch.Tensor) or not h.dim() or len(h) != len(batch):
            got = tuple(h.shape) if isinstance(h, torch.Tensor) else type(h).__name__
            raise DataError(f"the backbone must give one representation per sample, got {got}.")
        if model is None:
            head = ExactHead(h[0].numel(), split.num_classes, kind, ridge, scale).to(device)
            model = HeadOnBackbone(backbone, head)
        model.head.update(h.flatten(1), batch.y, 1)
    if model is None:
        raise DataError("the data to fit the head on are empty.")
    model.head.solve()
    return model


def _without_head(model: nn.Module, split: Split, device: torch.device) -> nn.Module:
    """The model with an identity in place of its head, in place."""
    if not any(True for _ in model.children()):
        raise UsageError("the backbone is a single layer, so there is nothing below its head; pass cut=False.")
    parts = anatomy(model, next(iter(split.batches(2, device=device))).x)
    if not parts.head_suffices or parts.extractor is not None:
        raise UsageError(
            f"the head of the backbone cannot be cut off (`{parts.head}` alone does not give its logits); pass a "
            "module that gives representations, and cut=False."
        )
    model.set_submodule(parts.head, nn.Identity())
    return model
