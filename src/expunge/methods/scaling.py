"""Default values that fit a problem: how passes, rates and batches follow from the recipe and the sizes.

Defaults that were chosen on one problem do nothing, or harm, on another: a fixed batch makes one ascent step of 20
samples and 80 of 10,000, a fixed rate is a hundredth of one training's and ten times another's. So options that nobody
gave are computed; what was given, and every preset, is taken as it is. The result states the numbers that were used.
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
    """How large a problem is.

    Attributes:
        forget: Samples to forget.
        retain: Retained samples, 0 where they cannot be read.
        recipe: How the model was trained; None: not known.
        classes: Classes that the model tells apart.
        sharded: What forgetting takes of a training in shards (`ShardedTraining.forget_cost`); None: it has no shards.
    """

    forget: int
    retain: int
    recipe: Recipe | None = None
    classes: int = 2
    sharded: Cost | None = None


def passes(sizes: Sizes, usual: int) -> int:
    """Passes over the retained samples: a share of the training's, between 2 and twice `usual`; unknown: `usual`.

    >>> from expunge.training.recipe import Recipe
    >>> [passes(Sizes(20, 900, Recipe(epochs=epochs)), 5) for epochs in (4, 20, 200)]
    [2, 3, 10]
    """
    if sizes.recipe is None:
        return usual
    return min(2 * usual, max(FEWEST, round(SHARE * sizes.recipe.epochs)))


def rate(sizes: Sizes, usual: float, share: float, *, adaptive: bool = False, momentum: float = 0.0) -> float:
    """A learning rate as a share of the training's, where that has the same kind of optimiser; else `usual`.

    Rates of SGD are compared by what a steady gradient moves: rate / (1 - momentum). adaptive: whether the rate is
    Adam's.

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
    """The batch with which `samples`, all passes together, make about so many steps; within 16 .. `most`.

    >>> [batch(count, steps=6) for count in (20, 600, 60_000)]
    [16, 100, 512]
    """
    return min(max(-(-samples // steps), 16), most)


def exposure(sizes: Sizes, epochs: int, retain_batch: int, forget_batch: int) -> float:
    """How often each sample to forget is seen where a batch of them goes with every batch of retained ones."""
    steps = epochs * -(-sizes.retain // retain_batch)
    return steps * min(forget_batch, sizes.forget) / max(sizes.forget, 1)
