"""What an entry of the cache is made of, in the form that `core.entries.record` keeps."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np

from expunge.data.duplicates import content_hashes
from expunge.data.split import Split


class Facts(TypedDict):
    """data: name of the data set. form: dtype and shape of a sample. samples: content hashes (n,), None if unknown."""

    data: str
    form: str
    samples: np.ndarray | None


def origin_of(split: Split) -> Facts:
    """The facts of the samples of a split; of data that stream, the samples are not known."""
    store: Any = split.store
    samples = getattr(store, "samples", None)
    form = "" if samples is None else form_of(str(samples.dtype).removeprefix("torch."), samples.shape[1:])
    return {"data": store.name, "form": form, "samples": content_hashes(split)}


def form_of(dtype: str, shape: Any) -> str:
    """Type and shape of samples as text.

    >>> form_of("uint8", (1, 28, 28))
    'uint8 1x28x28'
    """
    return f"{dtype} {'x'.join(map(str, shape))}"
