"""The judge of the embedded world: the fault matrix's, and the books in the words of the measurement of Nova."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from tether.matrix.judge import diff, snapshot

__all__ = ["NOTHING", "Books", "books_of", "diff", "snapshot"]

NOTHING = "\N{EN DASH}"


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


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
    said = ", ".join(sorted(row["attach_status"] + " no connector" * (not row["connector"]) for row in mine))
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
