"""Numbers per sample: written with ids, read back for any part of the data, and refused where a sample lacks one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.data.scores import SampleScores, read_features, read_scores
from expunge.data.split import ResidentStore, Split


@pytest.fixture
def data() -> Split:
    store = ResidentStore(torch.rand(6, 2), torch.arange(6) % 2, ids=[f"s{i}" for i in range(6)], name="rows")
    return Split.whole(store)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_what_is_saved_is_read_for_any_part_in_its_order(data: Split, tmp_path: Path, name: str) -> None:
    values = np.array([0.1, -1.0, 1 / 3, 0.0, 1e-17, 1.0])
    path = SampleScores.of(data, "events", {"score": values, "count": np.arange(6)}).save(tmp_path / "new" / name)
    part = data.take([4, 0, 2])
    assert read_scores(path, part).tolist() == [1e-17, 0.1, 1 / 3]
    assert read_scores(path, part, "count").tolist() == [4, 0, 2]
    assert [item.name for item in path.parent.iterdir()] == [name]


def test_the_table_names_every_sample(data: Split) -> None:
    frame = SampleScores.of(data.take([3, 1]), "events", {"score": np.array([0.5, 0.25])}).frame()
    assert frame.to_dict("list") == {"id": ["s3", "s1"], "position": [3, 1], "score": [0.5, 0.25]}


def test_positions_do_where_there_are_no_ids(data: Split, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    pd.DataFrame({"position": [5, 4, 3, 2, 1, 0], "score": range(6)}).to_csv(path, index=False)
    assert read_scores(path, data).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("table", "phrase"),
    [
        ("id,score\ns0,1\n", "no row for 5 of the 6 samples"),
        ("name,score\ns0,1\n", "must have a column `id`"),
        ("id,value\n" + "".join(f"s{i},1\n" for i in range(6)), "no column `score`; it has: value"),
        ("id,score\n" + "".join(f"s{i},{'' if i == 2 else 1}\n" for i in range(6)), r"for 1 of the 6 .*id s2"),
        ("id,score\n" + "".join(f"s{i},{'inf' if i < 2 else 1}\n" for i in range(6)), "for 2 of the 6"),
        ("id,score\n" + "".join(f"s{i},1\n" for i in (0, 1, 2, 3, 4, 5, 5)), "s5 is in more than one row"),
        ("", "cannot read"),
        ('id,score\n"s0,1\n', "cannot read|no row"),
    ],
)
def test_a_file_that_does_not_score_every_sample_is_refused(
    data: Split, tmp_path: Path, table: str, phrase: str
) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(table)
    with pytest.raises(DataError, match=phrase):
        read_scores(path, data)


def test_files_that_are_not_tables_are_refused(data: Split, tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").write_bytes(b"no")
    (tmp_path / "scores.csv").write_bytes(b"id,score\n\xff,1\n")
    for name, kind in (("scores.parquet", DataError), ("scores.csv", DataError), ("absent.csv", DataError),
                       ("scores.txt", UsageError)):  # fmt: skip
        with pytest.raises(kind, match=name):
            read_scores(tmp_path / name, data)
    scores = SampleScores.of(data, "events", {"score": np.zeros(6)})
    with pytest.raises(UsageError, match="csv or"):
        scores.save(tmp_path / "scores.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpungeError, match="cannot write"):
        scores.save(tmp_path / "file" / "scores.csv")


def test_features_come_by_row_of_the_data_set_or_by_id(data: Split, tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "f.npy", rows)
    table = pd.DataFrame(rows, columns=["a", "b"]).assign(id=data.ids).iloc[::-1]
    table.to_csv(tmp_path / "f.csv", index=False)
    table.to_parquet(tmp_path / "f.parquet")
    for name in ("f.npy", "f.csv", "f.parquet"):
        assert read_features(tmp_path / name, data.take([5, 1])).tolist() == [[10, 11], [2, 3]]


def test_features_of_other_data_are_refused(data: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((5, 2)))
    np.save(tmp_path / "nan.npy", np.full((6, 2), np.nan))
    np.save(tmp_path / "text.npy", np.full((6, 2), "a"))
    (tmp_path / "broken.npy").write_bytes(b"no")
    (tmp_path / "bare.csv").write_text("id\n" + "".join(f"s{i}\n" for i in range(6)))
    for name, phrase in (("short", "one row"), ("nan", "no finite"), ("text", "numbers"), ("broken", "cannot read")):
        with pytest.raises(DataError, match=phrase):
            read_features(tmp_path / f"{name}.npy", data)
    with pytest.raises(DataError, match="no column of features"):
        read_features(tmp_path / "bare.csv", data)
