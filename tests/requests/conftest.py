"""A ledger in each kind of database; PostgreSQL is a real server on loopback, for these tests alone."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import Fulfilment, Version

_numbers = itertools.count()


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL server. `create` makes an empty database and returns its URL."""

    port: int
    password: str
    control: Callable[..., None]

    def url(self, database: str) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def create(self, template: str = "template1") -> str:
        name = f"ledger{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)


def _programs() -> Path:
    """The folder of initdb and pg_ctl: on the path, or where Debian puts them."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not debian:
        pytest.skip("PostgreSQL's initdb is not installed (Debian: apt-get install postgresql)")
    return debian[-1].parent


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="expunge-pg-"))
    password = secrets.token_hex(8)
    secret = folder / "secret"
    secret.write_text(password)
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            for path in (folder, secret):
                shutil.chown(path, "postgres", "postgres")
        except LookupError:
            shutil.rmtree(folder)
            pytest.skip("as root, a PostgreSQL server needs the user `postgres`, and there is none")

    def control(*command: object) -> None:
        words = [str(programs / str(command[0])), *map(str, command[1:])]
        if os.getuid() == 0:
            words = ["su", "postgres", "-s", "/bin/sh", "-c", " ".join(f"'{word}'" for word in words)]
        # Not into pipes: the server would inherit them, and reading would never end.
        with (folder / "control.log").open("w") as log:
            done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder, timeout=120, check=False)
        if done.returncode != 0:
            said = (folder / "control.log").read_text()[-500:]
            raise RuntimeError(f"{command[0]} failed: {said}")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = folder / "data"
    settings = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    start = ("pg_ctl", "-D", data, "-l", folder / "server.log", "-w", "-o", settings, "start")
    try:
        control(
            "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "-E", "UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip
        control(*start)
        try:
            yield Server(
                port, password, control=lambda verb: control(*start) if verb == "start" else _stop(control, data)
            )
        finally:
            _stop(control, data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(control: Callable[..., None], data: Path) -> None:
    control("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a ledger, once per kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    return str(request.getfixturevalue("server").create())


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened


def name(text: object) -> str:
    """A hash, the same for the same text."""
    import hashlib

    return hashlib.sha256(str(text).encode()).hexdigest()


def version(text: object, parent: str | None = None, **more: object) -> Version:
    given = {"method": "scrub", "data": "d", "knows": 100, "made_at": datetime(2026, 1, 2, tzinfo=UTC), **more}
    return Version(id=name(text), parent=parent, file=f"{name(text)}.safetensors", **given)  # type: ignore[arg-type]


def begun(ledger: Ledger, *subjects: object, by: str = "ada") -> Fulfilment:
    """A fulfilment of new requests, one sample each; imports the first version if there is none."""
    if not ledger.versions():
        ledger.import_version(version("first", method="import"), by=by)
    ids = [ledger.add(name(subject), by=by)[0].id for subject in subjects]
    samples = [name(f"sample of {subject}") for subject in subjects]
    parent = ledger.active().id
    return ledger.begin(dict.fromkeys(ids, 1), samples=samples, seed=7, parent=parent, plan={"method": "scrub"}, by=by)


def done(ledger: Ledger, *subjects: object, by: str = "ada") -> Fulfilment:
    """All the steps of a fulfilment."""
    work = begun(ledger, *subjects, by=by)
    ledger.advance(work.id, "unlearned", version=version(subjects, work.parent), facts={"seconds": 1.5}, by=by)
    ledger.advance(work.id, "audited", audit={"verdict": "pass"}, by=by)
    ledger.advance(work.id, "recorded", case=name(f"case of {subjects}"), by=by)
    return ledger.advance(work.id, "done", by=by)
