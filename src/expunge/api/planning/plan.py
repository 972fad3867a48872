"""A plan: which method will fulfil a batch of requests, with what options, at what cost, and why. JSON, and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.api.planning.pace import Pace
from expunge.api.planning.situation import Kind, Situation
from expunge.core.options import Field, options
from expunge.methods.base import Method, make_method
from expunge.methods.cost import Work
from expunge.training.advice import Advice

KINDS: Mapping[Kind, str] = {
    "samples": "single samples",
    "class": "a whole class",
    "labels": "samples with wrong labels",
}


@options
class Alternative:
    """A method that was not taken. seconds: its estimate, if it could run and the pace is known.

    weighed: whether it is one of those that `auto` takes for this kind of request.
    """

    method: str
    why_not: str
    seconds: float | None = None
    weighed: bool = True


@options
class Plan:
    """What is going to be done. JSON by `to_dict(plan)`, and back by `build(Plan, values)`.

    method, options: for `expunge.unlearn`; for "sisa": `ShardedTraining.forget`. budget_seconds: of the run; none where
    there is no limit, or where it was set aside. retrain_now: the advice on the version that is changed, if it says so.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    exact: bool
    why: tuple[str, ...]
    estimate_seconds: float | None = None
    work: Work | None = None
    pace: Pace | None = None
    budget_seconds: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    retrain_now: Advice | None = None
    situation: Situation

    def made(self) -> Method:
        """The method with its options."""
        return make_method(self.method, **self.options)

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        at = self.situation
        claim = "exact" if self.exact else "approximate: the audit gives evidence, not proof"
        lines = [
            f"forget {at.forget} of {at.forget + at.retain} training samples ({KINDS[at.kind]})",
            f"method: {self.method} ({claim})",
        ]
        if self.options:
            lines.append("options: " + ", ".join(f"{name}={value}" for name, value in self.options.items()))
        lines.append(f"estimate: {self.estimate()}")
        lines += [f"- {reason}" for reason in self.why]
        weighed = [one for one in self.alternatives if one.weighed]
        others = [one.method for one in self.alternatives if not one.weighed]
        if weighed:
            lines.append("not taken:")
        for one in weighed:
            cost = "" if one.seconds is None else f" (about {duration(one.seconds)})"
            lines.append(f"- {one.method}{cost}: {one.why_not}")
        if others:
            lines.append(f"not for {KINDS[at.kind]}, by our measurements: {', '.join(others)}")
        return lines

    def estimate(self) -> str:
        """The cost in words, with what it rests on."""
        if self.work is None:
            return "unknown; this method's work cannot be counted"
        counted = f"{self.work.step_samples:,} samples through training steps"
        if self.work.forward_samples:
            counted += f" and {self.work.forward_samples:,} through forward passes"
        if self.pace is None or self.estimate_seconds is None:
            return f"{self.work.bound} {counted} (counted); no pace was measured"
        return (
            f"{self.work.bound} {duration(self.estimate_seconds)}: {counted} (counted), at "
            f"{1e3 * self.pace.step.per_sample:.3g} ms a sample and {1e3 * self.pace.step.per_batch:.3g} ms a batch of "
            f"training (measured on {self.pace.device})"
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> [duration(s) for s in (0.42, 75, 5400)]
    ['0.42 s', '75 s', '90 min']
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
