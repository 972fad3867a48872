"""Which samples a study works on: classes kept, sizes met, validation held out."""

from __future__ import annotations

import torch

from expunge.bench.recipe import DataPart
from expunge.core.errors import UsageError
from expunge.core.seeds import torch_generator
from expunge.data.classes import class_index
from expunge.data.convert import harmonise_classes
from expunge.data.sources import load_pair
from expunge.data.split import ResidentStore, Split
from expunge.scenarios.selections import draw


def parts(source: tuple[Split, Split], part: DataPart, seed: int) -> tuple[Split, Split | None, Split]:
    """(train, validation or None, test) of one data seed; validation is taken out of the training samples."""
    at = seed if part.resample else 0
    train = sized(source[0], part.train_size, part.draw, at, "data.train_size")
    # Drawn independently of the training samples: `test_from: train` overlaps with them, which is its point.
    pool = source[1] if part.test_from == "test" else source[0]
    test = sized(pool, part.test_size, part.draw, at, "data.test_size").named("test")
    if not part.validation:
        return train.named("train"), None, test
    held = sized(train, max(1, int(part.validation * len(train))), "balanced", at, "data.validation")
    keep = ~torch.isin(train.index, held.index)
    return train.take(train.index[keep], "train"), held.named("validation"), test


def load_source(part: DataPart) -> tuple[Split, Split]:
    """(train, test) of the named classes, renumbered. `UsageError` if the source has no test samples."""
    train, test = load_pair(part.source, normalise=part.normalise, image_size=part.image_size)
    if test is None:
        raise UsageError(f"data source `{part.source}` has no test samples; a study needs train and test.")
    train, test = harmonise_classes([train, test])
    if part.classes is None:
        return train, test
    numbers = [class_index(train, c) for c in part.classes]
    return only_classes(train, numbers), only_classes(test, numbers)


def only_classes(split: Split, numbers: list[int]) -> Split:
    """A store of its own with these classes as 0..n-1; ids stay."""
    chosen = split.index[torch.isin(split.y, torch.tensor(numbers))]
    store = split.store
    if not isinstance(store, ResidentStore):
        raise UsageError("a subset of classes needs data that fit in memory; raise EXPUNGE_RESIDENT_BYTES.")
    new_number = torch.full((split.num_classes,), -1, dtype=torch.long)
    new_number[torch.tensor(numbers)] = torch.arange(len(numbers))
    smaller = ResidentStore(
        store.samples[chosen],
        new_number[store.labels[chosen]],
        classes=[store.classes[n] for n in numbers],
        ids=store.ids[chosen.numpy()],
        columns={name: values[chosen.numpy()] for name, values in store.columns.items()},
        normalisation=store.normalisation,
        name=store.name,
    )
    smaller.resize = store.resize
    return Split.whole(smaller, split.name)


def sized(split: Split, size: int, selection: str, seed: int, what: str) -> Split:
    """`size` samples: the first ones (`prefix`), or equal numbers per class in ascending position; 0: all.

    Balanced counts differ by one where they do not divide evenly; a class that has too few gives all it has, and the
    others make up for it. Raises `UsageError` if there are fewer samples than asked for.
    """
    if size == 0 or size == len(split):
        return split
    if size > len(split):
        raise UsageError(f"`{what}` asks for {size} samples, but there are only {len(split)}.")
    if selection == "prefix":
        return split.take(split.index[:size])
    labels = split.y
    members = [split.index[labels == label] for label in labels.unique().tolist()]
    counts = shares([len(m) for m in members], size)
    generator = torch_generator(seed, "subset", what)
    chosen = [draw(m, count, generator) for m, count in zip(members, counts, strict=True)]
    return split.take(torch.cat(chosen).sort().values)


def shares(available: list[int], size: int) -> list[int]:
    """`size` as evenly as possible over groups that hold so many each; earlier groups get the remainder.

    >>> shares([5, 1, 5], 8)
    [4, 1, 3]
    """
    level = 0
    while level < max(available, default=0) and sum(min(n, level + 1) for n in available) <= size:
        level += 1
    counts = [min(n, level) for n in available]
    for i in [i for i, n in enumerate(available) if n > level][: size - sum(counts)]:
        counts[i] += 1
    return counts
