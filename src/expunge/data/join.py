"""Several splits as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expunge.core.errors import DataError
from expunge.data.split import ResidentStore, Split


def joined(splits: Sequence[Split], name: str) -> Split:
    """The samples of all splits in this order.

    Splits of one store stay in it. Others are copied into a new store, for which they must be resident and alike in
    shape, type and normalisation, and have labels (`DataError`).
    """
    if not splits:
        raise DataError(f"the {name} set is empty; it needs at least one sample.")
    first = splits[0]
    if len(splits) == 1:
        return first.named(name)
    if all(split.store is first.store and split.labels is first.labels for split in splits):
        return first.take(torch.cat([split.index for split in splits]), name)
    stores = [split.store for split in splits if isinstance(split.store, ResidentStore) and split.has_labels]
    kinds = {
        (store.samples.shape[1:], store.samples.dtype, store.normalisation, store.resize, store.classes)
        for store in stores
    }
    if len(stores) < len(splits) or len(kinds) > 1:
        raise DataError(f"the {name} set would mix data sets that differ in kind; make all requests of one data set.")
    here = torch.device("cpu")
    samples = torch.cat([raw for split in splits for raw in split.store.fetch([split.index], here)])
    labels = torch.cat([split.y for split in splits])
    store = ResidentStore(
        samples, labels, classes=list(first.store.classes), normalisation=first.store.normalisation, name=name
    )
    store.resize = first.store.resize
    return Split.whole(store, name)
