"""Reads the five books about one volume and one server into one comparable value. Nothing is changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from tether.adapters.guest.model import Definition, Scope, SecretUse
from tether.errors import NotFound
from tether.tasks.guest import SECRET_KINDS
from tether.tasks.run import Toolbox


@dataclass(frozen=True)
class Books:
    """What each book says; equal values mean equal books.

    Left out are job history, times, soft-deleted rows and Cinder's admin metadata.

    Args:
        cinder: the volume's status, and its attachments as "status mode owner".
        ledger: the mapping, and the device ledger's row.
        host: the device behind tether's link, dm-crypt, and libvirt secrets.
        live: the live definition's disk, mark and controllers; empty for a server that is shut off.
        persistent: the same of the persistent definition.
    """

    cinder: dict[str, Any]
    ledger: dict[str, Any]
    host: dict[str, Any]
    live: dict[str, Any]
    persistent: dict[str, Any]

    def lines(self) -> dict[str, str]:
        """Return one line a book, for people."""
        return {
            f"book_{item.name}": "; ".join(f"{key}: {value}" for key, value in getattr(self, item.name).items()) or "-"
            for item in fields(self)
        }

    def as_json(self) -> dict[str, Any]:
        """Return the books as JSON-ready data."""
        return asdict(self)


def read_books(tools: Toolbox, volume_id: str, server_id: str) -> Books:
    """Read the five books.

    Raises:
        TetherError: a book cannot be read; what is unread is never taken for absent.
    """
    server = tools.guest.show_server(server_id)
    return Books(
        cinder=_cinder(tools, volume_id),
        ledger=_ledger(tools, volume_id, server_id),
        host=_host(tools, volume_id),
        live=_definition(server.definition(Scope.LIVE), volume_id),
        persistent=_definition(server.definition(Scope.PERSISTENT), volume_id),
    )


def _cinder(tools: Toolbox, volume_id: str) -> dict[str, Any]:
    try:
        status = tools.cinder.show_volume(volume_id).status
    except NotFound:
        return {"volume": "absent"}
    rows = tools.cinder.list_attachments(volume_id)
    return {"volume": status, "attachments": sorted(f"{row.status} {row.owner or 'unowned'}" for row in rows)}


def _ledger(tools: Toolbox, volume_id: str, server_id: str) -> dict[str, Any]:
    row = tools.ledger.mapping(volume_id, server_id)
    machine = tools.host.identity().machine_id
    devices = [item.path for item in tools.ledger.list_connections(machine) if item.volume_id == volume_id]
    return {
        "mapping": "absent" if row is None else f"{row.state} as {row.target}",
        "devices": devices,
    }


def _host(tools: Toolbox, volume_id: str) -> dict[str, Any]:
    device = tools.host.find(volume_id)
    return {
        "device": "absent" if device is None else device.path,
        "dm-crypt": tools.host.encryption_open(volume_id),
        "secrets": [kind for kind in SECRET_KINDS if tools.guest.has_secret(SecretUse(kind, volume_id))],
    }


def _definition(definition: Definition | None, volume_id: str) -> dict[str, Any]:
    if definition is None:
        return {}
    disk = definition.disk(volume_id)
    return {
        "disk": "absent" if disk is None else f"{disk.target} {disk.source}",
        "mark": definition.marks.get(volume_id, "absent"),
        "controllers": len(definition.controllers),
    }
