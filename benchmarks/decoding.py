"""10,000 Parquet images to one tensor: decoded, and from the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loops import data_path
from benchmarks.measure import Row, seconds
from expunge.data.sources import load_data


def run() -> Iterator[Row]:
    for name in ("mnist", "cifar10"):
        with tempfile.TemporaryDirectory() as folder:
            cold = seconds(lambda: load_data(data_path(name), split="test", cache=Path(folder)))  # noqa: B023
            warm = seconds(lambda: load_data(data_path(name), split="test", cache=Path(folder)))  # noqa: B023
        detail = f"10,000 images: {cold:.2f} s cold, {warm:.3f} s cached"
        yield Row("decoding cold / cached", name, cold / warm, detail, least=5.0)
