"""Reading a host's files: identities, Fibre Channel and NVMe, on trees made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tether.adapters.host import wwid
from tether.adapters.host.links import Links
from tether.adapters.host.model import Holding, HostSurvey
from tether.adapters.host.network import NetworkHost
from tether.adapters.host.places import Places
from tether.adapters.host.probes import Probes, targets
from tether.settings import Settings

NGUID = "6001405aaaabbbbccccddddeeeeffff0"


@pytest.mark.parametrize(
    "text",
    [
        f"naa.{NGUID}",
        f"3{NGUID}",
        f"0x{NGUID.upper()}",
        f"eui.{NGUID}\n",
        "6001405a-aaab-bbbc-cccd-dddeeeeffff0",
        f" {NGUID} ",
    ],
)
def test_one_identity_in_its_many_forms(text: str) -> None:
    assert wwid.normalise(text) == NGUID


def test_what_is_no_number_is_kept() -> None:
    assert wwid.normalise("t10.ATA     QEMU HARDDISK \n") == "t10.ATA     QEMU HARDDISK"
    assert wwid.normalise("") == ""


def test_a_number_that_begins_with_a_three_is_not_cut() -> None:
    assert wwid.normalise("3001405aaaabbbbccccddddeeeeffff0") == "3001405aaaabbbbccccddddeeeeffff0"


@pytest.mark.parametrize(
    ("protocol", "data", "expected"),
    [
        ("iscsi", {"target_iqn": "x"}, ""),
        ("iscsi", {"wwn": f"3{NGUID}"}, NGUID),
        ("nvmeof", {"volume_nguid": NGUID.upper()}, NGUID),
        ("lightos", {"uuid": "6001405a-aaab-bbbc-cccd-dddeeeeffff0"}, NGUID),
        ("iscsi", {"uuid": "6001405a-aaab-bbbc-cccd-dddeeeeffff0"}, ""),
        ("iscsi", {"wwn": None}, ""),
    ],
)
def test_the_identity_that_the_data_name(protocol: str, data: dict[str, str], expected: str) -> None:
    assert wwid.named_by(protocol, data) == expected


def test_targets_of_single_and_multipath_data() -> None:
    assert targets({"target_iqn": "a", "target_lun": 1}) == {("a", "1")}
    many = {"target_iqn": "a", "target_lun": 1, "target_iqns": ["a", "b"], "target_luns": [1, 2]}
    assert targets(many) == {("a", "1"), ("b", "2")}
    assert targets({"target_iqns": ["a", "b"], "target_lun": 3}) == {("a", "3"), ("b", "3")}
    assert targets({}) == set()


@pytest.fixture
def probes(tmp_path: Path) -> Probes:
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "dev/disk/by-path").mkdir(parents=True)
    return Probes(Places(*(str(tmp_path / name) for name in ("sys", "dev", "proc", "etc", "var"))))


def add_block(root: Path, name: str, **attributes: str) -> None:
    folder = root / "sys/class/block" / name
    folder.mkdir()
    (root / "dev" / name).write_text("")
    for key, text in attributes.items():
        (folder / key).write_text(text + "\n")


def test_fibre_channel_disks_are_found_by_port_and_lun(probes: Probes, tmp_path: Path) -> None:
    for name, lun in (("sda", 1), ("sdb", 2)):
        add_block(tmp_path, name)
        link = tmp_path / f"dev/disk/by-path/pci-0000:05:00.0-fc-0x500a0981891b8dc5-lun-{lun}"
        link.symlink_to(f"../../{name}")
    data = {"target_wwn": ["500A0981891B8DC5"], "target_lun": 1}
    assert probes.left("v1", "fibre_channel", data, "") == [f"disk {tmp_path}/dev/sda"]
    assert probes.left("v1", "fibre_channel", {**data, "target_wwn": "500a0981891b8dc5", "target_lun": 3}, "") == []


def test_fibre_channel_disks_are_found_before_udev_has_made_a_link(probes: Probes, tmp_path: Path) -> None:
    add_block(tmp_path, "sda")
    target = tmp_path / "sys/class/fc_transport/target2:0:1"
    target.mkdir(parents=True)
    (target / "port_name").write_text("0x500a0981891b8dc5\n")
    (tmp_path / "sys/class/scsi_device/2:0:1:300/device/block/sda").mkdir(parents=True)
    data = {"target_wwns": ["500A0981891B8DC5"], "target_luns": [300], "addressing_mode": "SAM"}
    assert probes.left("v1", "fibre_channel", data, "") == [f"disk {tmp_path}/dev/sda"]
    assert probes.left("v1", "fibre_channel", {**data, "addressing_mode": "SAM2"}, "") == []


def test_a_namespace_is_known_by_its_number_where_no_identity_is_named(probes: Probes, tmp_path: Path) -> None:
    add_controller(tmp_path, "nvme0", "nqn.shared", "nvme0n1", "nvme0n2")
    add_block(tmp_path, "nvme0n1", nsid="10")
    add_block(tmp_path, "nvme0n2", nsid="11")
    assert probes.disks("nvmeof", {"nqn": "nqn.shared", "ns_id": 11}) == ["nvme0n2"]


def add_controller(root: Path, name: str, nqn: str, *namespaces: str) -> None:
    folder = root / "sys/class/nvme" / name
    folder.mkdir(parents=True)
    (folder / "subsysnqn").write_text(nqn + "\n")
    for namespace in namespaces:
        (folder / namespace).mkdir()


def test_nvme_namespaces_and_controllers_are_residue(probes: Probes, tmp_path: Path) -> None:
    add_controller(tmp_path, "nvme0", "nqn.ours", "nvme0c0n1")
    add_controller(tmp_path, "nvme1", "nqn.ours", "nvme0c1n1")
    add_controller(tmp_path, "nvme2", "nqn.other", "nvme2n1")
    add_block(tmp_path, "nvme0n1", nguid="6001405a-aaab-bbbc-cccd-dddeeeeffff0")
    add_block(tmp_path, "nvme2n1", nguid="6001405a-aaab-bbbc-cccd-dddeeeeffff1")
    data = {"target_nqn": "nqn.ours", "volume_nguid": NGUID}
    assert probes.left("v1", "nvmeof", data, "") == [
        "nvme controller nvme0",
        "nvme controller nvme1",
        f"disk {tmp_path}/dev/nvme0n1",
    ]
    assert probes.left("v1", "nvmeof", {"target_nqn": "nqn.none"}, "") == []


@pytest.mark.parametrize("path", ["nvme0n{}", "nvme0c0n{}"], ids=["without multipath", "with the kernel's"])
def test_of_a_subsystem_with_another_volumes_namespace_nothing_is_residue(
    probes: Probes, tmp_path: Path, path: str
) -> None:
    """The namespace goes with Cinder's attachment, the controllers with the last."""
    add_controller(tmp_path, "nvme0", "nqn.shared", path.format(1), path.format(2))
    add_block(tmp_path, "nvme0n1", nguid="6001405a-aaab-bbbc-cccd-dddeeeeffff1")
    add_block(tmp_path, "nvme0n2", nguid="6001405a-aaab-bbbc-cccd-dddeeeeffff0")
    data = {"target_nqn": "nqn.shared", "volume_nguid": NGUID}
    assert probes.disks("nvmeof", data) == ["nvme0n2"]
    assert probes.left("v1", "nvmeof", data, "") == []
    (tmp_path / "sys/class/nvme/nvme0" / path.format(1)).rmdir()
    assert probes.left("v1", "nvmeof", data, "") == ["nvme controller nvme0", f"disk {tmp_path}/dev/nvme0n2"]


def test_a_namespace_of_zeros_names_nothing(probes: Probes, tmp_path: Path) -> None:
    add_block(tmp_path, "nvme0n1", nguid="00000000-0000-0000-0000-000000000000", wwid=f"eui.{NGUID}")
    (tmp_path / "sys/class/block/nvme0n1/wwid").write_text(f"eui.{NGUID}\n")
    assert probes.identities("nvme0n1") == [NGUID]


def test_a_crypt_device_of_another_kind_is_not_the_volumes(probes: Probes, tmp_path: Path) -> None:
    add_block(tmp_path, "dm-0")
    (tmp_path / "sys/class/block/dm-0/dm").mkdir()
    (tmp_path / "sys/class/block/dm-0/dm/name").write_text("tether-v1\n")
    (tmp_path / "sys/class/block/dm-0/dm/uuid").write_text("LVM-xyz\n")
    assert probes.crypt_of("v1") == ""
    assert probes.left("v1", "iscsi", {}, "") == ["dm-crypt tether-v1"]
    (tmp_path / "sys/class/block/dm-0/dm/uuid").write_text("CRYPT-LUKS2-0123-tether-v1\n")
    assert probes.crypt_of("v1") == "dm-0"
    assert probes.crypt_of("v") == ""


def test_links_are_replaced_in_one_step(tmp_path: Path) -> None:
    links = Links(str(tmp_path))
    assert links.target("v1") == ""
    links.point("v1", "/dev/sda")
    links.point("v1", "/dev/sdb")
    assert links.target("v1") == "/dev/sdb"
    assert [entry.name for entry in (tmp_path / "volumes").iterdir()] == ["v1"]
    links.remember("v1", NGUID)
    assert links.identity("v1") == NGUID
    links.remove("v1")
    links.remove("v1")
    assert (links.target("v1"), links.identity("v1")) == ("", "")


def test_a_network_host_has_links_alone(tmp_path: Path) -> None:
    Links(str(tmp_path / "run")).point("vol-1", "/dev/sda")
    found = NetworkHost(Settings(run_dir=str(tmp_path / "run"))).survey()
    assert found == HostSurvey((Holding("link", str(tmp_path / "run/volumes/vol-1"), "vol-1"),), sees_devices=False)
    assert NetworkHost(Settings(run_dir=str(tmp_path / "none"))).survey().holdings == ()


@pytest.mark.parametrize("user", ["", "holder", "process", "mount", "multipath"])
def test_a_device_is_in_use_by_whatever_is_on_it_but_its_own_map(tmp_path: Path, user: str) -> None:
    places = Places(*(str(tmp_path / name) for name in ("sys", "dev", "proc", "etc", "var")))
    volume_id = "11111111-1111-4111-8111-111111111111"
    session = tmp_path / "sys/class/iscsi_session/session1"
    (session / "device/target0:0:0/0:0:0:1/block/sda").mkdir(parents=True)
    (session / "targetname").write_text(f"iqn.2010-10.org.openstack:volume-{volume_id}\n")
    disk = tmp_path / "sys/class/block/sda"
    (disk / "holders").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sda").touch()
    (tmp_path / "proc/self").mkdir(parents=True)
    if user in {"holder", "multipath"}:
        (disk / "holders/dm-0").mkdir()
        mapped = tmp_path / "sys/class/block/dm-0/dm"
        mapped.mkdir(parents=True)
        (mapped / "name").write_text("top\n")
        (mapped / "uuid").write_text("LVM-abc\n" if user == "holder" else f"mpath-3{NGUID}\n")
    if user == "process":
        (tmp_path / "proc/77/fd").mkdir(parents=True)
        (tmp_path / "proc/77/fd/3").symlink_to(tmp_path / "dev/sda")
    if user == "mount":
        (tmp_path / "proc/self/mountinfo").write_text("1 2 8:0 / /mnt rw - ext4 /dev/sda rw\n")
    found = {item.kind: item for item in Probes(places).holdings()}
    assert (found["session"].volume_id, found["device"].volume_id) == (volume_id, volume_id)
    assert found["device"].in_use is (user in {"holder", "process", "mount"})
    assert ("map" in found) is (user == "multipath")
    assert user != "multipath" or (found["map"].identity, found["map"].in_use) == (NGUID, False)
    assert bool(Probes(places).users(volume_id, "sda")) is (user in {"holder", "process", "mount"})
