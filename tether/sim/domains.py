"""The embedded world's domains as files, and realistic domains to put into it.

Layout::

    guests/UUID/persistent.xml   absent for a transient domain
    guests/UUID/live.xml         counts only while state.json says that the domain runs or is paused
    guests/UUID/saved.xml        a managed-save image
    guests/UUID/state.json       name, power, pending unplugs, calls still to be carried out, …
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid as uuids
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tether.adapters.guest.disk import IOTUNE_KEYS
from tether.adapters.guest.model import Power
from tether.adapters.guest.xml import MARKS_URI, marks_xml, parse_definition, parse_disk
from tether.errors import FinalError, NotFound
from tether.sim.store import Store, write_whole

#: The servers of :func:`seed_guests`, by name.
SEEDED = {
    "guest1": "9e570000-0000-4000-8000-000000000001",
    "guest2": "9e570000-0000-4000-8000-000000000002",
    "stopped1": "9e570000-0000-4000-8000-000000000003",
    "paused1": "9e570000-0000-4000-8000-000000000004",
    "nova1": "9e570000-0000-4000-8000-000000000005",
}
_NAMESPACE = uuids.UUID("9e570000-0000-4000-8000-0000000000ff")
_ON = (Power.RUNNING, Power.PAUSED)


@contextmanager
def locked(store: Store, name: str = "") -> Iterator[Path]:
    """Lock the guests' directory, or one domain's, and yield its path.

    Raises:
        NotFound: there is no such domain.
    """
    directory = store.directory / "guests" / name
    if not name:
        directory.mkdir(exist_ok=True)
    try:
        handle = (directory / ".lock").open("w")
    except FileNotFoundError:
        raise NotFound(
            f"there is no domain {name}", resource=f"server {name}", hint=f"see: tether sim show {store.directory}"
        ) from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield directory


class Domain:
    """One domain's files, loaded; :meth:`save` writes back what has changed.

    The order of the writes keeps a killed process harmless: an XML first, then the state that makes it count.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uuid = directory.name
        self._loaded: dict[str, str] = {}
        self.state: dict[str, Any] = json.loads(self._read("state.json"))
        self.persistent = self._xml("persistent.xml")
        self.live = self._xml("live.xml") if self.power in _ON else None

    @property
    def power(self) -> Power:
        """The power state; setting it is what starts and stops the domain."""
        return Power(self.state["power"])

    @power.setter
    def power(self, value: Power) -> None:
        self.state["power"] = str(value)

    @property
    def saved(self) -> ET.Element | None:
        """The managed-save image's XML, or None."""
        return self._xml("saved.xml")

    def _read(self, name: str) -> str:
        path = self.directory / name
        self._loaded[name] = path.read_text() if path.exists() else ""
        return self._loaded[name]

    def _xml(self, name: str) -> ET.Element | None:
        content = self._read(name)
        return ET.fromstring(content) if content else None  # noqa: S314 - written by ourselves

    def save(self) -> None:
        """Write both XMLs and the state, whole files each."""
        for name, root in (("persistent.xml", self.persistent), ("live.xml", self.live)):
            if root is not None:
                self._write(name, text(root))
        self._write("state.json", json.dumps(self.state, indent=1, sort_keys=True))
        if self.live is None:
            (self.directory / "live.xml").unlink(missing_ok=True)

    def _write(self, name: str, content: str) -> None:
        if content != self._loaded.get(name):
            write_whole(self.directory / name, content)
            self._loaded[name] = content

    def keep_image(self, root: ET.Element | None) -> None:
        """Write the managed-save image, or remove it."""
        if root is None:
            (self.directory / "saved.xml").unlink(missing_ok=True)
        else:
            self._write("saved.xml", text(root))

    def forget(self) -> None:
        """Remove the domain: what becomes of a transient one that is stopped."""
        shutil.rmtree(self.directory)


def text(root: ET.Element) -> str:
    """Return the XML as text."""
    return ET.tostring(root, encoding="unicode")


def uuids_of(store: Store) -> list[str]:
    """Return every domain's UUID."""
    directory = store.directory / "guests"
    return sorted(path.parent.name for path in directory.glob("*/state.json"))


def add_server(
    store: Store,
    name: str,
    *,
    power: Power = Power.RUNNING,
    machine: str = "pc-q35-7.2",
    root_ports: int = 8,
    scsi: bool = True,
    nova: bool = False,
    transient: bool = False,
    uuid: str = "",
) -> str:
    """Put a domain into the world, and return its UUID.

    It has a network card, a root disk ``vda``, a balloon and, with ``scsi``, a virtio-scsi controller, each
    on a PCIe root port of its own, and an empty CD-ROM drive.

    Args:
        machine: a q35 or i440fx machine type; the latter has one conventional bus instead of root ports.
        root_ports: how many PCIe root ports a q35 has; four of them are in use.
        nova: whether Nova's metadata stand in it.
        transient: whether it has no persistent definition.
        uuid: empty for one that follows from the name.
    """
    uuid = uuid or str(uuids.uuid5(_NAMESPACE, name))
    xml = domain_xml(uuid, name, machine=machine, root_ports=root_ports, scsi=scsi, nova=nova)
    state = {"name": name, "power": str(power), "pending": {}, "late": [], "migrating": False, "memory_snapshots": {}}
    with locked(store) as guests:
        directory = guests / uuid
        directory.mkdir(exist_ok=True)
        if not transient:
            write_whole(directory / "persistent.xml", xml)
        if power in _ON:
            write_whole(directory / "live.xml", live_of(xml))
        write_whole(directory / "state.json", json.dumps(state, indent=1, sort_keys=True))
    return uuid


def seed_guests(store: Store) -> dict[str, str]:
    """Put guest1, guest2 and nova1 (running; Nova's), stopped1 and paused1 into the world; return UUIDs by name."""
    powers = {"stopped1": Power.SHUTOFF, "paused1": Power.PAUSED}
    for name, uuid in SEEDED.items():
        add_server(store, name, power=powers.get(name, Power.RUNNING), uuid=uuid, nova=name == "nova1")
    return dict(SEEDED)


def live_of(xml: str) -> str:
    """Return the live XML that libvirt makes of a persistent one at start: the same, with an id."""
    root = ET.fromstring(xml)  # noqa: S314 - written by ourselves
    root.set("id", "1")
    return text(root)


def domain_xml(uuid: str, name: str, *, machine: str, root_ports: int, scsi: bool, nova: bool) -> str:
    """Return a domain's XML as libvirt 9 shows it, addresses included."""
    q35 = "q35" in machine

    def place(number: int) -> str:
        bus, slot = (number, 0) if q35 else (0, number + 2)
        return f"<address type='pci' domain='0x0000' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x0'/>"

    if q35:
        controllers = "<controller type='pci' index='0' model='pcie-root'/>" + "".join(
            f"<controller type='pci' index='{index}' model='pcie-root-port'><model name='pcie-root-port'/>"
            f"<target chassis='{index}' port='0x{index + 0xF:x}'/><address type='pci' domain='0x0000' bus='0x00'"
            f" slot='0x{2 + (index - 1) // 8:02x}' function='0x{(index - 1) % 8:x}'"
            f"{' multifunction=' + chr(39) + 'on' + chr(39) if index % 8 == 1 else ''}/></controller>"
            for index in range(1, root_ports + 1)
        )
        controllers += (
            "<controller type='sata' index='0'>"
            "<address type='pci' domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/></controller>"
        )
    else:
        controllers = (
            "<controller type='pci' index='0' model='pci-root'/><controller type='ide' index='0'>"
            "<address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x1'/></controller>"
        )
    if scsi:
        controllers += f"<controller type='scsi' index='0' model='virtio-scsi'>{place(2)}</controller>"
    drive = ("sda", "sata") if q35 else ("hda", "ide")
    metadata = (
        "<metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>"
        f"<nova:name>{name}</nova:name></nova:instance></metadata>"
        if nova
        else ""
    )
    return text(
        ET.fromstring(  # noqa: S314 - written right here
            f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>{metadata}"
            "<memory unit='KiB'>524288</memory><vcpu placement='static'>1</vcpu>"
            f"<os><type arch='x86_64' machine='{machine}'>hvm</type><boot dev='hd'/></os>"
            "<features><acpi/><apic/></features><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>"
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='/var/lib/libvirt/images/{name}.qcow2'/><target dev='vda' bus='virtio'/>{place(3)}</disk>"
            f"<disk type='file' device='cdrom'><target dev='{drive[0]}' bus='{drive[1]}'/><readonly/>"
            "<address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>"
            f"{controllers}<interface type='network'><source network='default'/><model type='virtio'/>{place(1)}"
            f"</interface><memballoon model='virtio'>{place(4)}</memballoon></devices></domain>"
        )
    )


def running_late(state: dict[str, Any], now: float) -> list[dict[str, Any]]:
    """Take the calls out of the state whose time has come, and return them."""
    due = [call for call in state["late"] if call["at"] <= now]
    with suppress(ValueError):
        for call in due:
            state["late"].remove(call)
    return due


def set_mark(root: ET.Element, volume_id: str, job_id: str, adopted: list[str] | None) -> None:
    """Set the volume's mark, or take it out if there is no job."""
    definition = parse_definition(text(root))
    marks = {**definition.marks, volume_id: job_id}
    places = {volume: place for volume, place in definition.adopted.items() if volume != volume_id}
    if adopted:
        places[volume_id] = (adopted[0], adopted[1])
    if not job_id:
        del marks[volume_id]
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    old = metadata.find(f"{{{MARKS_URI}}}volumes")
    if old is not None:
        metadata.remove(old)
    if marks:
        metadata.append(ET.fromstring(marks_xml(marks, places)))  # noqa: S314 - written right here


def set_limits(root: ET.Element, target: str, limits: Mapping[str, int]) -> None:
    """Give a disk these limits and no other, by libvirt's rules."""
    disk = next((each for each in root.iterfind("devices/disk") if parse_disk(each).target == target), None)
    if disk is None:
        raise FinalError(f"libvirt refused: invalid argument: disk '{target}' was not found in the domain config")
    for what in ("bytes_sec", "iops_sec", "bytes_sec_max", "iops_sec_max"):
        if limits.get(f"total_{what}") and (limits.get(f"read_{what}") or limits.get(f"write_{what}")):
            raise FinalError(f"libvirt refused: total and read/write of {what} cannot be set at the same time")
    for old in disk.findall("iotune"):
        disk.remove(old)
    if any(limits.values()):
        iotune = ET.SubElement(disk, "iotune")
        for key in IOTUNE_KEYS:
            if limits.get(key):
                ET.SubElement(iotune, key).text = str(limits[key])
