"""Splits: rows of a data set. All packages above this one read data through `Split.batches`.

A `Store` contains the samples (resident tensors or a streaming loader); a `Split` is a store, the positions of its rows
in the store, and their labels. Both kinds of stores have the same interface.

The store of a split contains all other samples too. A method is given *sealed* splits (`Split.sealed`), whose store
contains the rows of that split and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.core.distributed import ALONE, World
from expunge.core.errors import AccessError, DataError, UsageError
from expunge.core.opaque import Opaque, resolve
from expunge.core.seeds import derive
from expunge.data.hashing import content_ids
from expunge.data.resize import resize_images

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A random transform of a raw batch (B, ...) on the device, with random numbers of a CPU generator."""


class Batch:
    """Samples of one step.

    If several processes share the batch (`world`), x is the shard of this process; everything else is of the global
    batch.

    Attributes:
        x: tensor (B, *input_shape) on the device, as `Store.prepare` makes it.
        y: long tensor (B,) on the device.
        index: long CPU tensor (B,), the row of each sample in the split that gave the batch, by which values cached per
            sample (teacher logits, features, losses) are looked up (`PerSample`).
    """

    __slots__ = ("_world", "_y", "index", "x")

    def __init__(self, x: Tensor, y: Tensor | None, index: Tensor, world: World = ALONE) -> None:
        self.x = x
        self._y = y
        self.index = index
        self._world = world

    @property
    def y(self) -> Tensor:
        """Labels (B,); raises `AccessError` if they are withheld."""
        if self._y is None:
            raise AccessError("this split carries no labels: the method declared that it does not need them.")
        return self._y

    @property
    def has_labels(self) -> bool:
        """Whether the labels can be read."""
        return self._y is not None

    def gather(self, outputs: Tensor) -> Tensor:
        """Outputs (B, ...) of the global batch from those of `x`; the same tensor if there is one process."""
        return self._world.all_gather(outputs, len(self))

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.x, self.y, self.index)


@dataclass(frozen=True)
class Normalisation:
    """Normalisation (pixel - mean) / std per channel, with pixels in [0, 1]; attacks take their box from it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std in a shape that broadcasts over a batch (B, C, ...) such as `like`."""
        shape = (1, len(self.mean)) + (1,) * (like.dim() - 2)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=like.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=like.device).view(shape)
        return mean, std


class Store(ABC):
    """All samples of one data set and their labels and metadata.

    Attributes:
        classes: class names; their number is the number of classes.
        columns: metadata, N values each.
        normalisation: applied by `prepare`, or None.
        name: for messages.
        resize: side to which images (C, H, W) are resized on the device, or None.
        identity: of a sealed store, the content hash of its split.
        source: what `load_data` reads it from again (`spec`, `split` and options); None for arrays and own data sets.
    """

    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    normalisation: Normalisation | None
    name: str
    resize: int | None = None
    identity: str | None = None
    source: dict[str, Any] | None = None
    _labels: Tensor | None
    _ids: np.ndarray | None

    @property
    def labels(self) -> Tensor:
        """Long CPU tensor (N,); raises `AccessError` if labels are withheld."""
        if self._labels is None:
            raise AccessError("this data set carries no labels: the method declared that it does not need them.")
        return self._labels

    @property
    def ids(self) -> np.ndarray:
        """N distinct strings that do not change when the data are downloaded again.

        Raises:
            AccessError: if labels are withheld, because ids may reveal them.
        """
        if self._labels is None:
            raise AccessError("sample ids are withheld from a method that declared no labels.")
        if self._ids is None:
            self._ids = self._own_ids()
        return self._ids

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a prepared sample."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples N."""

    @abstractmethod
    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Raw samples of each index chunk, in order, on `device`: uint8 in [0, 255], or numbers of any type."""

    @abstractmethod
    def content_hash(self) -> str:
        """Hex SHA-256 that changes whenever a sample, a label or the order changes."""

    @abstractmethod
    def _own_ids(self) -> np.ndarray:
        """Ids for samples that have none."""

    @abstractmethod
    def _seal_samples(self, sealed: Any, index: Tensor) -> None:
        """Restrict `sealed`, a shallow copy of this store, to the samples at these positions."""

    def sealed(self, index: Tensor, labels: Tensor | None, identity: str) -> Store:
        """A store of the rows at `index` alone: no attribute of it leads to another row.

        Args:
            index: positions (k,) in this store, in the order of the result.
            labels: long (k,), or None to withhold labels, ids and columns.
            identity: content hash of the sealed split.
        """
        sealed = copy.copy(self)
        sealed._labels = None if labels is None else labels.clone()
        rows = index.numpy()
        sealed._ids = None if labels is None or self._ids is None else self._ids[rows].copy()
        sealed.columns = {} if labels is None else {name: values[rows].copy() for name, values in self.columns.items()}
        sealed.identity, sealed.source = identity, None
        self._seal_samples(sealed, index)
        return sealed

    def prepare(self, raw: Tensor) -> Tensor:
        """Convert raw samples (B, ...) to model inputs.

        uint8 are pixels and become [0, 1]; floating point numbers become float32; both are resized and normalised if
        the store says so. Other integers are token or category numbers and are not changed, unless there is a
        normalisation: then they are measurements and treated like floating point numbers.
        """
        if raw.dtype != torch.uint8 and not raw.is_floating_point() and self.normalisation is None:
            return raw
        x = raw.to(torch.float32).mul_(1 / 255) if raw.dtype == torch.uint8 else raw.to(torch.float32)
        if self.resize is not None:
            x = resize_images(x, self.resize)
        if self.normalisation is not None:
            mean, std = self.normalisation.tensors(x)
            x = (x - mean).div_(std)
        return x

    def _resized(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.resize is None else (*shape[:-2], self.resize, self.resize)


class ResidentStore(Store):
    """Samples decoded once into one tensor; one copy per device is held, from which batches are gathered."""

    def __init__(
        self,
        samples: Tensor,
        labels: Tensor,
        *,
        classes: Sequence[str] | None = None,
        ids: Sequence[str] | np.ndarray | None = None,
        columns: dict[str, np.ndarray] | None = None,
        normalisation: Normalisation | None = None,
        name: str = "data",
        content_hash: str | None = None,
    ) -> None:
        self.samples = samples
        labels = check_labels(labels, len(samples), name)
        self._labels = labels
        self.classes = tuple(classes) if classes is not None else default_classes(labels)
        self.columns = dict(columns or {})
        self.normalisation = normalisation
        self.name = name
        self._hash = content_hash
        self._ids = None if ids is None else check_ids(np.asarray(ids).astype(str), len(labels), name)
        self._on_device: dict[torch.device, Tensor] = {}
        if len(labels) and int(labels.max()) >= len(self.classes):
            raise DataError(f"{name}: a label is {int(labels.max())}, but there are {len(self.classes)} classes.")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._resized(tuple(self.samples.shape[1:]))

    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        samples = self._resident(device)
        for chunk in chunks:
            yield samples.index_select(0, chunk.to(device))

    def _resident(self, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return self.samples
        if device not in self._on_device:
            self._on_device[device] = self.samples.to(device)
        return self._on_device[device]

    def content_hash(self) -> str:
        if self.identity is not None:
            return self.identity
        if self._hash is None:
            digest = hashlib.sha256(f"{self.samples.dtype}{tuple(self.samples.shape)}".encode())
            digest.update(self.samples.contiguous().numpy().tobytes())
            digest.update(self.labels.numpy().tobytes())
            self._hash = digest.hexdigest()
        return self._hash

    def _own_ids(self) -> np.ndarray:
        """16 hexadecimal digits of a hash of the content, with `-2`, `-3` ... appended for repeated content."""
        return content_ids(self.samples.numpy())

    def _seal_samples(self, sealed: Any, index: Tensor) -> None:
        """Copy the rows, on the CPU and on each device that has the samples; a complete tensor is shared instead."""
        # A tensor may be a view, whose storage contains further rows.
        view = self.samples.untyped_storage().nbytes() > self.samples.numel() * self.samples.element_size()
        share = not view and torch.equal(index, torch.arange(len(self)))
        sealed.samples = self.samples if share else self.samples.index_select(0, index)
        sealed._on_device = {
            device: samples if share else samples.index_select(0, index.to(device))
            for device, samples in self._on_device.items()
        }


class StreamingStore(Store):
    """Samples read on demand from a map-style PyTorch data set, for data that do not fit in memory.

    Items are (sample, label) pairs; samples may be PIL images, arrays or tensors. Labels are read once.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset[object],
        labels: Tensor,
        *,
        classes: Sequence[str] | None = None,
        ids: Sequence[str] | np.ndarray | None = None,
        columns: dict[str, np.ndarray] | None = None,
        normalisation: Normalisation | None = None,
        name: str = "data",
        workers: int = 0,
    ) -> None:
        self.dataset = dataset
        labels = check_labels(labels, len(labels), name)
        self._labels = labels
        self._count = len(labels)
        self.classes = tuple(classes) if classes is not None else default_classes(labels)
        self.columns = dict(columns or {})
        self.normalisation = normalisation
        self.name = name
        self.workers = workers
        self._ids = None if ids is None else check_ids(np.asarray(ids).astype(str), len(labels), name)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(to_sample(self.dataset[0]).shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._resized(self._shape)

    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=[chunk.tolist() for chunk in chunks],
            collate_fn=stack_samples,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
        )
        for samples in loader:
            yield samples.to(device, non_blocking=True)

    def position(self, row: int) -> int:
        """Position of a row in the caller's data set, for messages."""
        return self.dataset.positions[row] if isinstance(self.dataset, SealedRows) else row

    def content_hash(self) -> str:
        """Hash over the labels, the ids and 64 samples spread over the set: hashing all would read all of it."""
        if self.identity is not None:
            return self.identity
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update("\n".join(self.ids.tolist()).encode())
        for position in np.linspace(0, len(self) - 1, min(64, len(self)), dtype=int).tolist():
            digest.update(to_sample(self.dataset[position]).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _own_ids(self) -> np.ndarray:
        """Positions, because content ids would read every sample."""
        return np.arange(len(self)).astype(str)

    def _seal_samples(self, sealed: Any, index: Tensor) -> None:
        """Copy nothing: the data set is read through an opaque handle that gives the samples of these rows alone."""
        sealed._count = len(index)
        if sealed._labels is not None and sealed._ids is None:
            sealed._ids = index.numpy().astype(str)
        sealed.dataset = SealedRows(self.dataset, index)


class SealedRows(torch.utils.data.Dataset[Tensor]):
    """Some rows of a map-style data set, without labels.

    The data set itself is behind an opaque handle (`core.opaque`): no attribute, bound method or closure of this object
    leads to it, or to a row that is not in `index`. Python offers no stronger protection for data that are read later.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[object], index: Tensor) -> None:
        self._source = Opaque(dataset)
        self.positions: list[int] = index.tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: int) -> Tensor:
        return to_sample(resolve(self._source)[self.positions[row]])


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Rows of a store, in a given order.

    Attributes:
        store: all samples.
        index: long CPU tensor (len,), positions of the rows in the store.
        labels: long CPU tensor over the *store* (N,), or None if labels are withheld; they may differ from the store's
            labels (label noise), which are the true ones.
        name: e.g. "train" or "forget".
    """

    store: Store
    index: Tensor
    labels: Tensor | None
    name: str = "data"

    @classmethod
    def whole(cls, store: Store, name: str | None = None) -> Split:
        """All rows of a store."""
        return cls(store, torch.arange(len(store)), store._labels, name or store.name)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        shape, labels = tuple(self.input_shape), "" if self.has_labels else ", labels withheld"
        return (
            f"Split {self.name}: {len(self):,} of {len(self.store):,} samples of shape {shape}, {self.num_classes} "
            f"classes{labels}"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.store.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as given to the model."""
        return self.store.input_shape

    @property
    def has_labels(self) -> bool:
        """Whether the labels can be read."""
        return self.labels is not None

    @property
    def y(self) -> Tensor:
        """Labels of this split, long CPU tensor (len,); raises `AccessError` if they are withheld."""
        if self.labels is None:
            raise AccessError(f"the {self.name} split carries no labels: the method did not declare a need for them.")
        return self.labels[self.index]

    @property
    def ids(self) -> np.ndarray:
        """Sample ids (len,); raises `AccessError` if labels are withheld."""
        return self.store.ids[self.index.numpy()]

    def take(self, positions: Tensor | Sequence[int] | np.ndarray, name: str | None = None) -> Split:
        """The samples at these positions *of the store* (not of this split), in the given order."""
        index = torch.as_tensor(positions, dtype=torch.long).reshape(-1)
        return replace(self, index=index, name=name or self.name)

    def sealed(self, *, labels: bool = True) -> Split:
        """The same rows in a store that contains no other sample or label.

        Resident samples are copied once, in memory and on the device (a split of a whole data set shares them instead);
        a streaming data set is read through a handle (`SealedRows`). `content_hash` does not change.

        Args:
            labels: whether labels are included, and with them ids and columns, which may reveal them.
        """
        y = self.y if labels and self.labels is not None else None
        identity = replace(self, labels=self.labels if labels else None).content_hash()
        return Split.whole(self.store.sealed(self.index, y, identity), self.name)

    def without_labels(self) -> Split:
        """The same rows, sealed, without their labels."""
        return self.sealed(labels=False)

    def with_labels(self, labels: Tensor) -> Split:
        """The same samples with other labels (N,) over the whole store, whose own labels remain the true ones."""
        return replace(self, labels=check_labels(labels, len(self.store), self.name))

    def named(self, name: str) -> Split:
        """The same rows under another name."""
        return replace(self, name=name)

    def batches(
        self,
        size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        world: World = ALONE,
    ) -> Iterator[Batch]:
        """Iterate over batches.

        Args:
            size: samples per batch, >= 1; the last batch may be shorter.
            shuffle: whether the order is random. Shuffled batches are for training: a last batch of one sample, which
                BatchNorm cannot normalise, is joined with the batch before it.
            seed: of order and augmentation.
            augment: random transform of raw batches; without it the same sample is always the same tensor.
            device: where batches are put.
            drop_last: whether a shorter last batch is dropped.
            world: processes that share every batch; each reads its own shard only.

        Raises:
            UsageError: if `size` is less than 1.
        """
        if size < 1:
            raise UsageError(f"the batch size must be at least 1, got {size}.")
        target = torch.device(device)
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        chunks = [chunk for chunk in order.split(size) if len(chunk) == size or not drop_last]
        if shuffle and size > 1 and len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        noise = torch.Generator().manual_seed(derive(seed, "augment"))
        labels = None if self.labels is None else self.y.to(target)
        own = [self.index[chunk[world.shard(len(chunk))]] for chunk in chunks]
        for chunk, raw in zip(chunks, self.store.fetch(own, target), strict=True):
            if augment is not None:
                raw = _augmented(raw, augment, noise, len(chunk), world)
            yield Batch(self.store.prepare(raw), None if labels is None else labels[chunk.to(target)], chunk, world)

    def inputs(self, device: torch.device | str = "cpu", size: int = 1024) -> Tensor:
        """All inputs of this split as one tensor (len, *input_shape); for small splits such as forget sets."""
        parts = [batch.x for batch in self.batches(size, device=device)]
        return torch.cat(parts) if parts else torch.empty(0, *self.input_shape, device=device)

    def content_hash(self) -> str:
        """Hex SHA-256 over the store's content, normalisation and resizing, the positions and the visible labels.

        A sealed split has the hash of the original split.
        """
        store = self.store
        sealed, all_labels = store.identity, self.labels is store._labels
        if sealed is not None and all_labels and torch.equal(self.index, torch.arange(len(store))):
            return sealed
        digest = hashlib.sha256(self.store.content_hash().encode())
        digest.update(repr((self.store.normalisation, self.store.resize)).encode())
        digest.update(self.index.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels[self.index].numpy().tobytes())
        return digest.hexdigest()


def _augmented(raw: Tensor, augment: Augment, noise: torch.Generator, count: int, world: World) -> Tensor:
    """The shard of this process, augmented with the random numbers that the global batch of `count` samples gets."""
    if not world.is_sharded(count):
        return augment(raw, noise)
    # An augmentation draws random numbers for all rows it is given; zeros stand for the other processes' rows.
    batch = raw.new_zeros(count, *raw.shape[1:])
    batch[world.shard(count)] = raw
    return augment(batch, noise)[world.shard(count)]


class PerSample:
    """Values cached per sample of a split, looked up by `Batch.index`.

    Args:
        split: the samples.
        values: (len(split), ...), in its order.
    """

    def __init__(self, split: Split, values: Tensor) -> None:
        if len(values) != len(split):
            raise UsageError(f"{len(values)} cached values for the {len(split)} samples of the {split.name} split.")
        self.values = values

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.values[index.to(self.values.device)]


def check_labels(labels: Tensor, count: int, name: str) -> Tensor:
    """Labels as a long CPU tensor (count,), each >= 0; raises `DataError` for anything else."""
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.dim() != 1 or len(labels) != count:
        raise DataError(f"{name}: expected {count} labels, one per sample, got shape {tuple(labels.shape)}.")
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        raise DataError(f"{name}: labels must be whole class numbers, got {labels[labels != labels.round()][0]:g}.")
    labels = labels.long()
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"{name}: labels must be >= 0, got {int(labels.min())}; unlabelled samples cannot be used.")
    return labels


def check_ids(ids: np.ndarray, count: int, name: str) -> np.ndarray:
    """Ids (count,), unchanged; raises `DataError` if their number is wrong or they are not distinct."""
    if ids.shape != (count,):
        raise DataError(f"{name}: expected {count} ids, one per sample, got {ids.shape}.")
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != count:
        raise DataError(f"{name}: ids must be distinct, `{values[counts > 1][0]}` occurs {counts.max()} times.")
    return ids


def default_classes(labels: Tensor) -> tuple[str, ...]:
    """Class names "0", "1", ... for labels (n,)."""
    return tuple(str(i) for i in range(int(labels.max()) + 1 if len(labels) else 0))


def to_sample(item: object) -> Tensor:
    """The sample of an item of a map-style data set as a tensor; images become uint8 (C, H, W)."""
    sample = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(sample, Tensor):
        return sample
    array = np.asarray(sample)
    if array.dtype == object:
        raise DataError(f"a sample is a {type(sample).__name__}; expected a tensor, an array or an image.")
    if not isinstance(sample, np.ndarray) and array.ndim in (2, 3):  # a PIL image: (H, W) or (H, W, C)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(array))


def stack_samples(items: Sequence[object]) -> Tensor:
    """The samples of items as one tensor (n, ...); raises `DataError` if their shapes differ."""
    samples = [to_sample(item) for item in items]
    shapes = {tuple(s.shape) for s in samples}
    if len(shapes) > 1:
        raise DataError(f"samples of one data set differ in shape: {sorted(shapes)[:2]}; resize them to one shape.")
    return torch.stack(samples)
