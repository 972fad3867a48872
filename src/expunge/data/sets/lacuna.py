"""Lacuna: the face data sets of the SCRUB paper, listed from your own copy of VGGFace2.

    python -m expunge.data.sets.lacuna path/to/VGGFace2/train lists/
    python -m expunge.data.sets.lacuna --authors path/to/VGGFace2/train lists/authors/

writes lacuna100.csv, lacuna10.csv, lacuna6.csv and lacuna5.csv (`expunge.data.manifest`): per identity with at least
500 images, 400 for training and 100 for test. The first ten of 110 identities drawn by the seed are Lacuna-10 (its
first five and six are Lacuna-5 and Lacuna-6), the other hundred are Lacuna-100, for pretraining. No picture is listed
twice: files of equal content (SHA-256) count once, also under two identities. Near duplicates are not found.

`--authors` draws as the authors' code does, faults included: the 500 images of an identity with replacement, so that
about half of the test draws are in the training part too; the hundred identities with replacement too, and the first
ten of them are Lacuna-10, which pretraining has therefore seen. It is seeded, theirs is not.

The faces cannot be redistributed and the authors' own choice of identities is not public, so figures agree with theirs
only in kind. Train on 32 x 32 pixels, as they did: `image_size: 32`, `normalise: computed` (theirs: `scrub-lacuna`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.cache import file_hash
from expunge.data.folder import FILE
from expunge.data.manifest import SUFFIXES, listing, write_manifest

TRAIN, TEST = 400, 100
SMALL, LARGE = 10, 100  # identities of Lacuna-10 and of Lacuna-100

Row = tuple[str, ...]


def write_manifests(faces: Path, out: Path, *, seed: int = 0, authors: bool = False) -> list[Path]:
    """List the data sets under `out`; `faces` holds one folder of images per identity.

    authors: the authors' draws (see above), which need 100 identities only and have a column `id`.

    Raises `DataError` if fewer than 110 identities have 500 (without `authors`: distinct) images.
    """
    if not faces.is_dir():
        raise UsageError(f"there is no folder {faces}; give the folder that holds one sub-folder per identity.")
    people = {
        folder.name: images for folder in sorted(faces.iterdir()) if folder.is_dir() and (images := _images(folder))
    }
    large = {name: images for name, images in people.items() if len(images) >= TRAIN + TEST}
    _enough(faces, len(large), LARGE if authors else SMALL + LARGE, "images")
    if authors:
        rows = _authors(large, out, seed)
        ten, hundred = rows[:SMALL], rows
    else:
        rows = _disjoint(large, out, seed)
        _enough(faces, len(rows), SMALL + LARGE, "distinct images")
        ten, hundred = rows[:SMALL], rows[SMALL:]
    header = (FILE, "label", "split", *(("id",) if authors else ()))
    sets = {"lacuna5": ten[:5], "lacuna6": ten[:6], "lacuna10": ten, "lacuna100": hundred}
    return [
        write_manifest(out / f"{name}.csv", header, [row for person in chosen for row in person])
        for name, chosen in sets.items()
    ]


def _enough(faces: Path, count: int, needed: int, what: str) -> None:
    if count < needed:
        raise DataError(
            f"{faces} holds {count} identities with at least {TRAIN + TEST} {what}; "
            f"{needed} are needed for Lacuna-10 and Lacuna-100."
        )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _disjoint(people: dict[str, list[Path]], out: Path, seed: int) -> list[list[Row]]:
    """Rows of up to 110 different identities; one without enough pictures of its own gives way to the next."""
    rng = numpy_generator(seed, "lacuna")
    seen: set[str] = set()
    rows: list[list[Row]] = []
    for name in rng.permutation(list(people)).tolist():
        images = people[name]
        chosen = _distinct([images[at] for at in rng.permutation(len(images))], seen)
        if chosen:
            rows.append([(_relative(file, out), name, _part(at)) for at, file in enumerate(chosen)])
        if len(rows) == SMALL + LARGE:
            break
    return rows


def _distinct(images: Sequence[Path], seen: set[str]) -> list[Path]:
    """The first 500 whose content is new, or none; `seen` learns the content of those taken."""
    chosen_images: dict[str, Path] = {}
    for file in images:
        content = file_hash(file)
        if content not in seen:
            chosen_images.setdefault(content, file)
        if len(chosen_images) == TRAIN + TEST:
            seen.update(chosen_images)
            return list(chosen_images.values())
    return []


def _authors(people: dict[str, list[Path]], out: Path, seed: int) -> list[list[Row]]:
    """Rows of a hundred identities. One drawn again is a class of its own, as nothing there merges it."""
    rng = numpy_generator(seed, "lacuna", "authors")
    times: Counter[str] = Counter()
    rows: list[list[Row]] = []
    for name in rng.choice(list(people), LARGE).tolist():
        times[name] += 1
        label = name if times[name] == 1 else f"{name}-{times[name]}"
        drawn = [people[name][at] for at in rng.choice(len(people[name]), TRAIN + TEST)]
        rows.append([(_relative(file, out), label, _part(at), f"{label}/{at}") for at, file in enumerate(drawn)])
    return rows


def _relative(file: Path, out: Path) -> str:
    return os.path.relpath(file.resolve(), out.resolve())


def _part(at: int) -> str:
    return "train" if at < TRAIN else "test"


if __name__ == "__main__":
    sys.exit(listing("expunge.data.sets.lacuna", ("FACES", "OUT"), write_manifests, ("authors",)))
