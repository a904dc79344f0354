"""What the host's own files say of a volume: sysfs, /dev, /proc and open-iscsi's records.

Nothing here needs os-brick or starts a command, so it is quick, and it is what the absence of a volume is
proven by.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tether.adapters.host import fabrics, wwid
from tether.adapters.host.model import Holding
from tether.adapters.host.places import Places
from tether.adapters.host.sysfs import children, read
from tether.errors import UncertainError

SECTOR = 512
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE = re.compile(r"(?P<subsystem>nvme\d+)(c\d+)?(?P<namespace>n\d+)")
#: They open every disk for a moment, or (multipathd) every path for as long as it is there.
_WATCHERS = {"multipathd", "systemd-udevd", "udevd", "(udev-worker)"}


def mapping_name(volume_id: str) -> str:
    """Return the name of the volume's dm-crypt mapping."""
    return f"tether-{volume_id}"


def targets(data: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the (target, LUN) pairs that iSCSI connection data name."""
    pairs = {(str(data["target_iqn"]), str(data.get("target_lun", 0)))} if data.get("target_iqn") else set()
    names = data.get("target_iqns") or []
    luns = data.get("target_luns") or [data.get("target_lun", 0)] * len(names)
    return pairs | {(str(name), str(lun)) for name, lun in zip(names, luns, strict=False)}


class Probes:
    """Reads one host.

    Args:
        places: its file systems.
    """

    def __init__(self, places: Places) -> None:
        self._blocks = Path(places.sys) / "class/block"
        self._sys = Path(places.sys)
        self._dev = Path(places.dev)
        self._proc = Path(places.proc)
        self._fabrics = fabrics.Fabrics(places)
        self._records = (Path(places.etc) / "iscsi/nodes", Path(places.var) / "iscsi/nodes")

    def check_eyesight(self) -> None:
        """Make sure that the readers can see.

        Raises:
            UncertainError: sysfs is not mounted here, so an absence would prove nothing.
        """
        if not self._blocks.is_dir():
            raise UncertainError(
                f"{self._blocks} cannot be read, so nothing can be said about this host's devices",
                hint="run tether where the host's /sys is mounted",
            )

    # devices

    def block_of(self, path: str) -> str:
        """Return the kernel's name of the block device behind a path, or empty if it is none."""
        if Path(path).parent == self._dev / "mapper" and (name := self.map_named(Path(path).name)):
            return name
        name = Path(os.path.realpath(path)).name
        return name if (self._blocks / name).exists() and Path(path).exists() else ""

    def size(self, block: str) -> int:
        """Return a block device's size in bytes."""
        return int(read(self._blocks / block / "size") or 0) * SECTOR

    def map_named(self, name: str) -> str:
        """Return the device-mapper device with this name, or empty."""
        return next((block for block, known, _ in self.maps() if known == name), "")

    def maps(self) -> Iterator[tuple[str, str, str]]:
        """Yield every device-mapper device: its kernel name, its name, its UUID."""
        for entry in children(self._blocks):
            if entry.name.startswith("dm-"):
                yield entry.name, read(entry / "dm/name"), read(entry / "dm/uuid")

    def map_uuid(self, block: str) -> str:
        """Return the UUID of a device-mapper device; cryptsetup writes the LUKS header's into it."""
        return read(self._blocks / block / "dm/uuid")

    def crypt_of(self, volume_id: str) -> str:
        """Return the volume's dm-crypt device, known by its name and by the UUID that cryptsetup gives it."""
        name = mapping_name(volume_id)
        for block, known, uuid in self.maps():
            if known == name and uuid.startswith("CRYPT-") and uuid.endswith(f"-{name}"):
                return block
        return ""

    def slaves(self, block: str) -> list[str]:
        """Return the devices directly below a device."""
        return [entry.name for entry in children(self._blocks / block / "slaves")]

    def holders(self, block: str) -> list[str]:
        """Return the devices directly on top of a device."""
        return [entry.name for entry in children(self._blocks / block / "holders")]

    def below_crypt(self, block: str) -> str:
        """Return the volume's own device: what is below a dm-crypt mapping, or the device itself."""
        uuid = read(self._blocks / block / "dm/uuid")
        slaves = self.slaves(block)
        return slaves[0] if uuid.startswith("CRYPT-") and slaves else block

    def identities(self, block: str) -> list[str]:
        """Return the identity that each path of a device reports; one entry for a device of one path."""
        return [self._identity(path) for path in (self.slaves(block) or [block])]

    def _identity(self, block: str) -> str:
        for name in ("device/wwid", "nguid", "wwid"):
            if (text := read(self._blocks / block / name)) and text.strip("0-"):
                return wwid.normalise(text)
        return ""

    # who uses it

    def users(self, volume_id: str, block: str) -> list[str]:
        """Return who holds the volume's device open, a line each, besides tether and the watchers of devices.

        A multipath map over its disks is none: multipathd makes one of a volume that was connected while it was down.
        Who has that map open is one.

        Args:
            block: the volume's own device, below its dm-crypt mapping.
        """
        own = self._with_maps({block, *self.slaves(block)})
        if crypt := self.crypt_of(volume_id):
            own.add(crypt)
        over = {holder for layer in own for holder in self.holders(layer)} - own
        return sorted(f"device {holder}" for holder in over) + self._mounts(own) + self._openers(own)

    def _mounts(self, blocks: set[str]) -> list[str]:
        numbers = {number for block in blocks if (number := read(self._blocks / block / "dev"))}
        lines = read(self._proc / "self/mountinfo").splitlines()
        return [f"mount {fields[4]}" for line in lines if (fields := line.split())[2] in numbers]

    def openers_of(self, path: Path) -> list[str]:
        """Return which processes have a file or a device open, a line each, besides tether's own."""
        return self._opening({key} if (key := _key(path)) else set())

    def _openers(self, blocks: set[str]) -> list[str]:
        return self._opening({key for block in blocks if (key := _key(self._dev / block))})

    def _opening(self, wanted: set[tuple[int, ...]]) -> list[str]:
        group = os.getpgrp()
        return [
            f"process {process.name} ({read(process / 'comm')})"
            for process in self._processes()
            if any(_key(handle) in wanted for handle in children(process / "fd")) and _group(process) != group
        ]

    def _opened(self) -> Iterator[tuple[int, ...]]:
        """Yield what is open anywhere, the watchers of devices aside: one walk for many devices."""
        for process in self._processes():
            for handle in children(process / "fd"):
                if key := _key(handle):
                    yield key

    def _processes(self) -> list[Path]:
        processes = [process for process in children(self._proc) if process.name.isdigit()]
        return [process for process in processes if read(process / "comm") not in _WATCHERS]

    # what is left of a connection

    def left(self, volume_id: str, protocol: str, data: Mapping[str, Any], identity: str) -> list[str]:
        """Return what is left of a volume, a line each, tether's link aside.

        Args:
            identity: what the device reported when it was connected, or empty: it names a multipath map
                that has lost all its paths.
        """
        self.check_eyesight()
        disks = self.disks(protocol, data)
        lines = [*self._sessions(data), *self._controllers(data), *self._fabrics.left(protocol, data)]
        if not fabrics.stays(protocol, data) and not self._shares_subsystem(data):
            lines += [f"disk {self._dev / disk}" for disk in disks]
        for block, name, uuid in self.maps():
            if not uuid.startswith("mpath-"):
                continue
            same = bool(identity) and wwid.normalise(uuid.removeprefix("mpath-")) == identity
            if same or set(self.slaves(block)) & set(disks):
                lines.append(f"multipath map {name}")
        if self.map_named(mapping_name(volume_id)):
            lines.append(f"dm-crypt {mapping_name(volume_id)}")
        return lines

    def holdings(self) -> Iterator[Holding]:
        """Yield every iSCSI session with its disks, every multipath map, and every dm-crypt mapping of tether's."""
        opened = set(self._opened())
        for session in children(self._sys / "class/iscsi_session"):
            target = read(session / "targetname")
            named = _UUID.search(target)
            volume_id = named[0] if named else ""
            yield Holding("session", session.name, volume_id, target)
            for _lun, disk in self._luns(session):
                in_use = self._in_use(disk, opened)
                yield Holding("device", str(self._dev / disk), volume_id, target, self._identity(disk), in_use)
        prefix = mapping_name("")
        for block, name, uuid in self.maps():
            if uuid.startswith("mpath-"):
                identity = wwid.normalise(uuid.removeprefix("mpath-"))
                yield Holding("map", name, identity=identity, in_use=self._in_use(block, opened))
            elif uuid.startswith("CRYPT-") and name.startswith(prefix):
                yield Holding("crypt", name, name.removeprefix(prefix), in_use=self._in_use(block, opened))

    def _in_use(self, block: str, opened: set[tuple[int, ...]]) -> bool:
        """Return True if anything but its own multipath map is on top of a device, or has it open."""
        own = self._with_maps({block})
        over = {holder for layer in own for holder in self.holders(layer)} - own
        return bool(over or self._mounts(own) or any(_key(self._dev / layer) in opened for layer in own))

    def _with_maps(self, blocks: set[str]) -> set[str]:
        """Return the devices, and the multipath maps over them."""
        over = {holder for block in blocks for holder in self.holders(block)}
        return blocks | {each for each in over if read(self._blocks / each / "dm/uuid").startswith("mpath-")}

    def disks(self, protocol: str, data: Mapping[str, Any]) -> list[str]:
        """Return the disks of a connection, by what it is addressed by and not by what they report."""
        found: set[str] = set()
        wanted = targets(data)
        for session in children(self._sys / "class/iscsi_session"):
            name = read(session / "targetname")
            found |= {disk for lun, disk in self._luns(session) if (name, lun) in wanted}
        found |= {block for path in self._fabrics.paths(protocol, data) if (block := self.block_of(str(path)))}
        links = [f"-iscsi-{name}-lun-{lun}" for name, lun in wanted]
        for link in children(self._dev / "disk/by-path"):
            if any(link.name.endswith(ending) for ending in links) and (block := self.block_of(str(link))):
                found.add(block)
        return sorted(found | set(self._namespaces(data)))

    def _luns(self, session: Path) -> list[tuple[str, str]]:
        """Return (LUN, disk) of every disk of an iSCSI session."""
        return [
            (device.name.rsplit(":", 1)[1], disk.name)
            for device in session.glob("device/target*/*:*:*:*")
            for disk in children(device / "block")
        ]

    def _sessions(self, data: Mapping[str, Any]) -> list[str]:
        """Return sessions and node records of the targets, unless another volume's disk is on the session too."""
        lines: list[str] = []
        for name in sorted({name for name, _ in targets(data)}):
            sessions = [
                session
                for session in children(self._sys / "class/iscsi_session")
                if read(session / "targetname") == name
            ]
            wanted = targets(data)
            if any((name, lun) not in wanted for session in sessions for lun, _ in self._luns(session)):
                continue
            lines += [f"session {session.name} {name}" for session in sessions]
            lines += [f"node record {record / name}" for record in self._records if (record / name).exists()]
        return lines

    def _controllers(self, data: Mapping[str, Any]) -> list[str]:
        """Return the NVMe controllers of the subsystem, unless another volume's namespace is on it too."""
        if self._shares_subsystem(data):
            return []
        return [f"nvme controller {controller.name}" for controller in self._nvme(data)]

    def _shares_subsystem(self, data: Mapping[str, Any]) -> bool:
        """Return True if the NVMe subsystem has another volume's namespace too.

        Then the volume's own comes and goes with Cinder's attachment: os-brick's disconnect only flushes it.
        """
        every = {name for controller in self._nvme(data) for name in _names(controller)}
        return bool(every - set(self._namespaces(data)))

    def _namespaces(self, data: Mapping[str, Any]) -> list[str]:
        """Return the volume's namespaces of the subsystem: by identity, else by number, else all that it has."""
        wanted = wwid.normalise(str(data.get("volume_nguid") or data.get("vol_uuid") or ""))
        number = str(data.get("ns_id") or "")
        found: set[str] = set()
        for controller in self._nvme(data):
            for name in _names(controller):
                block = self._blocks / name
                known = {wwid.normalise(read(block / key)) for key in ("nguid", "uuid", "wwid")}
                if wanted in known if wanted else number in {"", read(block / "nsid")}:
                    found.add(name)
        return sorted(found)

    def _nvme(self, data: Mapping[str, Any]) -> list[Path]:
        nqn = str(data.get("target_nqn") or data.get("nqn") or "")
        controllers = children(self._sys / "class/nvme")
        return [entry for entry in controllers if nqn and read(entry / "subsysnqn") == nqn]


def _names(controller: Path) -> list[str]:
    """Return the block devices of the namespaces that a controller is a path to.

    With the kernel's own multipath the controller has nvme0c1n1, its path of nvme0n1, which is the device
    (drivers/nvme/host/multipath.c: nvme_mpath_set_disk_name); without it, the device itself.
    """
    found = [_NAMESPACE.fullmatch(entry.name) for entry in children(controller)]
    return sorted({f"{match['subsystem']}{match['namespace']}" for match in found if match})


def _key(path: Path) -> tuple[int, ...]:
    """Return what makes two open files the same device, or the same file."""
    try:
        known = path.stat()
    except OSError:
        # A process ends, or closes the file, while it is looked at.
        return ()
    return (known.st_rdev,) if stat.S_ISBLK(known.st_mode) else (known.st_dev, known.st_ino)


def _group(process: Path) -> int:
    fields = read(process / "stat").rpartition(")")[2].split()
    return int(fields[2]) if fields else 0
