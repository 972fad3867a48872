"""Data: splits and the sources they come from. This page is the catalogue of named data sets, without torch.

Third parties register `KnownDataset` objects of their own through the entry-point group `expunge.datasets`.
"""

from __future__ import annotations

from expunge.core.registry import Registry
from expunge.data.known import KNOWN

DATASETS = Registry("dataset")
for _known in KNOWN:
    DATASETS.add(_known.card, _known)
