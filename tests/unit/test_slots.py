"""Choosing a free place for a disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.adapters.guest.model import Controller, Definition, Disk
from tether.adapters.guest.slots import Slot, choose_slot
from tether.errors import ConflictError, FinalError, UsageError


def pci(bus: int, slot: int = 0, function: int = 0) -> dict[str, str]:
    return {
        "type": "pci",
        "domain": "0x0000",
        "bus": f"0x{bus:02x}",
        "slot": f"0x{slot:02x}",
        "function": f"0x{function:x}",
    }


def drive(unit: int, controller: int = 0) -> dict[str, str]:
    return {"type": "drive", "controller": str(controller), "bus": "0", "target": "0", "unit": str(unit)}


def domain(*disks: Disk, ports=range(1, 5), others=(), machine="pc-q35-7.2", controllers=()) -> Definition:
    """Return a q35 with these root ports."""
    every = (*(Controller("pci", "pcie-root-port", port) for port in ports), *controllers)
    addresses = (*(disk.address for disk in disks if disk.address), *others)
    return Definition(machine, disks, every, addresses)


def disk(target: str, address: dict[str, str] | None = None, *, bus="virtio", **more) -> Disk:
    return Disk(target, bus, address=address or {}, **more)


VIRTIO_SCSI = Controller("scsi", "virtio-scsi", 0)
SATA = Controller("sata", "", 0)
ROOT = disk("vda", pci(1))


def test_the_first_free_name_and_port():
    both = domain(ROOT, others=[pci(2)])
    assert choose_slot(both, both, bus="virtio") == Slot("vdb", "virtio", pci(3))


def test_a_port_must_be_free_and_present_in_both_definitions():
    live = domain(ROOT, disk("vdb", pci(2)), ports=[1, 2, 3, 4, 6])
    persistent = domain(ROOT, others=[pci(3)], ports=[1, 2, 3, 5, 6])
    assert choose_slot(live, persistent, bus="virtio") == Slot("vdc", "virtio", pci(6))


def test_the_ledgers_places_are_not_free():
    held = [Slot("vdb", "virtio", pci(2)), Slot("vdc", "virtio", {**pci(3), "bus": "3"})]
    assert choose_slot(domain(ROOT), domain(ROOT), bus="virtio", taken=iter(held)) == Slot("vdd", "virtio", pci(4))


def test_a_device_on_any_slot_or_function_of_a_port_takes_it():
    both = domain(ROOT, others=[pci(2, 0, 1)])
    assert choose_slot(None, both, bus="virtio").address == pci(3)


def test_a_port_without_hotplug_is_no_place():
    both = domain(ROOT, ports=[1], controllers=[Controller("pci", "pcie-root-port", 2, hotplug=False)])
    with pytest.raises(FinalError):
        choose_slot(both, both, bus="virtio")


@pytest.mark.parametrize("model", ["pcie-root", "pcie-switch-downstream-port", "pcie-to-pci-bridge"])
def test_only_root_ports_serve_a_q35(model):
    both = domain(ROOT, ports=[1], controllers=[Controller("pci", model, 2)])
    with pytest.raises(FinalError, match="1 pcie-root-ports") as caught:
        choose_slot(both, both, bus="virtio")
    assert "add pcie-root-port" in caught.value.hint


@pytest.mark.parametrize("machine", ["pc", "pc-i440fx-7.2"])
def test_an_i440fx_has_one_conventional_bus(machine):
    both = domain(ROOT, others=[pci(0, 3), pci(0, 2), pci(0, 5)], machine=machine, ports=())
    assert choose_slot(both, both, bus="virtio").address == pci(0, 4)


def test_an_i440fx_can_be_full():
    both = domain(others=[pci(0, slot) for slot in range(32)], machine="pc-i440fx-7.2", ports=())
    with pytest.raises(FinalError, match="29 of the server's pci"):
        choose_slot(both, both, bus="virtio")


def test_scsi_takes_the_lowest_free_unit_and_leaves_out_the_controllers_own():
    units = [disk(f"sd{letter}", drive(unit), bus="scsi") for unit, letter in enumerate("abcdefg")]
    both = domain(*units, controllers=[VIRTIO_SCSI])
    assert choose_slot(both, both, bus="scsi") == Slot("sdh", "scsi", drive(8))
    assert choose_slot(both, domain(*units[1:], controllers=[VIRTIO_SCSI]), bus="scsi").address == drive(8)


def test_scsi_goes_on_to_the_next_controller():
    first = [disk(f"sdx{n}", drive(n), bus="scsi") for n in range(256) if n != 7]
    both = domain(*first, controllers=[VIRTIO_SCSI, replace(VIRTIO_SCSI, index=1)])
    assert choose_slot(both, both, bus="scsi").address == drive(0, 1)


def test_scsi_units_of_other_buses_and_of_passed_through_devices():
    drives = (disk("sda", drive(0), bus="sata"), disk("sdb", drive(0), bus="scsi"))
    both = domain(*drives, controllers=[VIRTIO_SCSI], others=[drive(1)])
    assert choose_slot(both, both, bus="scsi") == Slot("sdc", "scsi", drive(2))
    only_sata = domain(drives[0], controllers=[VIRTIO_SCSI])
    assert choose_slot(only_sata, only_sata, bus="scsi") == Slot("sdb", "scsi", drive(0))


@pytest.mark.parametrize("model", ["lsilogic", "", "auto"])
def test_another_scsi_controller_does_not_serve(model):
    both = domain(controllers=[Controller("scsi", model, 0)])
    with pytest.raises(FinalError, match="0 virtio-scsi controllers"):
        choose_slot(both, both, bus="scsi")


def test_a_scsi_controller_that_only_one_definition_has_does_not_serve():
    with pytest.raises(FinalError):
        choose_slot(domain(controllers=[VIRTIO_SCSI]), domain(), bus="scsi")


def test_sata_serves_a_stopped_server():
    persistent = domain(disk("sda", drive(0), bus="sata"), controllers=[SATA])
    assert choose_slot(None, persistent, bus="sata") == Slot("sdb", "sata", drive(1))
    full = domain(*(disk(f"sd{n}", drive(n), bus="sata") for n in range(6)), controllers=[SATA])
    with pytest.raises(FinalError, match="no free SATA port"):
        choose_slot(None, full, bus="sata")
    with pytest.raises(FinalError, match="running server"):
        choose_slot(persistent, persistent, bus="sata")


def test_names_go_on_after_vdz():
    names = [disk(f"vd{chr(letter)}") for letter in range(ord("a"), ord("z") + 1)]
    both = domain(*names)
    assert choose_slot(both, both, bus="virtio").target == "vdaa"
    more = domain(*names, *(disk(f"vda{chr(letter)}") for letter in range(ord("a"), ord("z") + 1)))
    assert choose_slot(more, more, bus="virtio").target == "vdba"


@pytest.mark.parametrize("device", ["vdc", "/dev/vdc", "vdaab"])
def test_a_name_that_is_asked_for(device):
    assert choose_slot(domain(ROOT), domain(ROOT), bus="virtio", device=device).target == device.removeprefix("/dev/")


@pytest.mark.parametrize("device", ["sdb", "vd", "vdB", "vdb1", "hda", "/dev/disk/vdb", "vdaaaa", "vdc\n"])
def test_a_name_that_does_not_fit_the_bus(device):
    with pytest.raises(UsageError, match="not a device name of the virtio bus"):
        choose_slot(domain(ROOT), domain(ROOT), bus="virtio", device=device)


def test_a_name_that_is_taken():
    live = domain(ROOT, disk("vdb", pci(2), serial="volume-1"))
    with pytest.raises(ConflictError, match="vdb is taken by volume-1"):
        choose_slot(live, domain(ROOT), bus="virtio", device="vdb")
    with pytest.raises(ConflictError, match="ledger"):
        choose_slot(domain(ROOT), domain(ROOT), bus="virtio", device="vdb", taken=[Slot("vdb", "virtio", pci(9))])


def test_the_limit_counts_every_disk_once():
    live = domain(ROOT, disk("vdb", pci(2)))
    held = [Slot("vdb", "virtio", pci(2)), Slot("vdc", "virtio", pci(3))]
    assert choose_slot(live, domain(ROOT), bus="virtio", taken=held, limit=4).target == "vdd"
    with pytest.raises(FinalError, match="3 is the most"):
        choose_slot(live, domain(ROOT), bus="virtio", taken=held, limit=3)
    assert choose_slot(live, domain(ROOT), bus="virtio", limit=-1)


def test_words_that_mean_nothing():
    with pytest.raises(UsageError, match="no disk bus 'ide'"):
        choose_slot(domain(), domain(), bus="ide")
    with pytest.raises(FinalError, match="no definition"):
        choose_slot(None, None, bus="virtio")


@given(
    live=st.sets(st.integers(1, 8)),
    persistent=st.sets(st.integers(1, 8)),
    held=st.sets(st.integers(1, 8)),
    bus=st.sampled_from(["virtio", "scsi"]),
)
def test_no_choice_ever_meets_another(live, persistent, held, bus):
    """Whatever is where, what is chosen is in use nowhere, and a choice is made while there is room."""
    address = pci if bus == "virtio" else drive
    prefix = "vd" if bus == "virtio" else "sd"

    def of(numbers):
        disks = (disk(f"{prefix}{'abcdefghi'[n]}", address(n), bus=bus) for n in sorted(numbers))
        return domain(*disks, ports=range(1, 9), controllers=[VIRTIO_SCSI])

    taken = [Slot(f"{prefix}{'abcdefghi'[n]}", bus, address(n)) for n in held]
    if bus == "virtio" and len(live | persistent | held) == 8:
        with pytest.raises(FinalError):
            choose_slot(of(live), of(persistent), bus=bus, taken=taken)
        return
    slot = choose_slot(of(live), of(persistent), bus=bus, taken=taken)
    used = live | persistent | held
    assert slot.address not in [address(n) for n in used]
    assert slot.target not in [f"{prefix}{'abcdefghi'[n]}" for n in used]
