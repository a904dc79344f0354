"""What the five books say of each (volume, server) pair, and what must be true of it; nothing of tether is imported."""

from __future__ import annotations

import json
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = "{https://tether.dev/xmlns/1}"
SCOPES = ("live", "persistent", "saved")
OPEN = ("running", "blocked")

VOLUMES = {
    "vol1": "11111111-1111-4111-8111-111111111111",
    "vol2": "22222222-2222-4222-8222-222222222222",
    "shared1": "44444444-4444-4444-8444-444444444444",
    "secret1": "55555555-5555-4555-8555-555555555555",
}
SERVERS = {
    name: f"9e570000-0000-4000-8000-00000000000{number}"
    for number, name in enumerate(("guest1", "guest2", "stopped1", "paused1"), start=1)
}
NAMES = {uuid: name for name, uuid in {**VOLUMES, **SERVERS}.items()}

#: The owner of attachments that are neither tether's nor its user's.
STRANGER = "0ff0ff00-0000-4000-8000-000000000001"

Pair = tuple[str, str]
Row = dict[str, Any]


@dataclass(frozen=True)
class Disk:
    """One ``<disk>``.

    Args:
        volume: the name of the volume whose alias it carries; empty for anybody else's.
        text: the element in canonical form.
    """

    volume: str
    target: str
    address: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True)
class Definition:
    """One of a guest's definitions: live, persistent, or in its managed-save image.

    Args:
        marks: the job of tether's mark, by volume.
    """

    disks: tuple[Disk, ...]
    marks: dict[str, str]
    controllers: list[Any]

    def disk(self, volume: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.volume == volume), None)


@dataclass(frozen=True)
class Facts:
    """All five books at one moment, by the names of volumes and servers.

    Args:
        rows: Cinder's attachments by volume.
        guests: by server and scope.
        secrets: as "kind:volume id".
    """

    volumes: dict[str, Row]
    rows: dict[str, list[Row]]
    exports: dict[str, Any]
    devices: dict[str, Any]
    links: dict[str, str]
    crypt: dict[str, Any]
    secrets: dict[str, Any]
    guests: dict[str, dict[str, Definition]]
    power: dict[str, str]
    pending: dict[str, dict[str, str]]
    mappings: dict[Pair, Row]
    jobs: list[Row]
    connections: list[Row]

    def open_job(self, volume: str) -> Row | None:
        return next((job for job in self.jobs if job["volume_id"] == VOLUMES[volume] and job["state"] in OPEN), None)

    def open_jobs(self) -> list[Row]:
        return [job for job in self.jobs if job["state"] in OPEN]

    def others(self, pair: Pair) -> list[Row]:
        """Return the mappings of the pair's volume to other servers."""
        return [row for (volume, server), row in self.mappings.items() if volume == pair[0] and server != pair[1]]


def read(world: Path) -> Facts:
    """Read all five books of a world."""
    cinder, host = _json(world / "cinder.json"), _json(world / "host.json")
    names = {uuid: NAMES.get(uuid, uuid) for uuid in cinder["volumes"]}
    rows: dict[str, list[Row]] = {name: [] for name in names.values()}
    for row in cinder["attachments"].values():
        rows[names[row["volume_id"]]].append(row)
    folders = {NAMES.get(path.parent.name, path.parent.name): path.parent for path in world.glob("guests/*/state.json")}
    states = {name: _json(path / "state.json") for name, path in folders.items()}
    ledger = _ledger(world / "tether.sqlite")
    return Facts(
        volumes={names[uuid]: row for uuid, row in cinder["volumes"].items()},
        rows=rows,
        exports=_named(cinder["exports"]),
        devices=_named(host["devices"]),
        links=_named(host["links"]),
        crypt=_named(host["crypt"]),
        secrets=dict(_json(world / "guests" / "secrets.json").get("secrets", {})),
        guests={name: _definitions(path, states[name]["power"]) for name, path in folders.items()},
        power={name: state["power"] for name, state in states.items()},
        pending={name: state["pending"] for name, state in states.items()},
        mappings={(NAMES[row["volume_id"]], NAMES[row["server_id"]]): row for row in ledger["tether_mappings"]},
        jobs=ledger["tether_jobs"],
        connections=ledger["tether_connections"],
    )


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _named(book: dict[str, Any]) -> dict[str, Any]:
    return {NAMES.get(uuid, uuid): value for uuid, value in book.items()}


def _ledger(path: Path) -> dict[str, list[Row]]:
    order = {"tether_jobs": "created_at DESC, rowid DESC", "tether_mappings": "id", "tether_connections": "volume_id"}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
        connection.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY {by}")]
            for table, by in order.items()
        }


def _definitions(folder: Path, power: str) -> dict[str, Definition]:
    there = [scope for scope in SCOPES if (folder / f"{scope}.xml").exists()]
    return {
        scope: _definition(folder / f"{scope}.xml")
        for scope in there
        if scope != "live" or power in {"running", "paused"}
    }


def _definition(path: Path) -> Definition:
    root = ET.parse(path).getroot()
    return Definition(
        disks=tuple(_disk(element) for element in root.iterfind("devices/disk")),
        marks={NAMES.get(item.get("id", ""), ""): item.get("job", "") for item in root.iter(f"{MARKS}volume")},
        controllers=[sorted(item.attrib.items()) for item in root.iterfind("devices/controller")],
    )


def _disk(element: ET.Element) -> Disk:
    alias, target, address = element.find("alias"), element.find("target"), element.find("address")
    name = "" if alias is None else alias.get("name", "")
    return Disk(
        volume=NAMES.get(name.removeprefix("ua-"), "") if name.startswith("ua-") else "",
        target="" if target is None else target.get("dev", ""),
        address=() if address is None else tuple(sorted(address.attrib.items())),
        text=ET.canonicalize(ET.tostring(element, encoding="unicode"), strip_text=True),
    )


# -- what must be true of one pair ---------------------------------------------------------------------------


def unless_attached(facts: Facts, pair: Pair) -> Iterator[str]:
    """Yield what speaks against the volume being attached to the server; each line begins with its book."""
    volume, server = pair
    mapping = facts.mappings.get(pair)
    if mapping is None:
        yield "ledger: no mapping"
        return
    if mapping["state"] != "attached":
        yield f"ledger: the mapping is {mapping['state']}"
    yield from _unattached_in_cinder(facts, volume, mapping)
    yield from _reached(facts, pair, mapping)
    for scope in ("live", "persistent"):
        definition = facts.guests[server].get(scope)
        if definition is None:
            continue
        disk = definition.disk(volume)
        if disk is None:
            yield f"{scope}: no disk"
        elif disk.target != mapping["target"] or dict(disk.address) != json.loads(mapping["address"]):
            yield f"{scope}: the disk is elsewhere than in the ledger"
        if definition.marks.get(volume) != mapping["job_id"]:
            yield f"{scope}: no mark of the job"


def _unattached_in_cinder(facts: Facts, volume: str, mapping: Row) -> Iterator[str]:
    mine = [row for row in facts.rows[volume] if row["id"] == mapping["attachment_id"]]
    twins = [row for row in facts.rows[volume] if row["instance_uuid"] == mapping["owner_mark"]]
    if [row["attach_status"] for row in mine] != ["attached"]:
        yield f"cinder: the attachment is {[row['attach_status'] for row in mine] or 'absent'}"
    if len(twins) > 1:
        yield f"cinder: {len(twins)} attachments with one owner"
    if facts.volumes[volume]["status"] != "in-use" and not _busy(facts, volume):
        yield f"cinder: the volume is {facts.volumes[volume]['status']}"
    if volume not in facts.exports:
        yield "cinder: there is no export"


def unless_clean(facts: Facts, pair: Pair) -> Iterator[str]:
    """Yield what is left of the volume on the server, beside what other servers' mappings account for."""
    volume, server = pair
    if pair in facts.mappings:
        yield "ledger: a mapping"
    for scope, definition in facts.guests[server].items():
        if definition.disk(volume) is not None:
            yield f"{scope}: the disk"
        if volume in definition.marks and scope != "saved":
            yield f"{scope}: the mark"
    if not _busy(facts, volume):  # else the open job's own work may be there
        others = facts.others(pair)
        yield from _left_in_cinder(facts, volume, others)
        yield from _left_on_host(facts, volume, others)


def _left_in_cinder(facts: Facts, volume: str, others: list[Row]) -> Iterator[str]:
    known = {row["owner_mark"] for row in others} | {row["attachment_id"] for row in others} | {STRANGER}
    rows = facts.rows[volume]
    for row in rows:
        if not {row["id"], row["instance_uuid"]} & known:
            yield f"cinder: an attachment ({row['attach_status']})"
    states = {row["attach_status"] for row in rows}
    expected = next((status for state, status in STATUS if state in states), "available")
    if facts.volumes[volume]["status"] != expected:
        yield f"cinder: the volume is {facts.volumes[volume]['status']}, not {expected}"
    if not rows and volume in facts.exports:
        yield "export: it is still there"


def _left_on_host(facts: Facts, volume: str, others: list[Row]) -> Iterator[str]:
    if not any(row["data_path"] == "host" for row in others):
        for name in ("devices", "links", "crypt"):
            if volume in getattr(facts, name):
                yield f"host: {name}"
        if any(row["volume_id"] == VOLUMES[volume] for row in facts.connections):
            yield "ledger: a device"
    # The last mapping takes the secrets along, by whatever data path.
    for kind in () if others else ("iscsi", "volume"):
        if f"{kind}:{VOLUMES[volume]}" in facts.secrets:
            yield f"host: the libvirt secret ({kind})"


#: The volume's status by the first of its attachments' states.
STATUS = (("attached", "in-use"), ("attaching", "attaching"), ("reserved", "reserved"))


def _busy(facts: Facts, volume: str) -> bool:
    return facts.open_job(volume) is not None


def _reached(facts: Facts, pair: Pair, mapping: Row) -> Iterator[str]:
    """Yield what a guest that has the disk lacks to reach it by."""
    volume = pair[0]
    encrypted = facts.volumes[volume]["encryption"] is not None
    if mapping["data_path"] == "network":
        for kind in ("iscsi", "volume") if encrypted else ("iscsi",):
            if f"{kind}:{VOLUMES[volume]}" not in facts.secrets:
                yield f"host: no libvirt secret ({kind})"
        return
    for name in ("devices", "links", "crypt") if encrypted else ("devices", "links"):
        if volume not in getattr(facts, name):
            yield f"host: no {name}"


# -- what must be true at every moment -----------------------------------------------------------------------


def dangers(facts: Facts, unrowed: set[Pair]) -> Iterator[str]:
    """Yield what must not be at any moment, whatever happened.

    Args:
        unrowed: the pairs whose attachment an outsider has deleted: what follows from that alone is his.
    """
    for server, scopes in facts.guests.items():
        for scope, definition in scopes.items():
            yield from _twice(f"{server} {scope}", definition)
            for disk in definition.disks:
                if disk.volume:
                    yield from _held(facts, (disk.volume, server), scope, unrowed)
    for volume in VOLUMES:
        yield from _volume_dangers(facts, volume, excused=any(name == volume for name, _server in unrowed))


def _twice(where: str, definition: Definition) -> Iterator[str]:
    """Yield the targets and addresses that two disks share."""
    targets = [disk.target for disk in definition.disks]
    places = [disk.address for disk in definition.disks if disk.address]
    for name, count in (("target", len(targets) - len(set(targets))), ("address", len(places) - len(set(places)))):
        if count:
            yield f"{where}: two disks with one {name}"


def _volume_dangers(facts: Facts, volume: str, *, excused: bool) -> Iterator[str]:
    holders = {
        server
        for server, scopes in facts.guests.items()
        if any(definition.disk(volume) for definition in scopes.values())
    }
    plain = not facts.volumes[volume]["multiattach"]
    if plain and len(holders) > 1:
        yield f"{volume}: on {sorted(holders)}"
    if plain and len([row for row in facts.rows[volume] if row["attach_status"] != "reserved"]) > 1:
        yield f"{volume}: two connected attachments"
    if not excused and volume in facts.links and not _connected(facts, volume):
        yield f"{volume}: the host has a device, and Cinder no attachment"
    if holders and not excused and facts.volumes[volume]["status"] == "available":
        yield f"{volume}: available, and {sorted(holders)} have it"


def _held(facts: Facts, pair: Pair, scope: str, unrowed: set[Pair]) -> Iterator[str]:
    """Yield what is missing behind a disk that a guest has: nothing downstream of it may be gone."""
    volume, server = pair
    mapping = facts.mappings.get(pair)
    if mapping is None:
        yield f"{server} {scope}: a disk of {volume} that the ledger does not know"
        return
    if pair not in unrowed and not _row_of(facts, volume, mapping):
        yield f"{server} {scope}: a disk of {volume}, and its attachment is gone"
    for line in _reached(facts, pair, mapping):
        yield f"{server} {scope}: a disk of {volume}, and {line}"


def _row_of(facts: Facts, volume: str, mapping: Row) -> bool:
    """Return True if Cinder has an attachment for the mapping, or in the legacy dialect what comes before one."""
    owners = {row["instance_uuid"] for row in facts.rows[volume]} | {row["id"] for row in facts.rows[volume]}
    if {mapping["owner_mark"], mapping["attachment_id"]} & owners - {"", None}:
        return True
    return mapping["dialect"] == "legacy" and facts.volumes[volume]["status"] in {"attaching", "detaching", "in-use"}


def _connected(facts: Facts, volume: str) -> bool:
    ours = [row for (name, _server), row in facts.mappings.items() if name == volume]
    return any(_row_of(facts, volume, row) for row in ours)
