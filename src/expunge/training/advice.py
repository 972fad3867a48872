"""What drift says of a model: go on, or train again. Measured in `requests.drift`; a plan keeps it with its reasons.

Without torch, so that a ledger tells it at once.
"""

from __future__ import annotations

from typing import Literal

from expunge.core.options import Field, build, options

Word = Literal["go on", "retrain soon", "retrain now"]
ALPHA = 0.05


@options
class Limits:
    """When to train again. A number at its limit says "retrain now", at `soon` of it "retrain soon"."""

    accuracy_loss: float = Field(0.05, gt=0, le=1, description="test accuracy lost since the base (audit's margin)")
    disagreement: float = Field(0.2, gt=0, le=1, description="share of test samples answered otherwise than the base")
    steps: int = Field(20, ge=1, description="approximate steps since the base")
    forgotten: float = Field(0.1, gt=0, le=1, description="share of the base's training samples forgotten since")
    failed: int = Field(1, ge=1, description="audits since the base that found a step not forgotten or damaging")
    soon: float = Field(0.6, gt=0, le=1, description='share of a limit from which on it is "retrain soon"')


@options
class Drift:
    """Numbers of the module's text. Fractions in [0, 1]; None where there were no test samples, or no labels."""

    steps: int = Field(ge=0)
    forgotten: int = Field(ge=0)
    knew: int = Field(ge=1)
    failed: int = Field(0, ge=0)
    samples: int = Field(0, ge=0)
    disagreement: float | None = None
    base_accuracy: float | None = None
    accuracy: float | None = None
    p_loss: float | None = None

    @property
    def accuracy_loss(self) -> float | None:
        """Test accuracy lost since the base; None if unknown."""
        if self.base_accuracy is None or self.accuracy is None:
            return None
        return self.base_accuracy - self.accuracy


@options
class Advice:
    """word and its reasons, a sentence each. left: share of `limits.accuracy_loss` that is not used up."""

    word: Word
    reasons: tuple[str, ...]
    drift: Drift
    limits: Limits
    left: float | None = None

    def __str__(self) -> str:
        return "\n".join([self.word, *(f"- {reason}" for reason in self.reasons)])


def advise(drift: Drift, limits: Limits | None = None) -> Advice:
    """The rule: the worst of all numbers decides. Without an approximate step there is nothing to drift."""
    limit = limits or build(Limits, {})
    if drift.steps == 0:
        reason = "no approximate step was made since the model was trained."
        return Advice(word="go on", reasons=(reason,), drift=drift, limits=limit, left=1.0)
    exceeded: list[tuple[Word, str]] = []
    for text, value, most, sure in _numbers(drift, limit):
        if value >= most and sure:
            exceeded.append(("retrain now", f"{text}; the limit is {_shown(most)}."))
        elif value >= most:
            exceeded.append(("retrain soon", f"{text}, which may still be chance; the limit is {_shown(most)}."))
        elif value >= limit.soon * most and sure:
            exceeded.append(("retrain soon", f"{text}; the limit is {_shown(most)}."))
    labels = [label for label, _ in exceeded]
    worst: Word = next((label for label in ("retrain now", "retrain soon") if label in labels), "go on")
    reasons = [text for label, text in sorted(exceeded, key=lambda pair: pair[0] != worst)]
    if not exceeded:
        reasons = [f"{text}; the limit is {_shown(most)}." for text, _, most, _ in _numbers(drift, limit)]
    loss = drift.accuracy_loss
    left = None if loss is None else min(max(1 - loss / limit.accuracy_loss, 0.0), 1.0)
    if loss is None:
        reasons.append("accuracy on unseen samples is unknown: give test data with labels.")
    return Advice(word=worst, reasons=tuple(reasons), drift=drift, limits=limit, left=left)


def _numbers(drift: Drift, limit: Limits) -> list[tuple[str, float, float, bool]]:
    """(text, value, limit, beyond chance), the most telling first."""
    rows: list[tuple[str, float, float, bool]] = []
    plural = "s" if drift.failed != 1 else ""
    rows.append((f"{drift.failed} audit{plural} since then failed", drift.failed, limit.failed, True))
    loss = drift.accuracy_loss
    if loss is not None and drift.accuracy is not None and drift.base_accuracy is not None:
        text = (
            f"test accuracy went from {drift.base_accuracy:.3f} to {drift.accuracy:.3f} on {drift.samples} samples "
            f"(p {drift.p_loss:.2g})"
        )
        rows.append((text, loss, limit.accuracy_loss, (drift.p_loss or 0.0) < ALPHA))
    if drift.disagreement is not None:
        text = f"{drift.disagreement:.1%} of {drift.samples} unseen samples are answered otherwise than then"
        rows.append((text, drift.disagreement, limit.disagreement, True))
    share = drift.forgotten / drift.knew
    rows.append((f"{share:.1%} of the training samples were forgotten since then", share, limit.forgotten, True))
    steps_text = "1 approximate step was" if drift.steps == 1 else f"{drift.steps} approximate steps were"
    rows.append((f"{steps_text} made since then", drift.steps, limit.steps, True))
    return rows


def _shown(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:.1%}"
