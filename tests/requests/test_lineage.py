"""Retention: who is due, that deleting is real, and that a kill in between does no harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.ledger import lineage
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.ledger.lineage import Retention, due, orphans, purge
from tests.requests.conftest import begun, done, name, version

START = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = Retention(keep_days=36_500, keep_versions=1000)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(url, clock=clock) as opened:
        yield opened


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def write(folder: Path, ledger: Ledger) -> None:
    for one in ledger.versions():
        (folder / one.file).write_bytes(b"weights")


def ids(ledger: Ledger, retention: Retention, now: datetime) -> list[str]:
    return [one.id for one in due(ledger, retention, now)]


def chain_of_three(ledger: Ledger, clock: Clock) -> list[str]:
    """first -> a -> b -> c, one fulfilment every ten days; c is active."""
    for subject in "abc":
        clock.now += timedelta(days=10)
        done(ledger, subject)
    return [name("first"), *(name((subject,)) for subject in "abc")]


def test_the_latest_versions_are_kept_for_some_days(ledger: Ledger, clock: Clock) -> None:
    first, a, b, _ = chain_of_three(ledger, clock)  # retired on days 10, 20, 30
    now = START + timedelta(days=30)
    assert ids(ledger, NOTHING, now) == []
    assert ids(ledger, Retention(keep_days=365, keep_versions=1), now) == [first, a]
    assert ids(ledger, Retention(keep_days=365, keep_versions=0), now) == [first, a, b]
    assert ids(ledger, Retention(keep_days=15, keep_versions=9), now) == [first]
    assert ids(ledger, Retention(), START + timedelta(days=60)) == [first, a]
    assert ids(ledger, Retention(), START + timedelta(days=60, seconds=1)) == [first, a, b]  # the last one, too


def test_nothing_is_due_while_nothing_was_forgotten(ledger: Ledger) -> None:
    ledger.import_version(version("first"), by="ada")
    ledger.import_version(version("anew"), by="ada")
    assert ids(ledger, Retention(keep_days=0, keep_versions=0), START + timedelta(days=999)) == []


def test_a_version_that_forgot_all_is_not_due(ledger: Ledger, clock: Clock) -> None:
    """a forgot what only a asked for; it was rolled back, so nobody's wish is violated by keeping it."""
    work = done(ledger, "a")
    ledger.rollback(work.id, by="ada")
    none = Retention(keep_days=0, keep_versions=0)
    clock.now += timedelta(days=1)
    assert ids(ledger, none, clock.now) == []
    done(ledger, "b")  # now a knows b's sample, and so does the first version
    assert set(ids(ledger, none, clock.now + timedelta(days=1))) == {name(("a",)), name("first")}


def test_what_failed_counts_as_knowing(ledger: Ledger, clock: Clock) -> None:
    work = begun(ledger, "a")
    ledger.advance(work.id, "unlearned", version=version("bad", work.parent), by="ada")
    ledger.fail(work.id, "the audit said fail", by="ada")
    none = Retention(keep_days=0, keep_versions=0)
    assert ids(ledger, none, clock.now + timedelta(days=1)) == []  # nobody's data were forgotten yet
    ledger.retry(1, by="ada")
    done(ledger, "a")
    assert set(ids(ledger, none, clock.now + timedelta(days=1))) == {name("bad"), name("first")}


def test_what_is_in_use_is_never_due(ledger: Ledger, clock: Clock, models: Path) -> None:
    done(ledger, "a")
    work = begun(ledger, "b")
    ledger.advance(work.id, "unlearned", version=version("b", work.parent), by="ada")
    write(models, ledger)
    none = Retention(keep_days=0, keep_versions=0)
    assert ids(ledger, none, clock.now + timedelta(days=1)) == [name("first")]
    for used in (name(("a",)), name("b")):
        with pytest.raises(UsageError, match="is in use and must keep its file"):
            purge(ledger, models, [ledger.version(used)], by="ada")
        assert (models / f"{used}.safetensors").exists()


def test_purge_deletes_the_files_and_says_so(ledger: Ledger, clock: Clock, models: Path) -> None:
    first, a, b, c = chain_of_three(ledger, clock)
    write(models, ledger)
    policy = Retention(keep_days=365, keep_versions=1)
    purged = purge(ledger, models, due(ledger, policy, clock.now), by="ada")
    assert [one.id for one in purged] == [first, a]
    assert all(one.deleted_at == clock.now for one in purged)
    assert sorted(path.name for path in models.iterdir()) == sorted(f"{one}.safetensors" for one in (b, c))
    assert ids(ledger, policy, clock.now) == []
    assert ledger.verify() == []
    assert purge(ledger, models, purged, by="ada") == purged  # once more, nothing happens
    ledger.rollback(3, by="ada")
    with pytest.raises(UsageError, match="cannot be rolled back: the file of version"):
        ledger.rollback(2, by="ada")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["before the file", "between", "after the ledger"])
def test_a_purge_that_was_killed_is_taken_up(
    place: str, ledger: Ledger, clock: Clock, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = chain_of_three(ledger, clock)
    write(models, ledger)
    policy = Retention(keep_days=365, keep_versions=2)

    def kill(*_: object) -> None:
        raise Killed

    unlink, mark = lineage._unlink, Ledger.mark_deleted
    with monkeypatch.context() as patch:
        if place == "before the file":
            patch.setattr(lineage, "_unlink", kill)
        elif place == "between":
            patch.setattr(lineage, "_unlink", lambda *given: (unlink(*given), kill()))
        else:
            patch.setattr(Ledger, "mark_deleted", lambda *given: (mark(*given), kill()))
        with pytest.raises(Killed):
            purge(ledger, models, due(ledger, policy, clock.now), by="ada")
    purge(ledger, models, due(ledger, policy, clock.now), by="ada")
    assert not (models / f"{first}.safetensors").exists()
    assert ledger.version(first).deleted_at is not None
    assert ledger.verify() == []


def test_a_file_that_lives_on_elsewhere_is_not_called_deleted(ledger: Ledger, clock: Clock, models: Path) -> None:
    first, a, *_ = chain_of_three(ledger, clock)
    write(models, ledger)
    os.link(models / f"{first}.safetensors", models.parent / "copy")
    (models / f"{a}.safetensors").unlink()
    (models / f"{a}.safetensors").symlink_to(models.parent / "copy")
    for one in (first, a):
        with pytest.raises(ExpungeError, match="is a link or has a second name"):
            purge(ledger, models, [ledger.version(one)], by="ada")
        assert ledger.version(one).deleted_at is None


def test_purge_needs_the_claim(ledger: Ledger, url: str, clock: Clock, models: Path) -> None:
    first, *_ = chain_of_three(ledger, clock)
    write(models, ledger)
    with Ledger.open(url) as other, other.claim(), pytest.raises(ExpungeError, match="another process is working"):
        purge(ledger, models, [ledger.version(first)], by="ada")
    with ledger.claim():
        purge(ledger, models, [ledger.version(first)], by="ada")
    with pytest.raises(UsageError, match="does not exist"):
        purge(ledger, models / "nowhere", [ledger.version(name(("a",)))], by="ada")


def test_orphans_are_what_no_version_names(ledger: Ledger, clock: Clock, models: Path) -> None:
    first, *_ = chain_of_three(ledger, clock)
    write(models, ledger)
    assert orphans(ledger, models) == []
    purge(ledger, models, [ledger.version(first)], by="ada")
    (models / f"{first}.safetensors").write_bytes(b"put back from a backup")
    (models / ".left.part").write_bytes(b"half a file")
    assert [path.name for path in orphans(ledger, models)] == [".left.part", f"{first}.safetensors"]
    with pytest.raises(UsageError, match="cannot be read"):
        orphans(ledger, models / "nowhere")


def test_limits_are_checked() -> None:
    with pytest.raises(UsageError, match="`keep_days` should be greater than or equal to 0, got -1"):
        Retention(keep_days=-1)
