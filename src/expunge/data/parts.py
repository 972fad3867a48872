"""The part of a data set (train, validation or test) that a file, a folder or a row belongs to, by its name.

A name is split into words at all characters that are not letters and before a capital that follows a small letter:
`mnist-test`, `train_00`, `Training`, `seg_train`, `PublicTest`. A name with words of two parts is ambiguous, except
`train` with `val`, which is used for training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from expunge.core.errors import DataError

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
PART_NAMES: dict[Part, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn", "trainval"}),
    "validation": frozenset({"val", "valid", "validation", "dev"}),
    "test": frozenset({"test", "testing", "tst", "eval", "evaluation"}),
}
UNUSED = frozenset({"extra", "unlabeled", "unlabelled", "unsupervised", "pred", "predict", "prediction"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def part_of(name: str) -> Part | None:
    """The part that a name contains; None if it contains none or several.

    >>> part_of("mnist-train-00000-of-00002"), part_of("Validation"), part_of("contest"), part_of("train_test_split")
    ('train', 'validation', None, None)
    """
    tokens = {token.lower() for token in _WORD.findall(name)}
    named = [part for part in PARTS if tokens & PART_NAMES[part]]
    if len(named) == 1:
        return named[0]
    return "train" if named == ["train", "validation"] else None


def is_unused(name: str) -> bool:
    """Whether a name stands for samples without labels or outside the parts, such as `extra` of SVHN."""
    return bool({token.lower() for token in _WORD.findall(name)} & UNUSED)


def parts_of_values(values: Sequence[str], place: str) -> dict[str, Part]:
    """The part of each value of a column `split`; raises `DataError` for a value that names none."""
    understood = {value: part_of(value) for value in values}
    unknown = sorted(value for value, part in understood.items() if part is None)
    if unknown:
        raise DataError(
            f"{place}: the split `{unknown[0]}` is not understood; allowed: train, validation, test, and names that "
            "contain one of these words."
        )
    return {value: part for value, part in understood.items() if part is not None}
