"""The judge of the live world: what Cinder, tgt, libvirt and tether's ledger say, as one comparable value.

It imports nothing of tether: Cinder's database and tether's are read with sqlite3, the rest with tgtadm and virsh.
Left out, since they differ between equal worlds: times, deleted rows, target numbers, UUIDs of secrets, tether's jobs.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
LEDGER_TABLE = "tether_mappings"
METADATA_MARK = "tether"  # in the namespace of the job marks that tether leaves in a domain's metadata


class Places(Protocol):
    """What the judge must know of a live world: the databases, libvirt, and the environment for tgtadm."""

    @property
    def cinder_database(self) -> Path: ...
    @property
    def ledger(self) -> Path: ...
    @property
    def libvirt_uri(self) -> str: ...
    @property
    def environment(self) -> dict[str, str]: ...


class Judge:
    """Reads one world.

    Args:
        world: where.
    """

    def __init__(self, world: Places) -> None:
        self.world = world

    def snapshot(self, volume_id: str | None = None) -> Row:
        """Return what the books say, of one volume or of everything.

        With a volume, only what names it is in: its rows, its target and account, the disks and secrets that mention
        it. Domains' states, controllers and tether's marks are always in.

        Raises:
            subprocess.CalledProcessError, sqlite3.Error: a book cannot be read; it is never taken for empty.
        """
        return {
            "cinder": self.cinder(volume_id),
            "tgt": self.tgt(volume_id),
            "libvirt": self.libvirt(volume_id),
            "ledger": self.ledger(volume_id),
        }

    def cinder(self, volume_id: str | None = None) -> Row:
        """Return volumes and live attachments."""
        which, values = ("AND id = ?", [volume_id]) if volume_id else ("", [])
        with _read_only(self.world.cinder_database) as database:
            volumes = database.execute(
                f"SELECT id, status, attach_status FROM volumes WHERE NOT deleted {which}", values
            ).fetchall()
            attachments = database.execute(
                "SELECT id, volume_id, attach_status, instance_uuid, attach_mode, attached_host, mountpoint"
                f" FROM volume_attachment WHERE NOT deleted {which.replace('AND id', 'AND volume_id')}",
                values,
            ).fetchall()
        return {
            "volumes": {row["id"]: dict(row) for row in volumes},
            "attachments": {row["id"]: dict(row) for row in attachments},
        }

    def tgt(self, volume_id: str | None = None) -> Row:
        """Return targets with their LUNs, ACLs, accounts and logged-in initiators, and all accounts by themselves."""
        found = parse_targets(self._tgtadm("target"))
        accounts = parse_accounts(self._tgtadm("account"))
        if volume_id is not None:
            found = {name: target for name, target in found.items() if volume_id in name}
            accounts = sorted(set(accounts) & {self._account(volume_id)})
        return {"targets": found, "accounts": accounts}

    def _tgtadm(self, mode: str) -> str:
        return _output(["tgtadm", "--lld", "iscsi", "--op", "show", "--mode", mode], self.world.environment)

    def _account(self, volume_id: str) -> str | None:
        """Return the CHAP user that Cinder has for a volume; deleted volumes keep theirs."""
        with _read_only(self.world.cinder_database) as database:
            row = database.execute("SELECT provider_auth FROM volumes WHERE id = ?", [volume_id]).fetchone()
        return row["provider_auth"].split()[1] if row and row["provider_auth"] else None

    def libvirt(self, volume_id: str | None = None) -> Row:
        """Return every domain's state, disks, controllers and marks, live and persistent, and the secrets."""
        states = dict(line.split(maxsplit=2)[1:] for line in self._virsh("list --all").splitlines() if line.strip())
        persistent = self._virsh("list --all --persistent --name").split()
        parts = {}
        for name, state in sorted(states.items()):
            parts[name] = {
                "state": state.strip(),
                "live": self._domain(name, "", volume_id) if state.strip() != "shut off" else None,
                "persistent": self._domain(name, "--inactive", volume_id) if name in persistent else None,
            }
        secrets = [line.split(maxsplit=1)[1] for line in self._virsh("secret-list").splitlines() if line.strip()]
        return {
            "domains": parts,
            "secrets": sorted(usage for usage in secrets if volume_id is None or volume_id in usage),
        }

    def _domain(self, name: str, option: str, volume_id: str | None) -> Row:
        domain = ET.fromstring(self._virsh(f"dumpxml --security-info {option} {name}"))
        for source in domain.iterfind("devices/disk//source"):
            source.attrib.pop("index", None)  # a counter of this run of QEMU
        disks = {_target(disk): _canonical(disk) for disk in domain.findall("devices/disk")}
        return {
            "disks": {dev: text for dev, text in disks.items() if volume_id is None or volume_id in text},
            "controllers": sorted(
                f"{each.get('type')} {each.get('index')} {each.get('model', '')}".strip()
                for each in domain.findall("devices/controller")
            ),
            "marks": sorted(
                _canonical(each) for each in domain.findall("metadata/*") if METADATA_MARK in each.tag.split("}")[0]
            ),
        }

    def _virsh(self, command: str) -> str:
        return _output(["virsh", "-q", "-c", self.world.libvirt_uri, command])

    def ledger(self, volume_id: str | None = None) -> list[Row]:
        """Return tether's mappings, without their times; a ledger that does not exist yet has none."""
        if not self.world.ledger.exists():
            return []
        with _read_only(self.world.ledger) as database:
            tables = {row["name"] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if LEDGER_TABLE not in tables:
                return []
            rows = [dict(row) for row in database.execute(f"SELECT * FROM {LEDGER_TABLE}")]
        kept = [
            {name: value for name, value in row.items() if not name.endswith("_at")}
            for row in rows
            if volume_id is None or row["volume_id"] == volume_id
        ]
        return sorted(kept, key=repr)


def diff(before: Any, after: Any, path: str = "") -> list[str]:
    """Return what differs between two snapshots, one readable line each; nothing if they are equal."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for name in sorted({*before, *after}, key=str):
            place = f"{path}.{name}" if path else str(name)
            if name not in before:
                lines.append(f"{place}: new: {after[name]!r}")
            elif name not in after:
                lines.append(f"{place}: gone: {before[name]!r}")
            else:
                lines += diff(before[name], after[name], place)
        return lines
    if isinstance(before, list) and isinstance(after, list):
        gone, new = list(before), []
        for item in after:
            if item in gone:
                gone.remove(item)
            else:
                new.append(item)
        return [f"{path}: gone: {item!r}" for item in gone] + [f"{path}: new: {item!r}" for item in new]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


def parse_targets(text: str) -> dict[str, Row]:
    """Parse ``tgtadm --op show --mode target``.

    Raises:
        ValueError: it looks unlike what tgt 1.0.85 prints.
    """
    targets: dict[str, Row] = {}
    target: Row = {}
    section = ""
    for line in text.splitlines():
        depth, words = len(line) - len(line.lstrip()), line.strip()
        if depth == 0 and words.startswith("Target "):
            target = {"luns": {}, "acls": [], "accounts": [], "initiators": []}
            targets[words.split(": ", 1)[1]] = target
        elif depth == 4:
            section = words
        elif section == "I_T nexus information:" and words.startswith("Initiator: "):
            # "Initiator: iqn… alias: …": the alias is the initiator's own remark
            target["initiators"] = sorted([*target["initiators"], words.split()[1]])
        elif section == "LUN information:" and words.startswith("LUN: "):
            lun = int(words.removeprefix("LUN: "))
        elif section == "LUN information:" and words.startswith("Backing store path: ") and lun != 0:
            target["luns"][lun] = words.removeprefix("Backing store path: ")
        elif section in ("Account information:", "ACL information:") and words:
            kind = "accounts" if section.startswith("Account") else "acls"
            target[kind] = sorted([*target[kind], words])
        elif not targets:
            raise ValueError(f"tgtadm prints {line!r} before any target")
    return targets


def parse_accounts(text: str) -> list[str]:
    """Parse ``tgtadm --op show --mode account``."""
    return sorted(line.strip() for line in text.splitlines() if line.startswith(" ") and line.strip())


@contextlib.contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
    database.row_factory = sqlite3.Row
    try:
        yield database
    finally:
        database.close()


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _canonical(element: ET.Element) -> str:
    return ET.canonicalize(ET.tostring(element, encoding="unicode"), strip_text=True)


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment).stdout
