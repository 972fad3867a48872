"""UTKFace: age groups of the L2UL paper, listed from your own copy of the aligned and cropped faces.

    python -m expunge.data.sets.utkface path/to/UTKFace lists/

writes utkface-<grouping>.csv (`expunge.data.manifest`) for five groupings of the age that a file name begins with.
Files are sorted by name and shuffled with NumPy's seed 0; the first 80 % are for training, the next 10 % for validation
(left out of these lists and written to utkface-<grouping>-validation.csv), the last 10 % for test: 18,966, 2,371 and
2,371 of 23,708. The authors shuffled an unsorted listing, so their samples differ. The first lines printed are the
sha256 of the lists: equal copies give equal ones.
"""

from __future__ import annotations

import hashlib
import os
import sys
from bisect import bisect_right
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, UsageError
from expunge.data.folder import FILE
from expunge.data.manifest import SUFFIXES, listing, write_manifest

# Left-closed bins: class i holds edges[i] <= age < edges[i + 1] (L2UL authors' code).
GROUPINGS = {
    "tnn": (0, 10, 15, 20, 25, 30, 40, 50, 60, 120),
    "mfd": (0, 20, 41, 120),
    "balanced": (0, 20, 30, 45, 120),
    "groups": (0, 4, 13, 20, 31, 46, 61, 120),
    "tens": (0, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 120),
}


def write_manifests(faces: Path, out: Path) -> list[Path]:
    """Lists of all groupings under `out`. `DataError` for a file whose name does not begin with an age below 120."""
    if not faces.is_dir():
        raise UsageError(f"there is no folder {faces}; give the folder of UTKFace images.")
    files = sorted(path for path in faces.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 10:
        raise DataError(f"{faces} holds {len(files)} images; give the folder of UTKFace images.")
    ages = [age_of(path) for path in files]
    order = np.arange(len(files))
    np.random.RandomState(0).shuffle(order)  # the split of the authors is made by this generator
    train, validation = round(0.8 * len(files)), round(0.1 * len(files))
    parts = {
        "train": order[:train],
        "validation": order[train : train + validation],
        "test": order[train + validation :],
    }
    written = []
    for name, edges in GROUPINGS.items():
        width = len(str(len(edges) - 2))
        rows = {
            part: [
                (os.path.relpath(files[at].resolve(), out.resolve()), f"{group_of(ages[at], edges):0{width}d}", part)
                for at in chosen
            ]
            for part, chosen in parts.items()
        }
        header = (FILE, "label", "split")
        written.append(write_manifest(out / f"utkface-{name}.csv", header, rows["train"] + rows["test"]))
        held = [(file, label, "test") for file, label, _ in rows["validation"]]
        written.append(write_manifest(out / f"utkface-{name}-validation.csv", header, held))
    listed = "\n".join(f"{files[at].name} {part}" for part, chosen in parts.items() for at in chosen)
    sys.stdout.write(f"split: sha256 {hashlib.sha256(listed.encode()).hexdigest()}\n")
    return written


def age_of(path: Path) -> int:
    """Years, from `<age>_<gender>_<race>_<time>.jpg`."""
    text = path.name.partition("_")[0]
    if not text.isdigit() or int(text) >= 120:
        raise DataError(f"{path.name}: the name must begin with an age below 120, as in 25_0_1_20170116.jpg.")
    return int(text)


def group_of(age: int, edges: tuple[int, ...]) -> int:
    """Class of an age.

    >>> group_of(19, (0, 20, 41, 120)), group_of(20, (0, 20, 41, 120))
    (0, 1)
    """
    return bisect_right(edges, age) - 1


if __name__ == "__main__":
    sys.exit(listing("expunge.data.sets.utkface", ("FACES", "OUT"), write_manifests))
