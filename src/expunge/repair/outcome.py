"""What a label repair consists of, for those who describe and write it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from torch import nn

from expunge.api.result import Result
from expunge.repair.correction import Correction
from expunge.repair.measure import Effects


@dataclass(frozen=True, eq=False)
class Outcome:
    """A repair.

    Attributes:
        result: The repaired model and how it was made.
        correction: The data.
        effects: Before and after.
    """

    result: Result
    correction: Correction
    effects: Effects

    @property
    def model(self) -> nn.Module:
        """The repaired module."""
        return self.result.model

    def labels(self) -> pd.DataFrame:
        """The corrected list: one row per training sample."""
        return self.correction.frame()
