"""Conversion of a caller's data (arrays, tensors, a PyTorch or Hugging Face data set) to a `Split`."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from expunge.core.errors import DataError
from expunge.core.seeds import global_generators
from expunge.data.cache import cache_root
from expunge.data.classes import class_names, from_one_hot
from expunge.data.raw import Columns, as_samples, make_split, resident_limit
from expunge.data.split import (
    Normalisation,
    ResidentStore,
    Split,
    Store,
    StreamingStore,
    check_labels,
    stack_samples,
    to_sample,
)

PROBES = 8
READINGS = 4  # random flips appear deterministic with probability 8^-8


def as_split(
    data: Any, *, name: str = "data", normalisation: Normalisation | None = None, num_classes: int | None = None
) -> Split:
    """Convert data to a split.

    Samples keep their shape; uint8 are pixels 0..255, floats become float32. Other integers (tokens, categories) keep
    their type and are given to the model unchanged.

    Args:
        data: a `Split` (returned unchanged), a `Store`, a pair (X, y) of arrays or tensors with X (N, ...) and whole
            class numbers y (N,), a `TensorDataset`, any map-style PyTorch data set of (sample, label) items (also a
            `Subset`), or a Hugging Face `datasets.Dataset`. A data set is read into memory if its items are
            deterministic and fit; one with random transforms, or a large one, is streamed.
        name: for messages.
        normalisation: applied to (X, y) and TensorDataset samples; items of other data sets have their own transforms.
        num_classes: least number of classes.

    Raises:
        DataError: naming the first bad row, for NaN or infinite samples, unequal lengths and invalid labels.
    """
    if isinstance(data, Split):
        return data if num_classes is None else harmonise_classes([data], num_classes)[0]
    if isinstance(data, Store):
        split = Split.whole(data, name)
    elif isinstance(data, TensorDataset):
        split = _from_tensors(data, None, name, normalisation)
    elif isinstance(data, Subset) and isinstance(data.dataset, TensorDataset):
        split = _from_tensors(data.dataset, torch.as_tensor(data.indices, dtype=torch.long), name, normalisation)
    elif _is_hub_dataset(data):
        split = _from_hub(data, name)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        split = _from_arrays(data[0], data[1], name, normalisation)
    elif isinstance(data, IterableDataset):
        raise DataError(f"{name}: an IterableDataset has no positions; give a map-style data set with a length.")
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (str, bytes, dict)):
        split = _from_items(data, name)
    else:
        raise DataError(
            f"{name}: cannot read data from {type(data).__name__}; give an expunge split, (X, y), or a map-style "
            "PyTorch data set of (sample, label) items."
        )
    return split if num_classes is None else harmonise_classes([split], num_classes)[0]


def harmonise_classes(splits: Sequence[Split], num_classes: int = 0) -> list[Split]:
    """The same splits, all with the largest number of classes among them, at least `num_classes`.

    Splits of one store remain splits of one store.

    Raises:
        DataError: if two data sets name the same class differently.
    """
    widest: tuple[str, ...] = ()
    for split in splits:
        names = split.store.classes
        shared = min(len(names), len(widest))
        if _named(names) and _named(widest) and names[:shared] != widest[:shared]:
            number = next(i for i in range(shared) if names[i] != widest[i])
            raise DataError(
                f"class {number} is `{names[number]}` in the {split.name} set and `{widest[number]}` in another; "
                "both must number their classes alike."
            )
        if len(names) > len(widest) or (len(names) == len(widest) and _named(names) and not _named(widest)):
            widest = names
    widest = (*widest, *(str(i) for i in range(len(widest), num_classes)))
    stores: dict[int, Store] = {}
    result = []
    for split in splits:
        if len(split.store.classes) == len(widest):
            result.append(split)
            continue
        if id(split.store) not in stores:
            stores[id(split.store)] = copy.copy(split.store)  # shallow: samples and device copies stay shared
            stores[id(split.store)].classes = widest
        result.append(replace(split, store=stores[id(split.store)]))
    return result


def _named(classes: tuple[str, ...]) -> bool:
    return classes != tuple(str(i) for i in range(len(classes)))


def _from_arrays(samples: Any, labels: Any, name: str, normalisation: Normalisation | None) -> Split:
    x = _tensor(samples, name)
    y = labels.detach().cpu() if isinstance(labels, Tensor) else _label_tensor(np.asarray(labels), name)
    if y.dim() == 2:
        try:
            y = torch.from_numpy(from_one_hot(y.numpy()))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    if x.dim() < 2:
        raise DataError(f"{name}: X must hold one sample per row, shape (N, ...), got {tuple(x.shape)}.")
    if len(x) != len(y):
        raise DataError(f"{name}: X holds {len(x)} samples and y {len(y)} labels; there must be one label each.")
    return Split.whole(ResidentStore(x, y, normalisation=normalisation, name=name))


def _tensor(samples: Any, name: str) -> Tensor:
    """Samples as integers of their type, or as finite float32, on the CPU."""
    if isinstance(samples, Tensor):
        numbers = samples.dtype == torch.bool or samples.dtype.is_floating_point
        array = samples.detach().cpu().to(torch.float32 if numbers else samples.dtype).numpy()
    else:
        try:
            array = np.asarray(samples)
        except ValueError as error:
            raise DataError(f"{name}: X is not one array ({error}); all samples must have one shape.") from None
    return as_samples(array, name)


def _label_tensor(labels: np.ndarray, name: str) -> Tensor:
    if labels.dtype.kind not in "biuf":
        shown = labels.reshape(-1).tolist()[0] if labels.size else "nothing"
        raise DataError(f"{name}: labels must be whole class numbers, got {shown!r}; number the classes from 0.")
    return torch.from_numpy(labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64))


def _from_tensors(data: TensorDataset, indices: Tensor | None, name: str, normalisation: Normalisation | None) -> Split:
    if len(data.tensors) != 2:
        raise DataError(f"{name}: a TensorDataset of samples and labels is needed, got {len(data.tensors)} tensors.")
    x, y = data.tensors if indices is None else (tensor[indices] for tensor in data.tensors)
    return _from_arrays(x, y, name, normalisation)


def _is_hub_dataset(data: Any) -> bool:
    module = sys.modules.get("datasets")  # if such an object exists, the module has been imported
    if module is None:
        return False
    if isinstance(data, (module.DatasetDict, module.IterableDatasetDict, module.IterableDataset)):
        raise DataError(f"a {type(data).__name__} has no single set of rows; give one split, such as data['train'].")
    return isinstance(data, module.Dataset)


def _from_hub(data: Any, name: str) -> Split:
    if data.format["type"] == "custom":
        raise DataError(f"{name}: this Hugging Face data set has a transform; call reset_format() and pass it again.")
    from expunge.data.hub import raw_from_hub

    raw = raw_from_hub(data, name, Columns(), name, keep=False)
    return make_split(raw, class_names({"train": raw}, name), name=name, image_size=None, cache=cache_root())


def _from_items(data: Dataset[Any], name: str) -> Split:
    """Split of a data set of (sample, label) items: resident if deterministic and small, else streamed."""
    count = len(data)  # type: ignore[arg-type]
    if count == 0:
        return Split.whole(ResidentStore(torch.empty(0, 1), torch.empty(0, dtype=torch.long), name=name))
    probes = np.linspace(0, count - 1, min(PROBES, count), dtype=int).tolist()
    with _untouched_generators():
        readings = [[_item(data, i, name) for i in probes] for _ in range(READINGS)]
    first = readings[0]
    stable = all(
        torch.equal(a[0], b[0]) and a[1] == b[1] for other in readings[1:] for a, b in zip(first, other, strict=True)
    )
    bytes_each = max(x.numel() * (4 if x.is_floating_point() else x.element_size()) for x, _ in first)
    if stable and count * bytes_each <= resident_limit():
        with _untouched_generators():
            items = [_item(data, i, name) for i in range(count)]
        samples = stack_samples([x for x, _ in items])
        return Split.whole(ResidentStore(_tensor(samples, name), torch.tensor([y for _, y in items]), name=name))
    labels = _declared_labels(data)
    if labels is None or [int(labels[i]) for i in probes] != [y for _, y in first]:
        with _untouched_generators():
            labels = torch.tensor([_item(data, i, name)[1] for i in range(count)])
    return Split.whole(_CheckedStream(data, check_labels(labels, count, name), name=name))


class _CheckedStream(StreamingStore):
    """Items of a caller's data set; raises `DataError` when a sample that is not finite is read."""

    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        for chunk, samples in zip(chunks, super().fetch(chunks, device), strict=True):
            if samples.is_floating_point() and not bool(torch.isfinite(samples).all()):
                row = int((~torch.isfinite(samples).flatten(1).all(1)).nonzero()[0])
                raise DataError(
                    f"{self.name}, item {self.position(int(chunk[row]))}: the sample holds NaN or infinite values."
                )
            yield samples


def _item(data: Any, position: int, name: str) -> tuple[Tensor, int]:
    item = data[position]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"{name}: item {position} is a {type(item).__name__}; items must be (sample, label) pairs.")
    sample, label = item[0], item[1]
    value = label.item() if hasattr(label, "item") and _single(label) else label
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or int(value) != value:
        raise DataError(f"{name}: item {position} has the label {label!r}; labels must be whole class numbers.")
    if value < 0:
        raise DataError(f"{name}: item {position} has the label {int(value)}; unlabelled samples cannot be used.")
    return to_sample(sample).detach().clone(), int(value)


def _single(label: Any) -> bool:
    return bool(label.numel() == 1 if isinstance(label, Tensor) else np.size(label) == 1)


def _declared_labels(data: Any) -> Tensor | None:
    """`targets` or `labels` of a data set, also within `Subset`s; None if it has neither."""
    if isinstance(data, Subset):
        inner = _declared_labels(data.dataset)
        return None if inner is None else inner[torch.as_tensor(data.indices, dtype=torch.long)]
    for attribute in ("targets", "labels"):
        values = getattr(data, attribute, None)
        if values is None:
            continue
        array = np.asarray(values)
        if array.ndim == 1 and array.dtype.kind in "iu" and len(array) == len(data):
            return torch.from_numpy(array.astype(np.int64))
    return None


@contextmanager
def _untouched_generators() -> Iterator[None]:
    """Restore the global generators afterwards: reading a caller's items may run random transforms."""
    python, numpy = random.getstate(), np.random.get_state()
    with global_generators():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
