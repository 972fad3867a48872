"""Concatenation of splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from expunge.core.errors import DataError
from expunge.data.split import ResidentStore, Split, Store, StreamingStore


def joined(splits: Sequence[Split], name: str) -> Split:
    """Concatenate splits in the given order.

    The result of splits of one store is a split of that store. Others are put into a new store: they must have labels
    and equal shape, type, normalisation and classes, and be all resident (they are copied) or all streaming.

    Raises:
        DataError: if there is no split, or if they differ in these properties.
    """
    if not splits:
        raise DataError(f"the {name} set is empty; it needs at least one sample.")
    first = splits[0]
    if len(splits) == 1:
        return first.named(name)
    if all(split.store is first.store and split.labels is first.labels for split in splits):
        return first.take(torch.cat([split.index for split in splits]), name)
    if not all(split.has_labels for split in splits) or len({_kind(split.store) for split in splits}) > 1:
        raise DataError(f"the {name} set would mix data sets that differ in kind; make all requests of one data set.")
    labels = torch.cat([split.y for split in splits])
    store = _store(splits, labels, name)
    store.resize = first.store.resize
    return Split.whole(store, name)


def _kind(store: Store) -> tuple[object, ...]:
    resident = isinstance(store, ResidentStore)
    dtype = store.samples.dtype if isinstance(store, ResidentStore) else None
    return resident, dtype, store.input_shape, store.normalisation, store.resize, store.classes


def _store(splits: Sequence[Split], labels: Tensor, name: str) -> Store:
    store = splits[0].store
    given = all(split.store._ids is not None for split in splits)  # making content ids would hash every sample
    ids = np.concatenate([split.ids for split in splits]) if given else None
    common: dict[str, Any] = {
        "classes": store.classes,
        "normalisation": store.normalisation,
        "name": name,
        "ids": None if ids is None or len(np.unique(ids)) < len(ids) else ids,
    }
    if isinstance(store, StreamingStore):
        parts = [Subset(split.store.dataset, split.index.tolist()) for split in splits]  # type: ignore[attr-defined]
        return StreamingStore(ConcatDataset(parts), labels, workers=store.workers, **common)
    cpu = torch.device("cpu")
    samples = torch.cat([raw for split in splits for raw in split.store.fetch([split.index], cpu)])
    return ResidentStore(samples, labels, **common)
