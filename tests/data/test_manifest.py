"""Lists of image files, and the lists of Lacuna."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.core.errors import DataError, UsageError
from expunge.data import lacuna
from expunge.data.sources import load_pair


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


def listed(tmp_path: Path, rows: list[str]) -> Path:
    for name, value in (("a/1.png", 10), ("a/2.png", 20), ("b/3.png", 30)):
        picture(tmp_path / "faces" / name, value)
    path = tmp_path / "list.csv"
    path.write_text("file_name,label,split,age\n" + "\n".join(rows))
    return path


def test_a_list_of_files_with_parts_and_metadata(tmp_path: Path) -> None:
    path = listed(tmp_path, ["faces/b/3.png,bob,train,40", "faces/a/1.png,ann,train,30", "faces/a/2.png,ann,test,31"])
    train, test = load_pair(path)
    assert test is not None
    assert train.store.classes == ("ann", "bob")
    assert train.y.tolist() == [1, 0]
    assert train.store.columns["age"].tolist() == [40, 30]
    assert [round(255 * float(x.mean())) for x in train.inputs()] == [30, 10]
    assert test.ids.tolist() == ["faces/a/2.png"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["faces/a/9.png,ann,train,1"], r"line 2: there is no file .*9\.png"),
        (["faces/a/1.png,ann,train,1", "faces/a/2.png,ann,tset,1"], "line 3: split `tset`"),
        (["faces/a/1.png,,train,1"], "line 2: the file name or the label is missing"),
        ([], "needs the columns"),
    ],
)
def test_what_is_wrong_in_a_list_is_named(tmp_path: Path, rows: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_pair(listed(tmp_path, rows))


def test_lacuna_lists_are_disjoint_and_of_the_right_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAIN", 4), ("TEST", 2), ("SMALL", 10), ("LARGE", 3)):
        monkeypatch.setattr(lacuna, name, value)
    for person in range(15):
        for number in range(7 if person else 3):  # the first has too few images
            picture(tmp_path / "faces" / f"n{person:02d}" / f"{number}.png", person)
    files = lacuna.write_manifests(tmp_path / "faces", tmp_path / "lists", seed=1)
    assert [file.name for file in files] == ["lacuna5.csv", "lacuna6.csv", "lacuna10.csv", "lacuna100.csv"]
    tables = {file.stem: list(csv.DictReader(file.read_text().splitlines())) for file in files}
    people = {name: list(dict.fromkeys(row["label"] for row in rows)) for name, rows in tables.items()}
    assert people["lacuna5"] == people["lacuna10"][:5]
    assert people["lacuna6"] == people["lacuna10"][:6]
    assert not set(people["lacuna10"]) & set(people["lacuna100"])
    assert "n00" not in people["lacuna10"] + people["lacuna100"]
    for rows in tables.values():
        assert set(Counter((row["label"], row["split"]) for row in rows).values()) == {4, 2}
        assert len({row["file_name"] for row in rows}) == len(rows)
    train, test = load_pair(files[0])
    assert (len(train), len(test or ())) == (20, 10)


def test_too_few_faces_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "faces" / "n1" / "1.png", 1)
    with pytest.raises(DataError, match="0 identities with at least 500 images"):
        lacuna.write_manifests(tmp_path / "faces", tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        lacuna.write_manifests(tmp_path / "nowhere", tmp_path)
