"""ImageNet-A beside ImageNet: natural adversarial images for the relabelling experiment of the L2UL paper.

    python -m expunge.data.sets.imagenet_a path/to/imagenet-a path/to/imagenet/val lists/

Both folders hold one sub-folder per WordNet id; that of ImageNet all 1,000, whose sorted order gives the class numbers
that pretrained models know. Writes imagenet-a-<k>.csv (`expunge.data.manifest`) for k = 16, 64, 128, 256: k images of
ImageNet-A drawn by one seeded permutation, so that smaller lists are part of larger ones, with `origin` a, and the
images of ImageNet with `origin` imagenet, alternately as samples that stay and as test samples. Forget with
`where:origin == 'a'`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.folder import FILE
from expunge.data.manifest import SUFFIXES, listing, write_manifest

SIZES = (16, 64, 128, 256)
CLASSES = 1000


def write_manifests(natural: Path, imagenet: Path, out: Path, *, seed: int = 0) -> list[Path]:
    """The lists under `out`. `DataError` if a folder does not hold what it must."""
    classes = {name: _images(folder) for name, folder in _folders(imagenet).items()}
    if len(classes) != CLASSES:
        raise DataError(f"{imagenet} holds {len(classes)} sub-folders; ImageNet has {CLASSES}, one per WordNet id.")
    unknown = [name for name in _folders(natural) if name not in classes]
    if unknown:
        raise DataError(f"{natural} has the sub-folder {unknown[0]}, which {imagenet} has not.")
    hard = [(file, name) for name, folder in _folders(natural).items() for file in _images(folder)]
    sizes = [size for size in SIZES if size <= len(hard)]
    if not sizes:
        raise DataError(f"{natural} holds {len(hard)} images; at least {SIZES[0]} are needed.")
    order = numpy_generator(seed, "imagenet-a").permutation(len(hard))

    def row(file: Path, name: str, split: str, origin: str) -> tuple[str, str, str, str]:
        return os.path.relpath(file.resolve(), out.resolve()), name, split, origin

    others = [
        row(file, name, "test" if at % 2 else "train", "imagenet")
        for name, files in classes.items()
        for at, file in enumerate(files)
    ]
    header = (FILE, "label", "split", "origin")
    return [
        write_manifest(
            out / f"imagenet-a-{size}.csv",
            header,
            [*(row(hard[at][0], hard[at][1], "train", "a") for at in order[:size]), *others],
        )
        for size in sizes
    ]


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}; give a folder that holds one sub-folder per WordNet id.")
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


if __name__ == "__main__":
    sys.exit(listing("expunge.data.sets.imagenet_a", ("IMAGENET-A", "IMAGENET", "OUT"), write_manifests))
