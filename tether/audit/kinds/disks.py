"""Drift of disks: what the two definitions of a server say against each other, against Cinder and against others."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from tether.adapters.guest.model import Disk, Scope, Server
from tether.audit.drift import Drift, Kind, Owner
from tether.audit.kinds.words import REPAIR, age, drift, here, look_at_server, safe
from tether.audit.survey import UUID, Seat, Survey


def two_servers(survey: Survey) -> Iterator[Drift]:
    """Yield plain volumes that are disks of several servers, whoever has put them there."""
    for volume_id, seats in survey.seats_of.items():
        if not is_doubled(survey, volume_id) or survey.is_busy(volume_id):
            continue
        # The server that has no right to it: the ledger's is the one that has.
        strange = sorted(seats, key=lambda seat: (survey.is_ours(seat), seat.server.name))[0]
        names = " and ".join(sorted(seat.server.name for seat in seats))
        yield _of(
            survey,
            Kind.TWO_SERVERS,
            strange,
            f"{names} have a disk of this volume, which is not multiattach: two writers destroy it",
            safe=look_at_server(strange.server),
        )


def is_doubled(survey: Survey, volume_id: str) -> bool:
    """Return True if several servers have a disk of a volume that is known not to be multiattach."""
    listed = survey.cloud.volumes.get(volume_id) if survey.cloud else None
    return len(survey.seats_of.get(volume_id, ())) > 1 and listed is not None and not listed.volume.multiattach


def two_disks(survey: Survey) -> Iterator[Drift]:
    """Yield sources that two disks open, at least one of which is a volume: two disks of a server, or of two."""
    openers: dict[str, list[tuple[Server, Disk]]] = defaultdict(list)
    for server in survey.servers.values():
        for scope in Scope:
            definition = server.definition(scope)
            for disk in definition.disks if definition else ():
                source = _real_source(survey, disk)
                if source and (server, disk.target) not in [(known, item.target) for known, item in openers[source]]:
                    openers[source].append((server, disk))
    seats = {(seat.server.uuid, disk.target): seat for seat in survey.seats for disk in seat.disks.values()}
    for source, found in openers.items():
        for (first, one), (second, other) in combinations(found, 2):
            mine = [
                seat for seat in (seats.get((first.uuid, one.target)), seats.get((second.uuid, other.target))) if seat
            ]
            if not mine or survey.is_busy(mine[0].volume_id):
                continue
            apart = first.uuid != second.uuid
            if apart and len({seat.volume_id for seat in mine}) == 1 and len(mine) > 1:
                continue  # one volume in two servers: another kind, or multiattach
            where = f"{one.target} of {first.name} and {other.target} of {second.name}"
            seat = sorted(mine, key=lambda seat: not survey.is_ours(seat))[0]
            yield _of(
                survey,
                Kind.TWO_DISKS,
                seat,
                f"{where} open {source}: two writers destroy it",
                safe=look_at_server(seat.server),
            )


def _real_source(survey: Survey, disk: Disk) -> str:
    """Return what a disk opens, with tether's link followed; empty for what several may open: CDs, read-only disks."""
    if disk.device != "disk" or disk.readonly:
        return ""
    return survey.real_paths.get(disk.source, disk.source)


def serial_mismatch(survey: Survey) -> Iterator[Drift]:
    """Yield disks with one volume's alias or link, and with another serial than that volume's."""
    for seat in survey.seats:
        wrong = [disk for scope, disk in seat.disks.items() if not _has_serial(seat, scope, disk)]
        if not wrong or survey.is_explained(seat.volume_id) or survey.seat_owner(seat) is Owner.NOVA:
            continue
        serial = wrong[0].serial or "none"
        yield _of(
            survey,
            Kind.SERIAL_MISMATCH,
            seat,
            f"disk {seat.disk.target} carries this volume's name, and the serial of "
            + (f"volume {survey.volume_name(serial)}" if UUID.fullmatch(serial) else f"something else ({serial})"),
            safe=look_at_server(seat.server),
        )


def _has_serial(seat: Seat, scope: Scope, disk: Disk) -> bool:
    """Return True if the disk has the volume's serial, or none where it was adopted without one."""
    definition = seat.server.definition(scope)
    adopted = definition is not None and seat.volume_id in definition.adopted
    return disk.serial == seat.volume_id or (adopted and not disk.serial)


def without_attachment(survey: Survey) -> Iterator[Drift]:
    """Yield disks whose volume Cinder does not have attached: it may give it to somebody else at any moment."""
    if survey.cloud is None:
        return
    for seat in _judged(survey):
        mapping = survey.mapping_of.get((seat.volume_id, seat.server.uuid))
        if mapping is not None:
            if survey.own_row(mapping) is not None or not survey.sees_project(mapping):
                continue
        elif survey.unmapped_rows(seat.volume_id) or seat.volume_id not in survey.cloud.volumes:
            continue
        owner = survey.seat_owner(seat)
        yield _of(
            survey,
            Kind.DISK_WITHOUT_ATTACHMENT,
            seat,
            f"the guest has it as {seat.disk.target}, and Cinder has no attachment for it: Cinder may give the volume"
            " to somebody else",
            safe=safe(owner, look_at_server(seat.server)),
        )


def foreign(survey: Survey) -> Iterator[Drift]:
    """Yield disks that Cinder has attached, and that this ledger does not know."""
    if survey.cloud is None:
        return
    for seat in _judged(survey):
        if survey.is_ours(seat) or _is_one_sided(seat) or not survey.unmapped_rows(seat.volume_id):
            continue
        volume = survey.volume_name(seat.volume_id)
        marked = "; it carries tether's mark: the ledger may have been lost" if seat.marked else ""
        yield _of(
            survey,
            Kind.FOREIGN_DISK,
            seat,
            f"attached as {seat.disk.target} by hand or by another tool: this ledger does not know it{marked}",
            safe=shlex.join(["tether", "adopt", volume, seat.server.name]),
        )


def one_sided(survey: Survey) -> Iterator[Drift]:
    """Yield disks that only one of a running server's two definitions has."""
    for seat in _judged(survey):
        if not _is_one_sided(seat):
            continue
        live = Scope.LIVE in seat.disks
        mapping = survey.mapping_of.get((seat.volume_id, seat.server.uuid))
        if live and mapping is not None and mapping.pending_unplug:
            continue  # a kind of its own
        text = (
            "only the running guest has it: it is gone after the next restart"
            if live
            else "only the persistent definition has it: the running guest does not, and will after its next restart"
        )
        yield _of(
            survey,
            Kind.LIVE_ONLY_DISK if live else Kind.PERSISTENT_ONLY_DISK,
            seat,
            f"{seat.disk.target}: {text}",
            safe=safe(survey.seat_owner(seat), look_at_server(seat.server)),
        )


def pending_unplug(survey: Survey) -> Iterator[Drift]:
    """Yield disks that QEMU was asked to unplug and that the guest has not let go: it may do so at its next reset."""
    for seat in survey.seats:
        mapping = survey.mapping_of.get((seat.volume_id, seat.server.uuid))
        if mapping is None or not mapping.pending_unplug or Scope.LIVE not in seat.disks:
            continue
        if survey.is_explained(seat.volume_id):
            continue
        yield _of(
            survey,
            Kind.PENDING_UNPLUG,
            seat,
            f"{seat.disk.target}: an unplug was asked for and never answered; the disk may leave at the guest's next"
            " reset, unless it was restarted since",
            safe=REPAIR,
            since=age(survey, mapping.updated_at),
        )


def _judged(survey: Survey) -> Iterator[Seat]:
    """Yield the disks that are judged one by one: not Nova's, no job's, no volume's that two servers have."""
    for seat in survey.seats:
        if survey.seat_owner(seat) is Owner.NOVA or survey.is_explained(seat.volume_id):
            continue
        if not is_doubled(survey, seat.volume_id):
            yield seat


def _is_one_sided(seat: Seat) -> bool:
    both = seat.server.live is not None and seat.server.persistent is not None
    return both and len(seat.disks) == 1


def _of(survey: Survey, kind: Kind, seat: Seat, text: str, *, safe: str, since: float | None = None) -> Drift:
    return drift(
        survey,
        kind,
        text,
        owner=survey.seat_owner(seat),
        volume_id=seat.volume_id,
        server_id=seat.server.uuid,
        host=here(survey),
        safe=safe,
        since=since,
    )
