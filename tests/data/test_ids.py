"""Forget sets as users give them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError, UsageError
from expunge.data.ids import positions_from
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
        ([3, 1], [3, 1]),
        (range(2), [0, 1]),
        ({5, 2}, [2, 5]),
        (torch.tensor([7]), [7]),
        (np.array([4, 0]), [4, 0]),
        (np.array([False] * 6 + [True]), [7]),
        (torch.tensor([True] + [False] * 6), [0]),
        (["p7", "p0"], [7, 0]),
        (np.array(["p2"]), [2]),
        ("p1, p3", [1, 3]),
        ("1,3", [1, 3]),
        (1, [1, 4, 7]),
        ("fox", [2, 5]),
        (lambda c: (c["age"] < 25) | (c["city"] == "Oslo"), [0, 1, 3, 5, 7]),
        (lambda c: torch.from_numpy(c["age"] > 70), [7]),
        ([], []),
    ],
)
def test_forms_of_a_selection(selection, expected):
    found = positions_from(selection, people())
    assert found.dtype == torch.long
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "who,id\nx,p2\ny,p5\n"),
        ("a.csv", "p2\np5\n"),
        ("a.csv", "\ufeffid\np2\np5\n"),
        ("a.json", '["p2", "p5"]'),
        ("a.json", '{"ids": ["p2", "p5"]}'),
        ("a.txt", "p2\n\n p5 \n"),
        ("a.txt", "2\n5"),
        ("a.json", "[2, 5]"),
    ],
)
def test_files_of_ids(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert positions_from(str(path), people()).tolist() == [2, 5]
    assert positions_from(path, people()).tolist() == [2, 5]


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
        positions_from(path, people())


def test_missing_file():
    with pytest.raises(DataError, match=r"cannot read nowhere\.csv"):
        positions_from("nowhere.csv", people())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([6], "1 position is not in train: 6"),
        ([-1], "1 position"),
        ([8, 9], "2 positions"),
        ([1, 1], "given more than once"),
        ([True, False], "each of the 7 samples"),
        (["p6"], "1 of 1 ids are not in train: p6"),
        (9, r"class 9 does not exist in train; allowed: 0\.\.2"),
        ([0.5], "cannot select samples by values"),
        ([[1]], "one-dimensional"),
        ({"a": 1}, "cannot select samples by a dict"),
        (lambda c: True, "each of the 7 samples"),
        (" ", "selection is empty"),
    ],
)
def test_bad_selections(selection, message):
    with pytest.raises(UsageError, match=message):
        positions_from(selection, people())


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
    assert positions_from(condition, people(), predicate=True).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("agee < 3", "no metadata column `agee`; did you mean `age`"),
        ("age <", "is not a condition"),
        ("age == Rome", "holds numbers"),
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
        positions_from(condition, people(), predicate=True)


def test_positions_of_json_file_are_exact(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([f"p{i}" for i in (5, 0)]))
    assert positions_from(path, people()).tolist() == [5, 0]
