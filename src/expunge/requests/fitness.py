"""Whether a model may be taken into a workspace, and whether a fulfilment cost too much accuracy.

Both look at accuracies on retained and on unseen samples. They need no minimum number of forgotten samples, so they
also hold where an audit has too few of them for a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from expunge.api.fit import measure_fit
from expunge.api.prepare import pick_device
from expunge.core.errors import DataError
from expunge.data.split import Split

if TYPE_CHECKING:
    from expunge.requests.settings import WorkspaceSettings


def check_fitness(
    model: nn.Module, train: Split, test: Split, settings: WorkspaceSettings, say: Callable[[str], None]
) -> None:
    """Say how well a model answers the data. Raises `DataError` near chance, unless `settings.any_accuracy`."""
    if not (train.has_labels and test.has_labels):
        return
    fit = measure_fit(model, train, test, device=pick_device(settings.device))
    say(f"{fit.sentence()}.")
    if fit.near_chance and not settings.any_accuracy:
        raise DataError(
            f"{fit.sentence()}, which is near chance for {fit.classes} classes: {fit.causes()} "
            "`--any-accuracy true` takes the model all the same."
        )


def utility_losses(
    before: Mapping[str, float], after: Mapping[str, float], samples: Mapping[str, int], max_drop: float
) -> list[str]:
    """Sentences about accuracies that fell by more than `max_drop`, beyond noise; empty if none did.

    Args:
        before: statistics of the model before; `retain accuracy` and `test accuracy` are read.
        after: statistics of the model after.
        samples: number of samples behind each of them.
        max_drop: largest drop that is accepted, in [0, 1].
    """
    sentences = []
    for name, where in (("retain accuracy", "retained samples"), ("test accuracy", "unseen samples")):
        if name not in before or name not in after:
            continue
        old, new, count = before[name], after[name], max(samples.get(name, 1), 1)
        noise = 2 * math.sqrt((old * (1 - old) + new * (1 - new)) / count)
        if old - new > max_drop and old - new > noise:
            sentences.append(
                f"accuracy on {where} fell from {old:.1%} to {new:.1%}, more than the {max_drop * 100:g} points that "
                "`max_drop` allows."
            )
    return sentences
