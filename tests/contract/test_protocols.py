"""Every protocol on recorded connection info: the host's part, and the ``<disk>`` beside Nova's.

``protocols/*.json`` has one connection of each kind: the data as Cinder's driver gives them (the shape is the driver's,
the values are made up), what os-brick brings to the host with them, and the ``<disk>`` that Nova's driver writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.fakes.recorded import RecordedHost
from tether.adapters.cinder import wire
from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import reaches_by_network, render, spec_for
from tether.adapters.guest.slots import Slot
from tether.adapters.host import wwid
from tether.adapters.host.model import Device
from tether.errors import FinalError, UncertainError
from tether.settings import Settings
from tether.tasks.host import mismatch

RECORDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "protocols").glob("*.json"))
}
GIB = 1024**3
SLOT = Slot("vdb", "virtio", {"type": "pci", "domain": "0x0000", "bus": "0x04", "slot": "0x00", "function": "0x0"})


def of(*features: str, where: Any = lambda record: True) -> Any:
    """Return the records that a test is for, each marked with what it proves."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.proves(record["protocol"], *features))
            for name, record in RECORDS.items()
            if where(record)
        ],
    )


def by_host(record: dict[str, Any]) -> bool:
    return bool(record["host"]["brought"] or record["host"]["given"])


def secret(record: dict[str, Any]) -> bool:
    return "auth_password" in record["data"]


def connection_of(record: dict[str, Any], **changes: Any) -> Connection:
    """Return the connection as the attachments API gives it: flat."""
    return wire.exported({**record["data"], **changes, "driver_volume_type": record["protocol"], "attachment_id": "a"})


def words(record: dict[str, Any], **changes: Any) -> tuple[str, str, dict[str, Any]]:
    """Return what the host's verbs take: the volume's id, the protocol and the data."""
    connection = connection_of(record, **changes)
    return record["volume_id"], connection.protocol, connection.data.open()


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHost:
    return RecordedHost(tmp_path, monkeypatch)


def exported(recorded: RecordedHost, record: dict[str, Any], *, multipath: bool = False) -> str:
    """Have Cinder export the volume, and os-brick know it; return where its device will be."""
    side = record["host"]
    many = side["multipath"] if multipath else {}
    path = many.get("path", side["path"])
    recorded.lay(side["given"])
    tree = {**side["brought"], **many.get("tree", {})}
    recorded.brick.know(words(record)[2], tree, path, needs_info=side["needs_info"])
    return path


# the host's part


def live(recorded: RecordedHost, record: dict[str, Any], *, multipath: bool) -> None:
    """Take a connection through its life, and look at each place that it touches."""
    path = exported(recorded, record, multipath=multipath)
    host = recorded.local(volume_use_multipath=multipath, iser_use_multipath=multipath)
    before = recorded.books()
    assert host.residue(*words(record)) == []
    assert host.find(record["volume_id"]) is None

    device = host.connect(*words(record))
    assert device.path == str((recorded.root / path).resolve())
    assert device.link == str(recorded.root / "run/volumes" / record["volume_id"])
    assert (device.kind, device.size, device.open_count, device.identities_differ) == ("block", GIB, 0, False)
    assert host.find(record["volume_id"]) == host.connect(*words(record)) == device
    assert host.device_at(words(record)[0], device.path, *words(record)[1:]) == device
    left = "\n".join(host.residue(*words(record)))
    assert device.link in left
    brought = {name for name in record["host"]["brought"] if name.startswith("dev/") and name.count("/") == 1}
    assert all(f"disk {recorded.root / name}" in left for name in brought)
    entries = {name for name in record["host"]["brought"] if "/discovery.d/" in name}
    assert all(f"discovery entry {recorded.root / name}" in left for name in entries)
    if multipath and path.startswith("dev/dm-"):
        assert "multipath map" in left

    holders = recorded.root / "sys/class/block" / Path(device.path).name / "holders/dm-77"
    holders.write_text("")
    with pytest.raises(FinalError, match="dm-77"):
        host.disconnect(*words(record))
    assert ("disconnect", False, False) not in recorded.brick.calls
    holders.unlink()

    for _ in range(2):
        host.disconnect(*words(record))
        assert host.residue(*words(record)) == []
        assert recorded.books() == before


@of("attach", "detach", where=by_host)
def test_what_is_connected_is_found_and_nothing_is_left_of_it(recorded: RecordedHost, name: str) -> None:
    live(recorded, RECORDS[name], multipath=False)


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if by_host(record)])
def test_what_is_dead_goes_when_it_is_forced(recorded: RecordedHost, name: str) -> None:
    record = RECORDS[name]
    exported(recorded, record)
    host, before = recorded.local(), recorded.books()
    device = host.connect(*words(record))
    recorded.brick.dead = True
    with pytest.raises(UncertainError):
        host.disconnect(*words(record))
    assert host.find(record["volume_id"]) == device
    if record["protocol"] == "storpool":  # its connector wants what only a connect can tell
        with pytest.raises(UncertainError):
            host.disconnect(*words(record), force=True)
        return
    (failed,) = host.disconnect(*words(record), force=True)
    assert "Input/output error" in failed
    assert host.residue(*words(record)) == []
    assert recorded.books() == before


@of("multipath", where=lambda record: record["host"]["multipath"])
def test_several_paths_are_one_device(recorded: RecordedHost, name: str) -> None:
    live(recorded, RECORDS[name], multipath=True)


@of("undo", where=lambda record: by_host(record) and record["protocol"] != "local")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_connect_that_failed_is_undone(recorded: RecordedHost, name: str, when: str) -> None:
    """os-brick's Fibre Channel connector, for one, leaves the disks of a connect that failed."""
    record = RECORDS[name]
    exported(recorded, record)
    before = recorded.books()
    recorded.brick.troubles = [when]
    with pytest.raises(FinalError, match="VolumeDeviceNotFound"):
        recorded.local().connect(*words(record))
    assert recorded.books() == before
    assert recorded.local().residue(*words(record)) == []


@of("shared", where=lambda record: record["host"]["neighbour"])
def test_another_volume_of_the_same_target_is_left_alone(recorded: RecordedHost, name: str) -> None:
    record = RECORDS[name]
    neighbour = record["host"]["neighbour"]
    other = {**record, "volume_id": "0f5b2d7e-1111-4222-8333-444455556666"}
    other_words = words(other, **neighbour["data"])
    exported(recorded, record)
    recorded.brick.know(
        other_words[2], neighbour["brought"], neighbour["path"], needs_info=record["host"]["needs_info"]
    )
    host = recorded.local()
    kept = host.connect(*other_words)
    with_other = recorded.books()
    device = host.connect(*words(record))
    assert device.path != kept.path
    assert host.device_at(record["volume_id"], kept.path, *words(record)[1:]) is None
    host.disconnect(*words(record))
    assert recorded.brick.calls[-1][0] == "disconnect", "it is flushed, whatever stays"
    assert host.residue(*words(record)) == []
    recorded.brick.unmap(words(record)[2])
    assert recorded.books() == with_other
    assert host.find(other["volume_id"]) == kept


@of("identity", where=lambda record: record["host"]["multipath"].get("tree", {}).get("sys/class/block/dm-3/size"))
def test_paths_that_are_not_all_the_volume_are_told(recorded: RecordedHost, name: str) -> None:
    record = RECORDS[name]
    exported(recorded, record, multipath=True)
    host = recorded.local(volume_use_multipath=True)
    device = host.connect(*words(record))
    volume = Volume(record["volume_id"], "data", "attaching", 1)
    assert mismatch(volume, device, "") == ""
    assert "the connection info names" in mismatch(volume, device, "6001405" + "f" * 25)
    (recorded.root / "sys/class/block/sdd/device/wwid").write_text("naa.6001405" + "e" * 25)
    found = host.find(record["volume_id"])
    assert found is not None
    assert "different identities" in mismatch(volume, found, "")


@pytest.mark.proves("lightos", "identity")
def test_the_device_that_lightos_names(recorded: RecordedHost) -> None:
    record = RECORDS["lightos"]
    exported(recorded, record)
    device = recorded.local().connect(*words(record))
    connection = connection_of(record)
    assert device.identity == wwid.named_by(connection.protocol, connection.data.open()) != ""


@pytest.mark.parametrize(
    ("name", "settings", "given"),
    [
        ("iscsi", {"volume_use_multipath": True}, ("ISCSI", True, 7)),
        ("iser", {"iser_use_multipath": True}, ("ISER", True, 8)),
        ("iser", {"volume_use_multipath": True}, ("ISER", False, 8)),
        ("fibre_channel", {}, ("FIBRE_CHANNEL", False, 7)),
        ("nvmeof", {}, ("NVMEOF", False, 9)),
        ("lightos", {}, ("LIGHTOS", False, 9)),
        ("scaleio", {}, ("SCALEIO", False, 7)),
        ("storpool", {}, ("STORPOOL", False, 7)),
    ],
)
def test_os_brick_is_given_what_nova_gives_it(
    recorded: RecordedHost, name: str, settings: dict[str, bool], given: tuple[str, bool, int]
) -> None:
    record = RECORDS[name]
    exported(recorded, record)
    tries = {"num_volume_scan_tries": 7, "num_iser_scan_tries": 8, "num_nvme_discover_tries": 9}
    recorded.local(**tries, **settings).connect(*words(record))
    (_factory, protocol, options), *_ = recorded.brick.calls
    assert (protocol, options["use_multipath"], options["device_scan_attempts"]) == given


@pytest.mark.parametrize(
    ("iface", "transport"), [("", "default"), ("bnx2i.00:05:b5:d2:a0:c2", "bnx2i.00:05:b5:d2:a0:c2")]
)
def test_an_iface_of_open_iscsi_is_logged_in_by(recorded: RecordedHost, iface: str, transport: str) -> None:
    record = RECORDS["iscsi"]
    exported(recorded, record)
    recorded.local(iscsi_iface=iface).connect(*words(record))
    (_factory, _protocol, options), *_ = recorded.brick.calls
    assert options["transport"] == transport


@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        ("smbfs", {"export": "//192.0.2.9/share"}),
        ("nfs", {"export": "192.0.2.51:/srv", "name": "../etc/shadow"}),
        ("nfs", {"export": "192.0.2.51:/srv", "name": "volume-1", "format": "vmdk"}),
        ("nfs", {"name": "volume-1"}),
        ("scaleio", {"scaleIO_volname": "of a time without ids"}),
        ("lightos", {"uuid": "6c2a0f9e-0a54-4b6e-8f0d-2d6c2a9b7f10"}),
        ("nvmeof", {"nqn": "nqn.x", "volume_replicas": [{"vol_uuid": "a"}]}),
        ("fibre_channel", {"target_lun": 1}),
    ],
)
def test_what_cannot_be_proven_is_refused_before_anything_is_done(
    recorded: RecordedHost, protocol: str, data: dict[str, Any]
) -> None:
    host = recorded.local()
    before = recorded.books()
    with pytest.raises(FinalError, match=f"volume v1 is reached by {protocol}"):
        host.connect("v1", protocol, data)
    host.disconnect("v1", protocol, data)
    assert host.residue("v1", protocol, data) == []
    assert (recorded.books(), recorded.brick.calls) == (before, [])


@pytest.mark.proves("rbd", "detach")
def test_what_qemu_reaches_by_itself_has_no_part_on_the_host(recorded: RecordedHost) -> None:
    record = RECORDS["rbd"]
    assert reaches_by_network(connection_of(record), "host")
    host = recorded.local()
    before = recorded.books()
    with pytest.raises(FinalError, match="reached by rbd"):
        host.connect(*words(record))
    host.disconnect(*words(record))
    assert host.residue(*words(record)) == []
    assert recorded.books() == before


# the guest's part


def disk(record: dict[str, Any], **changes: Any) -> ET.Element:
    connection = connection_of(record, **changes)
    network = reaches_by_network(connection, "host")
    kind = "file" if record["protocol"] == "nfs" else "block"
    spec = spec_for(
        Volume(record["volume_id"], "data", "attaching", 1, multiattach="access_mode" in changes),
        connection,
        slot=SLOT,
        device=None if network else Device(f"/run/tether/volumes/{record['volume_id']}", "/dev/sdx", kind),
        mode="rw",
        settings=Settings(),
        initiator="",
        encryption=None,
        data_path="host",
    )
    return ET.fromstring(render(spec))


def facts(element: ET.Element, place: str = "") -> dict[str, str]:
    """Return all that a disk says, each by where it says it: ``driver/cache``."""
    found = {f"{place}{key}": value for key, value in element.attrib.items()}
    if element.text and element.text.strip():
        found[place.rstrip("/")] = element.text.strip()
    for number, child in enumerate(element):
        several = len(element.findall(child.tag)) > 1
        found |= facts(child, f"{place}{child.tag}{number if several else ''}/") or {f"{place}{child.tag}": ""}
    return found


def beside(record: dict[str, Any], which: str, **changes: Any) -> None:
    """Compare our disk with Nova's, but for what is meant to differ."""
    ours = facts(disk(record, **changes))
    nova = facts(ET.fromstring("".join(record["nova"][which])))
    # The address is explicit here, and the same in both definitions; there libvirt chooses it.
    ours = {key: value for key, value in ours.items() if not key.startswith("address/")}
    if ours["type"] == "network":
        # libvirt takes <auth> in either place; only the one in <source> is there for backing chains too.
        ours = {key.removeprefix("source/") if "/auth/" in key else key: value for key, value in ours.items()}
    else:
        # tether's own link, never a device whose name is another's after a reboot
        source = "source/file" if ours["type"] == "file" else "source/dev"
        assert ours.pop(source) == f"/run/tether/volumes/{record['volume_id']}"
        del nova[source]
    for key, reason in record["differs"].items():
        assert reason.startswith(f"{ours[key]}"), key
        assert ours.pop(key) != nova.pop(key, "")
    assert ours == nova


@of("attach", "QoS", "discard")
def test_the_disk_is_novas(name: str) -> None:
    beside(RECORDS[name], "disk")


@of("read-only", "block sizes", "discard")
def test_the_read_only_shared_disk_is_novas(name: str) -> None:
    record = RECORDS[name]
    discard = not record["data"].get("discard")
    beside(record, "strict", access_mode="ro", discard=discard, logical_block_size="512", physical_block_size="4096")


@of("CHAP", where=secret)
def test_the_password_is_nowhere_but_in_what_os_brick_gets(recorded: RecordedHost, name: str) -> None:
    record = RECORDS[name]
    exported(recorded, record)
    password = record["data"]["auth_password"]
    recorded.local().connect(*words(record))
    assert recorded.brick.calls[-1] == ("connect",)
    told = ET.tostring(disk(record), encoding="unicode") + repr(connection_of(record))
    assert password not in told
    assert not any(password in path.read_text() for path in (recorded.root / "run").rglob("*") if path.is_file())
