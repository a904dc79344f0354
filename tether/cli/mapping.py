"""``tether mapping``: what is attached where, as the ledger has it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tether.cli.base import Lister, ShowOne, moment

if TYPE_CHECKING:
    from tether.persistence.intact import Damaged
    from tether.persistence.ledger import MappingRow
    from tether.runner.world import Books

COLUMNS = (
    "volume",
    "server",
    "state",
    "device",
    "bus",
    "mode",
    "dialect",
    "volume_id",
    "server_id",
    "attachment_id",
)


class ListMappings(Lister):
    """List the mappings of volumes to servers.

    Names are those of the time of the attach; no cloud is asked. Exit 4 if a row of the ledger is damaged: the others
    are listed.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--server", default="", metavar="SERVER", help="only of this server: its UUID or name")
        parser.add_argument("--volume", default="", metavar="VOLUME", help="only of this volume: its id or name")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        with self.ledger() as book:
            # A mapping whose job cannot be read is a mapping all the same.
            rows = [(row, *_names(book, row, self.damaged)) for row in book.ledger.list_mappings(damaged=self.damaged)]
        return COLUMNS, [
            (
                volume,
                server,
                row.state,
                row.target,
                row.bus,
                row.mode,
                row.dialect,
                row.volume_id,
                row.server_id,
                row.attachment_id,
            )
            for row, volume, server in rows
            if parsed_args.server in {"", row.server_id, server} and parsed_args.volume in {"", row.volume_id, volume}
        ]


def _names(book: Books, row: MappingRow, damaged: Damaged) -> tuple[str, str]:
    """Return the names of a mapping's volume and server; their ids if its job is gone or damaged."""
    from tether.errors import OperatorNeeded

    try:
        job = book.ledger.job_of(row)
    except OperatorNeeded as error:
        damaged(error)
        return row.volume_id, row.server_id
    return job.volume_name, job.server_name


class ShowMapping(ShowOne):
    """Show one mapping, and what each of the five books says about it.

    Nothing is changed. Volume and server are named by id or by a unique name.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help="id or unique name of the volume")
        parser.add_argument("server", metavar="SERVER", help="UUID or name of the server (libvirt domain)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.audit.books import read_books
        from tether.errors import NotFound

        with self.world() as world:
            volume = world.tools.cinder.find_volume(parsed_args.volume)
            server = world.tools.guest.find_server(parsed_args.server)
            row = world.tools.ledger.mapping(volume.id, server.uuid)
            if row is None:
                raise NotFound(
                    f"there is no mapping of volume {volume.name or volume.id} on server {server.name}",
                    resource=f"volume {volume.id}",
                    hint="see: tether mapping list",
                )
            books = read_books(world.tools, volume.id, server.uuid).lines()
        fields: dict[str, Any] = {
            "volume_id": row.volume_id,
            "server_id": row.server_id,
            "state": row.state,
            "device": row.target,
            "bus": row.bus,
            "address": " ".join(f"{key}={value}" for key, value in sorted(row.address.items())),
            "mode": row.mode,
            "dialect": row.dialect,
            "data_path": row.data_path,
            "attachment_id": row.attachment_id,
            "job": row.job_id,
            "pending_unplug": row.pending_unplug,
            "created": moment(row.created_at),
            **{f"book_{name}": text for name, text in books.items()},
        }
        return tuple(fields), tuple(fields.values())
