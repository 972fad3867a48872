"""One number of an audit that is reported beside others and not tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reported:
    """One number beside those of the original and of retrained models.

    Attributes:
        name: A key of `explain.REPORTED`.
        unlearned: Of the model under audit; its 95 % interval is low .. high (NaN where there is none).
        original: Of the model before forgetting.
        retrained: Of each retrained model; empty where there is none or where it has no meaning.
        note: What it is about, such as the name of the worst group.
    """

    name: str
    unlearned: float
    original: float
    retrained: tuple[float, ...] = ()
    low: float = float("nan")
    high: float = float("nan")
    note: str = ""


def plain(number: Reported) -> dict[str, Any]:
    """JSON-ready."""
    return {**vars(number), "retrained": list(number.retrained)}


__all__ = ["Reported", "plain"]
