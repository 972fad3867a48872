"""Reading tables (Parquet, CSV, Arrow): images in a column, or numeric features."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from PIL import Image

from expunge.core.errors import DataError, nearest
from expunge.data.cache import source_key
from expunge.data.classes import from_one_hot
from expunge.data.images import BROKEN, ChosenImages, Encoded
from expunge.data.parts import PARTS, parts_of_values
from expunge.data.raw import Columns, Raw
from expunge.data.values import as_text, from_arrow, from_cells, ids_of_cells, is_missing, kind_of, whole_numbers

T = TypeVar("T")
LABELS = ("label", "labels", "fine_label")
OTHER_LABELS = ("target", "class", "y")
SPLITS = ("split", "subset", "partition", "usage")
WIDE = 256  # features; tables with more do not offer them to conditions
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf|nan", re.IGNORECASE)
_ROW_NUMBERS = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__|level_0")  # what pandas calls a saved index
_IDENTIFIERS = re.compile(
    r"(user|subject|person|patient|customer|client|member|account|participant)([_ ]?id)?|.*[_ ]id|uuid|guid",
    re.IGNORECASE,
)


class ColumnImages(Encoded):
    """Images in one column, as bytes or as {bytes, path}; the column is loaded on first use.

    Args:
        load: loads the column.
        count: number of rows.
        where: file and row of a position, for messages.
        roots: folders below which files named by rows must be (relative names start at the first); None: any file.
    """

    def __init__(
        self,
        load: Callable[[], pa.ChunkedArray],
        count: int,
        where: Callable[[int], str],
        roots: Sequence[Path] | None = None,
    ) -> None:
        self._load = load
        self._column: pa.ChunkedArray | None = None
        self._count = count
        self.where_row = where
        self.roots = None if roots is None else [root.resolve() for root in roots]

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
        """The encoded column."""
        if self._column is None:
            self._column = self._load()
        return self._column

    def named_files(self) -> list[Path]:
        """Files that rows name instead of containing bytes; they are part of the content of the data."""
        column = self.column()
        if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
            return []
        without = pc.is_null(pc.struct_field(column, "bytes"))
        named = pc.filter(pc.struct_field(column, "path"), without)
        rows = np.flatnonzero(np.asarray(without))
        return list(
            dict.fromkeys(self._file(path, int(row)) for path, row in zip(named.to_pylist(), rows, strict=True))
        )

    def _source(self, value: Any, position: int) -> bytes | Path:
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict):
            return self._file(value.get("path"), position)
        if not isinstance(content, bytes) or not content:
            raise DataError(f"{self.where(position)}: the image is empty.")
        return content

    def _file(self, name: object, position: int) -> Path:
        """A file that a row names; raises `DataError` if it is not below the folders of the data."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{self.where(position)}: the image is empty.")
        if self.roots is None:
            return Path(name)
        path = Path(self.roots[0], name)
        if not any(path.resolve().is_relative_to(root) for root in self.roots):
            raise DataError(
                f"{self.where(position)}: the row names the file {name}, which is not below {self.roots[0]}; rows may "
                "only name files in the folder of their table. Put the bytes of the images into the table."
            )
        return path

    def spill(self, path: Path) -> None:
        """Move the encoded column from memory to a memory-mapped Arrow file, for large sets."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        table = pa.table({"image": self.column()})
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        part.replace(path)
        self._load = _MappedColumn(path)
        self._column = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_column": None}  # worker processes load or map the column themselves


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
    """Maps a position in concatenated files to "file, row N" (or "line N", counted from `first`); picklable."""

    def __init__(self, files: Sequence[Path], counts: Sequence[int], unit: str = "row", first: int = 0) -> None:
        self.files = list(files)
        self.starts = [0, *accumulate(counts)]
        self.unit = unit
        self.first = first

    def __call__(self, position: int) -> str:
        number = max(bisect_right(self.starts, position) - 1, 0)
        number = min(number, len(self.files) - 1)
        return f"{self.files[number]}, {self.unit} {position - self.starts[number] + self.first}"


def read_parquet(files: Sequence[Path], part: str, columns: Columns, prefix: str = "") -> dict[str, Raw]:
    """Read Parquet files of one part, in the given order.

    Args:
        files: the files.
        part: as in `raws_from_table`.
        columns: column names that the caller chose.
        prefix: as in `raws_from_table`.

    Raises:
        DataError: if a file cannot be read, or their columns differ.
    """
    heads = [_guard(path, partial(pq.read_metadata, path)) for path in files]
    schema = _guard(files[0], partial(pq.read_schema, files[0]))
    where = RowNames(files, [head.num_rows for head in heads])
    _check_names(schema.names, str(files[0]))
    image = image_column(
        schema, columns.image, files[0], lambda name: _guard(files[0], partial(first_value, files[0], name))
    )
    light = [name for name in schema.names if name != image]
    parts = [_guard(path, partial(pq.read_table, path, columns=light)) for path in files]
    try:
        table = pa.concat_tables(parts, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(f"{files[0].parent}: the parquet files differ in their columns ({_line(error)}).") from None
    if image is None:
        return raws_from_table(table, schema, columns, part, where, prefix=prefix)
    root = files[0].parent
    images = ColumnImages(_ParquetColumn(files, image), len(table), where, [root])

    def key(facts: object, cache: Path) -> str:
        named = [] if all(_without_nulls(head, f"{image}.bytes") for head in heads) else images.named_files()
        return source_key([*files, *named], root, [image, facts], cache)

    return raws_from_table(table, schema, columns, part, where, prefix=prefix, images=images, key=key)


def _without_nulls(head: pq.FileMetaData, leaf: str) -> bool:
    """Whether, according to the statistics of a Parquet file, a column has no missing value."""
    for group in range(head.num_row_groups):
        row_group = head.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            known = chunk.statistics is not None and chunk.statistics.has_null_count
            if chunk.path_in_schema == leaf and not (known and chunk.statistics.null_count == 0):
                return False
    return True


def read_csv(files: Sequence[Path], part: str, columns: Columns) -> dict[str, Raw]:
    """Read CSV files of one part with a header line, numeric features and a label.

    Raises:
        DataError: if a file cannot be read, or their columns differ.
    """
    tables = [read_cells(path) for path in files]
    if any(set(table.column_names) != set(tables[0].column_names) for table in tables):
        raise DataError(f"{files[0].parent}: the CSV files differ in their columns.")
    where = RowNames(files, [len(table) for table in tables], "line", 2)
    table = pa.concat_tables([table.select(tables[0].column_names) for table in tables])
    return raws_from_table(table, table.schema, columns, part, where, cells=True)


def read_cells(path: Path) -> pa.Table:
    """Read a CSV file as a table of text; raises `DataError` for other encodings or separators and missing headers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    try:
        header = [cell.strip() for cell in next(csv.reader(io.StringIO(text), strict=True), [])]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: the header is not valid CSV ({error}).") from None
    if len(header) < 2 and any(mark in "".join(header) for mark in ";\t|"):
        raise DataError(
            f"{path}: the columns are not separated by commas (`{header[0][:40]}`); save it with commas, and with "
            "points in decimal numbers."
        )
    if not header or any("\n" in name for name in header):
        raise DataError(f"{path} has no header; its first line must name the columns.")
    names = [name or next(new for new in _unnamed(place) if new not in header) for place, name in enumerate(header)]
    _check_names(names, str(path))
    if _is_data(names):
        raise DataError(
            f"{path} seems to have no header, its first line is `{','.join(header)[:60]}`; write a line with the names "
            "of the columns before it."
        )
    kinds = dict.fromkeys(names, pa.string())
    return _guard(
        path,
        lambda: pa_csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=kinds),
        ),
    )


def _unnamed(place: int) -> Iterator[str]:
    """Names that pandas gives a column without a name, which is a saved index."""
    yield f"Unnamed: {place}"
    yield from (f"Unnamed: {place}.{number}" for number in count(1))


def _check_names(names: Sequence[str], place: str) -> None:
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{place} has several columns called `{repeated}`; give each a name of its own.")


def _is_data(names: Sequence[str]) -> bool:
    """Whether a first line is data: only numbers, a decimal number, or whole numbers that do not count the columns."""
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    whole = [int(name) for name in numbers if name.isdigit()]
    counted = whole in (list(range(len(whole))), list(range(1, len(whole) + 1)))
    return len(numbers) == len(names) or len(whole) < len(numbers) or not counted


def raws_from_table(
    table: pa.Table,
    schema: pa.Schema,
    columns: Columns,
    part: str,
    where: Callable[[int], str],
    *,
    prefix: str = "",
    images: ColumnImages | None = None,
    key: Callable[[object, Path], str] | None = None,
    cells: bool = False,
) -> dict[str, Raw]:
    """Split a table into parts.

    Without `images`, numeric columns are the features, except row numbers that pandas saved, identifiers and
    `columns.metadata`.

    Args:
        table: the rows, without encoded images.
        schema: with the Hub's description of the columns.
        columns: column names that the caller chose.
        part: the part of all rows; "" if unknown: then a column called `split` decides, without which all rows are for
            training.
        where: file and row of a position, for messages.
        prefix: ids are `prefix/row` (or `part/row`) if there is no column of ids; "" for ids by content.
        images: the encoded images.
        key: cache key of decoded images for given decoding facts.
        cells: whether all columns are text whose types are to be inferred.

    Raises:
        DataError: for missing columns and invalid cells.
    """
    place = where(0).rpartition(", ")[0]
    names = table.column_names
    label = label_column(schema, columns.label, place)
    ident = _wanted(columns.id, names, "id", place)
    if ident is None:
        ident = next((name for name in names if name.lower() == "id" and name != label), None)
    metadata = {_wanted(given, names, "metadata", place) for given in columns.metadata}
    values, ignored = _typed(table.drop_columns([label, *([] if ident is None else [ident])]), place, cells)
    ids = None if ident is None else _ids(table.column(ident), ident, place, cells)
    labels = _label_values(table.column(label), f"{place}, column `{label}`", cells)
    array = None
    features: list[str] = []
    if images is None:
        features = [name for name in values if name not in metadata and _is_feature(name, values[name], where, cells)]
        if not features:
            raise DataError(f"{place} has neither an image column nor numeric columns; columns: {names}.")
        array = np.column_stack([_feature(values[name]) for name in features])
        excluded = [f"`{name}` ({_why_not(name, values[name], metadata)})" for name in values if name not in features]
        if excluded:
            ignored.append(f"not among the features: {', '.join(excluded)}")
        if len(features) > WIDE:  # pixel columns are not metadata
            values = {name: column for name, column in values.items() if name not in features}
    whole = Raw(
        labels=labels,
        where=where,
        names=class_label_names(schema, label),
        images=images,
        array=array,
        ids=ids,
        columns=values,
        key=key,
        spill=None
        if images is None or key is None
        else lambda cache: images.spill(cache / "data" / f"{key('encoded', cache)}.arrow"),
        label_name=label,
        id_name=ident or "",
        features=tuple(features),
        ignored=tuple(ignored),
    )
    if part:
        return {part: _numbered(whole, part)}
    rows = _parts(values, len(table), place)
    return {name: _numbered(_chosen(whole, chosen), name if len(rows) > 1 else prefix) for name, chosen in rows.items()}


def _parts(values: dict[str, np.ndarray], count: int, place: str) -> dict[str, np.ndarray]:
    """Rows of each part, by the column that names parts."""
    for name in values:
        if name.lower() not in SPLITS or kind_of(values[name]) != "text":
            continue
        texts = as_text(values[name])
        if is_missing(values[name]).any():
            row = int(np.flatnonzero(is_missing(values[name]))[0])
            raise DataError(f"{place}, row {row}: there is no value in the column `{name}`, so its part is not known.")
        understood = parts_of_values(np.unique(texts).tolist(), f"{place}, column `{name}`")
        of_row = np.array([understood[text] for text in np.unique(texts).tolist()])[
            np.unique(texts, return_inverse=True)[1]
        ]
        return {part: np.flatnonzero(of_row == part) for part in PARTS if bool((of_row == part).any())}
    return {"train": np.arange(count)}


def _chosen(raw: Raw, rows: np.ndarray) -> Raw:
    """A subset of the rows of a part; the part itself if it is all of them."""
    if len(rows) == len(raw.labels):
        return raw
    images, key, where = raw.images, raw.key, raw.where
    rows_hash = hashlib.sha256(rows.tobytes()).hexdigest()
    return replace(
        raw,
        labels=raw.labels[rows],
        where=lambda row: where(int(rows[row])),
        images=None if images is None else ChosenImages(images, rows),
        array=None if raw.array is None else raw.array[rows],
        ids=None if raw.ids is None else raw.ids[rows],
        columns={name: column[rows] for name, column in raw.columns.items()},
        key=None if key is None else lambda facts, cache: key([rows_hash, facts], cache),
        spill=raw.spill,
    )


def _numbered(raw: Raw, part: str) -> Raw:
    """The part with ids: of a column (`missing-id/N` for rows without one), else `part/N` if the part has a name."""
    if raw.ids is None:
        return replace(raw, ids=np.array([f"{part}/{row}" for row in range(len(raw.labels))])) if part else raw
    absent = np.flatnonzero(raw.ids == "")
    if not len(absent):
        return raw
    ids = raw.ids.astype(object)
    ids[absent] = [f"missing-id/{row}" for row in absent.tolist()]
    return replace(raw, ids=ids.astype(str))


def _typed(table: pa.Table, place: str, cells: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """Flat columns with their types, and a note on each column that is ignored."""
    values: dict[str, np.ndarray] = {}
    ignored: list[str] = []
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_nested(column.type):
            ignored.append(f"column `{name}`: nested values")
            continue
        try:
            values[name] = from_cells(column) if cells else from_arrow(column, f"{place}, column `{name}`")
        except DataError as error:
            ignored.append(f"column `{name}`: {error}")
    return values, ignored


def _ids(given: pa.ChunkedArray, name: str, place: str, cells: bool) -> np.ndarray:
    """Text of the ids, "" for missing ones; raises `DataError` for floats, which may have merged ids."""
    if cells:
        return ids_of_cells(given)
    column = whole_numbers(from_arrow(given, f"{place}, column `{name}`"))
    if kind_of(column) == "number":
        raise DataError(
            f"{place}: the id column `{name}` holds decimal numbers, which are not exact; save the ids as whole "
            "numbers or as text."
        )
    return as_text(column)


def _label_values(column: pa.ChunkedArray, place: str, cells: bool) -> np.ndarray:
    """Typed labels; lists of numbers are one-hot rows (n, classes)."""
    if cells:
        return from_cells(column)
    if pa.types.is_nested(column.type):
        rows = column.to_pylist()
        if not rows or any(not isinstance(row, list) or len(row) != len(rows[0]) for row in rows):
            raise DataError(f"{place} holds nested values that are no one-hot rows; each sample needs one label.")
        try:
            return from_one_hot(np.array(rows, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: {error}") from None
    return from_arrow(column, place)


def _wanted(name: str | None, names: Sequence[str], what: str, place: str) -> str | None:
    if name is not None and name not in names:
        raise DataError(f"{place} has no {what} column `{name}`; {nearest(name, names)}.")
    return name


def _is_feature(name: str, column: np.ndarray, where: Callable[[int], str], cells: bool) -> bool:
    if _ROW_NUMBERS.fullmatch(name) or _IDENTIFIERS.fullmatch(name):
        return False
    if kind_of(column) != "text":
        return not (name.lower() == "index" and np.array_equal(column, np.arange(len(column))))
    if cells:
        _check_numbers(name, column, where)
    return False


def _check_numbers(name: str, column: np.ndarray, where: Callable[[int], str]) -> None:
    """Raise `DataError` for a column of numbers with a few other cells: it would silently not be a feature."""
    texts = np.char.strip(np.ma.getdata(column)[~is_missing(column)])
    sample = texts[:: max(1, len(texts) // 1000)]
    if not len(sample) or sum(bool(_NUMBER.fullmatch(text)) for text in sample.tolist()) < 0.9 * len(sample):
        return
    numbers = np.array([bool(_NUMBER.fullmatch(text)) for text in texts.tolist()])
    invalid = texts[~numbers]
    if 0 < len(invalid) <= 0.1 * len(texts) and not any(text.lstrip("+-").isdigit() for text in invalid.tolist()):
        row = int(np.flatnonzero(np.char.strip(np.ma.getdata(column)) == invalid[0])[0])
        raise DataError(
            f"{where(row)}: the column `{name}` holds numbers, but `{invalid[0]}` here; mend the cell, or name the "
            f"column as metadata (metadata={name}) if it is text."
        )


def _why_not(name: str, column: np.ndarray, metadata: Collection[str | None]) -> str:
    if name in metadata:
        return "metadata as asked"
    if _ROW_NUMBERS.fullmatch(name) or name.lower() == "index":
        return "row numbers"
    return "identifier" if _IDENTIFIERS.fullmatch(name) else kind_of(column)


def _feature(column: np.ndarray) -> np.ndarray:
    """float32 (n,), NaN for missing cells, for which the check of the samples raises an error with the row."""
    values = np.ma.getdata(column).astype(np.float32)
    values[is_missing(column)] = np.nan
    return values


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """The Hub's description of the columns, from the metadata of the schema; empty if there is none."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def class_label_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names of a `ClassLabel` column, or None."""
    feature = hub_features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, dict):  # older files: {"0": "airplane", ...}
        names = [names[number] for number in sorted(names, key=int)]
    return tuple(map(str, names)) if names else None


def image_column(schema: pa.Schema, wanted: str | None, place: object, first: Callable[[str], object]) -> str | None:
    """Find the column of images: the chosen one, else the first that the Hub marks as image, else the first of bytes.

    Args:
        schema: the columns.
        wanted: chosen by the caller, or None.
        place: file, for messages.
        first: gives the first value of a column, to distinguish images from text that is stored as bytes.

    Returns:
        Its name, or None if there is none.

    Raises:
        DataError: if the chosen column does not exist.
    """
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
        if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and _is_image(first(str(column.name))):
            return str(column.name)
    return None


def _is_image(content: object) -> bool:
    """Whether bytes have the header of an image; text that was stored as bytes has not."""
    if not isinstance(content, bytes):
        return False
    try:
        Image.open(io.BytesIO(content)).close()
    except BROKEN:
        return False
    return True


def first_value(path: Path, column: str) -> object:
    """The value of a column in the first row of a Parquet file; None if there is no row."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1, columns=[column]):
            return batch.column(0)[0].as_py() if len(batch) else None
    return None


def label_column(schema: pa.Schema, wanted: str | None, place: object) -> str:
    """Find the column of labels: the chosen one, else one with a usual name, else the first class label of the Hub.

    Raises:
        DataError: if there is none, or several are candidates.
    """
    candidates = [n for n in schema.names if not pa.types.is_nested(schema.field(n).type)]
    if wanted is not None:
        if wanted in schema.names:
            return wanted
        raise DataError(f"{place} has no label column `{wanted}`; {nearest(wanted, candidates)}.")
    lowered = {name.lower(): name for name in reversed(schema.names)} | {name: name for name in schema.names}
    for name in LABELS:
        if name in lowered:
            return lowered[name]
    likely = [lowered[name] for name in OTHER_LABELS if name in lowered]
    if len(likely) > 1:
        raise DataError(
            f"{place}: which column is the label, {' or '.join(f'`{n}`' for n in likely)}? Pass label_column."
        )
    marked = [n for n in schema.names if class_label_names(schema, n)]
    if likely or marked:
        return (likely or marked)[0]
    raise DataError(f"{place} has no label column; pass label_column, one of: {', '.join(candidates) or 'none'}.")


def _guard(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {_line(error)}; the file is damaged or not what its name says.") from None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
