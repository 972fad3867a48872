"""What Alembic runs for every command; the connection comes from `migrations.config`."""

from __future__ import annotations

from alembic import context

from expunge.requests.ledger.tables import VERSION_TABLE, metadata


def run() -> None:
    connection = context.config.attributes["connection"]
    # One transaction for all migrations, the connection's own: an upgrade that is killed has not begun.
    context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # the name under which Alembic loads this file; whoever else imports it only reads
    run()
