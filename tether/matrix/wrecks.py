"""What somebody else does to a world: what an adoption and the repairs begin with.

By the world's files and the database, never by tether's adapters.
"""

from __future__ import annotations

import json
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tether.matrix.journeys import BESIDE
from tether.matrix.judge import MARKS

SCOPES = ("live", "persistent")


@contextmanager
def book(world: Path, name: str) -> Iterator[dict[str, Any]]:
    """Change one of the world's JSON files."""
    path = world / f"{name}.json"
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


@contextmanager
def definitions(world: Path, *scopes: str) -> Iterator[list[ET.Element]]:
    """Change these definitions of every server that has them."""
    paths = [path for scope in scopes for path in sorted(world.glob(f"guests/*/{scope}.xml"))]
    roots = [ET.parse(path).getroot() for path in paths]  # noqa: S314 - the world's own
    yield roots
    for path, root in zip(paths, roots, strict=True):
        path.write_text(ET.tostring(root, encoding="unicode"))


def by_hand(world: Path, volume_id: str) -> None:
    """Attached by a person: no ledger, no link, no mark, no alias of tether's."""
    for path in world.glob("tether.sqlite*"):
        path.unlink()
    with book(world, "host") as host:
        device = host["links"].pop(volume_id, None)
    for scope in SCOPES:
        with definitions(world, scope) as roots:
            for root in roots:
                _unmark(root, volume_id)
                for disk in _disks(root, volume_id):
                    source, alias = disk.find("source"), disk.find("alias")
                    assert source is not None and alias is not None  # noqa: S101, PT018 - it is tether's
                    if device is not None:
                        source.set("dev", device)
                    if scope == "live":
                        alias.set("name", "virtio-disk9")
                    else:
                        disk.remove(alias)


def rebooted(world: Path, volume_id: str) -> None:
    """The host has been started anew: nothing is connected."""
    with book(world, "host") as host:
        for part in ("devices", "links", "crypt"):
            host[part].pop(volume_id, None)


def moved(world: Path, volume_id: str) -> None:
    """Cinder exports the volume with another password by now."""
    with book(world, "cinder") as cinder:
        for row in cinder["attachments"].values():
            if row["volume_id"] == volume_id:
                row["connection_info"]["auth_password"] = "changed"  # noqa: S105 - nobody's


def lost(world: Path, volume_id: str) -> None:
    """An administrator has reset the volume's state: Cinder has no attachment of it."""
    with book(world, "cinder") as cinder:
        rows = cinder["attachments"]
        cinder["attachments"] = {key: row for key, row in rows.items() if row["volume_id"] != volume_id}
        cinder["volumes"][volume_id].update(status="available", attach_status="detached")


def live_only(world: Path, volume_id: str) -> None:
    """``virsh detach-disk --config``."""
    _take_out(world, volume_id, "persistent")


def persistent_only(world: Path, volume_id: str) -> None:
    """``virsh detach-disk --live``."""
    _take_out(world, volume_id, "live")


def detaching(world: Path, volume_id: str) -> None:
    """Somebody began to detach the volume, and went away."""
    with book(world, "cinder") as cinder:
        cinder["volumes"][volume_id]["status"] = "detaching"


def unplugged(world: Path, volume_id: str) -> None:
    """``virsh detach-disk --persistent``: the disk is gone, and nothing else."""
    _take_out(world, volume_id, *SCOPES)


def stray(world: Path, volume_id: str) -> None:
    """The disk is gone, and the mapping too, by a hand in the database."""
    _take_out(world, volume_id, *SCOPES)
    with closing(sqlite3.connect(world / "tether.sqlite")) as database, database:
        (job,) = database.execute("SELECT job_id FROM tether_mappings WHERE volume_id = ?", (volume_id,)).fetchone()
        database.execute("DELETE FROM tether_mappings WHERE job_id = ?", (job,))
        database.execute("DELETE FROM tether_secrets WHERE job_id = ? AND name = 'connection'", (job,))


def arrived(world: Path, volume_id: str) -> None:
    """``virsh migrate --live --undefinesource`` to the host beside."""
    for guest in [path for path in (world / "guests").iterdir() if path.is_dir() and _has_disk(path, volume_id)]:
        guest.rename(world / BESIDE / "guests" / guest.name)


def _has_disk(guest: Path, volume_id: str) -> bool:
    return any(volume_id in path.read_text() for path in guest.glob("*.xml"))


def retyped(world: Path, volume_id: str) -> None:
    """It has another type by now, with QoS specs."""
    with book(world, "cinder") as cinder:
        cinder["volumes"][volume_id] |= {
            "volume_type": "limited",
            "volume_type_id": "11177ed0-0000-4000-8000-000000000000",
            "qos_specs": {"total_iops_sec": "500", "read_bytes_sec_per_gb": "1000000"},
        }


def dead(world: Path, _volume_id: str) -> None:
    """The storage is gone: no device can be flushed."""
    failure = {"call": "host.disconnect", "action": "no-flush", "times": -1, "skip": 0}
    (world / "script.json").write_text(json.dumps({"failures": [failure]}))


#: Kind of world -> what has happened to one in which the volume was attached.
WRECKS: dict[str, Callable[[Path, str], None]] = {
    "by-hand": by_hand,
    "rebooted": rebooted,
    "moved": moved,
    "lost": lost,
    "live-only": live_only,
    "persistent-only": persistent_only,
    "detaching": detaching,
    "unplugged": unplugged,
    "stray": stray,
    "dead": dead,
    "retyped": retyped,
}


def _take_out(world: Path, volume_id: str, *scopes: str) -> None:
    with definitions(world, *scopes) as roots:
        for root in roots:
            for disk in _disks(root, volume_id):
                devices = root.find("devices")
                assert devices is not None  # noqa: S101 - it has that disk
                devices.remove(disk)


def _disks(root: ET.Element, volume_id: str) -> list[ET.Element]:
    return [item for item in root.iterfind("devices/disk") if volume_id in ET.tostring(item, encoding="unicode")]


def _unmark(root: ET.Element, volume_id: str) -> None:
    for marks in root.iter(f"{MARKS}volumes"):
        for mark in [item for item in marks if item.get("id") == volume_id]:
            marks.remove(mark)
