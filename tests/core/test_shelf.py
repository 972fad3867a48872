"""The cache folder: believed only if nobody else can write it, and never worth a failure."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from expunge.core.shelf import claimed, doubt


def test_a_folder_of_ones_own_is_believed(tmp_path: Path) -> None:
    assert doubt(tmp_path / "not" / "there") is None
    (tmp_path / "models").mkdir()
    assert doubt(tmp_path / "models") is None


@pytest.mark.parametrize("place", ["models", "."])
def test_a_folder_that_everybody_can_write_is_not(place: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    (root / "models").mkdir(parents=True)
    (root / place).chmod(0o777)
    assert "can be written by other users and is not used" in (doubt(root / "models") or "")


def test_the_owner_and_the_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_if(**facts: int) -> str | None:
        told = {"st_uid": os.getuid(), "st_gid": os.getgid(), "st_mode": stat.S_IFDIR | 0o700, **facts}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", lambda self, **more: SimpleNamespace(**told))
            return doubt(tmp_path)

    assert as_if() is None
    assert as_if(st_mode=stat.S_IFDIR | 0o770) is None  # the user's own group
    assert "other users" in (as_if(st_mode=stat.S_IFDIR | 0o770, st_gid=os.getgid() + 1) or "")
    assert "belongs to another user" in (as_if(st_uid=os.getuid() + 1) or "")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with claimed(tmp_path / "file" / "models" / "a.npz") as problem:
        assert problem is not None
        assert "nothing is kept in the cache" in problem
    with claimed(tmp_path / "models" / "a.npz") as problem:
        assert problem is None


def test_what_another_holds_is_waited_for_or_left(tmp_path: Path) -> None:
    entry = tmp_path / "a.npz"
    with FileLock(entry.with_suffix(".lock")), pytest.raises(Timeout), claimed(entry, wait=False):
        raise AssertionError("it is held")
