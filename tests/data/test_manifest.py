"""Lists of image files, and the lists of Lacuna."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.manifest import listing
from expunge.data.sets import imagenet_a, lacuna, utkface
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


def test_an_id_column_lets_a_list_name_a_file_twice(tmp_path: Path) -> None:
    path = listed(tmp_path, [])
    rows = ["faces/a/1.png,ann,train,x", "faces/a/1.png,ann,train,y", "faces/b/3.png,bob,train,z"]
    path.write_text("file_name,label,split,id\n" + "\n".join(rows))
    train, _ = load_pair(path)
    assert train.ids.tolist() == ["x", "y", "z"]
    assert not train.store.columns
    with pytest.raises(DataError, match="no id column `idd`; did you mean `id`"):
        load_pair(path, id_column="idd")
    path.write_text("file_name,label,id\nfaces/a/1.png,ann,\n")
    with pytest.raises(DataError, match=r"line 2: the id \(column `id`\) is missing"):
        load_pair(path)


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifteen identities with seven pictures each (the first: too few), all different."""
    for name, value in (("TRAIN", 4), ("TEST", 2), ("SMALL", 10), ("LARGE", 3)):
        monkeypatch.setattr(lacuna, name, value)
    for person in range(15):
        for number in range(7 if person else 3):
            picture(tmp_path / "faces" / f"n{person:02d}" / f"{number}.png", 10 * person + number)
    return tmp_path / "faces"


def test_lacuna_lists_are_disjoint_and_of_the_right_size(tmp_path: Path, faces: Path) -> None:
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


def test_equal_pictures_are_listed_once(tmp_path: Path, faces: Path) -> None:
    files = lacuna.write_manifests(faces, tmp_path / "lists", seed=1)
    rows = list(csv.DictReader(files[2].read_text().splitlines()))
    first, second = list(dict.fromkeys(row["label"] for row in rows))[:2]
    picture(faces / first / "6.png", 251)
    picture(faces / second / "0.png", 251)  # shared by two people: one of them may have it
    files = lacuna.write_manifests(faces, tmp_path / "again", seed=1)
    listed = [file for name in files[2:] for file in _contents(name)]
    assert len(set(listed)) == len(listed) == 13 * 6
    picture(faces / first / "5.png", 251)
    picture(faces / first / "4.png", 251)  # five different pictures are left: the next identity takes the place
    files = lacuna.write_manifests(faces, tmp_path / "third", seed=1)
    assert first not in {row["label"] for row in csv.DictReader(files[2].read_text().splitlines())}
    picture(faces / second / "1.png", 251)
    picture(faces / second / "2.png", 251)
    with pytest.raises(DataError, match="12 identities with at least 6 distinct images; 13 are needed"):
        lacuna.write_manifests(faces, tmp_path / "fourth", seed=1)


def _contents(path: Path) -> list[bytes]:
    rows = csv.DictReader(path.read_text().splitlines())
    return [(path.parent / row["file_name"]).read_bytes() for row in rows]


def test_the_authors_lacuna_leaks_and_shares_its_identities(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lacuna, "LARGE", 14)
    monkeypatch.setattr("sys.argv", ["lacuna", "--authors", str(faces), str(tmp_path / "lists")])
    assert listing("expunge.data.sets.lacuna", ("FACES", "OUT"), lacuna.write_manifests, ("authors",)) == 0
    tables = {
        name: list(csv.DictReader((tmp_path / "lists" / f"{name}.csv").read_text().splitlines()))
        for name in ("lacuna5", "lacuna10", "lacuna100")
    }
    people = {name: list(dict.fromkeys(row["label"] for row in rows)) for name, rows in tables.items()}
    assert people["lacuna10"] == people["lacuna100"][:10]
    assert people["lacuna5"] == people["lacuna100"][:5]
    rows = tables["lacuna100"]
    assert set(Counter((row["label"], row["split"]) for row in rows).values()) == {4, 2}
    assert len(people["lacuna100"]) == 14
    assert len({row["label"].partition("-")[0] for row in rows}) < 14, "an identity may be drawn again"
    parts = {part: {row["file_name"] for row in rows if row["split"] == part} for part in ("train", "test")}
    assert parts["train"] & parts["test"]
    train, test = load_pair(tmp_path / "lists" / "lacuna5.csv", normalise="scrub-lacuna")
    assert (len(train), len(test or ())) == (20, 10)


def test_too_few_faces_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "faces" / "n1" / "1.png", 1)
    with pytest.raises(DataError, match="0 identities with at least 500 images"):
        lacuna.write_manifests(tmp_path / "faces", tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        lacuna.write_manifests(tmp_path / "nowhere", tmp_path)


def test_utkface_lists_follow_the_ages_and_the_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ages = [1, 3, 4, 12, 13, 19, 20, 21, 40, 41, 60, 61, 70, 100, 110, 111, 116, 30, 45, 46]
    for number, age in enumerate(ages):
        picture(tmp_path / "faces" / f"{age}_0_1_2017{number:04d}.jpg", age)
    files = utkface.write_manifests(tmp_path / "faces", tmp_path / "lists")
    assert len(files) == 10
    line = capsys.readouterr().out
    assert len(line.split()[-1]) == 64
    utkface.write_manifests(tmp_path / "faces", tmp_path / "again")
    assert capsys.readouterr().out == line
    rows = list(csv.DictReader((tmp_path / "lists" / "utkface-mfd.csv").read_text().splitlines()))
    held = list(csv.DictReader((tmp_path / "lists" / "utkface-mfd-validation.csv").read_text().splitlines()))
    assert Counter(row["split"] for row in rows) == {"train": 16, "test": 2}
    assert len(held) == 2
    assert len({row["file_name"] for row in rows + held}) == 20
    for row in rows + held:
        age = int(Path(row["file_name"]).name.split("_")[0])
        assert int(row["label"]) == (0 if age < 20 else 1 if age < 41 else 2)
    with pytest.raises(DataError, match="the test part has 1 classes that the training part has not"):
        load_pair(tmp_path / "lists" / "utkface-tens.csv", image_size=8)
    tens = [f"{number:02d}" for number in range(12)]
    train, test = load_pair(tmp_path / "lists" / "utkface-tens.csv", image_size=8, classes=tens)
    assert (len(train), len(test or ())) == (16, 2)


@pytest.mark.parametrize("name", ["young_0_1.jpg", "130_0_1.jpg"])
def test_a_face_without_an_age_is_named(tmp_path: Path, name: str) -> None:
    for number in range(10):
        picture(tmp_path / f"2{number}_0_1.jpg", 1)
    picture(tmp_path / name, 1)
    with pytest.raises(DataError, match=f"{name}: the name must begin with an age"):
        utkface.write_manifests(tmp_path, tmp_path / "lists")


def test_imagenet_a_lists_are_nested_and_keep_the_class_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet_a, "CLASSES", 3)
    monkeypatch.setattr(imagenet_a, "SIZES", (2, 4, 64))
    for name in ("n1", "n2", "n3"):
        for number in range(4):
            picture(tmp_path / "val" / name / f"{number}.jpg", number)
    for name in ("n1", "n3"):
        for number in range(3):
            picture(tmp_path / "a" / name / f"{number}.jpg", 90)
    files = imagenet_a.write_manifests(tmp_path / "a", tmp_path / "val", tmp_path / "lists")
    assert [file.name for file in files] == ["imagenet-a-2.csv", "imagenet-a-4.csv"]
    small, large = ([r for r in csv.DictReader(f.read_text().splitlines()) if r["origin"] == "a"] for f in files)
    assert [r["file_name"] for r in small] == [r["file_name"] for r in large][:2]
    train, test = load_pair(files[1])
    assert train.store.classes == ("n1", "n2", "n3")
    assert (len(train), len(test or ())) == (4 + 6, 6)
    split = expunge.scenario("where", train, condition="origin == 'a'")
    assert len(split.forget) == 4
    picture(tmp_path / "a" / "n9" / "1.jpg", 1)
    with pytest.raises(DataError, match="sub-folder n9"):
        imagenet_a.write_manifests(tmp_path / "a", tmp_path / "val", tmp_path / "lists")


def test_the_list_commands_end_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["utkface", "faces"])
    assert listing("expunge.data.sets.utkface", ("FACES", "OUT"), utkface.write_manifests) == 2
    assert "usage: python -m expunge.data.sets.utkface FACES OUT" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["lacuna", "--author", "faces", "lists"])
    assert listing("expunge.data.sets.lacuna", ("FACES", "OUT"), lacuna.write_manifests, ("authors",)) == 2
    assert "usage: python -m expunge.data.sets.lacuna [--authors] FACES OUT" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["utkface", "nowhere", "lists"])
    assert listing("expunge.data.sets.utkface", ("FACES", "OUT"), utkface.write_manifests) == 2
    assert "error: there is no folder nowhere" in capsys.readouterr().err
