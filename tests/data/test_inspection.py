"""`expunge inspect`: what was understood of a source, also where it cannot be used yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import expunge
from expunge.cli.main import main
from expunge.core.errors import DataError, UsageError


def table(tmp_path: Path, rows: list[str], header: str = "id,age,user,city,label") -> Path:
    path = tmp_path / "people.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


GOOD = ["0001,3,7,Rome,dog", "0002,4,8,Oslo,cat", "0003,3,7,Rome,dog", "0004,3,,Oslo,dog"]


def test_a_table(tmp_path: Path) -> None:
    found = expunge.inspect(table(tmp_path, GOOD))
    (part,) = found.parts
    assert found.classes == ("cat", "dog")
    assert (part.name, part.rows, part.counts, part.shape, part.dtype) == ("train", 4, (1, 3), (1,), "float32")
    assert (part.lowest, part.highest, part.repeated) == (3.0, 4.0, 2)
    columns = {column.name: column for column in part.columns}
    assert [(c.role, c.kind, c.missing, c.distinct) for c in columns.values()] == [
        ("label", "text", 0, 2), ("id", "text", 0, 4), ("feature", "integer", 0, 2), ("metadata", "integer", 1, 2),
        ("metadata", "text", 0, 2),
    ]  # fmt: skip
    assert columns["id"].examples == ("0001", "0002", "0003")
    assert part.ignored == ("not among the features: `user` (identifier), `city` (text)",)
    assert not found.problems
    assert "people: 2 classes (cat, dog)" in str(found)
    json.dumps(found.record())


def test_problems_do_not_hide_the_rest(tmp_path: Path) -> None:
    found = expunge.inspect(table(tmp_path, [*GOOD, "0005,1,,Rome,"]))
    assert "line 6: there is no label" in found.problems[0]
    assert found.classes == ("cat", "dog")
    assert found.parts[0].columns[0].missing == 1
    assert found.parts[0].shape is None
    found = expunge.inspect(table(tmp_path, ["1,5", "2,6"], "label,a"))
    assert "classes=1..2 if 1 is the first one" in found.problems[0]
    assert found.classes == ()
    assert expunge.inspect(table(tmp_path, ["1,5", "2,6"], "label,a"), classes="1..2").problems == ()


def test_parts_that_share_samples_and_a_part_without_labels(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez(
        tmp_path / "a.npz", x_train=x, y_train=[0, 1] * 3, x_test=x[:2], y_test=[-1, -1], x_val=x[1:4], y_val=[0, 1, 0]
    )
    found = expunge.inspect(tmp_path / "a.npz")
    assert [part.name for part in found.parts] == ["train", "validation"]
    assert found.shared == {"validation": 3}
    assert "the test part has no labels and is not loaded (2 rows)" in found.notes[0]
    assert "there is no test part; the validation part is used for tests" in found.notes[1]


def test_folders_say_what_was_ignored(tmp_path: Path) -> None:
    for name in ("train/cat/0", "train/dog/1", "test/cat/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), len(name), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".DS_Store").write_text("x")
    found = expunge.inspect(tmp_path)
    assert found.parts[0].ignored == ("1 files that are no images: train/cat/notes.txt", "1 hidden files or folders")
    assert found.parts[0].columns[0].name == "class folder"
    assert found.parts[0].columns[0].examples == ("cat", "dog")
    assert found.parts[0].shape == (1, 6, 5)


@pytest.mark.parametrize(
    "data",
    [
        (np.eye(4, dtype=np.float32), [0, 1, 0, 1]),
        torch.utils.data.TensorDataset(torch.eye(4), torch.tensor([0, 1, 0, 1])),
    ],
)
def test_data_of_a_program(data: Any) -> None:
    found = expunge.inspect(data)
    assert found.parts[0].counts == (2, 2)
    assert (found.parts[0].lowest, found.parts[0].highest) == (0.0, 1.0)
    with pytest.raises(UsageError, match="`mode` is an option of files"):
        expunge.inspect(data, mode="L")


def test_streaming_data_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat/0", "dog/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), 9, np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "10")
    (part,) = expunge.inspect(tmp_path).parts
    assert (part.streams, part.repeated, part.lowest, part.highest) == (True, None, 9.0, 9.0)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, GOOD)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for phrase in ("float32 3 to 4", "0001, 0002, 0003", "ignored in train: not among the features"):
        assert phrase in text
    assert main(["inspect", str(path), "--data-set", "metadata=age", "--json"]) == 2
    assert "neither an image column nor numeric columns" in capsys.readouterr().err
    assert main(["inspect", str(path), "--data-set", "classes=dog,cat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["dog", "cat"]
    assert main(["inspect", str(tmp_path / "nowhere"), "--json"]) == 2
    assert main(["inspect", str(path), "--data-set", "mode"]) == 2
    assert "expected name=value after --data-set" in capsys.readouterr().err


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("a,label\n1,\u00c4\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        expunge.inspect(tmp_path / "x.csv")
