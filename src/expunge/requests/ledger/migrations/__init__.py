"""How the tables of a ledger came to be, step by step, by Alembic; a ledger that is opened is brought up to date.

To change the tables: edit `ledger/tables.py`, write versions/v0002_<what>.py, and set `tables.REVISION`. A test
compares what the migrations make with what tables.py declares, in both databases.
"""

from __future__ import annotations

import sqlalchemy as sa

from expunge.core.errors import DataError
from expunge.requests.extras import extra
from expunge.requests.ledger.tables import REVISION, VERSION_TABLE

with extra("requests"):
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory


def config(connection: sa.Connection) -> Config:
    """Alembic's settings for one open connection; env.py reads it from `attributes`."""
    made = Config(attributes={"connection": connection})
    made.set_main_option("script_location", "expunge.requests.ledger:migrations")
    return made


def upgrade(connection: sa.Connection, name: str) -> None:
    """Bring the ledger called `name` up to REVISION, inside the connection's transaction."""
    settings = config(connection)
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()}
    if found is not None and found not in known:
        raise DataError(
            f"the ledger {name} was written by a newer version of Expunge (revision {found}, this one knows up to "
            f"{REVISION}); update expunge."
        )
    command.upgrade(settings, "head")
