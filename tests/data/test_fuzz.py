"""Whatever stands in a file or on the command line, loaders and parsers answer or raise an error of ours.

Good files are damaged (bytes flipped, cut, repeated, swapped) and texts are drawn from the characters that parsers care
about. Nothing may raise another error, hang, or run code. The long version is marked slow.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.data.ids import read_ids, rows_by_id, rows_by_index, rows_where
from expunge.data.inspection import inspect
from expunge.data.scores import read_features, read_scores
from expunge.data.sources import DataOptions, load_pair
from expunge.data.split import ResidentStore, Split
from expunge.data.values import as_column, as_text, from_cells
from expunge.scenarios.base import parse_scenario

SECONDS = 5.0  # of processor time for one damaged file; a good one takes milliseconds


def picture(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def parquet_of_images() -> bytes:
    images = [
        {"bytes": picture("PNG"), "path": None},
        {"bytes": None, "path": "x.png"},
        {"bytes": picture("PNG"), "path": "y"},
    ]
    features = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}
    }
    table = pa.table({"image": images, "label": [0, 1, 0], "id": ["u", None, "w"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    return written(lambda out: pq.write_table(table, out))


TABLE = pd.DataFrame({"id": ["007", "7", None], "a": [1.5, 2.0, 3.0], "b": [1, 2, 3], "label": ["x", "y", "x"]})
EXIF = Image.Exif()
EXIF[0x0112] = 6
# name of the file -> content
GOOD: dict[str, bytes] = {
    "t.csv": TABLE.to_csv(index=False).encode(),
    "list.csv": b"file_name,label,split,id\nx.png,cat,train,1\nx.png,dog,train,2\nx.png,cat,test,3\n",
    "t.parquet": written(lambda out: TABLE.to_parquet(out)),
    "images.parquet": parquet_of_images(),
    "a.npz": written(lambda out: np.savez(out, x=np.eye(4), y=[0, 1, 0, 1], ids=["a", "b", "c", "d"])),
    "z.npz": written(lambda out: np.savez_compressed(out, x_train=np.eye(4), y_train=np.eye(4))),
    "x.npy": written(lambda out: np.save(out, np.eye(4))),
    "cat/0.png": picture("PNG"),
    "cat/0.jpg": picture("JPEG", exif=EXIF),
    "cat/0.gif": picture("GIF"),
    "cat/0.bmp": picture("BMP"),
    "cat/0.webp": picture("WEBP"),
    "cat/0.tiff": picture("TIFF", compression="tiff_lzw"),
    "cat/metadata.csv": b"file_name,user\n0.png,007\n",
}  # fmt: skip


def write_source(root: Path, name: str, content: bytes) -> Path:
    """The damaged file with what it needs beside it; what to load."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if name == "x.npy":
        np.save(root / "y.npy", np.array([0, 1, 0, 1]))
    if name in ("list.csv", "images.parquet"):
        (root / "x.png").write_bytes(picture("PNG"))
    if name == "cat/metadata.csv":
        (root / "cat" / "0.png").write_bytes(picture("PNG"))
    return root if "/" in name else path


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """One to four changes: bytes flipped or set, a piece cut, repeated, replaced or moved."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 5))):
        if not data:
            break
        at, size = int(draw.integers(len(data))), int(draw.integers(1, 17))
        kind = int(draw.integers(7))
        if kind == 0:
            data[at] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            data[at] = int(draw.choice([0, 255, 127, 10, 34, 44, 45, 48]))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + size] = draw.bytes(size)
        elif kind == 5:
            del data[at:]
        else:
            piece = data[at : at + size]
            del data[at : at + size]
            where = int(draw.integers(len(data) + 1))
            data[where:where] = piece
    return bytes(data)


def quietly(action: Callable[[], Any]) -> None:
    """Errors of ours are fine; warnings of Pillow and NumPy about damaged files are, too."""
    began, sentence = time.process_time(), "fine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except ExpungeError as error:
            sentence = str(error)
    assert 0 < len(sentence.strip()) < 2000
    assert time.process_time() - began < SECONDS


def attack(name: str, rounds: int, root: Path, seed: int) -> None:
    draw = np.random.default_rng([seed, *name.encode()])
    for number in range(rounds):
        source = write_source(root, name, damaged(GOOD[name], draw))
        try:
            quietly(functools.partial(load_pair, source, cache=root / "cache"))
            if number % 4 == 0:
                quietly(functools.partial(inspect, source, cache=root / "cache"))
        except BaseException:
            kept = root / f"failed-{number}"
            kept.write_bytes((root / name).read_bytes())
            raise


@pytest.mark.parametrize("name", GOOD)
def test_good_files_load(tmp_path: Path, name: str) -> None:
    train, _ = load_pair(write_source(tmp_path / "d", name, GOOD[name]), cache=tmp_path / "cache")
    assert len(train) > 0


@pytest.mark.parametrize("name", GOOD)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    attack(name, 25, tmp_path / "d", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_for_long(tmp_path: Path, name: str, seed: int) -> None:
    attack(name, 1000, tmp_path / "d", seed)


PIECES = st.sampled_from([
    "id", "user", "label", "age", "7", "007", "-1", "1e5", "0x1", "nan", "inf", "'", '"', "==", "!=", "<", "<=", "in",
    "not", "and", "or", "(", ")", "{", "}", "[", "]", ",", " ", ".", ":", "=", "+", "-", "lambda", "__import__('os')",
    "\n", "\0", "\\", "\u00e9", "\u202e", "true", "index:", "class:", "where:", "ids:", "random:", "count=",
    "with_copies=", "99999999999999999999",
])  # fmt: skip
TEXT = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=20))
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def people() -> Split:
    users = np.ma.MaskedArray([7, 8, 9, 7], mask=[False, False, True, False])
    columns = {"user": users, "age": np.array([1.5, 2.0, np.nan, 3.0]), "name": np.array(["7", "007", "a b", ""])}
    store = ResidentStore(
        torch.eye(4), torch.tensor([0, 1, 0, 1]), classes=["cat", "dog"], ids=["a", "007", "7", "d"], columns=columns
    )
    return Split.whole(store, "train")


def check_text(text: str) -> None:
    train = people()
    quietly(lambda: rows_where(text, train))
    quietly(lambda: rows_where(f"user {text}", train))
    quietly(lambda: rows_by_id(text, train))
    quietly(lambda: rows_by_index(text, train))
    for name in ("class", "ids", "where", "index", "random", "per-class", "noisy", "subpopulation"):
        quietly(lambda name=name: parse_scenario(f"{name}:{text}").split(train, 0))
    quietly(lambda: parse_scenario(text).split(train, 0))


@FEW
@given(text=TEXT)
def test_texts_of_the_command_line(text: str) -> None:
    check_text(text)


@pytest.mark.slow
@MANY
@given(text=TEXT)
def test_texts_of_the_command_line_for_long(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize(
    "text", ["(" * 5000 + ")" * 5000, "not " * 3000 + "vip", "a" * 100_000, "age == 1 and " * 3000 + "age == 1"]
)
def test_long_texts(text: str) -> None:
    check_text(text)


@FEW
@given(
    name=st.sampled_from(["a.csv", "a.json", "a.txt"]), content=st.one_of(TEXT.map(str.encode), st.binary(max_size=60))
)
def test_files_of_ids_and_scores(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    quietly(lambda: read_ids(tmp_path / name))
    quietly(lambda: rows_by_id(tmp_path / name, people()))
    (tmp_path / "scores.csv").write_bytes(content)
    quietly(lambda: read_scores(tmp_path / "scores.csv", people()))
    quietly(lambda: read_features(tmp_path / "scores.csv", people()))


def test_deep_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    quietly(lambda: read_ids(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text(f"[{'9' * 10_000}]")
    quietly(lambda: read_ids(tmp_path / "a.json"))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.dates()
)


@FEW
@given(cells=st.lists(st.one_of(TEXT, st.integers().map(str), st.floats().map(str), st.none()), max_size=6))
def test_cells_are_typed_whatever_they_are(cells: list[str | None]) -> None:
    cells = [None if cell is None else cell.encode("utf-8", "ignore").decode() for cell in cells]
    quietly(lambda: as_text(from_cells(cells)))


@FEW
@given(values=st.lists(VALUES, min_size=1, max_size=6))
def test_columns_of_a_program_are_typed_whatever_they_are(values: list[Any]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    quietly(lambda: as_text(as_column(array)))


@FEW
@given(
    given_options=st.dictionaries(
        st.sampled_from([*DataOptions.__dataclass_fields__, "mod"]),
        st.one_of(TEXT, VALUES, st.lists(VALUES, max_size=3)),
        max_size=3,
    )
)
def test_options_of_data(given_options: dict[str, Any]) -> None:
    quietly(lambda: DataOptions.of(given_options))


class Runs:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x.npy", "a.npz", "t.parquet", "t.csv", "ids.json", "ids.csv", "cat/0.png"])
def test_no_file_runs_code(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    array = np.array([Runs(made)], dtype=object)
    content = {
        "x.npy": written(lambda out: np.save(out, array, allow_pickle=True)),
        "a.npz": written(lambda out: np.savez(out, x=array, y=array)),
    }.get(name, pickle.dumps(Runs(made)))
    source = write_source(tmp_path / "d", name, content)
    quietly(lambda: load_pair(source, cache=tmp_path / "cache"))
    quietly(lambda: rows_by_id(source, people()))
    assert not made.exists()
