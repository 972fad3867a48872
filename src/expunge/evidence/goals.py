"""What an audit asks: the goal decides what references are trained on, and which unseen samples stand beside.

The wrong measure for the goal is the most common error of the field (arXiv:2604.07962), so it is part of every audit:

untrain   undo the influence of these samples. References are trained on the retained samples
unlearn   remove what the samples stand for, their classes. References are trained on the retained samples of other
          classes, and unseen samples of the classes count as well ("concept accuracy")
repair    undo wrong samples. References are trained on the retained samples and on these with their right labels; a
          sample whose right label nobody knows is left out

Unseen samples that stand beside mislabelled ones get wrong labels too, with the same confusion (`mislabelled`). That
needs the right labels of the samples to forget; where they are not known, nothing is concluded without references.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.join import joined
from expunge.data.split import Split
from expunge.evidence.verdict import Goal

UNKNOWN = -1  # in place of a right label that nobody knows


def default_goal(facts: Mapping[str, Any]) -> Goal:
    """`repair` for the result of a label repair, `untrain` for everything else.

    Args:
        facts: Of the result (`Result.facts`).
    """
    return "repair" if facts.get("kind") == "repair" else "untrain"


def right_labels(forget: Split, corrected: Any = None) -> Tensor:
    """The right labels of the samples to forget: those given, else what their store knows.

    Args:
        forget: The samples, with the labels that the model was trained on.
        corrected: Labels, whole numbers (n,), -1 where the right one is not known; or None.

    Returns:
        Long tensor (n,).

    Raises:
        DataError: For labels of another number, or outside the classes.
    """
    if corrected is None:
        return forget.store.labels[forget.index]
    labels = torch.as_tensor(corrected).reshape(-1)
    if labels.is_floating_point() or labels.dtype == torch.bool or len(labels) != len(forget):
        raise DataError(
            f"corrected must be whole numbers, one label for each of the {len(forget)} samples to forget, got "
            f"{len(labels)} of type {str(labels.dtype).removeprefix('torch.')}."
        )
    labels = labels.long()
    if int(labels.min()) < UNKNOWN or int(labels.max()) >= forget.num_classes:
        raise DataError(
            f"corrected has labels from {int(labels.min())} to {int(labels.max())}; allowed: 0 to "
            f"{forget.num_classes - 1}, and -1 where the right label is not known."
        )
    return labels


def prepared(goal: Goal, splits: Mapping[str, Split], corrected: Any = None) -> dict[str, Split]:
    """The splits that the goal measures on; under `unlearn` retained samples of the forgotten classes do not stay.

    Args:
        goal: The question.
        splits: `forget`, `test` and, if known, `retain`.
        corrected: See `right_labels`.

    Raises:
        UsageError: Where the goal cannot be asked of these samples.
        DataError: As `right_labels`.
    """
    forget, retain = splits["forget"], splits.get("retain")
    truth = right_labels(forget, corrected)
    if goal == "repair" and torch.equal(truth, forget.y):
        raise UsageError(
            "the goal `repair` asks about wrong labels, and no right label of the samples to forget differs from the "
            "one trained on; pass corrected=... (a label per sample, -1 where unknown), or the goal `untrain`."
        )
    if goal != "unlearn" or retain is None:
        return dict(splits)
    stays = ~torch.isin(retain.y, forget.y.unique())
    if not bool(stays.any()):
        raise UsageError(
            f"the goal `unlearn` removes the classes of the samples to forget, and these are all {forget.num_classes} "
            "classes; ask for it with samples of some classes, or choose the goal `untrain`."
        )
    return {**splits, "retain": retain.take(retain.index[stays])}


def reference_data(goal: Goal, splits: Mapping[str, Split], corrected: Any = None) -> Split | None:
    """What references of this goal are trained on; None where the retained samples are not known.

    Args:
        goal: The question.
        splits: As `prepared` returns them.
        corrected: See `right_labels`.
    """
    retain, forget = splits.get("retain"), splits["forget"]
    if retain is None or goal != "repair":
        return retain
    truth = right_labels(forget, corrected)
    known = truth != UNKNOWN
    if not bool(known.any()):
        return retain
    positions = forget.index[known]
    if retain.store is forget.store and retain.labels is not None:
        labels = retain.labels.clone()
        labels[positions] = truth[known]
        index = torch.cat([retain.index, positions]).sort().values
        return retain.with_labels(labels).take(index, "corrected")
    labels = forget.store.labels.clone()
    labels[positions] = truth[known]
    return joined([retain, forget.with_labels(labels).take(positions)], "corrected")


def mislabelled(test: Split, forget: Split, seed: int, corrected: Any = None) -> Split:
    """Test samples with the confusion of the labels to forget; `test` where no label is wrong, or where nobody knows.

    A test sample of class c is called y as often as a sample to forget that is c is called y; a class that does not
    occur among them keeps its label.

    Args:
        test: Samples that no model has seen.
        forget: The samples to forget, with the labels that the model was trained on.
        seed: Of the draw.
        corrected: See `right_labels`.
    """
    truth = right_labels(forget, corrected)
    known = truth != UNKNOWN
    if torch.equal(truth[known], forget.y[known]) or test.labels is None:
        return test
    labels = test.labels.clone()
    rng = numpy_generator(seed, "audit", "confusion")
    for c in truth[known].unique().tolist():
        called = forget.y[truth == c].numpy()
        rows = test.index[test.y == c]
        labels[rows] = torch.from_numpy(rng.choice(called, len(rows)))
    return test.with_labels(labels)


def questions(goal: Goal, splits: Mapping[str, Split], corrected: Any = None) -> list[str]:
    """What is asked, and what another goal would ask of the same samples.

    Args:
        goal: The question.
        splits: `forget` and, if known, `retain`.
        corrected: See `right_labels`.
    """
    forget, retain = splits["forget"], splits.get("retain")
    names = [forget.store.classes[c] for c in forget.y.unique().tolist()]
    shown = f"class {names[0]}" if len(names) == 1 else f"the {len(names)} classes of these samples"
    texts = {
        "untrain": "untrain: references never saw these samples.",
        "unlearn": f"unlearn: references never saw a sample of {shown}, and unseen samples of it count as well.",
        "repair": "repair: references were trained on these samples with their right labels.",
    }
    sentences = [texts[goal]]
    wrong = not torch.equal(right_labels(forget, corrected), forget.y)
    if goal == "untrain" and wrong:
        sentences.append("The goal `repair` would ask for what the right labels teach instead.")
    whole = retain is None or not bool(torch.isin(retain.y, forget.y.unique()).any())
    if goal == "untrain" and not wrong and (whole or len(names) == 1):
        more = "unseen samples of it would count as well" if whole else "the other samples of it would have to go, too"
        sentences.append(f"The goal `unlearn` would ask for {shown} to be removed: {more}.")
    if goal == "unlearn":
        sentences.append("The goal `untrain` would ask for the influence of these samples alone.")
    return sentences


__all__ = ["UNKNOWN", "default_goal", "mislabelled", "prepared", "questions", "reference_data", "right_labels"]
