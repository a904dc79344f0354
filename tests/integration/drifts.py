"""Puts each kind of drift, alone, into an embedded world: by its files and its database, never by tether's adapters.

A consistent attachment to begin with is made by ``tether attach``; every case has a volume of its own, so that several
cases may be put into one world.
"""

from __future__ import annotations

import copy
import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from tests.crash.world import DONE, KILLED, SimWorld
from tether.audit.drift import Kind
from tether.matrix import wrecks

VOL1 = "11111111-1111-4111-8111-111111111111"
GUEST1 = "9e570000-0000-4000-8000-000000000001"
GUEST2 = "9e570000-0000-4000-8000-000000000002"
NAMES = {"guest1": GUEST1, "guest2": GUEST2}
SCOPES = wrecks.SCOPES


@dataclass(frozen=True)
class Expected:
    """What an audit must name; ``server`` is a name, or empty."""

    kind: Kind
    volume_id: str
    server: str = ""
    owner: str = "ours"


# -- the world's files ---------------------------------------------------------------------------------------


@contextmanager
def book(sim: SimWorld, name: str) -> Iterator[dict[str, Any]]:
    """Change one of the world's JSON files."""
    path = sim.directory / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    yield content
    path.write_text(json.dumps(content))


@contextmanager
def domain(sim: SimWorld, server: str, scope: str) -> Iterator[ET.Element]:
    """Change one definition of a server."""
    path = sim.directory / "guests" / NAMES[server] / f"{scope}.xml"
    root = ET.fromstring(path.read_text())
    yield root
    path.write_text(ET.tostring(root, encoding="unicode"))


def execute(sim: SimWorld, statement: str, *values: Any) -> None:
    """Change the ledger."""
    with sqlite3.connect(sim.directory / "tether.sqlite") as connection:
        assert connection.execute(statement, values).rowcount > 0


def new_volume(sim: SimWorld, name: str, **facts: Any) -> str:
    """Add a volume like vol1 and return its id."""
    volume_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    with book(sim, "cinder") as cinder:
        cinder["serial"] += 1
        like = copy.deepcopy(cinder["volumes"][VOL1])
        wwn = f"6001405{uuid.UUID(volume_id).hex[:25]}"
        cinder["volumes"][volume_id] = like | {
            "id": volume_id,
            "name": name,
            "wwn": wwn,
            "serial": cinder["serial"],
            "status": "available",
            "attach_status": "detached",
            **facts,
        }
    return volume_id


def attached(sim: SimWorld, name: str, server: str = "guest1", **facts: Any) -> str:
    """Attach a new volume, and return its id. By virtio-scsi: it has room for many."""
    volume_id = new_volume(sim, name, **facts)
    done = sim.tether("attach", "--bus", "scsi", volume_id, server)
    assert done.code == DONE, done.err
    return volume_id


def row(sim: SimWorld, volume_id: str, status: str, instance: str | None = None, **columns: Any) -> str:
    """Add an attachment, and give the volume the status that goes with it; return the attachment's id."""
    with book(sim, "cinder") as cinder:
        cinder["serial"] += 1
        found = {
            "id": str(uuid.uuid4()),
            "serial": cinder["serial"],
            "volume_id": volume_id,
            "attach_status": status,
            "instance_uuid": instance,
            "attached_host": None,
            "mountpoint": None,
            "attach_time": None,
            "attach_mode": "rw",
            "connector": None,
            "connection_info": None,
            **columns,
        }
        cinder.setdefault("attachments", {})[found["id"]] = found
        status_of = {"attached": "in-use"}
        cinder["volumes"][volume_id].update(status=status_of.get(status, status), attach_status=status)
    return str(found["id"])


def disk_of(root: ET.Element, volume_id: str) -> ET.Element:
    """Return the disk with the volume's alias."""
    found = [
        item for item in root.iterfind("devices/disk") if f"ua-{volume_id}" in ET.tostring(item, encoding="unicode")
    ]
    assert found, "there is no such disk"
    return found[0]


def add_disk(sim: SimWorld, server: str, xml: str, *scopes: str) -> None:
    """Put a disk in, as ``virsh attach-device`` would."""
    for scope in scopes or SCOPES:
        with domain(sim, server, scope) as root:
            devices = root.find("devices")
            assert devices is not None
            devices.append(ET.fromstring(xml))


def hand_made(target: str, source: str, serial: str = "") -> str:
    """Return the ``<disk>`` of an operator's own making."""
    number = f"<serial>{serial}</serial>" if serial else ""
    return (
        f"<disk type='block' device='disk'><source dev='{source}'/><target dev='{target}' bus='scsi'/>{number}"
        "<address type='drive' controller='7' bus='0' target='0' unit='7'/></disk>"
    )


def hold(sim: SimWorld, part: str, volume_id: str, what: Any) -> None:
    """Leave something on the host."""
    with book(sim, "host") as host:
        host.setdefault(part, {})[volume_id] = what


# -- the kinds -----------------------------------------------------------------------------------------------


def two_servers(sim: SimWorld) -> Expected:
    volume = attached(sim, "two-servers")
    with domain(sim, "guest1", "live") as root:
        element = ET.tostring(disk_of(root, volume), encoding="unicode")
    add_disk(sim, "guest2", element)
    return Expected(Kind.TWO_SERVERS, volume, "guest2", "foreign")


def two_disks(sim: SimWorld) -> Expected:
    volume = attached(sim, "two-disks")
    add_disk(sim, "guest1", hand_made("sdz", str(sim.directory / "run" / "volumes" / volume)))
    return Expected(Kind.TWO_DISKS, volume, "guest1")


def wrong_device(sim: SimWorld) -> Expected:
    volume = attached(sim, "wrong-device")
    with book(sim, "host") as host:
        host["devices"][volume]["identity"] = "60014050000000000000000000000bad"
    return Expected(Kind.WRONG_DEVICE, volume, "guest1")


def serial_mismatch(sim: SimWorld) -> Expected:
    volume = attached(sim, "serial-mismatch")
    for scope in SCOPES:
        with domain(sim, "guest1", scope) as root:
            serial = disk_of(root, volume).find("serial")
            assert serial is not None
            serial.text = str(uuid.uuid5(uuid.NAMESPACE_URL, "another"))
    return Expected(Kind.SERIAL_MISMATCH, volume, "guest1")


def interrupted_job(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "interrupted-job")
    killed = sim.tether("--fault", "plug-persistent.act.after=kill", "attach", "--bus", "scsi", volume, "guest1")
    assert killed.code == KILLED, killed.err
    return Expected(Kind.INTERRUPTED_JOB, volume, "guest1")


def blocked_job(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "blocked-job")
    killed = sim.tether("--fault", "connect-host.act.after=kill", "attach", "--bus", "scsi", volume, "guest1")
    assert killed.code == KILLED, killed.err
    error = {"step": "connect-host/1", "code": "uncertain", "message": "no answer", "resource": "", "hint": "wait"}
    execute(
        sim,
        "UPDATE tether_jobs SET state = 'blocked', exit_code = 4, runner = NULL, error = ? WHERE volume_id = ?",
        json.dumps(error),
        volume,
    )
    return Expected(Kind.BLOCKED_JOB, volume, "guest1")


def unfinished_migration(sim: SimWorld) -> Expected:
    volume = attached(sim, "unfinished-migration")
    with book(sim, "cinder") as cinder:
        (first,) = (dict(found) for found in cinder["attachments"].values() if found["volume_id"] == volume)
    second = {name: first[name] for name in ("connection_info", "connector")}
    attachment = row(sim, volume, "attached", first["instance_uuid"], **second)
    execute(
        sim,
        "INSERT INTO tether_handovers VALUES (?, ?, 'gone', 'incoming', 'host2', 'elsewhere', ?, 1, 1)",
        volume,
        GUEST1,
        attachment,
    )
    return Expected(Kind.UNFINISHED_MIGRATION, volume, "guest1")


def disk_without_attachment(sim: SimWorld) -> Expected:
    volume = attached(sim, "disk-without-attachment")
    wrecks.lost(sim.directory, volume)
    return Expected(Kind.DISK_WITHOUT_ATTACHMENT, volume, "guest1")


def missing_device(sim: SimWorld) -> Expected:
    volume = attached(sim, "missing-device")
    wrecks.rebooted(sim.directory, volume)
    return Expected(Kind.MISSING_DEVICE, volume, "guest1")


def stale_connection(sim: SimWorld) -> Expected:
    volume = attached(sim, "stale-connection")
    with book(sim, "cinder") as cinder:
        (item,) = (found for found in cinder["attachments"].values() if found["volume_id"] == volume)
        item["connection_info"]["target_portal"] = "192.0.2.99:3260"
        item["connection_info"]["auth_password"] = "changed-secret"
    return Expected(Kind.STALE_CONNECTION, volume, "guest1")


def live_only_disk(sim: SimWorld) -> Expected:
    volume = attached(sim, "live-only")
    wrecks.live_only(sim.directory, volume)
    return Expected(Kind.LIVE_ONLY_DISK, volume, "guest1")


def persistent_only_disk(sim: SimWorld) -> Expected:
    volume = attached(sim, "persistent-only")
    wrecks.persistent_only(sim.directory, volume)
    return Expected(Kind.PERSISTENT_ONLY_DISK, volume, "guest1")


def pending_unplug(sim: SimWorld) -> Expected:
    volume = attached(sim, "pending-unplug")
    execute(sim, "UPDATE tether_mappings SET pending_unplug = 1 WHERE volume_id = ?", volume)
    path = sim.directory / "guests" / GUEST1 / "state.json"
    state = json.loads(path.read_text())
    state["pending"][f"ua-{volume}"] = "ignored"
    path.write_text(json.dumps(state))
    return Expected(Kind.PENDING_UNPLUG, volume, "guest1")


def foreign_disk(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "foreign-disk")
    row(sim, volume, "attached")
    add_disk(sim, "guest2", hand_made("sdy", f"/dev/disk/by-path/ip-192.0.2.10-volume-{volume}", volume))
    return Expected(Kind.FOREIGN_DISK, volume, "guest2", "foreign")


def attachment_without_disk(sim: SimWorld) -> Expected:
    volume = attached(sim, "attachment-without-disk")
    wrecks.unplugged(sim.directory, volume)
    return Expected(Kind.ATTACHMENT_WITHOUT_DISK, volume, "guest1")


def mapping_without_anything(sim: SimWorld) -> Expected:
    volume = attached(sim, "mapping-without-anything")
    wrecks.unplugged(sim.directory, volume)
    wrecks.lost(sim.directory, volume)
    wrecks.rebooted(sim.directory, volume)
    return Expected(Kind.MAPPING_WITHOUT_ANYTHING, volume, "guest1")


def cinder_contradiction(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "cinder-contradiction", status="in-use", attach_status="attached")
    return Expected(Kind.CINDER_CONTRADICTION, volume, "", "foreign")


def reserved_without_job(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "reserved-without-job")
    row(sim, volume, "reserved", str(uuid.uuid4()))
    return Expected(Kind.RESERVED_WITHOUT_JOB, volume, "", "foreign")


def unused_link(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-link")
    hold(sim, "links", volume, "/dev/sdx")
    return Expected(Kind.UNUSED_LINK, volume, "", "unknown")


def unused_device(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-device")
    hold(
        sim,
        "devices",
        volume,
        {
            "path": "/dev/sdw",
            "size": 1024**3,
            "identity": "60014050000000000000000000000abc",
            "open_count": 0,
            "identities_differ": False,
            "iqn": f"iqn.2010-10.org.openstack:volume-{volume}",
            "sessions": [],
        },
    )
    return Expected(Kind.UNUSED_DEVICE, volume, "", "foreign")


def unused_session(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-session")
    hold(sim, "sessions", volume, [f"192.0.2.10:3260 iqn.2010-10.org.openstack:volume-{volume}"])
    return Expected(Kind.UNUSED_SESSION, volume, "", "foreign")


def unused_map(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-map")
    hold(sim, "maps", volume, "mpatha")
    return Expected(Kind.UNUSED_MAP, volume, "", "foreign")


def unused_crypt(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-crypt")
    name = f"tether-{volume}"
    hold(sim, "crypt", volume, {"name": name, "uuid": f"CRYPT-LUKS1-{volume.replace('-', '')}-{name}"})
    return Expected(Kind.UNUSED_CRYPT, volume, "", "unknown")


def unused_secret(sim: SimWorld) -> Expected:
    volume = new_volume(sim, "unused-secret")
    path = sim.directory / "guests" / "secrets.json"
    secrets = json.loads(path.read_text()) if path.exists() else {"late": [], "secrets": {}}
    secrets["secrets"][f"iscsi:{volume}"] = "chap"
    path.write_text(json.dumps(secrets))
    return Expected(Kind.UNUSED_SECRET, volume)


#: Every kind of drift, and how it is put into a world, alone.
DRIFTS: dict[Kind, Callable[[SimWorld], Expected]] = {
    Kind.TWO_SERVERS: two_servers,
    Kind.TWO_DISKS: two_disks,
    Kind.WRONG_DEVICE: wrong_device,
    Kind.SERIAL_MISMATCH: serial_mismatch,
    Kind.BLOCKED_JOB: blocked_job,
    Kind.INTERRUPTED_JOB: interrupted_job,
    Kind.UNFINISHED_MIGRATION: unfinished_migration,
    Kind.DISK_WITHOUT_ATTACHMENT: disk_without_attachment,
    Kind.MISSING_DEVICE: missing_device,
    Kind.STALE_CONNECTION: stale_connection,
    Kind.LIVE_ONLY_DISK: live_only_disk,
    Kind.PERSISTENT_ONLY_DISK: persistent_only_disk,
    Kind.PENDING_UNPLUG: pending_unplug,
    Kind.FOREIGN_DISK: foreign_disk,
    Kind.ATTACHMENT_WITHOUT_DISK: attachment_without_disk,
    Kind.MAPPING_WITHOUT_ANYTHING: mapping_without_anything,
    Kind.CINDER_CONTRADICTION: cinder_contradiction,
    Kind.RESERVED_WITHOUT_JOB: reserved_without_job,
    Kind.UNUSED_CRYPT: unused_crypt,
    Kind.UNUSED_MAP: unused_map,
    Kind.UNUSED_DEVICE: unused_device,
    Kind.UNUSED_SESSION: unused_session,
    Kind.UNUSED_LINK: unused_link,
    Kind.UNUSED_SECRET: unused_secret,
}
