"""Domains of every kind: those of the corpus, and generated ones. A slot never collides with anything in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.report import counted
from tether.adapters.guest.disk import DiskSpec, render
from tether.adapters.guest.model import alias_of
from tether.adapters.guest.slots import Slot, choose_slot
from tether.adapters.guest.xml import parse_definition, parse_disk, parse_element
from tether.errors import TetherError

CORPUS = {path.stem: path.read_text() for path in (Path(__file__).parents[1] / "data/domains").glob("*.xml")}
BUSES = ("virtio", "scsi", "sata")
COUNT = counted(150, 20_000)
VOLUME = "5b7e2d1c-0000-4000-8000-0000000000aa"


def number(text: str) -> int:
    return int(text, 16) if text.lower().startswith("0x") else int(text)


def clear_refusal(error: TetherError) -> None:
    assert (error.exit_code, bool(error.hint)) == (3, True)


def collisions(xml: str, slot: Slot) -> list[str]:
    """Return what of a definition is where the slot is. Imports nothing of tether's parser."""
    root = ET.fromstring(xml)
    found = [f"target {slot.target}" for t in root.iterfind("devices/disk/target") if t.get("dev") == slot.target]
    for device in root.iterfind("devices/*"):
        for address in device.findall("address"):
            if address.get("type") != slot.address["type"]:
                continue
            keys = ("bus", "slot") if slot.address["type"] == "pci" else ("controller", "unit")
            same = all(number(address.get(key, "0")) == number(slot.address[key]) for key in keys)
            target = device.find("target")
            bus = target.get("bus") if device.tag == "disk" and target is not None else "scsi"
            if same and (slot.bus in {"virtio", bus}):
                found.append(f"{device.tag} at {address.attrib}")
    return found


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("bus", BUSES)
def test_corpus_ten_volumes_one_after_the_other(name: str, bus: str) -> None:
    persistent = CORPUS[name]
    live = CORPUS["attached-live"] if name == "attached-persistent" else None
    held: list[Slot] = []
    for _ in range(10):
        parsed = [None if xml is None else parse_definition(xml) for xml in (live, persistent)]
        try:
            slot = choose_slot(*parsed, bus=bus, taken=held)
        except TetherError as error:
            clear_refusal(error)
            return
        assert not [line for xml in (live, persistent) if xml for line in collisions(xml, slot)]
        assert slot.target not in {other.target for other in held}
        assert slot.address not in [other.address for other in held]
        held.append(slot)


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_is_read_whole_and_no_foreign_disk_is_taken_for_ours(name: str) -> None:
    root, definition = ET.fromstring(CORPUS[name]), parse_definition(CORPUS[name])
    assert len(definition.disks) == len(root.findall("devices/disk"))
    assert definition.nova == (name == "names-and-metadata")
    for disk in definition.disks:
        assert parse_disk(parse_element(disk.xml, "disk")) == disk
        owner = disk.alias.removeprefix("ua-")
        for known in {disk.serial, disk.source, disk.target, VOLUME} - {"", owner}:
            assert definition.disk(known) is None
    ours = {disk.alias for disk in definition.disks} & {alias_of(volume) for volume in definition.marks}
    assert len(ours) == (2 if name.startswith("attached") else 0)


hexes = st.integers(0, 33).flatmap(lambda n: st.sampled_from([f"0x{n:02x}", f"0X{n:X}", str(n), f"0{n}"]))
decimals = st.integers(0, 12).flatmap(lambda n: st.sampled_from([str(n), f"0{n}", f"0x{n:x}"]))
pci = st.builds(
    lambda bus, slot, function: f"<address type='pci' bus='{bus}' slot='{slot}' function='{function}'/>",
    hexes, hexes, st.sampled_from(["0x0", "0x7", "1"]),
)  # fmt: skip
drive = st.builds(
    lambda controller, unit: f"<address type='drive' controller='{controller}' bus='0' target='0' unit='{unit}'/>",
    st.integers(0, 2), decimals,
)  # fmt: skip
disks = st.builds(
    lambda kind, bus, target, address: f"<disk device='{kind}'><target dev='{target}' bus='{bus}'/>{address}</disk>",
    st.sampled_from(["disk", "cdrom", "floppy", "lun"]),
    st.sampled_from(["virtio", "scsi", "sata", "ide", "usb", "fdc", ""]),
    st.builds(lambda a, b: a + b, st.sampled_from(["vd", "sd", "hd", "fd"]), st.sampled_from([*"abcdefgh", "aa", ""])),
    st.one_of(pci, drive, st.just("")),
)  # fmt: skip
controllers = st.builds(
    lambda kind, index, more: f"<controller type='{kind[0]}' model='{kind[1]}' index='{index}'>{more}</controller>",
    st.sampled_from([("pci", "pcie-root-port"), ("scsi", "virtio-scsi"), ("scsi", "lsilogic"), ("sata", "ahci")]),
    st.one_of(st.integers(1, 33), st.sampled_from(["", "x", "-1"])),  # 0 is the root itself
    st.one_of(pci, st.just("<target hotplug='off'/>"), st.just("")),
)  # fmt: skip
others = st.builds(
    lambda tag, address: f"<{tag}><source>{address}</source>{address}</{tag}>",
    st.sampled_from(["hostdev", "interface", "video", "rng"]),
    st.one_of(pci, drive),
)
domains = st.builds(
    lambda machine, devices: f"<domain><os><type machine='{machine}'/></os><devices>{devices}</devices></domain>",
    st.sampled_from(["pc-q35-7.2", "pc-i440fx-7.2", "pc", "virt", ""]),
    st.lists(st.one_of(disks, controllers, others), max_size=40).map("".join),
)  # fmt: skip


def with_ports(xml: str, count: int, scsi: int) -> str:
    """Return the domain with root ports 1..count, and virtio-scsi controllers."""
    more = [f"<controller type='pci' model='pcie-root-port' index='{number}'/>" for number in range(1, count + 1)]
    more += [f"<controller type='scsi' model='virtio-scsi' index='{number}'/>" for number in range(scsi)]
    return xml.replace("<devices>", f"<devices>{''.join(more)}")


domains = st.builds(with_ports, domains, st.integers(0, 12), st.integers(0, 2))


BARE = "<domain><devices><x/></devices></domain>"
ON_PORT_1 = "<rng><address type='pci' bus='0x01' slot='0x00'/></rng>"


def has_controller(xml: str, slot: Slot) -> bool:
    """Return True if the definition has what the slot is on. Imports nothing of tether's parser."""
    root = ET.fromstring(xml)
    if slot.bus == "virtio" and number(slot.address["bus"]) == 0:
        machine = root.find("os/type")
        return machine is not None and machine.get("machine") in {"pc", "pc-i440fx-7.2"}
    model, key = {"virtio": ("pcie-root-port", "bus"), "scsi": ("virtio-scsi", "controller")}.get(slot.bus, ("", ""))
    if not model:
        return any(item.get("type") == "sata" for item in root.iterfind("devices/controller"))
    wanted = (model, str(number(slot.address[key])))
    return wanted in {(item.get("model"), item.get("index")) for item in root.iterfind("devices/controller")}


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(live=st.none() | domains, persistent=domains, bus=st.sampled_from(BUSES))
@example(live=with_ports(BARE, 3, 0), persistent=with_ports(BARE.replace("<x/>", ON_PORT_1), 3, 0), bus="virtio")
def test_generated_no_slot_collides(live: str | None, persistent: str, bus: str) -> None:
    try:
        slot = choose_slot(live and parse_definition(live), parse_definition(persistent), bus=bus)
    except TetherError as error:
        clear_refusal(error)
        return
    assert not [line for xml in (live, persistent) if xml for line in collisions(xml, slot)]
    assert all(has_controller(xml, slot) for xml in (live, persistent) if xml)


def test_an_address_with_a_leading_zero_is_in_use_and_one_that_is_no_number_is_refused() -> None:
    xml = (
        "<domain><devices><controller type='scsi' model='virtio-scsi' index='0'/>"
        "<disk><target dev='sda' bus='scsi'/>{}</disk></devices></domain>"
    )
    eight = "<address type='drive' controller='0' unit='08'/>"
    for unit, taken in (("08", 8), ("00", 0), ("0x1", 1)):
        definition = parse_definition(xml.format(eight.replace("08", unit)))
        below = [Slot(f"sdx{n}", "scsi", {"type": "drive", "controller": "0", "unit": str(n)}) for n in range(taken)]
        slot = choose_slot(None, definition, bus="scsi", taken=below)
        assert number(slot.address["unit"]) == taken + 1
    with pytest.raises(TetherError, match="an address that cannot be read: 'x'"):
        choose_slot(None, parse_definition(xml.format(eight.replace("08", "x"))), bus="scsi")


texts = st.text(max_size=30)


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(
    st.one_of(
        texts,
        texts.map(lambda text: f"<domain>{text}</domain>"),
        st.sampled_from(sorted(CORPUS.values())).flatmap(
            lambda xml: st.builds(
                lambda at, size, new: xml[:at] + new + xml[at + size :],
                st.integers(0, len(xml)),
                st.integers(0, 80),
                texts,
            )
        ),
    )
)
@example("<domain><devices><controller index='" + "1" * 5000 + "'/></devices></domain>")
@example("<domain><devices><disk>" + "<a>" * 3000 + "</a>" * 3000 + "</disk></devices></domain>")
@example("<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>")
def test_any_text_is_a_definition_or_a_clear_refusal(xml: str) -> None:
    try:
        parse_definition(xml)
    except TetherError as error:
        clear_refusal(error)


def test_a_backing_chain_as_long_as_libvirt_allows_is_read() -> None:
    chain = "<backingStore>" * 200 + "</backingStore>" * 200
    assert len(parse_definition(f"<domain><devices><disk>{chain}</disk></devices></domain>").disks) == 1


safe = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    min_size=1,
    max_size=40,
)


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(
    source=safe, kind=st.sampled_from(["block", "file", "network"]), ro=st.booleans(), shared=st.booleans(), user=safe
)
def test_the_xml_that_is_plugged_is_read_back_as_it_was_meant(
    source: str, kind: str, ro: bool, shared: bool, user: str
) -> None:
    slot = Slot("vdb", "virtio", {"type": "pci", "bus": "0x04"})
    more = {"protocol": "rbd", "hosts": (("h", "1"),), "auth_type": "ceph", "auth_user": user, "auth_uuid": "u"}
    spec = DiskSpec(VOLUME, slot, kind, source, readonly=ro, shareable=shared, **(more if kind == "network" else {}))
    disk = parse_disk(parse_element(render(spec), "disk"))
    assert (disk.source, disk.source_type, disk.readonly, disk.shareable) == (source, kind, ro, shared)
    assert (disk.target, disk.bus, disk.address, disk.serial) == ("vdb", "virtio", slot.address, VOLUME)
    assert disk.alias == alias_of(VOLUME)
