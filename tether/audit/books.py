"""What the five books say about one volume and one server, as one comparable value. Nothing is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tether.adapters.cinder.model import Attachment
from tether.adapters.guest.model import Definition, Disk, Scope, SecretUse
from tether.audit.survey import Survey
from tether.errors import NotFound
from tether.persistence.handovers import Handover
from tether.persistence.ledger import MappingRow
from tether.tasks.guest import SECRET_KINDS
from tether.tasks.run import Toolbox

#: Stands in the place of what a book says that could not be read.
UNREAD = {"unread": "nothing is known"}


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
            item.name: "; ".join(
                f"{key}: {_words(value)}" for key, value in getattr(self, item.name).items() if key != "controllers"
            )
            or "-"
            for item in fields(self)
        }

    @property
    def line(self) -> str:
        """All five in one line, by the first word of each."""
        firsts = {item.name: next(iter(getattr(self, item.name).values()), "-") for item in fields(self)}
        return ", ".join(f"{name} {_words(value).partition(' /')[0]}" for name, value in firsts.items())

    def as_json(self) -> dict[str, Any]:
        """Return the books as JSON-ready data."""
        return asdict(self)


def read_books(tools: Toolbox, volume_id: str, server_id: str) -> Books:
    """Read the five books.

    Raises:
        TetherError: a book cannot be read; what is unread is never taken for absent.
    """
    server = tools.guest.show_server(server_id)
    live, persistent = server.live, server.persistent
    return Books(
        cinder=_cinder(tools, volume_id),
        ledger=_ledger(tools, volume_id, server_id),
        host=_host(tools, volume_id),
        live=_definition(live, volume_id, live.disk(volume_id) if live else None),
        persistent=_definition(persistent, volume_id, persistent.disk(volume_id) if persistent else None),
    )


def books_of(survey: Survey, volume_id: str, server_id: str = "") -> Books:
    """Return what a survey has of a volume, and of its disk in a server if one is named; what is unread says so."""
    server = survey.servers.get(server_id)
    listed = survey.cloud.volumes.get(volume_id) if survey.cloud else None
    kept = survey.ledger.connections.get(volume_id) if survey.ledger else None
    rows = survey.ledger.handovers if survey.ledger else ()
    ends = [row for row in rows if (row.volume_id, row.server_id) == (volume_id, server_id)]
    unknown = UNREAD if survey.guest is None or server_id in survey.guest.unread else {"server": "unknown"}
    live = persistent = unknown if server_id else {}
    if server is not None:
        seat = survey.seat(volume_id, server_id)
        disks = seat.disks if seat else {}
        live, persistent = (
            _definition(server.definition(scope), volume_id, disks.get(scope))
            for scope in (Scope.LIVE, Scope.PERSISTENT)
        )
    return Books(
        cinder=_volume(listed.volume.status if listed else None, survey.cloud.rows(volume_id))
        if survey.cloud
        else UNREAD,
        ledger=_rows(survey.mapping_of.get((volume_id, server_id)), [kept.path] if kept else [], ends)
        if survey.ledger
        else UNREAD,
        host=_holdings(survey, volume_id) if survey.host else UNREAD,
        live=live,
        persistent=persistent,
    )


def _holdings(survey: Survey, volume_id: str) -> dict[str, Any]:
    names: dict[str, list[str]] = defaultdict(list)
    for item in survey.holdings_of.get(volume_id, ()):
        names[item.kind].append(item.name)
    secrets = [use.kind for use in survey.guest.secrets if use.usage == volume_id] if survey.guest else ["unread"]
    return {"device": names.pop("device", None) or "absent", **names, "secrets": sorted(secrets)}


def _cinder(tools: Toolbox, volume_id: str) -> dict[str, Any]:
    try:
        status = tools.cinder.show_volume(volume_id).status
    except NotFound:
        return {"volume": "absent"}
    return _volume(status, tools.cinder.list_attachments(volume_id))


def _volume(status: str | None, rows: Sequence[Attachment]) -> dict[str, Any]:
    if status is None:
        return {"volume": "absent"}
    return {"volume": status, "attachments": sorted(f"{row.status} {row.owner or 'unowned'}" for row in rows)}


def _ledger(tools: Toolbox, volume_id: str, server_id: str) -> dict[str, Any]:
    row = tools.ledger.mapping(volume_id, server_id)
    machine = tools.host.identity().machine_id
    devices = [item.path for item in tools.ledger.list_connections(machine) if item.volume_id == volume_id]
    end = tools.ledger.handovers.find(volume_id, server_id)
    return _rows(row, devices, [end] if end else [])


def _rows(row: MappingRow | None, devices: list[str], ends: Sequence[Handover]) -> dict[str, Any]:
    return {
        "mapping": "absent" if row is None else f"{row.state} as {row.target}",
        "devices": devices,
    } | ({"hand-over": [f"{end.state}, to host {end.host}" for end in ends]} if ends else {})


def _host(tools: Toolbox, volume_id: str) -> dict[str, Any]:
    device = tools.host.find(volume_id)
    return {
        "device": "absent" if device is None else device.path,
        "dm-crypt": tools.host.encryption_open(volume_id),
        "secrets": [kind for kind in SECRET_KINDS if tools.guest.has_secret(SecretUse(kind, volume_id))],
    }


def _definition(definition: Definition | None, volume_id: str, disk: Disk | None) -> dict[str, Any]:
    if definition is None:
        return {}
    return {
        "disk": "absent" if disk is None else f"{disk.target} {disk.source}",
        "mark": definition.marks.get(volume_id, "absent"),
        "controllers": len(definition.controllers),
    }


def _words(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
