"""``tether db``: the database's schema, and what it forgets."""

from __future__ import annotations

import argparse
import re

from tether.cli.base import Command

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str) -> float:
    """Return the seconds of a text such as ``90d``.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    matched = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if matched is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration: write a number of at most 9 digits and one of {', '.join(UNITS)}, as in 90d"
        )
    return int(matched[1]) * UNITS[matched[2]]


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


class PruneDatabase(Command):
    """Forget jobs that ended long ago, with their steps.

    In small transactions, so that runners are not held up. May be interrupted and repeated. The job of a volume that is
    still attached stays. An idempotency key (--request-id) is forgotten with its job.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--older-than",
            required=True,
            type=duration,
            metavar="DURATION",
            help="how long ago they ended: a number and s, m, h, d or w, as in 90d",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.persistence.prune import prune

        with self.ledger() as book:
            before = book.clock.time() - parsed_args.older_than
            total = sum(prune(book.database, before))
        self.app.say(f"forgotten: {total} jobs")
