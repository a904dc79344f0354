"""The judge of the embedded world: reads its files, and imports nothing of tether.

What decides whether the books agree after a fault is not the code that was broken.
"""

from __future__ import annotations

import json
import re
import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

MARKS = "{https://tether.dev/xmlns/1}"


def snapshot(world: Path) -> dict[str, Any]:
    """Return the five books of a world as one comparable value.

    Ids that differ from run to run (attachments, jobs, owner marks) are replaced by what they stand for. Left out:
    job history, times, soft-deleted rows, Cinder's admin metadata.
    """
    cinder = _json(world / "cinder.json")
    books = {"cinder": _cinder(cinder), "ledger": _ledger(world / "tether.sqlite"), **_machine(world, cinder)}
    beside = world / "beside"
    return books | ({"beside": _machine(beside, cinder)} if beside.exists() else {})


def _machine(place: Path, cinder: dict[str, Any]) -> dict[str, Any]:
    """Return the books of one host."""
    guests = sorted((place / "guests").iterdir())
    return {
        "host": _host(_json(place / "host.json")),
        "guests": {path.name: _guest(path, cinder["volumes"]) for path in guests if path.is_dir()},
        "secrets": sorted(_json(place / "guests" / "secrets.json").get("secrets", {})),
    }


def comparable(world: Path) -> dict[str, Any]:
    """Return the five books without what differs between equal worlds: their place, and their random CHAP names."""
    text = json.dumps(snapshot(world), sort_keys=True).replace(str(world), "WORLD")
    return dict(json.loads(re.sub(r'username=\\"\w+\\"', "username", text)))


def identities(world: Path) -> list[list[str]]:
    """Return whose each mapping is: its job, attachment and owner mark. A job that is rolled back changes none."""
    path = world / "tether.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        columns = "volume_id, server_id, job_id, attachment_id, owner_mark"
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'tether_mappings'").fetchall():
            return []
        return [list(row) for row in connection.execute(f"SELECT {columns} FROM tether_mappings ORDER BY 1, 2")]


def danger(books: dict[str, Any]) -> list[str]:
    """Return what must be true at no moment, a line each: a path that was cut below one who may still use it.

    Args:
        books: a snapshot.
    """
    return [line for host in (books, books.get("beside")) if host for line in _danger(books, host)]


def _danger(books: dict[str, Any], host: dict[str, Any]) -> list[str]:
    lines = []
    texts = json.dumps(host["guests"])
    links = host["host"]["links"]
    for name, volume in books["cinder"].items():
        used = volume["id"] in texts
        if used and volume["status"] == "available":
            lines.append(f"a guest has {name}, and Cinder calls it available")
        if used and not volume["exported"]:
            lines.append(f"a guest has {name}, which is not exported")
        if volume["id"] in links and not volume["exported"]:
            lines.append(f"this host has a device of {name}, which is not exported")
        if f'/volumes/{volume["id"]}"' in texts.replace("'", '"') and "beside" in books and volume["id"] not in links:
            lines.append(f"a guest has {name}, and its host has no device of it")
    return lines


def told(world: Path) -> list[str]:
    """Return which of Cinder's secrets lie open in tether's database, a line each."""
    files = [world / f"tether.sqlite{end}" for end in ("", "-wal")]
    texts = b"".join(path.read_bytes() for path in files if path.exists())
    exports = _json(world / "cinder.json").get("exports", {})
    return [
        f"the password of volume {volume} is in the database"
        for volume, export in exports.items()
        if export["auth_password"].encode() in texts
    ]


def diff(before: Any, after: Any, where: str = "") -> list[str]:
    """Return how two snapshots differ, a line each; empty if they are equal."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in diff(before.get(key), after.get(key), f"{where}/{key}")
        ]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _cinder(book: dict[str, Any]) -> dict[str, Any]:
    volumes: dict[str, Any] = {}
    for volume in book["volumes"].values():
        rows = [
            row
            for row in book.get("attachments", {}).values()
            if row["volume_id"] == volume["id"] and not row.get("deleted")
        ]
        volumes[volume["name"]] = {
            "id": volume["id"],
            "status": volume["status"],
            "size": volume["size"],
            "attach_status": volume["attach_status"],
            "attachments": sorted(f"{row['attach_status']} {bool(row['instance_uuid'])}" for row in rows),
            "exported": volume["id"] in book.get("exports", {}),
        }
    return volumes


def _ledger(path: Path) -> dict[str, Any]:
    nothing: dict[str, Any] = {"mappings": [], "handovers": [], "connections": [], "leases": [], "secrets": []}
    if not path.exists():
        return nothing
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "tether_handovers" not in tables:  # empty, or of an earlier release
            return nothing
        columns = (
            "volume_id, server_id, state, target, bus, address, mode, dialect, data_path, machine_id, pending_unplug"
        )
        return {
            "mappings": connection.execute(f"SELECT {columns} FROM tether_mappings ORDER BY 1, 2").fetchall(),
            "handovers": connection.execute(
                "SELECT volume_id, server_id, state, host, machine_id FROM tether_handovers ORDER BY 1, 2"
            ).fetchall(),
            "connections": connection.execute(
                "SELECT machine_id, volume_id, identity, path FROM tether_connections ORDER BY 1, 2"
            ).fetchall(),
            "leases": connection.execute("SELECT name FROM tether_leases").fetchall(),
            "secrets": connection.execute(
                "SELECT name, EXISTS (SELECT 1 FROM tether_mappings m WHERE m.job_id = s.job_id)"
                " + 2 * EXISTS (SELECT 1 FROM tether_handovers h WHERE h.job_id = s.job_id), count(*)"
                " FROM tether_secrets s WHERE job_id != '' GROUP BY 1, 2 ORDER BY 1, 2"
            ).fetchall(),
        }


def _host(book: dict[str, Any]) -> dict[str, Any]:
    return {name: book.get(name, {}) for name in ("devices", "links", "crypt")}


def _guest(path: Path, volumes: dict[str, Any]) -> dict[str, Any]:
    state = _json(path / "state.json")
    return {
        "live": _definition(path / "live.xml"),
        "persistent": _definition(path / "persistent.xml"),
        "pending": state.get("pending", {}),
        "behind": _behind(path / "live.xml", state.get("capacities", {}), volumes),
    }


def _behind(live: Path, capacities: dict[str, int], volumes: dict[str, Any]) -> list[str]:
    """Return the live disks that lack a GiB or more of their volume; a LUKS header takes a few MiB."""
    if not live.exists():
        return []
    lines = []
    for disk in ET.parse(live).getroot().iterfind("devices/disk"):
        volume, target = volumes.get(disk.findtext("serial", "")), disk.find("target")
        size = capacities.get("" if target is None else target.get("dev", ""))
        if volume is not None and size is not None and size <= (volume["size"] - 1) * 1024**3:
            lines.append(f"{volume['name']}: {size} bytes of {volume['size']} GiB")
    return lines


def _definition(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    root = ET.parse(path).getroot()
    return {
        "disks": [
            ET.canonicalize(ET.tostring(disk, encoding="unicode"), strip_text=True)
            for disk in root.iterfind("devices/disk")
        ],
        "controllers": [sorted(item.attrib.items()) for item in root.iterfind("devices/controller")],
        "marks": sorted(item.get("id", "") for item in root.iter(f"{MARKS}volume")),
    }
