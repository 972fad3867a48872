"""What a run of a method computes, counted in passes of the network before it is begun.

Each method states its own count (`Method.cost`), from its options and the sizes of the problem, so that a preset or an
option cannot drift from it; `testing.conformance` compares it with the passes that a run really makes. Updates, losses
and evaluation on single samples are not counted: they are small beside the passes of the network.
"""

from __future__ import annotations

from typing import Literal

from expunge.core.options import options

Bound = Literal["about", "at most"]

EVALUATION_BATCH = 1024
"""Samples per batch of a pass without gradients, as `training.inference.predict` takes them."""


@options
class Work:
    """Counted passes.

    Attributes:
        step_samples: Samples through training steps, a forward and a backward pass each.
        step_batches: Training steps.
        forward_samples: Samples through passes without gradients.
        forward_batches: Batches of these.
        small: Training steps of a small network beside the model, such as LAF's VAE.
        bound: "about" if a run does all of it, "at most" if it may stop earlier.
    """

    step_samples: int = 0
    step_batches: int = 0
    forward_samples: int = 0
    forward_batches: int = 0
    small: int = 0
    bound: Bound = "about"

    def __add__(self, other: Work) -> Work:
        return Work(
            step_samples=self.step_samples + other.step_samples,
            step_batches=self.step_batches + other.step_batches,
            forward_samples=self.forward_samples + other.forward_samples,
            forward_batches=self.forward_batches + other.forward_batches,
            small=self.small + other.small,
            bound="at most" if "at most" in (self.bound, other.bound) else "about",
        )

    def at_most(self) -> Work:
        """The same work of a run that may stop earlier."""
        return self + Work(bound="at most")


def batches(samples: int, batch: int) -> int:
    """Batches of `batch` samples that `samples` make, the last one smaller.

    >>> batches(100, 32)
    4
    """
    return -(-samples // batch)


def steps(samples: int, batch: int, epochs: int = 1) -> Work:
    """Training steps over `samples` in batches, `epochs` times.

    >>> steps(100, 32, 2).step_batches
    8
    """
    return Work(step_samples=samples * epochs, step_batches=batches(samples, batch) * epochs)


def forward(samples: int, batch: int = EVALUATION_BATCH, times: int = 1) -> Work:
    """Passes over `samples` without gradients, `times` times.

    >>> forward(2000, times=3).forward_batches
    6
    """
    return Work(forward_samples=times * samples, forward_batches=times * batches(samples, batch))


def paired_steps(retain: int, forget: int, retain_batch: int, forget_batch: int, epochs: int) -> Work:
    """Training steps over the retained samples, each batch with one of the forget set beside it.

    Args:
        retain: Retained samples.
        forget: Samples to forget; their batches start over as often as needed.
        retain_batch: Retained samples per step.
        forget_batch: Samples to forget per step, at most all of them.
        epochs: Passes over the retained samples.

    >>> paired_steps(100, 8, 50, 16, 2).step_samples
    232
    """
    count, beside = epochs * batches(retain, retain_batch), min(forget_batch, forget)
    return steps(retain, retain_batch, epochs) + Work(step_samples=count * beside, step_batches=count * (beside > 0))
