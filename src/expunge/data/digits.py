"""scikit-learn's handwritten digits: real data that are always there."""

from __future__ import annotations

import numpy as np

from expunge.core.errors import UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.known import DIGIT_NAMES
from expunge.data.raw import Raw

TEST_SHARE = 0.2


def read_digits() -> dict[str, Raw]:
    """Train (80 %) and test (20 %), stratified by class and the same for ever; ids are rows of the original file."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits come with scikit-learn: pip install scikit-learn, or name other data.") from None
    bunch = load_digits()
    # Pixels are 0..16; as uint8 they travel and cache like every other image.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
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
