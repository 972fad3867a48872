"""Exact duplicates: samples with equal hashes of their rows, then compared byte by byte.

Streaming data are not compared, because that would read all of them.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from expunge.data.hashing import row_hashes
from expunge.data.split import ResidentStore, Split

CHUNK = 4096  # rows compared at once
_HASHES: WeakKeyDictionary[ResidentStore, np.ndarray] = WeakKeyDictionary()  # samples of a store never change


def copies_among(split: Split, of: Split) -> Tensor:
    """Bool (len(split),): samples whose content equals that of some sample of `of`, regardless of labels.

    All false if one of the splits streams, or if shapes or types differ.
    """
    store, other = split.store, of.store
    is_copy = torch.zeros(len(split), dtype=torch.bool)
    if not isinstance(store, ResidentStore) or not isinstance(other, ResidentStore) or not len(of) or not len(split):
        return is_copy
    if store.samples.shape[1:] != other.samples.shape[1:] or store.samples.dtype != other.samples.dtype:
        return is_copy
    hashes, other_hashes = _hashes(store)[split.index.numpy()], _hashes(other)[of.index.numpy()]
    order = np.argsort(other_hashes, kind="stable")
    first = np.searchsorted(other_hashes[order], hashes)
    candidates = np.flatnonzero(other_hashes[order][np.minimum(first, len(order) - 1)] == hashes)
    equal = _equal(
        store.samples, split.index.numpy()[candidates], other.samples, of.index.numpy()[order[first[candidates]]]
    )
    for candidate in np.flatnonzero(
        ~equal
    ).tolist():  # equal hashes of different content: compare with all of that hash
        rows = of.index.numpy()[other_hashes == hashes[candidates[candidate]]]
        same = np.full(len(rows), split.index.numpy()[candidates[candidate]])
        equal[candidate] = bool(_equal(store.samples, same, other.samples, rows).any())
    is_copy[torch.from_numpy(candidates[equal])] = True
    return is_copy


def content_hashes(split: Split) -> np.ndarray | None:
    """64-bit hashes (len(split),) of the samples' content, uint64; None for data that stream."""
    store = split.store
    return _hashes(store)[split.index.numpy()] if isinstance(store, ResidentStore) else None


def repeated_in(split: Split) -> int:
    """Number of samples that duplicate an earlier sample of the split; 0 for streaming data."""
    store = split.store
    if not isinstance(store, ResidentStore) or not len(split):
        return 0
    rows = split.index.numpy()
    _, first, which = np.unique(_hashes(store)[rows], return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[which] != np.arange(len(rows)))
    return int(_equal(store.samples, rows[repeated], store.samples, rows[first[which[repeated]]]).sum())


def with_copies(train: Split, positions: Tensor) -> Tensor:
    """`positions` in the store (k,), followed by those of their exact copies among the rest of `train`."""
    rest = train.take(train.index[~torch.isin(train.index, positions)])
    return torch.cat([positions, rest.index[copies_among(rest, train.take(positions))]])


def _hashes(store: ResidentStore) -> np.ndarray:
    if store not in _HASHES:
        _HASHES[store] = row_hashes(store.samples.numpy())
    return _HASHES[store]


def _equal(left: Tensor, left_rows: np.ndarray, right: Tensor, right_rows: np.ndarray) -> np.ndarray:
    """Bool (n,): whether pairs of rows are equal byte by byte."""
    equal = np.empty(len(left_rows), dtype=bool)
    for start in range(0, len(left_rows), CHUNK):
        part = slice(start, start + CHUNK)
        a, b = (side[torch.from_numpy(rows[part])].numpy() for side, rows in ((left, left_rows), (right, right_rows)))
        equal[part] = (a.reshape(len(a), -1).view(np.uint8) == b.reshape(len(b), -1).view(np.uint8)).all(axis=1)
    return equal
