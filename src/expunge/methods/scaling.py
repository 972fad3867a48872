"""Default values scaled to a problem: epochs, learning rates and batch sizes from the recipe and the sizes.

Defaults that were chosen on one problem have no effect, or do harm, on another: a fixed batch size gives one ascent
step for 20 samples and 80 for 10,000; a fixed rate is a hundredth of one training's and ten times another's. So options
that were not given are computed; given options and presets are not changed. The result states the values used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.training.recipe import Recipe
    from expunge.training.sisa import Cost

SHARE = 0.15  # of the training's passes
FEWEST = 2


@dataclass(frozen=True)
class Sizes:
    """Sizes of a problem.

    Attributes:
        forget: Number of forget samples.
        retain: Number of retained samples, 0 if they cannot be read.
        recipe: How the model was trained; None if unknown.
        classes: Number of classes.
        sharded: Cost of forgetting in a sharded training (`ShardedTraining.forget_cost`); None without shards.
        wrong_labels: Whether the labels of the forget samples are wrong; None if unknown.
    """

    forget: int
    retain: int
    recipe: Recipe | None = None
    classes: int = 2
    sharded: Cost | None = None
    wrong_labels: bool | None = None


def passes(sizes: Sizes, usual: int) -> int:
    """Epochs over the retained samples: a share of the training's, from 2 to 2 * `usual`; `usual` without a recipe.

    >>> from expunge.training.recipe import Recipe
    >>> [passes(Sizes(20, 900, Recipe(epochs=epochs)), 5) for epochs in (4, 20, 200)]
    [2, 3, 10]
    """
    if sizes.recipe is None:
        return usual
    return min(2 * usual, max(FEWEST, round(SHARE * sizes.recipe.epochs)))


def rate(sizes: Sizes, usual: float, share: float, *, adaptive: bool = False, momentum: float = 0.0) -> float:
    """Learning rate as a share of the training's, if that has the same kind of optimiser; else `usual`.

    Rates of SGD are compared by their effective rate / (1 - momentum). `adaptive` says whether the rate is for Adam.

    >>> from expunge.training.recipe import Recipe
    >>> round(rate(Sizes(20, 900, Recipe(lr=0.1, momentum=0.9)), 0.01, 0.05), 6)
    0.05
    """
    recipe = sizes.recipe
    if recipe is None or (recipe.optimizer != "sgd") != adaptive:
        return usual
    if adaptive:
        return share * recipe.lr
    return share * recipe.lr * (1 - momentum) / (1 - recipe.momentum)


def batch(samples: int, steps: int, *, most: int = 512) -> int:
    """Batch size, from 16 to `most`, with which `samples` (of all epochs together) give about `steps` steps.

    >>> [batch(count, steps=6) for count in (20, 600, 60_000)]
    [16, 100, 512]
    """
    return min(max(-(-samples // steps), 16), most)


def exposure(sizes: Sizes, epochs: int, retain_batch: int, forget_batch: int) -> float:
    """Number of passes over the forget set if every retain batch is combined with a forget batch."""
    steps = epochs * -(-sizes.retain // retain_batch)
    return steps * min(forget_batch, sizes.forget) / max(sizes.forget, 1)
