"""``tether db``: the database's schema."""

from __future__ import annotations

import argparse

from tether.cli.base import Command


class UpgradeDatabase(Command):
    """Create the schema, or bring it up to date. Repeatable, also after an interruption."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.persistence.database import Database
        from tether.persistence.migrations import upgrade

        database = Database(self.app.settings().database)
        try:
            before, after = upgrade(database)
        finally:
            database.close()
        self.app.say(
            f"{database.shown}: schema {before or 'none'} -> {after}"
            if before != after
            else f"{database.shown}: schema {after}, nothing to do"
        )


class CheckDatabase(Command):
    """Say whether this tether can work with the database; exit 2 if not."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.persistence.database import Database

        database = Database(self.app.settings().database)
        try:
            database.check()
        finally:
            database.close()
        self.app.say(f"{database.shown}: schema {database.version()}, as it should be")
