"""Drift of Cinder: what it has that nothing stands behind, and what it says against itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tether.adapters.cinder.model import Attachment, Connection, Volume
from tether.audit.drift import Drift, Kind, Owner
from tether.audit.kinds.words import REPAIR, age, drift, look_at_volume, safe
from tether.audit.survey import Survey, seconds
from tether.persistence.ledger import MappingRow

ON_THE_WAY = ("reserved", "attaching")
#: What connection data may be shown: where a volume is, never how to log in.
SHOWN = ("target_portal", "target_portals", "target_iqn", "target_iqns", "target_lun", "target_luns", "name", "hosts")


def reserved_without_job(survey: Survey) -> Iterator[Drift]:
    """Yield volumes and attachments that are on their way, although nobody of ours is taking them there."""
    for volume, rows in _volumes(survey):
        waiting = [row for row in rows if row.status in ON_THE_WAY]
        if volume.status == "available":
            continue  # a contradiction
        for row in waiting:
            mapping = _mapping_of(survey, row)
            owner = Owner.OURS if mapping is not None else survey.owner_of(row)
            yield _drift(
                survey,
                Kind.RESERVED_WITHOUT_JOB,
                volume,
                f"attachment {row.id} is {row.status}, and no job of this ledger is attaching it",
                owner,
                about=row.id,
                server_id=mapping.server_id if mapping is not None else _server_of(survey, row),
                safe=safe(owner, look_at_volume(volume.id)),
            )
        if volume.status in ON_THE_WAY and not waiting and (not rows or volume.multiattach):
            yield _drift(
                survey,
                Kind.RESERVED_WITHOUT_JOB,
                volume,
                f"it is {volume.status}, with no attachment that is, and no job of this ledger is attaching it",
                Owner.FOREIGN,
                safe=look_at_volume(volume.id),
            )


def contradiction(survey: Survey) -> Iterator[Drift]:
    """Yield volumes whose status is not what their attachments make of it."""
    for volume, rows in _volumes(survey):
        wrong = _contradicts(volume, rows)
        if wrong:
            owners = {Owner.OURS if _mapping_of(survey, row) else survey.owner_of(row) for row in rows}
            mapped = volume.id in survey.mappings_of
            owner = Owner.OURS if mapped or Owner.OURS in owners else next(iter(owners), Owner.FOREIGN)
            yield _drift(
                survey,
                Kind.CINDER_CONTRADICTION,
                volume,
                f"Cinder says that it is {volume.status}, {wrong}",
                owner,
                safe=safe(owner, look_at_volume(volume.id)),
            )


def _contradicts(volume: Volume, rows: tuple[Attachment, ...]) -> str:
    states = {row.status for row in rows}
    rest = f"and its attachments are: {', '.join(sorted(states)) or 'none'}"
    if volume.status == "detaching":
        return "and no job of this ledger is detaching it"
    if volume.status in {"error_attaching", "error_detaching"}:
        return "which needs an administrator"
    if volume.status == "in-use":
        return "" if "attached" in states else rest
    if volume.status == "available":
        return rest if rows else ""
    lost = volume.status in ON_THE_WAY and rows and not states & set(ON_THE_WAY) and not volume.multiattach
    return rest if lost else ""


def attachment_without_disk(survey: Survey) -> Iterator[Drift]:
    """Yield attachments whose server, here, has no disk of the volume."""
    for volume, rows in _volumes(survey):
        for row in rows:
            mapping = _mapping_of(survey, row)
            if row.status != "attached" or (volume.status == "available"):
                continue
            server_id = mapping.server_id if mapping is not None else _server_of(survey, row)
            if not _is_diskless(survey, volume, row, mapping, server_id):
                continue
            owner = Owner.OURS if mapping is not None else survey.owner_of(row)
            whose = f"server {survey.server_name(server_id)}" if server_id else "any server of this host"
            yield _drift(
                survey,
                Kind.ATTACHMENT_WITHOUT_DISK,
                volume,
                f"Cinder has it attached ({row.id}), and {whose} has no disk of it"
                + ("" if server_id else ", although it is attached to this host"),
                owner,
                about=row.id,
                server_id=server_id,
                host=survey.machine.machine_id if survey.machine else "",
                safe=safe(owner, look_at_volume(volume.id)),
            )


def _is_diskless(survey: Survey, volume: Volume, row: Attachment, mapping: MappingRow | None, server_id: str) -> bool:
    """Return True if it is proven that nothing here is a disk for an attachment."""
    if server_id:
        there = server_id in survey.servers and (mapping is None or survey.is_here(mapping.machine_id))
        return there and survey.seat(volume.id, server_id) is None
    # Nobody's that is known: it is judged only if it is known to be this host's.
    listed = survey.cloud.volumes[volume.id] if survey.cloud else None
    host = listed.hosts.get(row.id, "") if listed else ""
    mine = survey.machine is not None and host == survey.machine.name
    return mine and survey.sees_all_guests and not survey.seats_of.get(volume.id)


def mapping_without_anything(survey: Survey) -> Iterator[Drift]:
    """Yield mappings for which neither Cinder nor the guest has anything."""
    for mapping in survey.ledger.mappings if survey.ledger else ():
        if survey.is_explained(mapping.volume_id) or survey.cloud is None or not survey.sees_project(mapping):
            continue
        if survey.own_row(mapping) is not None or survey.seat(mapping.volume_id, mapping.server_id) is not None:
            continue
        if not survey.is_here(mapping.machine_id):
            continue  # that server is for its own host to see
        if mapping.server_id in survey.servers:
            yield drift(
                survey,
                Kind.MAPPING_WITHOUT_ANYTHING,
                f"the ledger has it as {mapping.target}, and neither Cinder nor the guest has anything of it",
                owner=Owner.OURS,
                volume_id=mapping.volume_id,
                server_id=mapping.server_id,
                host=mapping.machine_id,
                about=mapping.id,
                since=age(survey, mapping.updated_at),
                safe=REPAIR,
            )


def stale_connection(survey: Survey) -> Iterator[Drift]:
    """Yield mappings whose volume is reached otherwise by now than when it was attached."""
    for mapping in survey.ledger.mappings if survey.ledger else ():
        row = survey.own_row(mapping)
        was = survey.ledger.sealed.get(mapping.job_id) if survey.ledger else None
        if row is None or was is None or row.status != "attached" or mapping.dialect != "attachments":
            continue
        changed = _changes(was, row.connection)
        if not changed or survey.is_explained(mapping.volume_id):
            continue
        gone = row.connection is None
        yield drift(
            survey,
            Kind.STALE_CONNECTION,
            "Cinder has lost how it is reached"
            if gone
            else f"it is reached otherwise than when it was attached: {', '.join(changed)}",
            owner=Owner.OURS,
            volume_id=mapping.volume_id,
            server_id=mapping.server_id,
            host=mapping.machine_id,
            about=row.id,
            evidence=changed,
            safe=REPAIR,
        )


def _changes(was: Connection, now: Connection | None) -> dict[str, str]:
    """Return which connection data differ; values only of those that hold no secret."""
    if now is None:
        return {"connection info": "none in Cinder"}
    old, new = ({"protocol": item.protocol, **item.data.open()} for item in (was, now))
    return {
        key: f"{old.get(key, 'none')} -> {new.get(key, 'none')}" if key in {"protocol", *SHOWN} else "changed"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _volumes(survey: Survey) -> Iterator[tuple[Volume, tuple[Attachment, ...]]]:
    """Yield the volumes that no job of this ledger holds, with their attachments."""
    if survey.cloud is None or survey.ledger is None:
        return
    for listed in survey.cloud.volumes.values():
        if not survey.is_explained(listed.volume.id):
            yield listed.volume, survey.cloud.rows(listed.volume.id)


def _mapping_of(survey: Survey, row: Attachment) -> MappingRow | None:
    mappings = survey.mappings_of.get(row.volume_id, ())
    return next((item for item in mappings if (own := survey.own_row(item)) and own.id == row.id), None)


def _server_of(survey: Survey, row: Attachment) -> str:
    """Return the server of an attachment that no mapping knows: its owner, or that of the job that has made it."""
    job = survey.owners.get(row.owner)
    return job.server_id if job is not None else row.owner if row.owner in survey.servers else ""


def _drift(survey: Survey, kind: Kind, volume: Volume, text: str, owner: Owner, **more: Any) -> Drift:
    listed = survey.cloud.volumes[volume.id] if survey.cloud else None
    since = age(survey, seconds(listed.updated_at)) if listed else None
    return drift(survey, kind, text, owner=owner, volume_id=volume.id, since=since, **more)
