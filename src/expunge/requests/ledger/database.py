"""The way to SQLite or PostgreSQL: URLs, connections, transactions, migrations, and the sentences when they fail.

Writers take turns (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock that ends with the transaction), because each
continues the one chain of events. Readers see one moment of the database and wait for nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.requests.extras import extra
from expunge.requests.ledger.tables import REVISION, VERSION_TABLE, metadata

_ALLOWED = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
_PATIENCE = 60  # seconds that a writer waits for others
_WRITERS = 7_305_814_212_669_051  # keys of advisory locks: any numbers, the same in every process
CLAIM = 7_305_814_212_669_052


class Database:
    """One ledger's database; threads may share it, and a forked process makes connections of its own."""

    def __init__(self, url: str) -> None:
        self.path: Path | None = None
        if not isinstance(url, str):
            raise UsageError(f"the ledger's URL must be text, got {type(url).__name__}; allowed: {_ALLOWED}.")
        if url.startswith("sqlite:///"):
            self.path = _sqlite_path(url.removeprefix("sqlite:///"))
            self.name, self._secret = str(self.path), ""
            target, arguments = sa.URL.create("sqlite+pysqlite", database=str(self.path)), {"timeout": _PATIENCE}
        else:
            target = _postgres_url(url)
            self.name, self._secret = (
                f"{target.host or 'localhost'}/{target.database or ''}",
                str(target.password or ""),
            )
            arguments = {"connect_timeout": 10} if "connect_timeout" not in target.query else {}
        with extra("postgres"):
            # SQLite's file is opened in no time; a server is asked for a password.
            pool = NullPool if self.path is not None else QueuePool
            self._engine = sa.create_engine(
                target, poolclass=pool, pool_pre_ping=True, hide_parameters=True, connect_args=arguments
            )
        self._process = os.getpid()
        if self.path is not None:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
            self._readers = self._engine.execution_options(expunge_begin="BEGIN")
            self._writers = self._engine.execution_options(expunge_begin="BEGIN IMMEDIATE")
        else:
            self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ")
            # Not higher: a writer must see what the one before it left, once it has waited for it.
            self._writers = self._engine.execution_options(isolation_level="READ COMMITTED")
        try:
            with self.said():
                self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one moment of the database."""
        with self.said(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer overlaps."""
        with self.said(), self._writers.begin() as connection:
            if self.path is None:
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_PATIENCE}s'"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
            yield connection

    def connection(self) -> sa.Connection:
        """A connection that lives on, without transactions, until the caller closes it: then its session ends."""
        with self.said():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # the pool would keep the session, and the locks that it holds
            return connection

    @contextmanager
    def said(self) -> Iterator[None]:
        """Errors of the database as one sentence, without the password."""
        if self._process != os.getpid():
            self._engine.dispose(close=False)  # the connections in the pool are our parent's
            self._process = os.getpid()
        try:
            yield
        except DBAPIError as error:
            raise self._explain(error.orig) from None
        except SQLAlchemyError as error:
            raise ExpungeError(f"the ledger {self.name} cannot be used ({_line(error, self._secret)}).") from None

    def _explain(self, error: BaseException | None) -> ExpungeError:
        words = _line(error, self._secret)
        if "is not a database" in words or "malformed" in words:
            return DataError(f"{self.name} is no SQLite database, or is damaged ({words}); restore it from a backup.")
        if "is locked" in words or "lock timeout" in words:
            return ExpungeError(f"others have been writing to the ledger {self.name} for {_PATIENCE} s; try again.")
        if "connection" in words and self.path is None:
            return ExpungeError(
                f"the PostgreSQL server of the ledger {self.name} does not let us in ({words}); check that it runs, "
                "and the user, password and database of the URL."
            )
        return ExpungeError(f"the ledger {self.name} cannot be read or written ({words}); nothing was changed.")

    def _open(self) -> None:
        if self.path is not None:
            # Made by us and for the owner alone: SQLite would let everybody read it.
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise UsageError(
                    f"the ledger {self.path} cannot be opened ({error.strerror}); name a file in a folder that exists "
                    "and that you may write to."
                ) from None
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with self.reading() as connection:
            found = self._revision(connection)
        if found != REVISION:
            with self.writing() as connection:
                # Asked again, since another process may have been faster.
                if self._revision(connection) != REVISION:
                    self._migrate(connection)

    def _revision(self, connection: sa.Connection) -> str | None:
        """Of the tables there; None: there are none yet. Raises `DataError` if they are not a ledger's."""
        there = set(sa.inspect(connection).get_table_names())
        if VERSION_TABLE in there:
            return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        foreign = there if self.path is not None else there & set(metadata.tables)
        if foreign:
            raise DataError(
                f"{self.name} holds the table `{min(foreign)}` and is not a ledger; name an empty database."
            )
        return None

    def _migrate(self, connection: sa.Connection) -> None:
        from expunge.requests.ledger.migrations import upgrade  # loads Alembic, which an up-to-date ledger never needs

        upgrade(connection, self.name)


def _sqlite_path(path: str) -> Path:
    """What follows sqlite:/// is a path as it is: no query, nothing to escape."""
    if not path or path == ":memory:" or "\0" in path:
        raise UsageError("a ledger must outlive its process; give the path of a file after sqlite:///.")
    return Path(path).absolute()


def _postgres_url(url: str) -> sa.URL:
    """The URL is never repeated in an error: it may hold a password."""
    kind, _, rest = url.partition("://")
    if kind not in ("postgresql", "postgresql+psycopg"):
        shown = f"`{kind}`" if rest and kind.replace("+", "").isalnum() else "something else"
        raise UsageError(f"a ledger is kept in SQLite or PostgreSQL, got {shown}; allowed: {_ALLOWED}.")
    if rest.partition("?")[0].count("@") > 1:
        raise UsageError("the ledger's URL has more than one @; write one in a user name or password as %40.")
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UsageError(f"the ledger's URL cannot be read; allowed: {_ALLOWED}.") from None
    return parsed.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, below
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")  # a committed step survives a power cut


def _begin_sqlite(connection: sa.Connection) -> None:
    if begin := connection.get_execution_options().get("expunge_begin"):
        connection.exec_driver_sql(begin)


def _line(error: BaseException | None, secret: str) -> str:
    """The first line of an error that says something, without the password."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return words.replace(secret, "***") if secret else words
