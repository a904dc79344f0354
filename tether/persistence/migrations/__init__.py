"""The schema's migrations, run by ``tether db upgrade``."""

from __future__ import annotations

import sqlalchemy as sa

from tether import faults
from tether.errors import ConfigError
from tether.persistence import schema
from tether.persistence.database import Database

#: The advisory lock that an upgrade holds in PostgreSQL: any number that nobody else uses.
LOCK = 0x7465746865720001


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the database to the newest schema; repeatable, also after an interruption.

    Returns:
        The version before and the version after.

    Raises:
        ConfigError: the schema is newer than this code.
    """
    from alembic import command
    from alembic.config import Config

    before = database.version()
    if before is not None and before > schema.HEAD:
        raise ConfigError(
            f"the database {database.shown} has schema {before}, which is newer than this tether's {schema.HEAD}",
            hint="use the tether release that wrote it",
        )
    config = Config()
    config.set_main_option("script_location", "tether.persistence:migrations")
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            # One upgrade at a time; SQLite has one writer anyway.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        faults.point("commit.upgrade.before")
    faults.point("commit.upgrade.after")
    return before, schema.HEAD
