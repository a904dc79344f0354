"""``tether audit``: where the five books do not agree."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tether.cli.base import Lister

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tether.audit.drift import Drift, Unread
    from tether.audit.survey import Survey

#: The exit code of drift, and of books that could not be read: then nothing proves that there is none.
DRIFT = 7
COLUMNS = ("kind", "volume", "server", "age", "text", "next")
#: What programs get as well.
DETAILS = ("owner", "volume_id", "server_id", "host", "about", "seconds", "evidence")


class Audit(Lister):
    """Compare the five books, and name whatever they do not agree on; nothing is changed.

    Exit code 0 if all agree, 7 if not, or if a book could not be read: it is then a row of kind 'unread'. Volumes that
    a job is working on are left out. -f json and -f yaml give the owner and what each book says, too.
    """

    fields = (*COLUMNS, *DETAILS)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.set_defaults(fit_width=True)  # on a terminal: texts are sentences
        parser.add_argument("--server", metavar="SERVER", help="only of this server: its UUID or name")
        parser.add_argument("--volume", metavar="VOLUME", help="only of this volume: its id or name")
        parser.add_argument("--host", action="store_true", help="only what this host holds: not what only Cinder has")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        from tether.audit import names
        from tether.audit.kinds import judge
        from tether.audit.survey import read_survey

        with self.world() as world:
            survey = read_survey(world.tools)
        volume = "" if parsed_args.volume is None else names.find(survey, "volume", parsed_args.volume)
        server = "" if parsed_args.server is None else names.find(survey, "server", parsed_args.server)
        found = [
            drift
            for drift in judge(survey)
            if volume in {"", drift.volume_id}
            and server in {"", drift.server_id}
            and (not parsed_args.host or (survey.machine is not None and drift.host == survey.machine.name))
        ]
        for item in survey.unread:
            self.app.say(f"tether: unread: {item.book}, {item.what}: {item.reason}")
        self.app.say(f"tether: {_read(survey)}; {_verdict(found, survey.unread)}")
        self.exit_code = DRIFT if found or survey.unread else 0
        wanted = self.fields if self.is_machine or set(parsed_args.columns) - set(COLUMNS) else COLUMNS
        rows = [*map(_row, found), *map(_unread_row, survey.unread)]
        return wanted, [tuple(row[name] for name in wanted) for row in rows]


def _row(drift: Drift) -> dict[str, Any]:
    return {
        "kind": str(drift.kind),
        "volume": drift.volume,
        "server": drift.server,
        "age": span(drift.since),
        "text": drift.text if drift.owner == "ours" else f"{drift.text} [{drift.owner}]",
        "next": drift.safe,
        "owner": str(drift.owner),
        "volume_id": drift.volume_id,
        "server_id": drift.server_id,
        "host": drift.host,
        "about": drift.about,
        "seconds": None if drift.since is None else round(drift.since, 1),
        "evidence": dict(drift.evidence),
    }


def _unread_row(item: Unread) -> dict[str, Any]:
    row = dict.fromkeys((*COLUMNS, *DETAILS), "")
    text = f"{item.book}, {item.what}: {item.reason}"
    return row | {"kind": "unread", "text": text, "next": item.hint, "seconds": None, "evidence": {}}


def _read(survey: Survey) -> str:
    """Return what has been read, in words."""
    parts = [
        _count(len(survey.cloud.volumes), "volume") if survey.cloud else "",
        _count(len(survey.servers), "server") if survey.guest else "",
        _count(len(survey.ledger.mappings), "mapping") if survey.ledger else "",
    ]
    text = f"read {', '.join(filter(None, parts)) or 'nothing'}"
    busy = len(survey.ledger.busy) if survey.ledger else 0
    return f"{text}; {_count(busy, 'volume')} in motion: not judged" if busy else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _verdict(found: Sequence[Drift], unread: Sequence[Unread]) -> str:
    if found:
        return _count(len(found), "drift")
    return "no drift in what could be read" if unread else "all books agree"


def span(seconds: float | None) -> str:
    """Return an age as people read it: its largest unit."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
