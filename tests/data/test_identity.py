"""An id, a subject and a value of metadata stay what was written, wherever they are read and compared."""

from __future__ import annotations

import io
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from expunge.core.errors import DataError, UsageError
from expunge.data.ids import rows_by_id, rows_where
from expunge.data.scores import read_scores
from expunge.data.sources import load_pair
from expunge.data.split import ResidentStore, Split
from expunge.data.values import as_column, as_text, from_arrow, from_cells, kind_of, whole_numbers
from expunge.requests.members import of_subject, owners
from expunge.scenarios.base import parse_scenario

BIG = 2**53


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(folder: Path, **columns: Any) -> Split:
    count = len(next(iter(columns.values())))
    columns.setdefault("label", [row % 2 for row in range(count)])
    table = pa.table({"image": [{"bytes": png(), "path": None}] * count, **columns})
    pq.write_table(table, folder / "train.parquet")
    return load_pair(folder)[0]


def chosen(text: str, train: Split) -> list[int]:
    return sorted(parse_scenario(text).split(train, 0).forget.index.tolist())


@pytest.mark.parametrize(
    ("cells", "kind", "texts"),
    [
        (["1", "", "3"], "integer", ["1", "", "3"]),
        (["007", "7"], "text", ["007", "7"]),
        (["0", "-5"], "integer", ["0", "-5"]),
        (["-0", "1"], "number", ["0", "1"]),
        (["+49", "49"], "text", ["+49", "49"]),
        ([str(BIG + 1), ""], "integer", [str(BIG + 1), ""]),
        ([str(2**64 - 1), "1"], "integer", [str(2**64 - 1), "1"]),
        ([str(10**22), "1"], "text", [str(10**22), "1"]),
        ([str(BIG + 1), "2.5"], "text", [str(BIG + 1), "2.5"]),
        (["1.0", "2.0", ""], "number", ["1", "2", ""]),
        (["1e-05", "2"], "number", ["1e-05", "2"]),
        (["12e4", "77aa"], "text", ["12e4", "77aa"]),
        (["12e4", "34e5"], "text", ["12e4", "34e5"]),
        (["1", "NA", "nan"], "integer", ["1", "", ""]),
        (["NA", "cat"], "text", ["NA", "cat"]),
        (["True", "false", ""], "boolean", ["True", "False", ""]),
        ([" 5", "6 "], "integer", ["5", "6"]),
        (["1,5", "2"], "text", ["1,5", "2"]),
        (["2020-01-31", "2020-02-01"], "text", ["2020-01-31", "2020-02-01"]),
        (["", ""], "text", ["", ""]),
        ([], "text", []),
    ],
)
def test_the_cells_of_a_csv_column_decide_its_type(cells: list[str], kind: str, texts: list[str]) -> None:
    column = from_cells(cells)
    assert kind_of(column) == kind
    assert as_text(column).tolist() == texts


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        (pa.array([1, None], pa.int8()), "integer", ["1", ""]),
        (pa.array([None, BIG + 1]), "integer", ["", str(BIG + 1)]),
        (pa.array([2**64 - 1], pa.uint64()), "integer", [str(2**64 - 1)]),
        (pa.array(["b", None, "a"]).dictionary_encode(), "text", ["b", "", "a"]),
        (pa.array([7, 9]).dictionary_encode(), "integer", ["7", "9"]),
        (pa.array([b"u1", None]), "text", ["u1", ""]),
        (pa.array(["007", ""]), "text", ["007", ""]),
        (pa.array(["x"], pa.large_string()), "text", ["x"]),
        (pa.array(["x"], pa.string_view()), "text", ["x"]),
        (pa.array([date(2020, 1, 31)]), "text", ["2020-01-31"]),
        (pa.array([datetime(2020, 1, 31, 3, 4), None]), "text", ["2020-01-31 03:04:00", ""]),
        (pa.array([Decimal("5.00"), None]), "integer", ["5", ""]),
        (pa.array([Decimal("5.50")]), "number", ["5.5"]),
        (pa.array([Decimal(10**22)]), "text", [str(10**22)]),
        (pa.array([True, None]), "boolean", ["True", ""]),
        (pa.array([1.5, None]), "number", ["1.5", ""]),
        (pa.nulls(2), "text", ["", ""]),
        (pa.array([5], pa.duration("s")), "integer", ["5"]),
    ],
)
def test_parquet_columns_keep_their_type(values: pa.Array, kind: str, texts: list[str]) -> None:
    column = from_arrow(pa.chunked_array([values]), "place")
    assert kind_of(column) == kind
    assert as_text(column).tolist() == texts


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="place holds bytes that are not UTF-8"):
        from_arrow(pa.chunked_array([pa.array([b"\xff"])]), "place")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([5, None, 2**60], ["5", "", str(2**60)]),
        (["a", None, float("nan")], ["a", "", ""]),
        ([b"u", "v"], ["u", "v"]),
        ([2**70], [str(2**70)]),
        ([True, None], ["True", ""]),
    ],
)
def test_columns_of_a_program(values: list[Any], texts: list[str]) -> None:
    assert as_text(as_column(np.array(values, dtype=object))).tolist() == texts


def test_floats_become_integers_only_where_that_is_exact() -> None:
    assert whole_numbers(np.array([5.0, np.nan])).tolist() == [5, None]
    assert whole_numbers(np.array([float(2**54)])).dtype == np.float64
    assert whole_numbers(np.array([float(2**25)], dtype=np.float32)).dtype == np.float32
    assert whole_numbers(np.array([0.5])).tolist() == [0.5]


def test_padded_ids_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("id,a,label\n" + "".join(f"{i:04d},{i},{i % 3}\n" for i in range(1, 13)))
    train, _ = load_pair(path)
    assert train.ids[:2].tolist() == ["0001", "0002"]
    assert chosen("ids:0005", train) == [4]
    assert chosen("where:id == 0005", train) == [4]
    with pytest.raises(DataError, match="ids there look like `0001`"):
        parse_scenario("ids:5").split(train, 0)


def test_an_id_that_only_looks_like_another_is_not_it(tmp_path: Path) -> None:
    train = parquet(tmp_path, id=[5, 6, 7, 8])
    with pytest.raises(DataError, match="`0005` is not `5`"):
        parse_scenario("ids:0005").split(train, 0)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 2, None, 4, 5, 6], pa.int64()),
        pa.array([1.0, 2.0, None, 4.0, 5.0, 6.0]),
        pa.array(["1", "2", None, "4", "5", "6"]),
        pa.array([b"1", b"2", None, b"4", b"5", b"6"]),
        pa.array([Decimal(n) if n else None for n in (1, 2, 0, 4, 5, 6)]),
        pa.array([1, 2, None, 4, 5, 6], pa.uint64()),
        pa.array(["1", "2", None, "4", "5", "6"]).dictionary_encode(),
    ],
)
def test_a_missing_id_concerns_its_own_row(tmp_path: Path, ids: pa.Array) -> None:
    train = parquet(tmp_path, id=ids)
    assert chosen("ids:5", train) == [4]
    assert train.ids.tolist() == ["1", "2", "missing-id/2", "4", "5", "6"]


def test_whole_ids_that_pandas_wrote_as_floats(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": [1, None, 3, 4], "a": 0.5, "label": [0, 1, 0, 1]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        train, _ = load_pair(tmp_path / name)
        assert train.ids.tolist() == ["1", "missing-id/1", "3", "4"]
        (tmp_path / "wanted.csv").write_text("id\n3.0\n")
        assert rows_by_id(tmp_path / "wanted.csv", train).tolist() == [2]
    (tmp_path / "v.csv").write_text("id,a,label\n1.0,1,0\n1.10,1,1\n1.1,1,0\n")
    assert load_pair(tmp_path / "v.csv")[0].ids.tolist() == ["1.0", "1.10", "1.1"]


def test_ids_that_floats_may_have_merged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the id column `id` holds decimal numbers"):
        parquet(tmp_path, id=[float(BIG), float(BIG + 2)])


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_large_integers_beside_missing_ones_are_exact(tmp_path: Path, kind: pa.DataType) -> None:
    users = [None, BIG + 1, BIG + 3, BIG + 4, BIG + 5, 7]
    train = parquet(tmp_path, user=pa.array(users, kind))
    for row, user in enumerate(users[1:], 1):
        assert chosen(f"where:user=={user}", train) == [row]
        assert chosen(f"where:user in {{{user}}}", train) == [row]
    assert chosen(f"where:user <= {BIG + 4}", train) == [1, 2, 3, 5]
    assert rows_where("not user == 7", train).tolist() == [1, 2, 3, 4]
    assert rows_where("user != 7", train).tolist() == [1, 2, 3, 4]
    assert rows_where(lambda columns: columns["user"] != 7, train).tolist() == [1, 2, 3, 4]
    assert rows_where("user == 0", train).tolist() == []


def test_padded_subjects_are_other_people(tmp_path: Path) -> None:
    for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 5, np.uint8)).save(tmp_path / f"{name}.png")
    rows = ["file_name,user", "cat/0.png,007", "cat/1.png,7", "dog/0.png,0012", "dog/1.png,"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    train, _ = load_pair(tmp_path)
    assert chosen("where:user==7", train) == [1]
    assert chosen("where:user==007", train) == [0]
    assert chosen("where:user in {007, 0012}", train) == [0, 2]
    owner = owners(b"pepper", train, "user")
    assert [owner.tolist().index(of_subject(b"pepper", text)) for text in ("007", "7", "0012")] == [0, 1, 2]
    assert owner[3] == ""
    assert of_subject(b"pepper", "nan") not in owner


def people(**columns: np.ndarray) -> Split:
    count = len(next(iter(columns.values())))
    store = ResidentStore(torch.zeros(count, 1), torch.arange(count) % 2, ids=np.arange(count), columns=columns)
    return Split.whole(store, "train")


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("code == 1e5", [0]),
        ("code == 1_000", [1]),
        ("code == 1.50", [2]),
        ("code == 0x10", [3]),
        ("code == 2020-01-31", [4]),
        ("code == 4f1c", [5]),
        ("code == 'a b'", [6]),
        ("code == -3", [7]),
        ("code == 100000.0", []),
        ("code == 1000", []),
        ("code == 1.5", []),
    ],
)
def test_text_is_compared_as_it_is_written(condition: str, rows: list[int]) -> None:
    codes = np.array(["1e5", "1_000", "1.50", "0x10", "2020-01-31", "4f1c", "a b", "-3"])
    assert rows_where(condition, people(code=codes)).tolist() == rows


def test_unicode_form_and_space_around_do_not_count() -> None:
    train = people(name=np.array(["Zoe\u0308 ", "Zo\u00eb", "Zoe"]))
    assert rows_where("name == 'Zo\u00eb'", train).tolist() == [0, 1]
    store = ResidentStore(torch.zeros(2, 1), torch.tensor([0, 1]), ids=["a ", "a"])
    with pytest.raises(DataError, match="several ids differ from `a` in space or Unicode form only"):
        rows_by_id("a", Split.whole(store))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("number == 007", "holds whole numbers, but .* compares it with `007`"),
        ("number == '7'", "holds whole numbers"),
        ("text > 5", "holds text, but"),
        ("text == number", "compares text with numbers"),
    ],
)
def test_types_that_do_not_fit(condition: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_where(condition, people(number=np.array([7, 8]), text=np.array(["7", "8"])))


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("n == 5.0", [1]),
        ("n == 5.5", []),
        ("n != 5.5", [0, 1, 2]),
        ("n < 5.5", [0, 1]),
        ("n > 4.5", [1, 2]),
        ("4.5 <= n < 6.5", [1, 2]),
        ("n == 99999999999999999999999", []),
        ("n < 1e400", [0, 1, 2]),
        ("n in {4, 6.0}", [0, 2]),
        ("n not in {4}", [1, 2]),
        ("n in {}", []),
        ("vip == true", [0]),
        ("vip == True", [0]),
        ("not vip", [1]),
        ("vip or n == 6", [0, 2]),
        ("vip and n == 6", []),
    ],
)
def test_numbers_and_missing_cells(condition: str, rows: list[int]) -> None:
    vip = np.ma.MaskedArray([True, False, True], mask=[False, False, True])
    if condition == "n in {}":  # an empty set cannot be written
        with pytest.raises(UsageError, match="is not understood"):
            rows_where(condition, people(n=np.array([4, 5, 6])))
        return
    assert rows_where(condition, people(n=np.array([4, 5, 6]), vip=vip)).tolist() == rows


def test_the_label_of_a_condition_is_what_the_data_call_it() -> None:
    store = ResidentStore(torch.zeros(3, 1), torch.tensor([0, 1, 2]), classes=["1", "2", "10"])
    assert rows_where("label == 10", Split.whole(store)).tolist() == [2]
    store = ResidentStore(torch.zeros(3, 1), torch.tensor([0, 1, 2]), classes=["ant", "bee", "cow"])
    assert rows_where("label == 1", Split.whole(store)).tolist() == [1]
    assert rows_where("class_name == cow", Split.whole(store)).tolist() == [2]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_score_files_name_samples_by_the_same_rule(tmp_path: Path, suffix: str) -> None:
    store = ResidentStore(torch.zeros(3, 1), torch.tensor([0, 1, 0]), ids=["007", "7", "8"])
    path = tmp_path / f"scores{suffix}"
    frame = pd.DataFrame({"id": ["8", "7", "007"], "score": [0.3, 0.2, 0.1]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    assert read_scores(path, Split.whole(store)).tolist() == [0.1, 0.2, 0.3]
    numbers = Split.whole(ResidentStore(torch.zeros(2, 1), torch.tensor([0, 1]), ids=[5, 6]))
    frame = pd.DataFrame({"id": [6.0, 5.0, np.nan], "score": [0.6, 0.5, 0.0]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    assert read_scores(path, numbers).tolist() == [0.5, 0.6]
