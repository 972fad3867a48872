"""Typed columns: types of the cells of a table, and equality of values.

Ids, subjects and metadata follow these rules wherever they are read or compared (`ids:`, `where:`, `id_column`,
deletion requests, lists of ids, score files). A column has one type, determined by all of its cells:

    integer    whole numbers of up to 64 bits, exact, with or without missing cells; written without leading zeros
    number     other finite or infinite numbers, as float64
    boolean    true and false
    text       everything else, as it was written: `007`, `+49301234`, `2020-01-31`; also dates and times of a Parquet
               file (ISO form), and numbers that neither 64-bit integers nor floats represent exactly

Parquet and Arrow columns keep their stored type; a CSV file has none, so its cells determine it. Missing cells are
masked (`numpy.ma.MaskedArray`; NaN in a number column) and equal nothing.

Two values are equal if both are numbers of equal value or texts of equal characters; the text `007` and the number 7
differ. Surrounding space and the Unicode normalisation form of texts are ignored (NFC).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.core.errors import DataError

Kind = Literal["integer", "number", "boolean", "text"]
EXACT = 2**53  # beyond it, not every whole number is a float
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "<NA>")  # in columns that are numbers else
# A float as programs write it: an exponent has a sign, so that `12e4`, the beginning of a hash, stays text.
_FLOAT = r"^-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]\d+)?$|^-?([iI]nf|[nN]a[nN])$"
_INTEGER = r"^-?[1-9]\d{15,}$"
_BOOLEAN = ("True", "False", "true", "false", "TRUE", "FALSE")


def kind_of(column: np.ndarray) -> Kind:
    """The type of a column (n,)."""
    kinds: dict[str, Kind] = {"i": "integer", "u": "integer", "f": "number", "b": "boolean"}
    return kinds.get(column.dtype.kind, "text")


def is_missing(column: np.ndarray) -> np.ndarray:
    """Bool (n,): the cells without a value."""
    masked = np.array(np.ma.getmaskarray(column))
    return masked | np.isnan(np.ma.getdata(column)) if column.dtype.kind == "f" else masked


def from_cells(cells: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Column (n,) of text cells, with the type that all cells together have.

    >>> from_cells(["1", "", "9007199254740993"])
    masked_array(data=[1, --, 9007199254740993],
                 mask=[False,  True, False],
           fill_value=999999)
    >>> from_cells(["007", "7"])
    array(['007', '7'], dtype='<U3')
    """
    given = cells if isinstance(cells, (pa.Array, pa.ChunkedArray)) else pa.array(cells, pa.string())
    trimmed = pc.utf8_trim_whitespace(given)
    text = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
    if text.null_count == len(text):
        return _with_mask(np.full(len(text), "", dtype="U1"), np.ones(len(text), dtype=bool))
    whole = _integers(text)
    if whole is not None:
        return whole
    present = pc.if_else(pc.is_in(text, value_set=pa.array(MISSING)), pa.scalar(None, text.type), text)
    if present.null_count < len(present):
        whole = _integers(present) if present.null_count > text.null_count else None
        if whole is not None:
            return whole
        if _all(pc.match_substring_regex(present, _FLOAT)):
            large = pc.filter(present, pc.fill_null(pc.match_substring_regex(present, _INTEGER), False))
            if all(abs(int(cell)) <= EXACT for cell in large.to_pylist()):
                return np.asarray(pc.cast(present, pa.float64()).to_numpy(zero_copy_only=False))
    if _all(pc.is_in(text.drop_null(), value_set=pa.array(_BOOLEAN))):
        return _masked(pc.equal(pc.utf8_lower(text), "true"), False)
    return _text(text)


def from_arrow(column: pa.ChunkedArray, place: str) -> np.ndarray:
    """Convert a flat Arrow column to an array (n,) of its type.

    Args:
        column: the column.
        place: file and column, for the message.

    Raises:
        DataError: for bytes that are not UTF-8 text.
    """
    column = _plain(column, place)
    kind = column.type
    if pa.types.is_null(kind):
        return from_cells([None] * len(column))
    if pa.types.is_boolean(kind):
        return _masked(column, False)
    if pa.types.is_integer(kind):
        return _masked(column, 0)
    if pa.types.is_floating(kind):
        return np.asarray(column.to_numpy())
    if pa.types.is_decimal(kind):
        for whole in (pa.int64(), pa.uint64()):
            try:
                return _masked(pc.cast(column, whole), 0)
            except pa.ArrowInvalid:
                continue
        return _text(pc.cast(column, pa.string())) if kind.scale <= 0 else _floats(column)
    if pa.types.is_duration(kind):
        return _masked(pc.cast(column, pa.int64()), 0)
    if pa.types.is_temporal(kind):
        # Whole seconds are written without fractional zeros, as CSV writers do.
        return _text(pc.replace_substring_regex(pc.cast(column, pa.string()), r"\.0+(Z?)$", r"\1"))
    return _text(column)


def _plain(column: pa.ChunkedArray, place: str) -> pa.ChunkedArray:
    """Dictionaries, extension types and bytes converted to plain values."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        column, kind = pc.cast(column, pa.binary()), pa.binary()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view():
        try:
            return pc.cast(column, pa.large_string())
        except pa.ArrowInvalid:
            raise DataError(f"{place} holds bytes that are not UTF-8 text; save them as text.") from None
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return pc.cast(column, pa.large_string())
    return column


def _integers(text: pa.ChunkedArray) -> np.ndarray | None:
    """Whole numbers without leading zeros, up to 64 bits; None if a cell is anything else."""
    for kind in (pa.int64(), pa.uint64()):
        try:
            numbers = pc.cast(text, kind)
        except pa.ArrowInvalid:
            continue
        if _all(pc.equal(pc.cast(numbers, text.type), text)):  # `007` and `-0` read as numbers, yet are not written so
            return _masked(numbers, 0)
    return None


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.cast(column, pa.float64()).to_numpy())


def _text(column: pa.ChunkedArray) -> np.ndarray:
    """Text, unchanged; cells that are null or empty are missing. NumPy would drop trailing NUL characters."""
    missing = np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    if pc.any(pc.match_substring(column, "\0")).as_py():
        raise DataError("a text column holds NUL characters; save the table without them.")
    return _with_mask(np.asarray(pc.fill_null(column, "")).astype(str), missing)


def _masked(column: pa.ChunkedArray, fill: Any) -> np.ndarray:
    missing = np.asarray(pc.is_null(column))
    return _with_mask(np.asarray(pc.fill_null(column, fill) if missing.any() else column), missing)


def _with_mask(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.ma.MaskedArray(values, mask=missing)) if missing.any() else values


def _all(answers: pa.ChunkedArray) -> bool:
    """Whether all cells that are not missing are true."""
    return bool(pc.all(answers, min_count=0).as_py())


def whole_numbers(column: np.ndarray) -> np.ndarray:
    """A column of whole floats as integers with missing cells masked; any other column unchanged.

    Programs write integers as floats if a cell is missing. Beyond 2^53 (2^24 in single precision) floats do not
    represent every integer, and such a column is not changed.
    """
    if column.dtype.kind != "f":
        return column
    missing = is_missing(column)
    exact = 2.0 ** (np.finfo(column.dtype).nmant + 1)
    values = np.where(missing, 0.0, np.ma.getdata(column).astype(np.float64))
    if missing.all() or not bool(np.all(np.isfinite(values) & (np.abs(values) <= exact) & (values == np.rint(values)))):
        return column
    return _with_mask(values.astype(np.int64), missing)


def as_text(column: np.ndarray) -> np.ndarray:
    """Values as comparable text (n,), "" for missing cells: equal texts are equal values of one column.

    >>> as_text(np.array([5.0, np.nan, 0.5]))
    array(['5', '', '0.5'], dtype='<U3')
    """
    missing = is_missing(column)
    values = np.ma.getdata(column)
    if values.dtype.kind == "f":
        text = np.array([repr(float(value) + 0.0).removesuffix(".0") for value in values.tolist()], dtype=str)
    elif values.dtype.kind == "U":
        text = keys(values)
    else:
        text = values.astype(str)
    return np.where(missing, "", text) if missing.any() else text


def ids_of_cells(cells: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Ids (n,) as they are written, "" for missing ones; whole numbers that a program wrote as `5.0` become `5`."""
    text = from_arrow(pa.chunked_array([pa.array(cells, pa.string())]) if isinstance(cells, Sequence) else cells, "ids")
    written = as_text(text)
    numbers = whole_numbers(from_cells(cells))
    if kind_of(numbers) != "integer":
        return written
    short = as_text(numbers)
    return short if len(np.unique(short)) == len(np.unique(written)) else written


def key(text: str) -> str:
    r"""Normalised text for comparisons: Unicode NFC, without surrounding space.

    >>> key(" Zoe\u0308 ") == "Zo\u00eb"
    True
    """
    return unicodedata.normalize("NFC", text).strip()


def keys(texts: np.ndarray) -> np.ndarray:
    """Apply `key` to every text (n,)."""
    if not texts.size:
        return texts
    codes = np.ascontiguousarray(texts).view(np.uint32) if texts.dtype.itemsize else np.zeros(1, dtype=np.uint32)
    if int(codes.max()) >= 128:
        return np.array([key(text) for text in texts.tolist()], dtype=str)
    return np.asarray(np.char.strip(texts))


def as_column(values: Any) -> np.ndarray:
    """Values of a Python program as a column: numbers keep their type, None is missing, everything else is text."""
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind in "biufU":
        return array
    listed = array.tolist()
    if array.dtype.kind == "O" and all(value is None or isinstance(value, (bool, np.bool_)) for value in listed):
        return from_arrow(pa.chunked_array([pa.array(listed, pa.bool_())]), "a column")
    if array.dtype.kind == "O" and all(value is None or _is_whole(value) for value in listed):
        try:
            return from_arrow(pa.chunked_array([pa.array(listed)]), "a column")
        except (pa.ArrowInvalid, OverflowError):
            pass  # beyond 64 bits: text
    texts = [_program_text(value) for value in listed]
    return _with_mask(
        np.array(["" if text is None else text for text in texts], dtype=str),
        np.array([not text for text in texts], dtype=bool),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _program_text(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise DataError(f"a column holds bytes that are not UTF-8 text: {value[:20]!r}; give text.") from None
