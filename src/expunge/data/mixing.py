"""Batches that hold several splits at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch

from expunge.core.seeds import derive
from expunge.data.split import Batch, Split


def mixed_batches(
    splits: Sequence[Split], size: int, *, seed: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Batch | None, ...]]:
    """Shuffled batches of about `size` samples that hold every split in the proportion of its length.

    Each sample comes once. What is yielded are the parts of one batch, one per split, None where a split has no samples
    left: so splits of several data sets, with and without labels, can meet in a batch.
    """
    total = sum(len(split) for split in splits)
    count = max(1, -(-total // size))
    streams = [
        split.batches(max(1, -(-len(split) // count)), shuffle=True, seed=derive(seed, "mixed", number), device=device)
        for number, split in enumerate(splits)
    ]
    yield from zip_longest(*streams)
