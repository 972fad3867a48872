"""scikit-learn's handwritten digits: real data that are always there."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from expunge.core.errors import UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.cache import cached_array
from expunge.data.known import DIGIT_NAMES
from expunge.data.raw import Raw

TEST_SHARE = 0.2


def read_digits(cache: Path) -> dict[str, Raw]:
    """Train (80 %) and test (20 %), stratified by class and the same for ever; ids are rows of the original file."""
    try:
        release = version("scikit-learn")
    except PackageNotFoundError:
        raise UsageError("the digits come with scikit-learn: pip install scikit-learn, or name other data.") from None
    # Cached although small: importing scikit-learn takes seconds.
    table = cached_array(hashlib.sha256(f"digits {release}".encode()).hexdigest(), cache, _table, name="digits")
    images = table[:, :64].reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    generator = numpy_generator(0, "digits", "test")
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = generator.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(TEST_SHARE * len(members))]] = True
    rows = np.arange(len(labels))
    return {
        name: Raw(
            labels=labels[mask],
            where=lambda row: f"digits, row {row}",
            names=DIGIT_NAMES,
            array=images[mask],
            ids=np.array([f"digits/{row}" for row in rows[mask]]),
        )
        for name, mask in (("train", ~held_out), ("test", held_out))
    }


def _table() -> np.ndarray:
    """uint8 (1797, 65): 64 pixels, then the label. Pixels 0..16 become 0..255, like those of every other image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.data * (255 / 16))
    return np.column_stack([pixels, bunch.target]).astype(np.uint8)
