"""Lists of suspected labels: cleanlab's and our own are read alike; what cannot be meant is refused in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.repair import suspects_file
from expunge.repair.suspects import Suspects, read_suspects

COUNT = 12
GIVEN = [0, 1, 2] * 4


@pytest.fixture
def train():
    samples = torch.arange(COUNT * 2, dtype=torch.float32).reshape(COUNT, 2)
    ids = [f"photo-{number}" for number in range(COUNT)]
    return Split.whole(ResidentStore(samples, torch.tensor(GIVEN), classes=("cat", "dog", "owl"), ids=ids, name="pets"))


@pytest.fixture
def issues():
    """As `CleanLearning.get_label_issues()` gives it: one row per sample, samples 1, 4 and 9 flagged."""
    flagged = np.isin(np.arange(COUNT), [1, 4, 9])
    predicted = np.where(flagged, (np.array(GIVEN) + 1) % 3, GIVEN)
    quality = np.where(flagged, 0.02 * np.arange(COUNT), 0.9)
    return pd.DataFrame(
        {"is_label_issue": flagged, "label_quality": quality, "given_label": GIVEN, "predicted_label": predicted}
    )


def check(found: Suspects) -> None:
    assert found.positions.tolist() == [1, 4, 9]
    assert found.ids.tolist() == ["photo-1", "photo-4", "photo-9"]
    assert found.given.tolist() == [1, 1, 0]
    assert found.suggested.tolist() == [2, 2, 1]
    np.testing.assert_allclose(found.score, [0.02, 0.08, 0.18])


def written(issues: pd.DataFrame, path, kind: str):
    target = path / f"issues.{kind.split('-')[0]}"
    if kind == "csv":
        issues.to_csv(target)  # with pandas' index, which has no name
    elif kind == "csv-rows":
        issues.to_csv(target, index=False)
    elif kind == "csv-names":  # Datalab exports labels as they were given, here as names
        names = {0: "cat", 1: "dog", 2: "owl"}
        renamed = issues.rename(columns={"label_quality": "label_score"})
        for column in ("given_label", "predicted_label"):
            renamed[column] = renamed[column].map(names)
        renamed.to_csv(target)
    elif kind == "parquet":
        issues.to_parquet(target)
    elif kind == "parquet-ids":
        issues.set_index(pd.Index([f"photo-{n}" for n in range(COUNT)], name="id")).iloc[::-1].to_parquet(target)
    elif kind == "json":
        issues.to_json(target)
    else:
        issues.assign(position=range(COUNT)).to_json(target, orient="records")
    return target


@pytest.mark.parametrize("kind", ["csv", "csv-rows", "csv-names", "parquet", "parquet-ids", "json", "json-records"])
def test_every_way_to_write_the_same_list_reads_alike(train, issues, tmp_path, kind):
    check(read_suspects(written(issues, tmp_path, kind), train))


def test_a_frame_and_suspects_themselves_are_taken(train, issues):
    found = read_suspects(issues, train)
    check(found)
    assert read_suspects(found, train) is found
    assert found.pairs() == [(1, 2, 2), (0, 1, 1)]


def test_our_own_list_names_ids_and_right_labels(train, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("﻿id,label,score\nphoto-7, cat ,0.3\nphoto-2,1.0,\nphoto-5,,0.1\n", encoding="utf-8")
    found = read_suspects(path, train)
    assert found.positions.tolist() == [2, 5, 7]
    assert found.suggested.tolist() == [1, -1, 0]
    assert found.relabelled.tolist() == [True, False, True]
    assert np.isnan(found.score[0])


def test_ids_alone_are_suspects_without_a_suggestion(train, tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(["photo-3", "photo-0"]))
    assert read_suspects(path, train).positions.tolist() == [0, 3]
    assert read_suspects([3, 0], train).positions.tolist() == [0, 3]
    assert not read_suspects(["photo-3"], train).relabelled.any()


def test_below_and_top_narrow_what_is_flagged(train, issues):
    assert read_suspects(issues, train, below=0.1).positions.tolist() == [1, 4]
    assert read_suspects(issues, train, top=1).positions.tolist() == [1]
    assert read_suspects(issues, train, below=0.1, top=5).positions.tolist() == [1, 4]
    with pytest.raises(DataError, match="no suspect is left"):
        read_suspects(issues, train, below=0.01)
    with pytest.raises(UsageError, match="top"):
        read_suspects(issues, train, top=0)
    with pytest.raises(DataError, match="no score"):
        read_suspects(["photo-3"], train, top=1)
    with pytest.raises(UsageError, match="chosen already"):
        read_suspects(read_suspects(issues, train), train, top=1)


def test_held_out_samples_and_confirmed_labels_are_left_out_with_a_note(train, issues):
    part = train.take([position for position in range(COUNT) if position != 4])
    found = read_suspects(issues, part)
    assert found.positions.tolist() == [1, 9]
    assert "1 suspects are samples that the model was not trained on" in found.notes[0]
    issues.loc[9, "predicted_label"] = GIVEN[9]
    found = read_suspects(issues, train)
    assert found.positions.tolist() == [1, 4]
    assert "nothing is wrong there" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("id,label\nphoto-99,1\n", "photo-99"),
        ("id,label\nphoto-1,2\nphoto-1,0\n", "more than one row"),
        ("id,label\nphoto-1,3\n", "allowed: 0=cat, 1=dog, 2=owl"),
        ("id,label\nphoto-1,-1\n", "`-1` in row 1"),
        ("id,label\nphoto-1,1.5\n", "1.5"),
        ("id,label\nphoto-1,hen\n", "hen"),
        ("id,given_label,label\nphoto-1,0,2\n", "contradict the data"),
        ("id,label,score\nphoto-1,2,low\n", "no finite number"),
        ("id,label,score\nphoto-1,2,inf\n", "no finite number"),
        ("id,is_label_issue\nphoto-1,perhaps\n", "perhaps"),
        ("id,is_label_issue\nphoto-1,False\n", "no suspect is left"),
        ("position,label\n12,1\n", "positions count from 0 to 11"),
        ("position,label\n-1,1\n", "positions count"),
        ("name;label\nx;1\n", "no column `id`"),
        ("id,id,label\nphoto-1,photo-2,0\n", "id.1"),
        ("id,label\n", "no rows"),
        ("", "cannot read"),
        ("id,label\n" + "photo-1,2\n" * 13, "more rows than the 12 samples"),
        ("id,label\n" + "".join(f"photo-{n},\n" for n in range(12)), "all 12 samples are suspects"),
        ("id,label\n'; DROP TABLE x; --,1\n", "DROP TABLE"),
        ("id,label\n../../etc/passwd,1\n", "not in the data"),
    ],
)
def test_what_cannot_be_meant_is_refused(train, tmp_path, text, phrase):
    path = tmp_path / "issues.csv"
    path.write_text(text)
    if phrase == "id.1":  # pandas names the second column so, and it is ignored
        assert read_suspects(path, train).positions.tolist() == [1]
        return
    with pytest.raises(DataError) as caught:
        read_suspects(path, train)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "issues.csv" in str(caught.value)


def test_files_that_are_none_are_refused(train, tmp_path, monkeypatch):
    cases = {
        "latin.csv": ("id,label\nphöto,1\n".encode("latin-1"), "not UTF-8"),
        "utf16.csv": ("id,label\nphoto-1,1\n".encode("utf-16"), "not UTF-8"),
        "broken.parquet": (b"PAR1 nothing", "cannot read"),
        "broken.json": (b'{"id": [', "cannot read"),
        "deep.json": (b"[" * 100_000, "cannot read"),
        "number.json": (b"17", "must hold"),
        "issues.pkl": (b"\x80\x04N.", ".csv, .json, .parquet"),
    }
    for name, (content, phrase) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=phrase) as caught:
            read_suspects(path, train)
        assert str(path) in str(caught.value), name
    with pytest.raises(DataError, match="No such file"):
        read_suspects(tmp_path / "absent.csv", train)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_suspects(tmp_path / "folder.csv", train)
    monkeypatch.setattr(suspects_file, "MOST_BYTES", 10)
    path = tmp_path / "big.csv"
    path.write_text("id,label\nphoto-1,2\n")
    with pytest.raises(DataError, match="MiB"):
        read_suspects(path, train)


def test_values_that_are_no_list_are_refused(train):
    for value, phrase in (
        ({"a": [1]}, "got dict"),
        (3, "got int"),
        ([0.5], "ids or positions"),
        (np.zeros((2, 2), dtype=int), "one-dimensional"),
        ([], "ids or positions"),
        (pd.DataFrame({"id": []}), "is empty"),
        (pd.DataFrame([["photo-1", 0]], columns=["id", "ID"]), "more than once"),
        (["photo-1", None], "not in the data"),
    ):
        with pytest.raises(UsageError, match=phrase):
            read_suspects(value, train)


def test_a_parquet_bomb_is_not_inflated(train, tmp_path, monkeypatch):
    path = tmp_path / "bomb.parquet"
    pd.DataFrame({"id": ["photo-1"] * 100_000}).to_parquet(path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(suspects_file.pd, "read_parquet", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(DataError, match="100,000 rows"):
        read_suspects(path, train)


def test_labels_that_are_withheld_cannot_be_repaired(train):
    with pytest.raises(DataError, match="have labels"):
        read_suspects(["photo-1"], train.without_labels())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)),
    suffix=st.sampled_from(["csv", "json", "parquet"]),
)
def test_any_bytes_give_suspects_or_one_sentence(train, tmp_path, content, suffix):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    try:
        sentence = "" if len(read_suspects(path, train)) else "nobody is suspected, and nothing was said"
    except DataError as error:
        sentence = str(error).replace(str(path), "", 1) if str(path) in str(error) else f"no file is named: {error}"
    assert not sentence.startswith("no")
