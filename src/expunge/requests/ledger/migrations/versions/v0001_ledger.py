"""The first tables, and triggers that keep events from being changed or removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_STATES = "('received', 'planned', 'running', 'fulfilled', 'failed', 'rejected', 'rolled back')"
_STEPS = "('planned', 'unlearned', 'audited', 'recorded', 'done')"
_REFUSAL = "the log of a ledger only grows"


def upgrade() -> None:
    _versions()
    _fulfilments()
    _requests()
    _members()
    _events()
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgres()


def _versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("parent", sa.Text, sa.ForeignKey("versions.id")),
        sa.Column("made_at", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("seed", _WHOLE, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("knows", _WHOLE, nullable=False),
        sa.Column("file", sa.Text, nullable=False, unique=True),
        sa.Column("fulfilment", sa.Integer),
        sa.Column("active", sa.Integer, nullable=False),
        sa.Column("retired_at", sa.Text),
        sa.Column("deleted_at", sa.Text),
        sa.CheckConstraint("active IN (0, 1)", name="active_known"),
        sqlite_strict=True,
    )
    active = sa.text("active = 1")
    op.create_index(
        "one_active_version", "versions", ["active"], unique=True, sqlite_where=active, postgresql_where=active
    )


def _fulfilments() -> None:
    op.create_table(
        "fulfilments",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("samples", sa.Text, nullable=False),
        sa.Column("seed", _WHOLE, nullable=False),
        sa.Column("parent", sa.Text, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("version", sa.Text, sa.ForeignKey("versions.id")),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("audit", sa.Text, nullable=False),
        sa.Column("case", sa.Text),
        sa.Column("began_at", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.CheckConstraint(f"state IN {_STATES}", name="state_known"),
        sa.CheckConstraint(f"step IN {_STEPS}", name="step_known"),
        sqlite_strict=True,
    )


def _requests() -> None:
    op.create_table(
        "requests",
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
        sa.Column("samples", _WHOLE),
        sa.Column("message", sa.Text, nullable=False),
        sa.CheckConstraint(f"state IN {_STATES}", name="state_known"),
        sqlite_strict=True,
    )
    op.create_index("requests_by_subject", "requests", ["subject"])
    op.create_index("requests_by_state", "requests", ["state", "id"])


def _members() -> None:
    op.create_table(
        "members",
        sa.Column("fulfilment", sa.Integer, sa.ForeignKey("fulfilments.id"), primary_key=True, autoincrement=False),
        sa.Column("request", sa.Integer, sa.ForeignKey("requests.id"), primary_key=True, autoincrement=False),
        sa.Column("samples", _WHOLE, nullable=False),
        sqlite_strict=True,
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("request", sa.Integer, sa.ForeignKey("requests.id")),
        sa.Column("fulfilment", sa.Integer, sa.ForeignKey("fulfilments.id")),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sqlite_strict=True,
    )
    op.create_index("events_by_request", "events", ["request"])
    op.create_index("events_by_fulfilment", "events", ["fulfilment"])


def _guard_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER events_no_{verb.lower()} BEFORE {verb} ON events "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
    # INSERT OR REPLACE removes the old row without asking the trigger on DELETE.
    op.execute(
        "CREATE TRIGGER events_no_replace BEFORE INSERT ON events "
        "WHEN EXISTS (SELECT 1 FROM events WHERE id = NEW.id OR hash = NEW.hash) "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()"
    )
