"""Drift of the host: what it holds that nobody uses, and devices that are not what they should be."""

from __future__ import annotations

from collections.abc import Iterator

from tether.adapters.host.model import Device
from tether.audit.drift import Drift, Kind, Owner
from tether.audit.kinds.words import REPAIR, drift, here, look_at_server
from tether.audit.survey import Seat, Survey
from tether.persistence.ledger import MappingRow
from tether.tasks.host import mismatch

KINDS = {
    "link": Kind.UNUSED_LINK,
    "device": Kind.UNUSED_DEVICE,
    "session": Kind.UNUSED_SESSION,
    "map": Kind.UNUSED_MAP,
    "crypt": Kind.UNUSED_CRYPT,
}
WORDS = {
    "link": "tether's link is still there",
    "device": "this host still has the device",
    "session": "this host is still logged in",
    "map": "this host still has the multipath map",
    "crypt": "its dm-crypt mapping is still open",
}

#: What shows such a thing.
LOOKS = {
    "link": "lsblk",
    "device": "lsblk",
    "session": "iscsiadm -m session -P 3",
    "map": "multipath -ll",
    "crypt": "dmsetup table",
}


def wrong_device(survey: Survey) -> Iterator[Drift]:
    """Yield disks under a volume's name that open something else than that volume."""
    for mapping, seat in _attached_here(survey):
        wrong = _wrong(survey, mapping, seat)
        if wrong:
            yield drift(
                survey,
                Kind.WRONG_DEVICE,
                f"disk {seat.disk.target} is not this volume: {wrong}",
                owner=Owner.OURS,
                volume_id=seat.volume_id,
                server_id=seat.server.uuid,
                host=here(survey),
                safe=look_at_server(seat.server),
            )


def _wrong(survey: Survey, mapping: MappingRow, seat: Seat) -> str:
    """Return what is wrong with what a disk opens; empty if nothing is known to be."""
    for scope, disk in seat.disks.items():
        expected = survey.source_of(mapping, disk)
        if expected and disk.source != expected:
            return f"the {scope} definition opens {disk.source}, and it should be {expected}"
    if seat.disk.source_type == "network" or survey.host is None or survey.ledger is None:
        return ""
    device = survey.host.devices.get(seat.volume_id)
    if device is None:
        return ""
    recorded = survey.ledger.connections.get(seat.volume_id)
    identity = recorded.identity if recorded is not None else None
    if identity and device.identity and device.identity != identity:
        return f"{device.path} reports {device.identity}, and reported {identity} when it was connected"
    listed = survey.cloud.volumes.get(seat.volume_id) if survey.cloud else None
    wrong = mismatch(listed.volume, device, "") if listed is not None else ""
    return f"{device.path}: {wrong}" if wrong else _anothers(survey, seat.volume_id, device)


def _anothers(survey: Survey, volume_id: str, device: Device) -> str:
    for other, row in survey.ledger.connections.items() if survey.ledger else ():
        if other != volume_id and device.identity and row.identity == device.identity:
            return f"{device.path} is volume {survey.volume_name(other)}'s by its identity {device.identity}"
    return ""


def missing_device(survey: Survey) -> Iterator[Drift]:
    """Yield disks whose device is not here: after a reboot, or after somebody has logged out by hand."""
    if survey.host is None or not survey.host.sees_devices:
        return
    for mapping, seat in _attached_here(survey):
        if mapping.data_path != "host" or seat.disk.source_type == "network":
            continue
        held = {item.kind for item in survey.holdings_of.get(seat.volume_id, ())}
        if seat.volume_id not in survey.host.devices:
            what = "this host has no device of it: the guest cannot start, or has lost it"
        elif mapping.encrypted and "crypt" not in held:
            what = "its dm-crypt mapping is not open: the guest sees ciphertext, or nothing"
        else:
            continue
        yield drift(
            survey,
            Kind.MISSING_DEVICE,
            f"disk {seat.disk.target}: {what}",
            owner=Owner.OURS,
            volume_id=seat.volume_id,
            server_id=seat.server.uuid,
            host=here(survey),
            safe=REPAIR,
        )


def _attached_here(survey: Survey) -> Iterator[tuple[MappingRow, Seat]]:
    """Yield the mappings of this host whose disk is there, and that no job holds."""
    for mapping in survey.ledger.mappings if survey.ledger else ():
        seat = survey.seat(mapping.volume_id, mapping.server_id)
        if seat is not None and survey.is_here(mapping.machine_id) and not survey.is_explained(mapping.volume_id):
            yield mapping, seat


def unused(survey: Survey) -> Iterator[Drift]:
    """Yield what this host holds of volumes that no guest, no mapping of this host and no job uses."""
    if survey.ledger is None or survey.machine is None or not survey.sees_all_guests:
        return  # then a mapping of this host, or a guest, may be using it
    for volume_id, items in survey.holdings_of.items():
        if volume_id in survey.used or any(item.in_use or item.name in survey.used for item in items):
            continue
        ours = volume_id in survey.ledger.connections
        named = any(item.kind in {"link", "crypt"} for item in items)
        owner = Owner.OURS if ours else Owner.UNKNOWN if named else Owner.FOREIGN
        for item in items:
            yield drift(
                survey,
                KINDS[item.kind],
                f"{WORDS[item.kind]} ({item.name}), and nothing here uses it",
                owner=owner,
                volume_id=volume_id,
                host=here(survey),
                about=item.name,
                safe=REPAIR if owner is not Owner.FOREIGN else LOOKS[item.kind],
            )


def unused_secret(survey: Survey) -> Iterator[Drift]:
    """Yield libvirt secrets of tether's whose volume nothing uses."""
    if survey.guest is None or survey.ledger is None or survey.machine is None or not survey.sees_all_guests:
        return
    for use in sorted(survey.guest.secrets, key=lambda use: (use.usage, use.kind)):
        if use.usage not in survey.used:
            yield drift(
                survey,
                Kind.UNUSED_SECRET,
                f"its libvirt secret ({use.kind}) is still defined, and nothing here uses it",
                owner=Owner.OURS,
                volume_id=use.usage,
                host=here(survey),
                about=use.kind,
                safe=REPAIR,
            )
