"""The tables of the ledger, the same in SQLite and PostgreSQL.

Columns hold text and whole numbers only, so that a row reads back as it was written and its digest is the same in both
databases: times are text in UTC (`values.stamp`), structures are canonical JSON. Ids are given by the writer, one after
the other. The migrations in `migrations/` create what is declared here; a test compares the two.
"""

from __future__ import annotations

from expunge.requests.extras import extra
from expunge.requests.records import STATES, STEPS

with extra("requests"):
    import sqlalchemy as sa

REVISION = "0001"  # of migrations/versions that these tables agree with
VERSION_TABLE = "ledger_version"

metadata = sa.MetaData()
_whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # an INTEGER of SQLite has 64 bits


def _one_of(column: str, names: tuple[str, ...]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{name}'" for name in names)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("parent", sa.Text, sa.ForeignKey("versions.id")),
    sa.Column("made_at", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),  # JSON
    sa.Column("seed", _whole, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("knows", _whole, nullable=False),
    sa.Column("file", sa.Text, nullable=False, unique=True),  # two versions in one file could not be purged apart
    sa.Column("fulfilment", sa.Integer),  # no foreign key: fulfilments refer to versions already
    sa.Column("active", sa.Integer, nullable=False),
    sa.Column("retired_at", sa.Text),
    sa.Column("deleted_at", sa.Text),
    sa.CheckConstraint("active IN (0, 1)", name="active_known"),
    sqlite_strict=True,
)
sa.Index(
    "one_active_version",
    versions.c.active,
    unique=True,
    sqlite_where=versions.c.active == 1,
    postgresql_where=versions.c.active == 1,
)

fulfilments = sa.Table(
    "fulfilments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("samples", sa.Text, nullable=False),  # JSON
    sa.Column("seed", _whole, nullable=False),
    sa.Column("parent", sa.Text, sa.ForeignKey("versions.id"), nullable=False),
    sa.Column("version", sa.Text, sa.ForeignKey("versions.id")),
    sa.Column("plan", sa.Text, nullable=False),  # JSON, like the next two
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("audit", sa.Text, nullable=False),
    sa.Column("case", sa.Text),
    sa.Column("began_at", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Text),
    sa.Column("message", sa.Text, nullable=False),
    _one_of("state", STATES),
    _one_of("step", STEPS),
    sqlite_strict=True,
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("ticket", sa.Text, unique=True),
    sa.Column("batch", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("received_at", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.Column("fulfilment", sa.Integer, sa.ForeignKey("fulfilments.id")),
    sa.Column("samples", _whole),
    sa.Column("message", sa.Text, nullable=False),
    _one_of("state", STATES),
    sa.Index("requests_by_subject", "subject"),
    sa.Index("requests_by_state", "state", "id"),
    sqlite_strict=True,
)

# Who was part of a fulfilment, for good: a request that is received again leaves it, and must still be found here.
members = sa.Table(
    "members",
    metadata,
    sa.Column("fulfilment", sa.Integer, sa.ForeignKey("fulfilments.id"), primary_key=True, autoincrement=False),
    sa.Column("request", sa.Integer, sa.ForeignKey("requests.id"), primary_key=True, autoincrement=False),
    sa.Column("samples", _whole, nullable=False),
    sqlite_strict=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request", sa.Integer, sa.ForeignKey("requests.id")),
    sa.Column("fulfilment", sa.Integer, sa.ForeignKey("fulfilments.id")),
    sa.Column("detail", sa.Text, nullable=False),  # JSON
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Index("events_by_request", "request"),
    sa.Index("events_by_fulfilment", "fulfilment"),
    sqlite_strict=True,
)
