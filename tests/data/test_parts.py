"""Which rows belong to which part, and what a table means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.core.errors import DataError
from expunge.data.parts import part_of
from expunge.data.sources import load_data, load_pair


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("train_00", "train"), ("train.00", "train"), ("mnist-train", "train"), ("TRAIN", "train"),
        ("Training", "train"), ("seg_train", "train"), ("trainA", "train"), ("train2017", "train"),
        ("trainval", "train"),
        ("train_val", "train"), ("test", "test"), ("mnist_test", "test"), ("Testing", "test"), ("PublicTest", "test"),
        ("test_batch", "test"), ("evaluation", "test"), ("val", "validation"), ("Validation", "validation"),
        ("valid_01", "validation"), ("dev", "validation"), ("contest", None), ("retrained", None), ("latest", None),
        ("train_test", None), ("part-0", None), ("strain", None), ("", None),
    ],
)  # fmt: skip
def test_words_of_parts(name: str, part: str | None) -> None:
    assert part_of(name) == part


def table(path: Path, count: int = 4, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"a": np.arange(count, dtype=np.float64), "label": [i % 2 for i in range(count)], **columns}
    if path.suffix == ".csv":
        pd.DataFrame(content).to_csv(path, index=False)
    else:
        pq.write_table(pa.table(content), path)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train_00", "test_00"), ("mnist-train", "mnist-test"), ("train.00", "test.00"), ("Train", "VAL"),
        ("train/0", "test/0"), ("Training/part-0", "Validation/part-0"), ("mnist/train/0000", "mnist/test/0000"),
        ("a/b/train-0", "a/b/test-0"), ("data/train-00000-of-00001", "data/test-00000-of-00001"),
    ],
)  # fmt: skip
def test_files_are_parts_by_name(tmp_path: Path, first: str, second: str, suffix: str) -> None:
    table(tmp_path / f"{first}.{suffix}", 6)
    table(tmp_path / f"{second}.{suffix}", 4)
    train, test = load_pair(tmp_path)
    assert (len(train), len(test)) == (6, 4)


def test_files_that_are_not_understood(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet")
    table(tmp_path / "more.parquet")
    with pytest.raises(
        DataError, match=r"the part of more\.parquet is not known \(understood: train: train\.parquet\)"
    ):
        load_pair(tmp_path)
    (tmp_path / "more.parquet").rename(tmp_path / "extra-0.parquet")  # as SVHN has it
    assert len(load_pair(tmp_path)[0]) == 4
    (tmp_path / "train.parquet").rename(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="holds no training data, only test"):
        load_pair(tmp_path)


def test_files_without_any_word_are_one_table(tmp_path: Path) -> None:
    table(tmp_path / "part-0.parquet", 3)
    table(tmp_path / "part-1.parquet", 4)
    train, test = load_pair(tmp_path)
    assert (len(train), test) == (7, None)
    table(tmp_path / "other" / "part-1.parquet", 4)
    with pytest.raises(DataError, match="holds several data sets"):
        load_pair(tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_of_parts(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path / f"t.{suffix}", 5, Usage=["Training", "PublicTest", "Training", "val", "Training"])
    train, test = load_pair(path)
    assert train.store.samples[:, 0].tolist() == [0, 2, 4]
    assert test.store.samples[:, 0].tolist() == [1]
    assert load_data(path, split="validation").store.samples[:, 0].tolist() == [3]
    path = table(tmp_path / f"u.{suffix}", 3, split=["train", "tset", "train"])
    with pytest.raises(DataError, match="the split `tset` is not understood"):
        load_pair(path)
    path = table(tmp_path / f"v.{suffix}", 3, split=["train", None, "train"])
    with pytest.raises(DataError, match="no value in the column `split`"):
        load_pair(path)


def both(tmp_path: Path, frame: pd.DataFrame, *, index: bool = False) -> list[Path]:
    """One table as CSV and as Parquet."""
    frame.to_csv(tmp_path / "t.csv", index=index)
    frame.to_parquet(tmp_path / "t.parquet")
    return [tmp_path / "t.csv", tmp_path / "t.parquet"]


def test_one_table_means_the_same_in_every_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "target": [0, 1, 2] * 4, "weight": np.arange(12.0), "age": np.arange(12) % 5, "vip": [True, False] * 6,
        "city": ["Rome", "Oslo"] * 6, "user_id": range(12), "id": [f"{i:03d}" for i in range(12)],
    })  # fmt: skip
    loaded = [load_pair(path)[0] for path in both(tmp_path, frame)]
    for train in loaded:
        assert train.y.tolist() == frame["target"].tolist()
        assert train.store.samples.tolist() == frame[["weight", "age", "vip"]].astype(float).to_numpy().tolist()
        assert train.ids.tolist() == frame["id"].tolist()
        assert train.store.columns["user_id"].tolist() == list(range(12))
        assert train.store.columns["city"].tolist() == frame["city"].tolist()
        assert train.store.columns["age"].tolist() == frame["age"].tolist()
    assert loaded[0].content_hash() == loaded[1].content_hash()
    for path in both(tmp_path, frame):
        assert load_data(path, metadata="age,vip").input_shape == (1,)
        with pytest.raises(DataError, match="no metadata column `agee`; did you mean `age`"):
            load_data(path, metadata="agee")


@pytest.mark.parametrize("name", [None, "index"])
def test_saved_row_numbers_are_no_features(tmp_path: Path, name: str | None) -> None:
    frame = pd.DataFrame({"a": np.arange(6.0), "b": 1.0, "label": [0, 1] * 3}, index=pd.RangeIndex(6, name=name))
    if name is None:
        frame.index = frame.index + 100
    for path in both(tmp_path, frame, index=True):
        assert load_data(path).store.samples[0].tolist() == [0.0, 1.0]
    again = pd.read_csv(tmp_path / "t.csv")
    again.to_csv(tmp_path / "u.csv")
    assert load_data(tmp_path / "u.csv").input_shape == (2,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5.1,3.5,Iris-setosa\n4.9,3.0,Iris-setosa\n", "seems to have no header"),
        ("1,2,3\n4,5,6\n", "seems to have no header"),
        ("5,3,cat\n4,1,dog\n", "seems to have no header"),
        ("a;b;label\n1;2;0\n", "not separated by commas"),
        ("a\tb\tlabel\n1\t2\t0\n", "not separated by commas"),
        ("a,a,label\n1,2,0\n", "several columns called `a`"),
        ("a,label\n1,0\n2\n", "cannot read"),
        ("", "has no header"),
        ("a,b\n1,0\n", "has no label column; pass label_column, one of: a, b"),
        ("a,target,class\n1,0,1\n", "which column is the label, `target` or `class`"),
        ("a,b,label\n" + "1,2,0\n" * 20 + "1,1o5,0\n", "line 22: the column `b` holds numbers, but `1o5` here"),
        ('a,label\n"1,5",0\n"2,5",1\n', "neither an image column nor numeric columns"),
        ("a,label\n1,0\n\0,1\n", "NUL|neither"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_pair(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a,b,label\n1,2,\u00c4pfel\n3,4,Birne\n".encode(encoding))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_pair(path)
    path.write_bytes("a,b,label\n1,2,\u00c4pfel\n3,4,Birne\n".encode("utf-8-sig"))
    assert load_pair(path)[0].store.classes == ("Birne", "\u00c4pfel")


def test_numbered_columns_are_a_header(tmp_path: Path) -> None:
    pd.DataFrame(np.eye(3)).assign(label=[0, 1, 0]).to_csv(tmp_path / "t.csv", index=False)
    assert load_data(tmp_path / "t.csv").input_shape == (3,)


def picture(path: Path, value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("train_names", "test_names"),
    [
        (["train/cat/0", "train/dog/1"], ["test/cat/2"]),
        (["Training/cat/0", "Training/dog/1"], ["Testing/cat/2"]),
        (["chest/chest/train/cat/0", "chest/chest/train/dog/1"], ["chest/chest/val/cat/2"]),
        (["seg_train/seg_train/cat/0", "seg_train/seg_train/dog/1"], ["seg_test/seg_test/cat/2"]),
        (["cat/train/0", "dog/train/1"], ["cat/test/2"]),
        (["train/cat/images/0", "train/dog/images/1"], ["test/cat/images/2"]),
    ],
)
def test_folders_are_parts_by_name(tmp_path: Path, train_names: list[str], test_names: list[str]) -> None:
    for name in train_names + test_names:
        picture(tmp_path / f"{name}.png")
    train, test = load_pair(tmp_path)
    assert train.store.classes == ("cat", "dog")
    assert sorted(train.ids) == [f"{name}.png" for name in train_names]
    assert test.ids.tolist() == [f"{name}.png" for name in test_names]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        picture(tmp_path / name / "0.png")
    assert load_data(tmp_path).store.classes == ("bus", "car", "train")


def test_folders_that_are_not_understood(tmp_path: Path) -> None:
    for name in ("train/cat/0", "test/cat/1", "holiday/cat/2"):
        picture(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"the part of the folder holiday is not known .*test is test, train is train"):
        load_pair(tmp_path)
    (tmp_path / "holiday").rename(tmp_path / "unlabelled")
    assert len(load_pair(tmp_path)[0]) == 1
    picture(tmp_path / "test" / "images" / "3.png")
    with pytest.raises(DataError, match="the test part has class folders that the training part has not: images"):
        load_pair(tmp_path)


def test_class_folders_behind_links_and_empty_ones(tmp_path: Path) -> None:
    store = tmp_path / "store"
    picture(store / "x.png")
    root = tmp_path / "data"
    for name in ("a", "b"):
        picture(root / name / "x.png")
    (root / "c").symlink_to(store)
    assert load_data(root).store.classes == ("a", "b", "c")
    assert load_data(root).ids.tolist() == ["a/x.png", "b/x.png", "c/x.png"]
    (root / "d").mkdir()
    with pytest.raises(DataError, match=r"the class folder .*d holds no image"):
        load_data(root)
    (root / "d" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"the class folder .*d holds no image"):
        load_data(root)
    (root / "d" / "notes.txt").unlink()
    (root / "d").rmdir()
    (root / ".ipynb_checkpoints").mkdir()
    (root / "a" / "Thumbs.db").write_text("x")
    assert len(load_data(root)) == 3
    (root / "a" / "loop").symlink_to(root)
    with pytest.raises(DataError, match="is a link to a folder that it is in"):
        load_data(root)
    (root / "a" / "loop").unlink()
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="is a link to nothing"):
        load_data(root)


def test_metadata_of_parts(tmp_path: Path) -> None:
    for name in ("train/0", "train/1", "test/2"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,user\ntrain\\0.png,cat,007\n./train/1.png,dog,\ntest/2.png,cat,7\n"
    )
    train, test = load_pair(tmp_path)
    assert train.store.classes == ("cat", "dog")
    assert train.store.columns["user"].tolist() == ["007", None]
    assert test.y.tolist() == [0]
    text = (tmp_path / "metadata.csv").read_text()
    (tmp_path / "metadata.csv").write_text(text + "train/0.png,dog,1\n")
    with pytest.raises(DataError, match=r"line 5: train/0\.png has a row already"):
        load_pair(tmp_path)
    (tmp_path / "metadata.csv").write_text(text.replace(",", ";"))
    with pytest.raises(DataError, match="not separated by commas"):
        load_pair(tmp_path)
    (tmp_path / "metadata.csv").write_text(text.replace("dog", ""))
    with pytest.raises(DataError, match=r"train.1\.png: there is no label"):
        load_pair(tmp_path)
