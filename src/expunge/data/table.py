"""Tables (Parquet, CSV, Arrow) to `Raw`: images in a column, or numeric features."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from expunge.core.errors import DataError, nearest
from expunge.data.cache import source_key
from expunge.data.images import Encoded
from expunge.data.raw import Columns, Raw

T = TypeVar("T")
LABELS = ("label", "labels", "fine_label", "target", "class", "y")


class ColumnImages(Encoded):
    """Images in one column, as bytes or as {bytes, path}; the column is loaded on first use."""

    def __init__(self, load: Callable[[], pa.ChunkedArray], count: int, where: Callable[[int], str]) -> None:
        self._load = load
        self._column: pa.ChunkedArray | None = None
        self._count = count
        self.where_row = where

    def __len__(self) -> int:
        return self._count

    def where(self, position: int) -> str:
        return self.where_row(position)

    def read(self, position: int) -> bytes | Path:
        return self.read_many(position, position + 1)[0]

    def read_many(self, start: int, stop: int) -> list[bytes | Path]:
        values = self.column().slice(start, stop - start).to_pylist()
        return [self._source(value, position) for position, value in enumerate(values, start)]

    def column(self) -> pa.ChunkedArray:
        if self._column is None:
            self._column = self._load()
        return self._column

    def _source(self, value: Any, position: int) -> bytes | Path:
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            return Path(value["path"])
        if not isinstance(content, bytes):
            raise DataError(f"{self.where(position)}: the image is empty.")
        return content

    def spill(self, path: Path) -> None:
        """Keep the encoded column in a memory-mapped Arrow file instead of in memory, for large sets."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        table = pa.table({"image": self.column()})
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        part.replace(path)
        self._load = _MappedColumn(path)
        self._column = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_column": None}  # worker processes load or map it themselves


class _MappedColumn:
    """Picklable loader of a spilled column."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> pa.ChunkedArray:
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all().column("image")


class _ParquetColumn:
    """Picklable loader of one column of several files."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.files = files
        self.column = column

    def __call__(self) -> pa.ChunkedArray:
        parts = [_guard(path, partial(pq.read_table, path, columns=[self.column])) for path in self.files]
        return pa.concat_tables(parts).column(0)


class RowNames:
    """Position in the concatenation of files -> "file, row N". Picklable."""

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        self.files = list(files)
        self.starts = [0, *accumulate(counts)]

    def __call__(self, position: int) -> str:
        number = max(bisect_right(self.starts, position) - 1, 0)
        number = min(number, len(self.files) - 1)
        return f"{self.files[number]}, row {position - self.starts[number]}"


def read_parquet(files: Sequence[Path], split: str, columns: Columns) -> Raw:
    """Parquet files of one split, in the given order; ids are `split/position`."""
    heads = [_guard(path, partial(pq.read_metadata, path)) for path in files]
    schema = _guard(files[0], partial(pq.read_schema, files[0]))
    where = RowNames(files, [head.num_rows for head in heads])
    image = image_column(schema, columns.image, files[0])
    light = [name for name in schema.names if name != image]
    parts = [_guard(path, partial(pq.read_table, path, columns=light)) for path in files]
    try:
        table = pa.concat_tables(parts)
    except pa.ArrowException as error:
        raise DataError(f"{files[0].parent}: the parquet files differ in their columns ({_line(error)}).") from None
    if image is None:
        return raw_from_table(table, schema, columns, split, where)
    root = files[0].parent
    images = ColumnImages(_ParquetColumn(files, image), len(table), where)
    return raw_from_table(
        table,
        schema,
        columns,
        split,
        where,
        images=images,
        key=lambda facts, cache: source_key(files, root, [image, facts], cache),
    )


def read_csv(path: Path, columns: Columns) -> Raw:
    """One CSV file with a header line: numeric features, a label (column `label`, else the last one)."""
    table = _guard(path, partial(pa_csv.read_csv, path))
    label = columns.label or next((name for name in LABELS[:1] if name in table.column_names), table.column_names[-1])
    chosen = Columns(image=None, label=label, id=columns.id)
    return raw_from_table(table, table.schema, chosen, "", lambda row: f"{path}, line {row + 2}")


def raw_from_table(
    table: pa.Table,
    schema: pa.Schema,
    columns: Columns,
    split: str,
    where: Callable[[int], str],
    *,
    images: ColumnImages | None = None,
    key: Callable[[object, Path], str] | None = None,
) -> Raw:
    """Labels, ids and metadata of a table; without `images`, its numeric columns are the features."""
    place = where(0).rpartition(", ")[0]
    label = label_column(schema, columns.label, place)
    id_column = columns.id or ("id" if "id" in table.column_names and label != "id" else None)
    if id_column is not None and id_column not in table.column_names:
        raise DataError(f"{place} has no id column `{id_column}`; {nearest(id_column, table.column_names)}.")
    labels = column_values(table.column(label))
    others = {
        name: column_values(table.column(name))
        for name in table.column_names
        if name not in (label, id_column) and not pa.types.is_nested(table.schema.field(name).type)
    }
    array = None
    if images is None:
        features = {name: values for name, values in others.items() if values.dtype.kind in "biuf"}
        if not features:
            raise DataError(f"{place} has neither an image column nor numeric columns; columns: {table.column_names}.")
        array = np.column_stack([values.astype(np.float32) for values in features.values()])
        others = {name: values for name, values in others.items() if name not in features}
    if id_column is not None:
        ids: np.ndarray | None = column_values(table.column(id_column)).astype(str)
    else:
        ids = np.array([f"{split}/{i}" for i in range(len(table))]) if split else None
    return Raw(
        labels=labels,
        where=where,
        names=class_label_names(schema, label),
        images=images,
        array=array,
        ids=ids,
        columns=others,
        key=key,
        spill=None
        if images is None or key is None
        else lambda cache: images.spill(cache / "data" / f"{key('encoded', cache)}.arrow"),
    )


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """The Hub's description of the columns, from the schema's metadata; empty if there is none."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def class_label_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    feature = hub_features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, dict):  # older files: {"0": "airplane", ...}
        names = [names[number] for number in sorted(names, key=int)]
    return tuple(map(str, names)) if names else None


def image_column(schema: pa.Schema, wanted: str | None, place: object) -> str | None:
    """The wanted column, else the first that the Hub marks as image, else the first of bytes; None: there is none."""
    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(f"{place} has no image column `{wanted}`; {nearest(wanted, schema.names)}.")
        return wanted
    for name, feature in hub_features(schema).items():
        if isinstance(feature, dict) and feature.get("_type") == "Image" and name in schema.names:
            return name
    for column in schema:
        kind = column.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(column.name)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(column.name)
    return None


def label_column(schema: pa.Schema, wanted: str | None, place: object) -> str:
    candidates = [n for n in schema.names if not pa.types.is_nested(schema.field(n).type)]
    if wanted is not None:
        if wanted in schema.names:
            return wanted
        raise DataError(f"{place} has no label column `{wanted}`; {nearest(wanted, candidates)}.")
    for name in LABELS:
        if name in schema.names:
            return name
    marked = [n for n in schema.names if class_label_names(schema, n)]
    if marked:
        return marked[0]
    raise DataError(f"{place} has no label column; pass label_column, one of: {', '.join(candidates) or 'none'}.")


def column_values(column: pa.ChunkedArray) -> np.ndarray:
    """A flat column as an array: numbers stay numbers (missing ones become NaN), everything else becomes text."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values: np.ndarray = column.to_numpy()
        return values if values.dtype != object else values.astype(np.float64)
    return np.array(["" if value is None else str(value) for value in column.to_pylist()], dtype=str)


def _guard(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {_line(error)}; the file is damaged or not what its name says.") from None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
