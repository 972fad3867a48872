"""Forget sets as users give them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError, UsageError
from expunge.data.ids import rows_by_id, rows_by_index, rows_where
from expunge.data.split import ResidentStore, Split


def people() -> Split:
    store = ResidentStore(
        torch.arange(8.0)[:, None],
        torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
        classes=("cat", "dog", "fox"),
        ids=[f"p{i}" for i in range(8)],
        columns={
            "age": np.array([10, 20, 30, 40, 50, 60, 70, 80]),
            "city": np.array(["Rome", "Oslo"] * 4),
            "vip": np.array([True, False] * 4),
            "home town": np.array(["a", "b", "c", "d"] * 2),
        },
    )
    return Split.whole(store).take([0, 1, 2, 3, 4, 5, 7], "train")


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (np.array([False] * 6 + [True]), [7]),
        (torch.tensor([True] + [False] * 6), [0]),
        (["p7", "p0"], [7, 0]),
        ({"p5", "p2"}, [2, 5]),
        (np.array(["p2"]), [2]),
        ("p1, p3", [1, 3]),
        ("p1", [1]),
        ("index:1,3", [1, 3]),
        ([], []),
    ],
)
def test_forms_of_ids(selection, expected):
    found = rows_by_id(selection, people())
    assert found.dtype == torch.long
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ([3, 1], [3, 1]),
        (range(2), [0, 1]),
        ({5, 2}, [2, 5]),
        (torch.tensor([7]), [7]),
        (np.array([4, 0]), [4, 0]),
        (np.array([False] * 6 + [True]), [7]),
        ("1, 3", [1, 3]),
        (7, [7]),
        ([], []),
    ],
)
def test_forms_of_positions(selection, expected):
    found = rows_by_index(selection, people())
    assert found.dtype == torch.long
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda c: (c["age"] < 25) | (c["city"] == "Oslo"), [0, 1, 3, 5, 7]),
        (lambda c: torch.from_numpy(c["age"] > 70), [7]),
    ],
)
def test_conditions_in_python(condition, expected):
    assert rows_where(condition, people()).tolist() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "who,id\nx,p2\ny,p5\n"),
        ("a.csv", "p2\np5\n"),
        ("a.csv", "\ufeffid\np2\np5\n"),
        ("a.json", '["p2", "p5"]'),
        ("a.json", '{"ids": ["p2", "p5"]}'),
        ("a.txt", "p2\n\n p5 \n"),
        ("a.csv", "id,who\np2,a\np5,b\n"),
    ],
)
def test_files_of_ids(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert rows_by_id(str(path), people()).tolist() == [2, 5]
    assert rows_by_id(path, people()).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id\n\xff\xfe\n", "not UTF-8"),
        ("a.json", b"[1,", "line 1: not valid JSON"),
        ("a.json", b'{"x": 1}', "must hold a list"),
        ("a.txt", b"  \n", "holds no ids"),
        ("a.csv", b"who,id\nx\n", "line 2: there is no value"),
        ("a.txt", b"p1\nq1\nq2\nq3\nq4\n", r"4 of 5 ids are not in train: q1, q2, q3, \.\.\."),
        ("a.txt", b"p1\np1\n", "1 id is given more than once: p1"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_by_id(path, people())


def test_missing_file():
    with pytest.raises(DataError, match=r"cannot read nowhere\.csv"):
        rows_by_id("nowhere.csv", people())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([6], "1 of 1 ids are not in train: 6.*take the scenario `index`: index:6"),
        ("1,3", "2 of 2 ids are not in train: 1, 3"),
        (1, "1 of 1 ids are not in train: 1"),
        ("fox", "1 of 1 ids are not in train: fox"),
        ([True, False], "each of the 7 samples"),
        (["p6"], "1 of 1 ids are not in train: p6"),
        ([0.5], "cannot select samples by values"),
        ([["p1"]], "one-dimensional"),
        ([["p1"], ["p1", "p2"]], "nested lists"),
        ({"a": 1}, "cannot select samples by a dict"),
        (" ", "selection is empty"),
    ],
)
def test_bad_ids(selection, message):
    with pytest.raises(UsageError, match=message):
        rows_by_id(selection, people())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([6], "1 position is not in train: 6"),
        ([-1], "1 position"),
        ("-1", "`-1` is not a position"),
        ([8, 9], "2 positions"),
        ([1, 1], "given more than once"),
        (["p1"], "`p1` is not a position"),
        ([True, False], "each of the 7 samples"),
        ("99999999999999999999", "is not a position"),
    ],
)
def test_bad_positions(selection, message):
    with pytest.raises(UsageError, match=message):
        rows_by_index(selection, people())


def test_a_condition_must_give_a_mask():
    with pytest.raises(UsageError, match="each of the 7 samples"):
        rows_where(lambda c: True, people())
    with pytest.raises(UsageError, match="a condition is an expression or a callable, got int"):
        rows_where(3, people())


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("age < 25", [0, 1]),
        ("age>=60", [5, 7]),
        ("age==30", [2]),
        ("10 < age <= 30", [1, 2]),
        ("city == Oslo", [1, 3, 5, 7]),
        ("city == 'Oslo' and age > 50", [5, 7]),
        ("city in {Rome, Paris}", [0, 2, 4]),
        ("age in (10, 80)", [0, 7]),
        ("age not in [10, 80]", [1, 2, 3, 4, 5]),
        ("not (age < 60 or city == Rome)", [5, 7]),
        ("label == 0", [0, 3]),
        ("class_name == fox", [2, 5]),
        ("id == p4", [4]),
        ("vip", [0, 2, 4]),
        ("not vip", [1, 3, 5, 7]),
        ("'home town' == d", [3, 7]),
        ("age > -1", [0, 1, 2, 3, 4, 5, 7]),
    ],
)
def test_conditions(condition, expected):
    assert rows_where(condition, people()).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("agee < 3", "no metadata column `agee`; did you mean `age`"),
        ("age <", "is not a condition"),
        ("age == Rome", "holds whole numbers"),
        ("age == city", "compares text with numbers"),
        ("age", "is not understood"),
        ("__import__('os').system('x')", "is not understood"),
        ("age + 1 == 2", "is not understood"),
        ("age is 3", "is not understood"),
        ("city in Rome", "is not understood"),
    ],
)
def test_bad_conditions(condition, message):
    with pytest.raises(UsageError, match=message):
        rows_where(condition, people())


def test_ids_of_a_json_file_keep_its_order(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([f"p{i}" for i in (5, 0)]))
    assert rows_by_id(path, people()).tolist() == [5, 0]
