"""Labels to classes: forms of labels, the order of classes, and how a class is named."""

from __future__ import annotations

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
from expunge.data.classes import class_index
from expunge.data.convert import as_split
from expunge.data.sources import load_beside, load_data, load_pair
from expunge.data.split import ResidentStore, Split
from expunge.scenarios.base import make_scenario, parse_scenario


def parquet(path: Path, labels: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"a": np.arange(len(labels), dtype=np.float64), "label": labels, **columns}), path)
    return path


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([0, 2, 1], ("0", "1", "2"), [0, 2, 1]),
        ([0.0, 1.0, 0.0], ("0", "1"), [0, 1, 0]),
        (pa.array([0, 3, 1], pa.uint8()), ("0", "1", "2", "3"), [0, 3, 1]),
        (["10", "9", "0"], tuple(map(str, range(11))), [10, 9, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["01", "00", "01"], ("00", "01"), [1, 0, 1]),
        ([b"cat", b"ant", b"cat"], ("ant", "cat"), [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.array([1, 0, 1]).dictionary_encode(), ("0", "1"), [1, 0, 1]),
        ([[0, 1], [1, 0], [0, 1]], ("0", "1"), [1, 0, 1]),
        ([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], ("0", "1", "2"), [2, 0, 1]),
    ],
)
def test_forms_of_labels(tmp_path: Path, labels: Any, classes: tuple[str, ...], numbers: list[int]) -> None:
    train = load_data(parquet(tmp_path / "t.parquet", labels))
    assert train.store.classes == classes
    assert train.y.tolist() == numbers
    if not isinstance(labels, list) or not isinstance(labels[0], (list, bytes)):
        pq.read_table(tmp_path / "t.parquet").to_pandas().to_csv(tmp_path / "t.csv", index=False)
        assert load_data(tmp_path / "t.csv").store.classes == classes
        assert load_data(tmp_path / "t.csv").y.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "row 1: there is no label"),
        (["a", None, "b"], "row 1: there is no label"),
        (["a", "", "b"], "row 1: there is no label"),
        (["a", "nan", "b"], "row 1: there is no label"),
        ([0.0, float("nan"), 1.0], "row 1: there is no label"),
        ([0, -1, 1], "row 1: label -1 is none of the 2 classes; unlabelled samples cannot be used"),
        ([0.5, 1.0, 0.0], "row 0: label 0.5 is no class"),
        ([0, float("inf"), 1], "row 1: label inf is no class"),
        ([1, 2, 3], r"go from 1 to 3 and no sample has label 0; .*classes=1\.\.3 .*classes=0\.\.3"),
        ([0, 10**6, 1], "would mean 1,000,001 classes"),
        ([[1, 1], [1, 0], [0, 1]], r"no one-hot rows \(row 0"),
        ([[0, 2], [1, 0], [0, 1]], "no one-hot rows"),
        ([[1], [1, 0], [0, 1]], "no one-hot rows"),
        ([["a", "b"]] * 3, "label"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(parquet(tmp_path / "t.parquet", pa.array(labels)))


@pytest.mark.parametrize(
    ("labels", "given", "numbers"),
    [
        ([1, 2, 3], "1..3", [0, 1, 2]),
        ([1, 2, 3], "0..3", [1, 2, 3]),
        ([-1, 1, -1], "-1,1", [0, 1, 0]),
        ([-1, 1, -1], [1, -1], [1, 0, 1]),
        (["b", "a", "b"], "b, a, c", [0, 1, 0]),
        ([True, False, True], "True,False", [0, 1, 0]),
    ],
)
def test_the_order_of_classes_can_be_given(tmp_path: Path, labels: Any, given: Any, numbers: list[int]) -> None:
    train = load_data(parquet(tmp_path / "t.parquet", labels), classes=given)
    assert train.y.tolist() == numbers


def test_stated_names_can_be_reordered(tmp_path: Path) -> None:
    table = pa.table({"a": [0.0, 1.0, 2.0], "label": [0, 1, 2]})
    features = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "t.parquet")
    assert load_data(tmp_path / "t.parquet").store.classes == ("ant", "bee", "cow")
    assert load_data(tmp_path / "t.parquet", classes="cow,ant,bee").y.tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"label cow is none of the 2 classes \(ant, bee\)"):
        load_data(tmp_path / "t.parquet", classes="ant,bee")


@pytest.mark.parametrize("given", ["a", "a,a", "3..1", "1..1", "a,,b", ""])
def test_bad_orders(tmp_path: Path, given: str) -> None:
    with pytest.raises(UsageError, match=r"classes|none of the 1 classes"):
        load_data(parquet(tmp_path / "t.parquet", ["a", "b"]), classes=given)


def test_a_test_part_with_other_classes_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", ["a", "b"])
    parquet(tmp_path / "test.parquet", ["a", "c"])
    with pytest.raises(DataError, match=r"the test part has 1 classes that the training part has not \(c\)"):
        load_pair(tmp_path)
    assert load_pair(tmp_path, classes="a,b,c")[1].y.tolist() == [0, 2]


@pytest.mark.parametrize("missing", [[-1, -1], [None, None]])
def test_a_part_without_labels_is_left_out(
    tmp_path: Path, missing: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / "test.parquet", pa.array(missing, pa.int64()))
    assert load_pair(tmp_path)[1] is None
    parquet(tmp_path / "validation.parquet", [1, 0])
    assert load_pair(tmp_path)[1].y.tolist() == [1, 0]
    (tmp_path / "validation.parquet").unlink()
    with pytest.raises(DataError, match="has no test split; it has: train; the test part has no labels"):
        load_data(tmp_path, split="test")


def test_class_folders_are_ordered_as_torchvision_orders_them(tmp_path: Path) -> None:
    for name in ("9", "10", "1"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / name / "x.png")
    train = load_data(tmp_path)
    assert train.store.classes == ("1", "10", "9")
    assert load_data(tmp_path, classes="1,9,10").y.tolist() == [0, 2, 1]
    for asked, ident in (("class:10", "10/x.png"), ("class:9", "9/x.png"), ("class:index:2", "9/x.png")):
        assert parse_scenario(asked).split(train, 0).forget.ids.tolist() == [ident]
    with pytest.raises(UsageError, match="no class of train is called `2`"):
        parse_scenario("class:2").split(train, 0)


def named(*names: str) -> Split:
    return Split.whole(ResidentStore(torch.zeros(len(names), 1), torch.arange(len(names)), classes=names), "train")


@pytest.mark.parametrize(
    ("names", "target", "place"),
    [
        (("cat", "dog", "fox"), "dog", 1),
        (("cat", "dog", "fox"), " dog ", 1),
        (("cat", "dog", "fox"), "index:2", 2),
        (("cat", "dog", "fox"), 2, 2),
        (("0", "1", "2"), "2", 2),
        (("0", "1", "2"), 2, 2),
        (("00001", "00002", "00003"), "00002", 1),
        (("1", "2", "3"), "3", 2),
        (("Zo\u00eb", "x"), "Zoe\u0308", 0),
    ],
)
def test_how_a_class_is_named(names: tuple[str, ...], target: int | str, place: int) -> None:
    assert class_index(named(*names), target) == place


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        (("cat", "dog", "fox"), "1", "no class of train is called `1`; .*class 1 is `dog`"),
        (("cat", "dog", "fox"), "dgo", "did you mean `dog`"),
        (("cat", "dog", "fox"), "index:3", "class 3 does not exist"),
        (("cat", "dog", "fox"), 3, "class 3 does not exist"),
        (("1", "2", "3"), 3, "class 3 is ambiguous in train, whose classes have numbers as names"),
        (("00001", "00002"), "2", "class `2` does not exist"),
        (("0", "1"), "2", r"class `2` does not exist in train; allowed: 0\.\.1"),
        (("a", "a "), "a", "several classes of train are called `a`"),
        (tuple(f"n{i:03d}" for i in range(99)), "n1", r"Allowed: n000, n001, .*\.\.\. \(99 names\)"),
    ],
)
def test_classes_that_are_not_named_so(names: tuple[str, ...], target: int | str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_index(named(*names), target)


def test_numbers_of_yaml_are_places() -> None:
    train = named("cat", "dog", "fox")
    assert make_scenario("class", {"target": 1}).split(train, 0).forget.index.tolist() == [1]
    assert make_scenario("per-class", {"fractions": {1: 1.0}}).split(train, 0).forget.index.tolist() == [1]


def test_one_hot_labels_of_a_program() -> None:
    x = np.zeros((3, 2), dtype=np.float32)
    assert as_split((x, np.eye(3)[[2, 0, 1]])).y.tolist() == [2, 0, 1]
    assert as_split((x, torch.eye(3)[[2, 0, 1]])).y.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match="no one-hot rows"):
        as_split((x, np.ones((3, 3))))


def test_a_categorical_of_pandas_is_read_by_its_names(tmp_path: Path) -> None:
    labels = pd.Categorical(["low", "high", "low"], categories=["low", "mid", "high"], ordered=True)
    pd.DataFrame({"a": [0.0, 1.0, 2.0], "label": labels}).to_parquet(tmp_path / "t.parquet")
    assert load_data(tmp_path / "t.parquet").store.classes == ("high", "low")
    train = load_data(tmp_path / "t.parquet", classes=["low", "mid", "high"])
    assert train.y.tolist() == [0, 2, 0]


def test_test_data_of_their_own_have_the_classes_of_training(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "train/fox", "own/fox", "own/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).convert("L" if "own" in name else "RGB").save(
            tmp_path / name / "x.png"
        )
    train = load_data(tmp_path / "train", normalise="imagenet")
    own = load_beside(tmp_path / "own", train)
    assert own.store.classes == ("cat", "dog", "fox")
    assert own.y.tolist() == [0, 2]
    assert own.input_shape == (3, 4, 4)
    assert own.store.normalisation == train.store.normalisation
    (tmp_path / "own" / "cow").mkdir()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "own" / "cow" / "x.png")
    with pytest.raises(DataError, match=r"label cow is none of the 3 classes \(cat, dog, fox\)"):
        load_beside(tmp_path / "own", train)
    numbers = load_data(parquet(tmp_path / "t.parquet", [0, 1, 2]))
    assert load_beside(parquet(tmp_path / "u.parquet", [2, 1, 2]), numbers).y.tolist() == [2, 1, 2]
    digits = np.arange(4, dtype=np.float32)[:, None]
    features = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}}}}'
    table = pa.table({"a": digits[:2, 0], "label": [2, 0]}).replace_schema_metadata({"huggingface": features})
    pq.write_table(table, tmp_path / "named.parquet")
    assert load_beside(tmp_path / "named.parquet", numbers).store.classes == ("ant", "bee", "cow")
