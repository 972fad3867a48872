"""Data: splits and their sources; this module is the catalogue of named data sets, without importing torch.

Other packages register functions with `@expunge.data_set(...)`, or `KnownDataset` objects, through the entry-point
group `expunge.datasets`.
"""

from __future__ import annotations

from expunge.core.registry import Registry
from expunge.data.known import KNOWN, KnownDataset

DATASETS = Registry("dataset", decorator="@expunge.data_set(name, summary=...)")
for _known in KNOWN:
    DATASETS.add(_known.card, _known)


def known_sets() -> list[KnownDataset]:
    """The public data sets, those of third parties included; what users wrote as a function is not among them."""
    return [known for known in map(DATASETS.load, DATASETS.usable()) if isinstance(known, KnownDataset)]
