"""The time that unlearning took."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.metrics.base import REFERENCE, Evaluation, Metric, Value, metric


@metric("time")
class Time(Metric):
    """Wall-clock seconds of unlearning, and `scale_up` = seconds of retraining / seconds of the method (SCRUB)."""

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        seconds = evaluation.seconds.get(model)
        if seconds is None:
            return
        yield Value("seconds", seconds, "seconds", "lower")
        reference = evaluation.seconds.get(REFERENCE)
        if reference is not None and seconds > 0 and model != REFERENCE:
            yield Value("scale_up", reference / seconds, "ratio", "higher")
