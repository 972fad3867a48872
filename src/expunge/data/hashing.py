"""Hashes of many samples at once, without a loop over them."""

from __future__ import annotations

import numpy as np

CHUNK_BYTES = 16 << 20
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def row_hashes(samples: np.ndarray) -> np.ndarray:
    """64-bit hashes (n,) of the bytes of each row of samples (n, ...), equal on every machine.

    Every 8 bytes are mixed with their offset (two multiplications and a shift, as in SplitMix64) and summed. Different
    rows have equal hashes by chance in about one of 2^64 pairs. The hash is not cryptographic: code that relies on
    equality must compare the rows themselves.
    """
    count = len(samples)
    rows = (
        np.ascontiguousarray(samples).reshape(count, -1).view(np.uint8)
        if samples.size
        else np.empty((count, 0), np.uint8)
    )
    size = rows.shape[1]
    blocks = -(-size // 8)
    offsets = np.arange(1, blocks + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    hashes = np.full(count, np.uint64(size), dtype=np.uint64)
    step = max(1, CHUNK_BYTES // max(1, blocks * 8))
    for start in range(0, count, step):
        chunk = rows[start : start + step]
        padded = np.zeros((len(chunk), blocks * 8), dtype=np.uint8)
        padded[:, :size] = chunk
        mixed = padded.view("<u8").astype(np.uint64, copy=False)
        mixed = (mixed ^ offsets) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x94D049BB133111EB) ^ (offsets | np.uint64(1))
        mixed ^= mixed >> np.uint64(29)
        hashes[start : start + step] += mixed.sum(axis=1, dtype=np.uint64)
    return hashes


def content_ids(samples: np.ndarray) -> np.ndarray:
    """Distinct ids (n,): 16 hexadecimal digits of each row's hash, with `-2`, `-3` ... appended to repeated ones."""
    hashes = row_hashes(samples)
    digits = (hashes[:, None] >> np.arange(60, -4, -4, dtype=np.uint64)) & np.uint64(15)
    letters = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[digits].astype(np.uint32)
    ids = np.ascontiguousarray(letters).view("<U16")[:, 0] if len(hashes) else np.empty(0, dtype="U16")
    order = np.argsort(hashes, kind="stable")
    if not len(order):
        return ids
    new = np.r_[True, hashes[order][1:] != hashes[order][:-1]]
    runs = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order)) - runs + 1
    repeated = np.flatnonzero(number > 1)
    if not len(repeated):
        return ids
    longer = ids.astype("U32")
    longer[repeated] = np.char.add(np.char.add(ids[repeated], "-"), number[repeated].astype(str))
    return longer
