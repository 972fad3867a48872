"""Batches with samples of several splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch

from expunge.core.seeds import derive
from expunge.data.split import Batch, Split


def mixed_batches(
    splits: Sequence[Split], size: int, *, seed: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Batch | None, ...]]:
    """Shuffled batches of about `size` samples that contain every split in proportion to its length.

    Each sample is yielded once. A batch is given as its parts, one per split, so that splits of several data sets, with
    and without labels, can be combined; the part of a split without remaining samples is None.
    """
    total = sum(len(split) for split in splits)
    count = max(1, -(-total // size))
    streams = [
        split.batches(max(1, -(-len(split) // count)), shuffle=True, seed=derive(seed, "mixed", number), device=device)
        for number, split in enumerate(splits)
    ]
    yield from zip_longest(*streams)
