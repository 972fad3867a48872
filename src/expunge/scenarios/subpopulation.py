"""A coherent subpopulation: similar samples, such as the pictures of one person or of one scene.

Rule       the forget set is a seed sample and the samples nearest to it, by Euclidean distance between inputs (as the
           model sees them) or between the rows of a file of features. Sizes are exact, and sets are nested in `amount`.

Forgetting a subpopulation differs from forgetting as many scattered samples: its samples support each other's
predictions, and no close neighbour of them is retained.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.errors import DataError, UsageError
from expunge.core.options import Field
from expunge.data.classes import class_index
from expunge.data.ids import rows_by_id, rows_by_index
from expunge.data.scores import read_features
from expunge.data.split import Split
from expunge.scenarios.base import Amount, Scenario, count_of, scenario_class

BATCH = 1024


@scenario_class("subpopulation")
class Subpopulation(Scenario):
    """The nearest neighbours of a seed sample, including itself."""

    primary: ClassVar[str] = "amount"
    amount: Amount = Field(0.05, gt=0, description="a number of samples, or a fraction of those they are chosen from")
    across: bool = Field(False, description="choose from all classes; default: only from the seed sample's class")
    sample: int | str | None = Field(None, description="the seed sample by id, or by position as index:5; none: drawn")
    target: int | str | None = Field(None, description="class to draw the seed sample from; none: any")
    features: Path | None = Field(
        None, description=".npy (a row per sample of the data set), .csv or .parquet (column `id`); none: the inputs"
    )

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        centre = self._centre(train, generator)
        pool = train if self.across else train.take(train.index[train.y == train.y[train.index == centre]])
        count = count_of(self.amount, len(pool), "subpopulation: `amount`")
        distances = self._distances(train, pool, centre)
        distances[pool.index == centre] = -1.0  # also before exact copies of it
        return pool.index[distances.argsort(stable=True)[:count]].sort().values

    def _centre(self, train: Split, generator: torch.Generator) -> int:
        """Position of the seed sample."""
        if self.sample is not None and self.target is not None:
            raise UsageError("subpopulation: `sample` names the seed sample already; omit `target`.")
        if self.sample is not None:
            rows = rows_by_index if isinstance(self.sample, int) else rows_by_id
            return int(rows(self.sample, train)[0])
        members = train.index if self.target is None else train.index[train.y == class_index(train, self.target)]
        if not len(members):
            raise DataError(f"subpopulation: class {self.target} has no sample in {train.name}; name another one.")
        return int(members[torch.randint(len(members), (1,), generator=generator)])

    def _distances(self, train: Split, pool: Split, centre: int) -> Tensor:
        """Distances (len(pool),) to the seed sample, float64."""
        if self.features is not None:
            rows = read_features(self.features, train).double()
            inside = torch.isin(train.index, pool.index)
            return (rows[inside] - rows[train.index == centre]).norm(dim=1)
        seed = train.take([centre]).inputs().double().flatten(1)
        parts = [(batch.x.double().flatten(1) - seed).norm(dim=1) for batch in pool.batches(BATCH)]
        return torch.cat(parts)
