"""The schema's migrations, run by ``tether db upgrade``."""

from __future__ import annotations

from tether.errors import ConfigError
from tether.persistence import schema
from tether.persistence.database import Database


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
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, schema.HEAD
