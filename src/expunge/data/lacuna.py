"""Lacuna: the face data sets of the SCRUB paper, listed from your own copy of VGGFace2.

    python -m expunge.data.lacuna path/to/VGGFace2/train lists/

writes lacuna100.csv, lacuna10.csv, lacuna6.csv and lacuna5.csv (`expunge.data.manifest`): per identity with at least
500 images, 400 for training and 100 for test. The first ten of 110 identities drawn by the seed are Lacuna-10 (its
first five and six are Lacuna-5 and Lacuna-6), the other hundred are Lacuna-100, for pretraining. The faces cannot be
redistributed and the authors' own choice of identities is not public, so figures agree with theirs only in kind.
Train on 32 x 32 pixels, as they did: `image_size: 32`, `normalise: computed`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.manifest import FILE, SUFFIXES, listing, write_manifest

TRAIN, TEST = 400, 100
SMALL, LARGE = 10, 100  # identities of Lacuna-10 and of Lacuna-100


def write_manifests(faces: Path, out: Path, *, seed: int = 0) -> list[Path]:
    """List the data sets under `out`; `faces` holds one folder of images per identity.

    Raises `DataError` if fewer than 110 identities have 500 images.
    """
    if not faces.is_dir():
        raise UsageError(f"there is no folder {faces}; give the folder that holds one sub-folder per identity.")
    people = {
        folder.name: images for folder in sorted(faces.iterdir()) if folder.is_dir() and (images := _images(folder))
    }
    large = [name for name, images in people.items() if len(images) >= TRAIN + TEST]
    if len(large) < SMALL + LARGE:
        raise DataError(
            f"{faces} holds {len(large)} identities with at least {TRAIN + TEST} images; "
            f"{SMALL + LARGE} are needed for Lacuna-10 and Lacuna-100."
        )
    rng = numpy_generator(seed, "lacuna")
    chosen = rng.permutation(large)[: SMALL + LARGE].tolist()
    rows = {name: _rows(people[name], name, out, rng) for name in chosen}
    sets = {"lacuna5": chosen[:5], "lacuna6": chosen[:6], "lacuna10": chosen[:SMALL], "lacuna100": chosen[SMALL:]}
    return [
        write_manifest(out / f"{name}.csv", (FILE, "label", "split"), [row for person in names for row in rows[person]])
        for name, names in sets.items()
    ]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _rows(images: list[Path], name: str, out: Path, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    order = rng.permutation(len(images))[: TRAIN + TEST]
    files = [os.path.relpath(images[at].resolve(), out.resolve()) for at in order]
    return [(file, name, "train" if at < TRAIN else "test") for at, file in enumerate(files)]


if __name__ == "__main__":
    sys.exit(listing("expunge.data.lacuna", ("FACES", "OUT"), write_manifests))
