"""The judge of the embedded world: reads its files, and imports nothing of tether."""

from __future__ import annotations

import json
import sqlite3
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

MARKS = "{https://tether.dev/xmlns/1}"
NOTHING = "\N{EN DASH}"


def snapshot(world: Path) -> dict[str, Any]:
    """Return the five books of a world as one comparable value.

    Ids that differ from run to run (attachments, jobs, owner marks) are replaced by what they stand for. Left out:
    job history, times, soft-deleted rows, Cinder's admin metadata.
    """
    return {
        "cinder": _cinder(_json(world / "cinder.json")),
        "ledger": _ledger(world / "tether.sqlite"),
        "host": _host(_json(world / "host.json")),
        "guests": {path.name: _guest(path) for path in sorted((world / "guests").iterdir()) if path.is_dir()},
        "secrets": sorted(_json(world / "guests" / "secrets.json").get("secrets", {})),
    }


class Books(NamedTuple):
    """What the books say of one volume, in the words of the measurement of Nova."""

    cinder: str
    ledger: str
    host: str
    guest: str


def books_of(world: Path, volume: str) -> Books:
    """Return what the books of a world say of a volume, which is named by its name.

    The ledger's part is Nova's block device mapping: the row, whether it or its job durably knows the attachment's id,
    and whether the connection info is stored. The guest's is whether a live and a persistent definition have the disk.
    """
    cinder, host = _json(world / "cinder.json"), _json(world / "host.json")
    found = next(row for row in cinder["volumes"].values() if row["name"] == volume)
    rows = {row["id"]: row for row in cinder.get("attachments", {}).values() if not row.get("deleted")}
    mine = [row for row in rows.values() if row["volume_id"] == found["id"]]
    said = ", ".join(row["attach_status"] + " no connector" * (not row["connector"]) for row in mine)
    secrets = _json(world / "guests" / "secrets.json").get("secrets", {})
    here = {
        "device": found["id"] in host["devices"],
        "dm-crypt": found["id"] in host["crypt"],
        "secret": f"volume:{found['id']}" in secrets,
    }
    return Books(
        f"{found['status']} [{said or 'no att.'}]",
        _mapping(world / "tether.sqlite", found["id"], set(rows)),
        "+".join(name for name, there in here.items() if there) or NOTHING,
        "/".join(_plugged(world, scope, found["id"]) for scope in ("live", "persistent")),
    )


def _mapping(path: Path, volume_id: str, known: set[str]) -> str:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
        query = "SELECT job_id, attachment_id FROM tether_mappings WHERE volume_id = ?"
        row = connection.execute(query, (volume_id,)).fetchone()
        if row is None:
            return NOTHING
        job, attachment = row
        for (steps,) in connection.execute("SELECT steps FROM tether_flows WHERE job_id = ?", (job,)):
            made = [atom.get("results") for atom in json.loads(steps) if atom["name"] == "reserve-volume/1"]
            attachment = attachment or (made[0] if made and isinstance(made[0], str) else "")
        sealed = connection.execute(
            "SELECT 1 FROM tether_secrets WHERE job_id = ? AND name = 'connection'", (job,)
        ).fetchone()
    gone = " (gone)" if attachment and attachment not in known else ""
    return f"{'att. id' if attachment else 'no att. id'}{gone}, {'conn info' if sealed else 'no conn info'}"


def _plugged(world: Path, scope: str, volume_id: str) -> str:
    texts = [path.read_text() for path in (world / "guests").glob(f"*/{scope}.xml")]
    return "yes" if any(f"<serial>{volume_id}</serial>" in text for text in texts) else "no"


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
            "status": volume["status"],
            "attach_status": volume["attach_status"],
            "attachments": sorted(f"{row['attach_status']} {bool(row['instance_uuid'])}" for row in rows),
            "exported": volume["id"] in book.get("exports", {}),
        }
    return volumes


def _ledger(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"mappings": [], "connections": [], "leases": []}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
        columns = "volume_id, server_id, state, target, bus, address, mode, dialect, data_path, pending_unplug"
        return {
            "mappings": connection.execute(f"SELECT {columns} FROM tether_mappings ORDER BY 1, 2").fetchall(),
            "connections": connection.execute(
                "SELECT machine_id, volume_id, identity, path FROM tether_connections ORDER BY 1, 2"
            ).fetchall(),
            "leases": connection.execute("SELECT name FROM tether_leases").fetchall(),
        }


def _host(book: dict[str, Any]) -> dict[str, Any]:
    return {name: book.get(name, {}) for name in ("devices", "links", "crypt")}


def _guest(path: Path) -> dict[str, Any]:
    return {
        "live": _definition(path / "live.xml"),
        "persistent": _definition(path / "persistent.xml"),
        "pending": _json(path / "state.json").get("pending", {}),
    }


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
