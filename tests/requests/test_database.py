"""The way in: URLs, foreign files, servers that do not answer, migrations, hostile text."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.requests.extras import extra
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.ledger.tables import REVISION
from tests.requests.conftest import Server, begun, name, version
from tests.requests.test_chain import engine


@pytest.mark.parametrize(
    "url",
    ["mysql://root:hunter2@localhost/x", "sqlite://", "sqlite:///", "sqlite:///:memory:", "ledger.sqlite", "", "://",
     "postgresql:hunter2", "postgresql+asyncpg://u:hunter2@h/x", "postgresql://u:hunter2@h:port/x",
     "postgresql://u:hunt@er2@h/x", 7],
)  # fmt: skip
def test_other_urls_are_refused_and_never_repeated(url: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Ledger.open(url)
    sentence = str(caught.value)
    assert "hunt" not in sentence
    assert "er2" not in sentence
    assert len(sentence.splitlines()) == 1


def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(
        ExpungeError, match=r"the PostgreSQL server of the ledger 127.0.0.1/x does not let us in"
    ) as caught:
        Ledger.open("postgresql://ada:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_and_a_missing_database(server: Server) -> None:
    for url in (server.url("postgres").replace(server.password, "hunter2"), server.url("nowhere")):
        with pytest.raises(ExpungeError, match="does not let us in") as caught:
            Ledger.open(url)
        assert "hunter2" not in str(caught.value)
        assert server.password not in str(caught.value)


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("subject,reason\n" * 1000)
    with pytest.raises(DataError, match="is no SQLite database, or is damaged"):
        Ledger.open(f"sqlite:///{text}")
    assert text.read_text() == "subject,reason\n" * 1000
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE cells (id)")
    connection.close()
    with pytest.raises(DataError, match="holds the table `cells` and is not a ledger"):
        Ledger.open(f"sqlite:///{other}")
    with pytest.raises(UsageError, match="cannot be opened"):
        Ledger.open(f"sqlite:///{tmp_path}")
    with pytest.raises(UsageError, match="cannot be opened"):
        Ledger.open(f"sqlite:///{tmp_path}/no/folder.sqlite")


def test_a_database_with_tables_of_others(server: Server) -> None:
    url = server.create()
    with engine(url).begin() as connection:
        connection.execute(sa.text("CREATE TABLE customers (id int)"))
    Ledger.open(url).close()  # they do not disturb
    with engine(other := server.create()).begin() as connection:
        connection.execute(sa.text("CREATE TABLE events (id int)"))
    with pytest.raises(DataError, match="holds the table `events` and is not a ledger"):
        Ledger.open(other)


def test_a_newer_ledger_is_left_alone(url: str) -> None:
    Ledger.open(url).close()
    with engine(url).begin() as connection:
        connection.execute(sa.text("UPDATE ledger_version SET version_num = '9999'"))
    with pytest.raises(
        DataError, match=r"was written by a newer version of Expunge \(revision 9999, .*; update expunge"
    ):
        Ledger.open(url)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        begun(ledger, *range(20))
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match="is no SQLite database, or is damaged"),
        Ledger.open(f"sqlite:///{path}") as ledger,
    ):
        ledger.verify()


def test_only_the_owner_reads_the_file_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a?b=c %20#d.sqlite"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.add(name(1), by="ada")
        for made in tmp_path.iterdir():
            assert made.name.startswith(path.name)
            if made.suffix != ".lock":
                assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_opening_again_changes_nothing(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(name(1), by="ada")
        head = ledger.head()
    with Ledger.open(url) as ledger:
        assert (ledger.head(), ledger.verify()) == (head, [])


def test_the_migrations_make_what_the_tables_declare(url: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    from expunge.requests.ledger.migrations import config

    with Ledger.open(url) as ledger, ledger._database.writing() as connection:
        settings = config(connection)
        command.check(settings)  # raises when it finds a difference
        assert ScriptDirectory.from_config(settings).get_current_head() == REVISION
    Ledger.open(url).close()


def test_a_backup_is_a_ledger(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'one'}") as ledger:
        ledger.add(name(1), by="ada")
    shutil.copy(tmp_path / "one", tmp_path / "two")
    with Ledger.open(f"sqlite:///{tmp_path / 'two'}") as ledger:
        assert ledger.verify() == []


HOSTILE = [
    "'); DROP TABLE requests; --",
    '" OR 1=1 --',
    "%s %(x)s :x {} \\",
    "日本語 🗑️ e\u0301 \u202e",
    "=cmd|'/C calc'!A0",
    "a\tb\r\nc",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_printable_text_is_stored_as_it_is(ledger: Ledger, text: str) -> None:
    request, _ = ledger.add(name(1), reason=text, ticket=text, batch=text, by=text)
    ledger.reject(request.id, text, by=text)
    stored = ledger.request(request.id)
    assert (stored.reason, stored.ticket, stored.batch, stored.by, stored.message) == (text,) * 5
    assert [found.id for found in ledger.requests(batch=text)] == [request.id]
    assert not ledger.add(name(1), ticket=text, by="ada")[1]
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"subject": "4711"}, "must be a hash of 64 lower-case hex digits"),
        ({"subject": "a" * 63 + "'"}, "must be a hash of 64"),
        ({"subject": "a" * 64 + "\n"}, "must be a hash of 64"),
        ({"subject": 4711}, "must be a hash of 64"),
        ({"reason": "nul\0"}, r"the reason of request holds the control or surrogate character U\+0000 at position 3"),
        ({"reason": "\udcff"}, r"surrogate character U\+DCFF at position 0; .* its right encoding"),
        ({"reason": "\x1b[2J"}, r"character U\+001B"),
        ({"reason": "x" * 1_000_000}, "the reason of request has 1000000 characters; at most 10000 are stored"),
        ({"reason": b"bytes"}, "must be text, got bytes"),
        ({"ticket": ""}, "the ticket of request must not be empty"),
        ({"ticket": "x" * 201}, "at most 200 are stored"),
        ({"batch": None}, "the batch of request must be text, got NoneType"),
        ({"by": " "}, r"who does it \(`by`\) must not be empty"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_sentence(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        with pytest.raises(UsageError, match=sentence) as caught:
            ledger.add(**{"subject": name(1), "by": "ada", **given})
        assert len(str(caught.value)) < 250
        assert ledger.requests() == []


@pytest.mark.parametrize("wrong", [0, -1, 2**31, 10**40, "1", 1.0, True, None])
def test_ids_that_are_none(ledger: Ledger, wrong: Any) -> None:
    with pytest.raises(UsageError, match="a request's id must be a whole number"):
        ledger.request(wrong)
    with pytest.raises(UsageError, match="a fulfilment's id must be a whole number"):
        ledger.fail(wrong, "x", by="ada")


@pytest.mark.parametrize("file", ["../keys/signing.pem", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0"])
def test_a_version_stays_in_its_folder(ledger: Ledger, file: str) -> None:
    with pytest.raises(UsageError, match="a version's file"):
        ledger.import_version(replace(version(1), file=file), by="ada")


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}, {(1, 2): 3}])
def test_facts_are_plain_json(ledger: Ledger, facts: Any) -> None:
    work = begun(ledger, "a")
    with pytest.raises(UsageError, match="must be plain JSON"):
        ledger.advance(work.id, "unlearned", version=version(1, work.parent), facts=facts, by="ada")


def test_facts_come_back_as_json_has_them(ledger: Ledger) -> None:
    work = begun(ledger, "a")
    facts = {"text": "\0\ud800é", 2: 1e-300, 10: (1, None, True), "large": 2**80}
    stored = ledger.advance(work.id, "unlearned", version=version(1, work.parent), facts=facts, by="ada").facts
    assert stored == {"text": "\0\ud800é", "2": 1e-300, "10": [1, None, True], "large": 2**80}
    assert ledger.fulfilment(work.id).facts == stored
    assert ledger.verify() == []


def test_a_missing_package_is_one_sentence() -> None:
    with (
        pytest.raises(UsageError, match=r"need the extra `requests`: pip install 'expunge\[requests\]'"),
        extra("requests"),
    ):
        raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy")
    with pytest.raises(ModuleNotFoundError), extra("requests"):
        raise ModuleNotFoundError("No module named 'expunge.gone'", name="expunge.gone")
