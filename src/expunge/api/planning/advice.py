"""What drift says of a model: go on, or train again. Measured in `requests.drift`; a plan keeps it with its reasons."""

from __future__ import annotations

from typing import Literal

from expunge.core.options import Field, options

Word = Literal["go on", "retrain soon", "retrain now"]


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
