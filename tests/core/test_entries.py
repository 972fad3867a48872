"""Entries of the cache: where they came from, and that removing them removes nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from expunge.core.entries import InUse, command, days, entries, record, remove, samples_of
from expunge.core.errors import UsageError

KEY, OTHER = "a" * 64, "b" * 64
SAMPLES = np.array([7, 2**64 - 1, 7], dtype=np.uint64)


def put(root: Path, kind: str, name: str, content: str = "x" * 100) -> Path:
    path = root / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_an_entry_has_its_files_size_and_origin(tmp_path: Path) -> None:
    weights = put(tmp_path, "models", f"{KEY}.safetensors")
    put(tmp_path, "models", f"{KEY}.json")
    put(tmp_path, "models", f"{KEY}.lock", "")
    record(weights, tmp_path, data="faces", form="uint8 3x8x8", samples=SAMPLES)
    (entry,) = entries(tmp_path)
    assert (entry.kind, entry.key, entry.name) == ("models", KEY, "models/aaaaaaaaaaaa")
    assert sorted(path.suffixes[0] for path in entry.paths) == [".json", ".origin", ".safetensors"]
    assert entry.bytes >= 200
    assert entry.origin is not None
    assert (entry.origin.data, entry.origin.form, entry.origin.count) == ("faces", "uint8 3x8x8", 3)
    found = samples_of(entry.origin, tmp_path)
    assert found is not None
    assert found.tolist() == [7, 2**64 - 1]


def test_removal_takes_the_entry_and_the_list_that_no_other_one_needs(tmp_path: Path) -> None:
    for key in (KEY, OTHER):
        record(put(tmp_path, "rows", f"{key}.npz"), tmp_path, data="faces", samples=SAMPLES)
    put(tmp_path, "rows", f"{KEY}.lock", "")
    lists = tmp_path / "samples"
    first, second = entries(tmp_path)
    assert len(list(lists.iterdir())) == 1
    remove(first, tmp_path)
    assert len(list(lists.iterdir())) == 1
    remove(second, tmp_path)
    assert list(lists.iterdir()) == []
    assert list((tmp_path / "rows").iterdir()) == []


def test_what_is_not_ours_is_neither_listed_nor_removed(tmp_path: Path) -> None:
    mine = [
        put(tmp_path, "models", "production.safetensors"),
        put(tmp_path, "data", "train.csv"),
        put(tmp_path, "", "notes"),
    ]
    put(tmp_path, "models", f"{KEY}.safetensors")
    for entry in entries(tmp_path):
        remove(entry, tmp_path)
    assert [path.exists() for path in mine] == [True] * 3
    assert not (tmp_path / "models" / f"{KEY}.safetensors").exists()


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    kept = put(outside, KEY, "samples.npy")
    kept_file = put(outside, "", f"{OTHER}.safetensors")
    root = tmp_path / "cache"
    (root / "data").mkdir(parents=True)
    (root / "data" / KEY).symlink_to(outside / KEY)
    (root / "models").symlink_to(outside)
    put(root, "rows", "seed")
    (root / "rows" / f"{OTHER}.npz").symlink_to(kept_file)
    found = entries(root)
    assert sorted(entry.name for entry in found) == ["data/aaaaaaaaaaaa", "rows/bbbbbbbbbbbb"]
    for entry in found:
        remove(entry, root)
    assert entries(root) == []
    assert kept.exists()
    assert kept_file.exists()


def test_a_link_inside_an_entry_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    outside = put(tmp_path, "outside", "file")
    put(tmp_path / "cache", f"data/{KEY}", "samples.npy")
    (tmp_path / "cache" / "data" / KEY / "more").symlink_to(outside.parent)
    (entry,) = entries(tmp_path / "cache")
    remove(entry, tmp_path / "cache")
    assert outside.exists()
    assert not (tmp_path / "cache" / "data" / KEY).exists()


def test_a_second_name_of_a_file_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, "models", f"{KEY}.safetensors")
    os.link(path, tmp_path / "copy")
    with pytest.raises(InUse, match="a second name"):
        remove(entries(tmp_path)[0], tmp_path)
    assert (tmp_path / "copy").exists()


def test_what_another_process_works_on_stays(tmp_path: Path) -> None:
    put(tmp_path, "models", f"{KEY}.safetensors")
    with FileLock(tmp_path / "models" / f"{KEY}.lock"), pytest.raises(InUse, match="in use by another process"):
        remove(entries(tmp_path)[0], tmp_path)
    assert len(entries(tmp_path)) == 1
    remove(entries(tmp_path)[0], tmp_path)
    assert entries(tmp_path) == []


def test_a_killed_removal_leaves_the_origin_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, f"data/{KEY}", "samples.npy").parent
    record(folder, tmp_path, data="faces", samples=SAMPLES)
    real = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "origin":
            raise KeyboardInterrupt
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(entries(tmp_path)[0], tmp_path)
    monkeypatch.undo()
    (left,) = entries(tmp_path)
    assert left.origin is not None
    assert left.origin.data == "faces"
    assert not (folder / "samples.npy").exists()
    remove(left, tmp_path)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"data": "x"}', json.dumps({"samples": "../../etc", "data": "x"})])
def test_a_damaged_origin_is_an_unknown_one(tmp_path: Path, damage: str) -> None:
    put(tmp_path, "models", f"{KEY}.safetensors")
    put(tmp_path, "models", f"{KEY}.origin", damage)
    (entry,) = entries(tmp_path)
    assert entry.origin is None
    remove(entry, tmp_path)
    assert entries(tmp_path) == []


def test_a_list_of_samples_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    record(put(tmp_path, "models", f"{KEY}.safetensors"), tmp_path, samples=SAMPLES)
    (path,) = (tmp_path / "samples").iterdir()
    path.write_bytes(b"\0" * 8)
    (entry,) = entries(tmp_path)
    assert entry.origin is not None
    assert samples_of(entry.origin, tmp_path) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/expunge", "requests", "fulfil", "--batch", "x"], "expunge requests fulfil"),
        (["/usr/bin/expunge", "unlearn", "4711"], "expunge unlearn"),
        (["expunge", "train", "faces"], "expunge train"),
        (["train.py", "4711"], "python"),
        ([""], "python"),
    ],
)
def test_the_command_is_kept_without_its_arguments(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert command() == expected


@pytest.mark.parametrize("text", ["30", "d", "-3d", "3 months", ""])
def test_an_age_has_a_unit(text: str) -> None:
    with pytest.raises(UsageError, match="such as 30d"):
        days(text)


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean `models`"):
        entries(tmp_path, kinds=["model"])
