"""What a lab's host holds, as one comparable value; it imports nothing of tether's adapters.

Cinder's database, libvirt and tether's ledger are read by the live world's judge; the rest is what a host with kernel
iSCSI, NVMe and NFS has besides: LIO's targets, sessions, node records, NVMe's subsystems and controllers, disks, maps,
mounts, and tether's own links.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.lab.world.inside.services import Host
from tether.matrix.live_judge import Judge

NODE_RECORDS = (Path("/etc/iscsi/nodes"), Path("/var/lib/iscsi/nodes"))
TARGETS = Path("/sys/kernel/config/target/iscsi")
SUBSYSTEMS = Path("/sys/kernel/config/nvmet/subsystems")
RUN = Path("/run/tether")


def snapshot() -> dict[str, Any]:
    """Return what all the books say.

    Raises:
        OSError, subprocess.CalledProcessError: a book cannot be read; it is never taken for empty.
    """
    judge = Judge(Host())
    return {
        "cinder": judge.cinder(),
        "libvirt": judge.libvirt(),
        "ledger": judge.ledger(),
        "targets": targets(),
        "subsystems": {path.name: len(_children(path / "namespaces")) for path in _children(SUBSYSTEMS)},
        "host": host(),
    }


def host() -> dict[str, list[str]]:
    """Return what connections leave on a host: each a list of names."""
    disks = [path.name for path in Path("/sys/block").iterdir() if path.name.startswith(("sd", "nvme"))]
    maps = _output(["dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid"]).splitlines()
    return {
        "sessions": sorted(_text(path / "targetname") for path in _children(Path("/sys/class/iscsi_session"))),
        "nodes": sorted(
            f"{target.name} {portal.name}"
            for place in NODE_RECORDS
            for target in _children(place)
            for portal in _children(target)
        ),
        "controllers": sorted(_text(path / "subsysnqn") for path in _children(Path("/sys/class/nvme"))),
        "disks": sorted(disks),
        "maps": sorted(line for line in maps if ":mpath-" in line or ":CRYPT-" in line),
        "links": sorted(f"{path.parent.name}/{path.name}" for path in RUN.glob("*/*")),
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " nfs4 " in line),
        "by-id": sorted(path.name for path in _children(Path("/dev/disk/by-id")) if "os-brick" in path.name),
    }


def targets() -> dict[str, list[str]]:
    """Return LIO's targets, each with the initiators that it lets in."""
    return {
        target.name: sorted(acl.name for acl in target.glob("tpgt_*/acls/*"))
        for target in _children(TARGETS)
        if target.name.startswith("iqn.")
    }


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _text(path: Path) -> str:
    return path.read_text().strip()


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
