"""Tampering by raw SQL, in both databases: what is refused, and what `verify` finds afterwards."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import sqlalchemy as sa

from expunge.requests.ledger.chain import GENESIS, event_hash
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.ledger.tables import requests
from tests.requests.conftest import done, name


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    done(ledger, "a", "b")
    ledger.add(name("c"), reason="GDPR Art. 17", by="ada")
    assert ledger.verify() == []
    return ledger


def engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.pool.NullPool)


def tamper(url: str, *statements: str) -> None:
    """As the owner of the database, who may switch triggers and foreign keys off."""
    with engine(url).connect() as connection:
        if url.startswith("sqlite"):
            for trigger in ("events_no_update", "events_no_delete", "events_no_replace"):
                connection.execute(sa.text(f"DROP TRIGGER {trigger}"))
        else:
            connection.execute(sa.text("SET session_replication_role = replica"))
        for statement in statements:
            connection.execute(sa.text(statement))
        connection.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET by = 'eve'",
        "UPDATE events SET \"by\" = 'eve' WHERE id = 1",
        "DELETE FROM events WHERE id = 3",
        "DELETE FROM events",
    ],
)
def test_the_database_itself_refuses_to_change_the_log(filled: Ledger, url: str, statement: str) -> None:
    with engine(url).connect() as connection, pytest.raises(sa.exc.DBAPIError, match="the log of a ledger only grows"):
        connection.execute(sa.text(statement.replace("by =", '"by" =') if '"' not in statement else statement))
    assert filled.verify() == []


def test_sqlite_refuses_to_replace_an_event(filled: Ledger, url: str) -> None:
    if not url.startswith("sqlite"):
        with engine(url).connect() as connection, pytest.raises(sa.exc.DBAPIError, match="only grows"):
            connection.execute(sa.text("TRUNCATE events"))
        return
    with engine(url).connect() as connection, pytest.raises(sa.exc.DBAPIError, match="only grows"):
        connection.execute(sa.text("INSERT OR REPLACE INTO events SELECT * FROM events WHERE id = 2"))


EVENT_CHANGES = {
    "at": "'2020-01-01T00:00:00.000000+00:00'",
    "by": "'eve'",
    "kind": "'other'",
    "request": "NULL",
    "fulfilment": "NULL",
    "detail": "detail || ' '",  # the same JSON, another spelling
    "previous": f"'{'0' * 64}'",
    "hash": f"'{'0' * 64}'",
}


@pytest.mark.parametrize("column", EVENT_CHANGES)
def test_every_changed_column_of_an_event_is_found(filled: Ledger, url: str, column: str) -> None:
    tamper(url, f'UPDATE events SET "{column}" = {EVENT_CHANGES[column]} WHERE id = 5')
    assert "event 5 was changed after it was written." in filled.verify()


def test_changed_content_of_an_event_is_found(filled: Ledger, url: str) -> None:
    tamper(url, 'UPDATE events SET detail = replace(detail, \'"to":"planned"\', \'"to":"running"\') WHERE id = 4')
    assert filled.verify() == ["event 4 was changed after it was written."]


def test_detail_that_is_no_json_is_found(filled: Ledger, url: str) -> None:
    tamper(url, "UPDATE events SET detail = '{' WHERE id = 4", "UPDATE events SET detail = '[]' WHERE id = 5")
    assert {f"event {k} was changed after it was written." for k in (4, 5)} <= set(filled.verify())


def test_a_removed_event_is_found(filled: Ledger, url: str) -> None:
    tamper(url, "DELETE FROM events WHERE id IN (5, 6)", "DELETE FROM events WHERE id = 9")
    found = filled.verify()
    assert "events 5 to 6 are missing." in found
    assert "event 9 is missing." in found
    assert "event 7 does not follow from the one before it: removed, added or reordered." in found


def test_events_cut_off_at_the_end_are_found_by_the_tables(filled: Ledger, url: str) -> None:
    last = len(filled.events())
    tamper(url, f"DELETE FROM events WHERE id = {last}")
    assert filled.verify() == ["row requests/3 is in no event: it was added past the log."]


def test_reordered_events_are_found(filled: Ledger, url: str) -> None:
    tamper(
        url,
        "UPDATE events SET id = 1000 WHERE id = 2",
        "UPDATE events SET id = 2 WHERE id = 3",
        "UPDATE events SET id = 3 WHERE id = 1000",
    )
    found = filled.verify()
    assert "event 2 does not follow from the one before it: removed, added or reordered." in found
    assert "event 3 was changed after it was written." in found


def test_an_added_event_is_found(filled: Ledger, url: str) -> None:
    last = filled.events()[-1]
    columns = '"at", "by", kind, request, fulfilment, detail'
    tamper(
        url,
        f"INSERT INTO events (id, {columns}, previous, hash) "
        f"SELECT {last.id + 1}, {columns}, '{last.hash}', '{'a' * 64}' FROM events WHERE id = {last.id}",
    )
    assert filled.verify() == [f"event {last.id + 1} was changed after it was written."]


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE requests SET state = 'rejected' WHERE id = 3", "requests/3"),
        ("UPDATE requests SET reason = reason || '.' WHERE id = 3", "requests/3"),
        ("UPDATE requests SET subject = repeat('a', 64) WHERE id = 1", "requests/1"),
        ("UPDATE requests SET samples = 2 WHERE id = 1", "requests/1"),
        ("UPDATE fulfilments SET audit = '{}'", "fulfilments/1"),
        ("UPDATE fulfilments SET audit = 'no JSON'", "fulfilments/1"),
        ("UPDATE members SET samples = 5 WHERE request = 2", "members/1/2"),
        (f"UPDATE versions SET knows = 0 WHERE id = '{name('first')}'", f"versions/{name('first')}"),
        (f"UPDATE versions SET deleted_at = made_at WHERE id = '{name('first')}'", f"versions/{name('first')}"),
    ],
)
def test_a_row_changed_past_the_log_is_found(filled: Ledger, url: str, statement: str, row: str) -> None:
    if url.startswith("sqlite"):
        statement = statement.replace("repeat('a', 64)", f"'{'a' * 64}'")
    tamper(url, statement)
    (sentence,) = filled.verify()
    assert re.fullmatch(rf"row {row} is not what event \d+ left: it was changed past the log, .*", sentence)


def test_removed_and_added_rows_are_found(filled: Ledger, url: str) -> None:
    copied = 'subject, reason, batch, state, received_at, "by", changed_at, message'
    tamper(
        url,
        "DELETE FROM members WHERE request = 2",
        f"INSERT INTO requests (id, {copied}) SELECT 9, {copied} FROM requests WHERE id = 3",
    )
    found = filled.verify()
    assert len(found) == 2
    assert "row requests/9 is in no event: it was added past the log." in found
    assert any(re.fullmatch(r"row members/1/2 of event \d+ is missing\.", sentence) for sentence in found)


def test_the_hash_is_what_the_documentation_says(filled: Ledger) -> None:
    """Recomputed from the public values alone, as a third party would."""
    previous = GENESIS
    for event in filled.events():
        fields = {
            "id": event.id,
            "at": event.at.isoformat(timespec="microseconds"),
            "by": event.by,
            "kind": event.kind,
            "request": event.request,
            "fulfilment": event.fulfilment,
            "detail": event.detail,
        }
        text = previous + json.dumps(fields, sort_keys=True, separators=(",", ":"))
        assert event.previous == previous
        assert event.hash == hashlib.sha256(text.encode()).hexdigest() == event_hash(previous, fields)
        previous = event.hash
    assert filled.head() == previous


def test_a_change_without_an_event_is_not_committed(filled: Ledger) -> None:
    def forget_to_log() -> None:
        with filled._writing("ada") as writing:
            row = dict(writing.connection.execute(sa.select(requests).where(requests.c.id == 3)).mappings().one())
            writing.change(requests, row, state="rejected")

    with pytest.raises(RuntimeError, match="rows changed without an event: requests/3"):
        forget_to_log()
    assert filled.request(3).state == "received"
    assert filled.verify() == []
