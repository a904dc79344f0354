"""Chooses where a disk goes: its target name, and one explicit address that is free everywhere.

A place is free only if the live XML, the persistent XML *and* tether's ledger all say so, and one address
serves both XMLs. tether never lets libvirt choose: libvirt would add a controller to the persistent XML
where none is free, and leave it there after an undo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from tether.adapters.guest.model import Controller, Definition
from tether.errors import ConflictError, FinalError, UsageError

#: bus -> how its target names begin.
PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd"}
SATA_PORTS = 6
#: virtio-scsi as libvirt and Nova use it: one target, units 0..255.
SCSI_UNITS = 256
#: libvirt counts unit 7 of a wide SCSI bus as the controller's own, and never gives it out.
SCSI_RESERVED_UNIT = 7
#: i440fx: slot 0 is the host bridge, 1 the PIIX3, 2 libvirt keeps for the primary video card.
PC_SLOTS = range(3, 32)


@dataclass(frozen=True)
class Slot:
    """Where a disk goes.

    Args:
        target: ``vdb``, ``sda``, …
        bus: virtio, scsi or sata.
        address: the ``<address>`` element's attributes.
    """

    target: str
    bus: str
    address: dict[str, str]


def choose_slot(
    live: Definition | None,
    persistent: Definition | None,
    *,
    bus: str,
    device: str = "",
    taken: Iterable[Slot] = (),
    limit: int = -1,
) -> Slot:
    """Return a free place for one more disk.

    Args:
        live: the running domain's definition, or None.
        persistent: the stored one, or None.
        bus: virtio, scsi or sata.
        device: the target asked for (``vdc``, also as ``/dev/vdc``), or empty for the first free one.
        taken: what the ledger holds for other volumes of this server.
        limit: the most disks that the server may have, this one included; -1 for no limit.

    Raises:
        UsageError: an unknown bus, or a device name that is not one of this bus.
        ConflictError: the device name is taken.
        FinalError: nothing is free, the limit is reached, or the bus cannot be hot-plugged.
    """
    held = tuple(taken)
    definitions = tuple(item for item in (live, persistent) if item is not None)
    prefix = PREFIXES.get(bus)
    if prefix is None:
        raise UsageError(f"there is no disk bus {bus!r}", hint=f"one of: {', '.join(PREFIXES)}")
    if not definitions:
        raise FinalError("the server has no definition to put a disk into", hint="see `virsh list --all`")
    names = _names(definitions, held)
    if 0 <= limit <= len(names):
        raise FinalError(
            f"the server has {len(names)} disks, and {limit} is the most",
            hint="detach another volume, or raise max_disk_devices_to_attach",
        )
    target = _asked(device, bus, names) if device else next(n for n in _targets(prefix) if n not in names)
    if bus == "virtio":
        address = _pci_address(definitions, held)
    elif bus == "scsi":
        address = _scsi_address(definitions, held)
    else:
        if live is not None:
            raise FinalError(
                "a SATA disk cannot be attached to a running server",
                hint="use --bus virtio or --bus scsi, or shut the server down first",
            )
        address = _sata_address(definitions, held)
    return Slot(target, bus, address)


def _names(definitions: Iterable[Definition], held: Iterable[Slot]) -> dict[str, str]:
    """Return every target name that is in use, with what uses it."""
    names = {slot.target: "another volume's mapping in tether's ledger" for slot in held}
    for definition in definitions:
        for disk in definition.disks:
            names[disk.target] = disk.serial or disk.source or f"an empty {disk.device} drive"
    return names


def _targets(prefix: str) -> Iterator[str]:
    """Yield vda, …, vdz, vdaa, …: bijective base 26."""
    for number in count(1):
        letters, rest = "", number
        while rest:
            rest, digit = divmod(rest - 1, 26)
            letters = chr(ord("a") + digit) + letters
        yield prefix + letters


def target_name(device: str, bus: str) -> str:
    """Return the target that a device name means (``vdc`` for ``/dev/vdc``).

    Raises:
        UsageError: it is not one of this bus.
    """
    prefix, target = PREFIXES[bus], device.removeprefix("/dev/")
    if not re.fullmatch(rf"{prefix}[a-z]{{1,3}}", target):
        raise UsageError(
            f"{device!r} is not a device name of the {bus} bus",
            hint=f"write {prefix}b, {prefix}c, …, or leave the name out",
        )
    return target


def _asked(device: str, bus: str, names: Mapping[str, str]) -> str:
    target = target_name(device, bus)
    if target in names:
        raise ConflictError(
            f"the device name {target} is taken by {names[target]}", hint="choose another name, or leave it out"
        )
    return target


def _common(definitions: Iterable[Definition], kind: str, models: tuple[str, ...]) -> list[int]:
    """Return the indexes of the controllers that every definition has, lowest first."""

    def indexes(definition: Definition) -> set[int]:
        return {
            item.index
            for item in definition.controllers
            if item.type == kind and item.index >= 0 and item.hotplug and (not models or _model(item) in models)
        }

    return sorted(set.intersection(*(indexes(definition) for definition in definitions)))


def _model(controller: Controller) -> str:
    # Names of transitional devices count as what they are.
    return controller.model.removesuffix("-transitional").removesuffix("-non")


def _number(text: str | None) -> int:
    """Return an address attribute's number: hexadecimal with 0x for PCI, decimal for drives.

    Raises:
        FinalError: it is none, so that nothing can be said about what is free.
    """
    digits = (text or "0").lower()
    try:
        return int(digits, 16 if digits.startswith("0x") else 10)
    except ValueError as error:
        raise FinalError(
            f"a device has an address that cannot be read: {digits[:40]!r}",
            hint="look at the domain's XML with `virsh dumpxml`, and correct the address with `virsh edit`",
        ) from error


def _pci_address(definitions: tuple[Definition, ...], held: tuple[Slot, ...]) -> dict[str, str]:
    everything = [*(a for d in definitions for a in d.addresses), *(slot.address for slot in held)]
    used = {(_number(a.get("bus")), _number(a.get("slot"))) for a in everything if a.get("type") == "pci"}
    if all(_is_i440fx(definition) for definition in definitions):
        for slot in PC_SLOTS:
            if (0, slot) not in used:
                return _pci(0, slot)
        raise FinalError(
            f"no free PCI slot: all {len(PC_SLOTS)} of the server's pci.0 are in use",
            hint="use --bus scsi with a virtio-scsi controller, or detach another device",
        )
    ports = _common(definitions, "pci", ("pcie-root-port",))
    used_buses = {bus for bus, _ in used}
    for port in ports:
        if port not in used_buses:
            return _pci(port, 0)
    raise FinalError(
        f"no free PCI slot: the server has {len(ports)} pcie-root-ports in both its XMLs, all in use",
        hint="add pcie-root-port controllers to the domain (virsh edit) and restart it, or use --bus scsi",
    )


def _is_i440fx(definition: Definition) -> bool:
    return definition.machine == "pc" or definition.machine.startswith("pc-i440fx")


def _pci(bus: int, slot: int) -> dict[str, str]:
    return {"type": "pci", "domain": "0x0000", "bus": f"0x{bus:02x}", "slot": f"0x{slot:02x}", "function": "0x0"}


def _drives(
    definitions: tuple[Definition, ...], held: tuple[Slot, ...], buses: tuple[str, ...]
) -> set[tuple[int, int]]:
    """Return the (controller, unit) pairs in use by disks of these buses."""
    addresses = [disk.address for item in definitions for disk in item.disks if disk.bus in buses]
    addresses += [slot.address for slot in held if slot.bus in buses]
    return {
        (_number(address.get("controller")), _number(address.get("unit")))
        for address in addresses
        if address.get("type") == "drive"
    }


def _drive(controller: int, unit: int) -> dict[str, str]:
    return {"type": "drive", "controller": str(controller), "bus": "0", "target": "0", "unit": str(unit)}


def _scsi_address(definitions: tuple[Definition, ...], held: tuple[Slot, ...]) -> dict[str, str]:
    controllers = _common(definitions, "scsi", ("virtio-scsi",))
    # A passed-through SCSI device (<hostdev>) has a drive address as well; without its bus, any counts.
    used = _drives(definitions, held, ("scsi",)) | _foreign_drives(definitions)
    for controller in controllers:
        for unit in range(SCSI_UNITS):
            if unit != SCSI_RESERVED_UNIT and (controller, unit) not in used:
                return _drive(controller, unit)
    raise FinalError(
        f"no free SCSI unit: the server has {len(controllers)} virtio-scsi controllers in both its XMLs",
        hint="add a virtio-scsi controller to the domain (virsh edit) and restart it, or use --bus virtio",
    )


def _foreign_drives(definitions: tuple[Definition, ...]) -> set[tuple[int, int]]:
    """Return drive addresses that belong to no disk: those of passed-through SCSI devices."""
    found: set[tuple[int, int]] = set()
    for definition in definitions:
        of_disks = [dict(disk.address) for disk in definition.disks]
        for address in definition.addresses:
            if address.get("type") != "drive":
                continue
            if dict(address) in of_disks:
                of_disks.remove(dict(address))
            else:
                found.add((_number(address.get("controller")), _number(address.get("unit"))))
    return found


def _sata_address(definitions: tuple[Definition, ...], held: tuple[Slot, ...]) -> dict[str, str]:
    controllers = _common(definitions, "sata", ())
    used = _drives(definitions, held, ("sata",))
    for controller in controllers:
        for unit in range(SATA_PORTS):
            if (controller, unit) not in used:
                return _drive(controller, unit)
    raise FinalError(
        f"no free SATA port: the server has {len(controllers)} SATA controllers with {SATA_PORTS} ports each",
        hint="add a SATA controller to the domain (virsh edit), or use --bus virtio",
    )
