"""What a volume's <disk> says."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tether.adapters.cinder.model import Connection, Encryption, Volume
from tether.adapters.guest.disk import (
    IOTUNE_KEYS,
    DiskSpec,
    chap_secret,
    reaches_by_network,
    render,
    source_of,
    spec_for,
)
from tether.adapters.guest.model import alias_of
from tether.adapters.guest.slots import Slot
from tether.adapters.guest.xml import parse_disk
from tether.adapters.host.model import Device
from tether.errors import FinalError
from tether.sealed import Sealed
from tether.settings import Settings

VOLUME = "5b7e2d1c-0000-4000-8000-000000000001"
PCI = {"type": "pci", "domain": "0x0000", "bus": "0x04", "slot": "0x00", "function": "0x0"}
SLOT = Slot("vdb", "virtio", PCI)
LINK = f"/run/tether/volumes/{VOLUME}"
ISCSI: dict[str, Any] = {"target_portal": "10.0.0.1:3261", "target_iqn": f"iqn.2010-10.org.openstack:{VOLUME}"}
ISCSI |= {"target_lun": 1, "auth_method": "CHAP", "auth_username": "chapuser", "auth_password": "chapsecret12"}
RBD: dict[str, Any] = {"name": "volumes/volume-1", "hosts": ["10.0.0.1", "[fd00::2]"], "ports": ["6789", "3300"]}
RBD |= {"auth_enabled": True, "auth_username": "cinder", "secret_uuid": "457eb676-33da-42ec-9a8c-9293d545c337"}


def spec(
    data: dict[str, Any] | None = None,
    *,
    protocol: str = "iscsi",
    data_path: str = "host",
    kind: str = "block",
    mode: str = "rw",
    encryption: Encryption | None = None,
    volume: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **connection: Any,
) -> DiskSpec:
    network = protocol == "rbd" or data_path == "network"
    return spec_for(
        Volume(VOLUME, "data", "attaching", 1, **(volume or {})),
        Connection(protocol, Sealed(ISCSI if data is None else data), **connection),
        slot=SLOT,
        device=None if network else Device(LINK, "/dev/sda", kind),
        mode=mode,
        settings=Settings(**(settings or {})),
        initiator="iqn.1993-08.org.debian:01:host",
        encryption=encryption,
        data_path=data_path,
    )


def element(made: DiskSpec) -> ET.Element:
    return ET.fromstring(render(made))


def attributes(made: DiskSpec, path: str) -> dict[str, str]:
    found = element(made).find(path)
    assert found is not None, path
    return dict(found.attrib)


def test_a_block_device():
    made = spec(discard=True)
    assert attributes(made, ".") == {"type": "block", "device": "disk"}
    assert attributes(made, "source") == {"dev": LINK}
    assert attributes(made, "target") == {"dev": "vdb", "bus": "virtio"}
    assert attributes(made, "address") == PCI
    assert attributes(made, "driver") == {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "io": "native",
        "discard": "unmap",
    }


def test_the_parser_reads_what_is_rendered():
    for made in (spec(), spec(kind="file"), spec(data_path="network"), spec(RBD, protocol="rbd")):
        disk = parse_disk(element(made))
        assert disk.source == source_of(made) != ""
        assert (disk.alias, disk.serial, disk.target, dict(disk.address)) == (alias_of(VOLUME), VOLUME, "vdb", PCI)


def test_nothing_is_said_that_was_not_asked_for():
    tags = {child.tag for child in element(spec())}
    assert tags == {"driver", "source", "target", "serial", "alias", "address"}
    assert "discard" not in attributes(spec(), "driver")


@pytest.mark.parametrize(
    ("kind", "cache", "io"),
    [
        ("block", "none", "native"),
        ("block", "directsync", "native"),
        ("block", "writethrough", "threads"),
        ("block", "writeback", "threads"),
        ("file", "none", "threads"),
    ],
)
def test_native_io_is_for_block_devices_without_the_page_cache(kind, cache, io):
    made = spec(kind=kind, settings={"disk_cachemode": cache})
    assert (attributes(made, "driver")["cache"], attributes(made, "driver")["io"]) == (cache, io)
    assert attributes(made, "source") == {"dev" if kind == "block" else "file": LINK}


def test_a_shared_volume_is_never_cached():
    made = spec(volume={"multiattach": True}, settings={"disk_cachemode": "writeback"})
    assert attributes(made, "driver")["cache"] == "none"
    assert element(made).find("shareable") is not None


@pytest.mark.parametrize(
    ("more", "readonly"),
    [
        ({"mode": "ro"}, True),
        ({"access_mode": "ro"}, True),
        ({"volume": {"metadata": {"readonly": "True"}}}, True),
        ({"volume": {"metadata": {"readonly": "False", "attached_mode": "ro"}}}, False),
        ({}, False),
    ],
)
def test_read_only(more, readonly):
    assert (element(spec(**more)).find("readonly") is not None) is readonly


def test_limits_and_block_sizes():
    qos = {key: str(number) for number, key in enumerate(IOTUNE_KEYS, 1)} | {"backend_only": "gold"}
    made = spec(qos_specs=qos, logical_block_size=512, physical_block_size=4096)
    iotune = element(made).find("iotune")
    assert iotune is not None
    assert {child.tag: child.text for child in iotune} == {k: v for k, v in qos.items() if k != "backend_only"}
    assert len(iotune) == 13
    assert attributes(made, "blockio") == {"logical_block_size": "512", "physical_block_size": "4096"}
    assert attributes(spec(logical_block_size=4096), "blockio") == {"logical_block_size": "4096"}


def test_a_limit_that_is_no_number():
    with pytest.raises(FinalError, match="total_bytes_sec") as caught:
        spec(qos_specs={"total_bytes_sec": "fast"})
    assert "QoS" in caught.value.hint


def test_iscsi_by_qemu_itself():
    made = spec(data_path="network")
    assert attributes(made, ".")["type"] == "network"
    assert attributes(made, "source") == {"protocol": "iscsi", "name": f"iqn.2010-10.org.openstack:{VOLUME}/1"}
    assert attributes(made, "source/host") == {"name": "10.0.0.1", "port": "3261"}
    assert attributes(made, "source/initiator/iqn") == {"name": "iqn.1993-08.org.debian:01:host"}
    assert attributes(made, "source/auth") == {"username": "chapuser"}
    assert attributes(made, "source/auth/secret") == {"type": "iscsi", "usage": VOLUME}
    assert "io" not in attributes(made, "driver")


@pytest.mark.parametrize(
    ("portal", "name", "port"),
    [
        ("10.0.0.1:3260", "10.0.0.1", "3260"),
        ("10.0.0.1", "10.0.0.1", "3260"),
        ("[fd00::1]:3261", "fd00::1", "3261"),
        ("[fd00::1]", "fd00::1", "3260"),
        ("fd00::1", "fd00::1", "3260"),
        ("san.example:860", "san.example", "860"),
    ],
)
def test_portals(portal, name, port):
    made = spec({**ISCSI, "target_portal": portal}, data_path="network")
    assert attributes(made, "source/host") == {"name": name, "port": port}


def test_iscsi_without_chap_and_with_lists_of_portals():
    data = {"target_portals": ["10.0.0.1:3260", "10.0.0.2:3260"], "target_iqns": ["iqn.a:1", "iqn.a:2"]}
    made = spec({**data, "target_luns": [0, 0]}, data_path="network")
    assert made.source == "iqn.a:1/0"
    assert made.hosts == (("10.0.0.1", "3260"),)
    assert element(made).find("source/auth") is None


def test_rbd():
    made = spec(RBD, protocol="rbd")
    assert attributes(made, "source") == {"protocol": "rbd", "name": "volumes/volume-1"}
    hosts = [dict(host.attrib) for host in element(made).iterfind("source/host")]
    assert hosts == [{"name": "10.0.0.1", "port": "6789"}, {"name": "fd00::2", "port": "3300"}]
    assert attributes(made, "source/auth") == {"username": "cinder"}
    assert attributes(made, "source/auth/secret") == {"type": "ceph", "uuid": RBD["secret_uuid"]}
    assert element(made).find("source/initiator") is None


def test_the_hosts_own_ceph_settings_win():
    made = spec(RBD, protocol="rbd", settings={"rbd_user": "host", "rbd_secret_uuid": "u-1"})
    assert (made.auth_user, made.auth_uuid) == ("host", "u-1")
    plain = {"name": "volumes/volume-1", "hosts": ["a"], "auth_enabled": False}
    assert spec(plain, protocol="rbd").auth_type == ""
    assert spec(plain, protocol="rbd").hosts == (("a", ""),)


def test_rbd_without_a_secret_is_refused():
    with pytest.raises(FinalError) as caught:
        spec({**RBD, "secret_uuid": None}, protocol="rbd")
    assert "rbd_secret_uuid" in caught.value.hint


def test_luks_by_qemu_itself():
    made = spec(data_path="network", encryption=Encryption("luks", "key-1"))
    assert attributes(made, "source/encryption") == {"format": "luks"}
    assert attributes(made, "source/encryption/secret") == {"type": "passphrase", "usage": VOLUME}
    old = Encryption("nova.volume.encryptors.luks.LuksEncryptor", "key-1", control_location="back-end")
    assert not spec(data_path="network", encryption=old).luks
    assert not spec(encryption=Encryption("luks", "key-1")).luks, "on the host path dm-crypt opens it"


@pytest.mark.parametrize("provider", ["luks2", "plain"])
def test_what_qemu_cannot_open(provider):
    with pytest.raises(FinalError, match=provider) as caught:
        spec(data_path="network", encryption=Encryption(provider, "key-1"))
    assert "data_path = host" in caught.value.hint


def test_what_qemu_cannot_reach():
    with pytest.raises(FinalError, match="nvmeof") as caught:
        spec({}, protocol="nvmeof", data_path="network")
    assert "data_path = host" in caught.value.hint


@pytest.mark.parametrize("missing", ["target_portal", "target_iqn", "target_lun", "auth_username"])
def test_a_garbled_connection_info_is_refused_without_telling_it(missing):
    data = {key: value for key, value in ISCSI.items() if key != missing}
    with pytest.raises(FinalError, match=missing) as caught:
        spec(data, data_path="network")
    assert "chapsecret12" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_host_path_needs_a_device():
    with pytest.raises(FinalError, match="no device"):
        spec_for(
            Volume(VOLUME, "data", "attaching", 1),
            Connection("iscsi", Sealed(ISCSI)),
            slot=SLOT,
            device=None,
            mode="rw",
            settings=Settings(),
            initiator="",
            encryption=None,
            data_path="host",
        )


@pytest.mark.parametrize(
    "made",
    [
        spec(qos_specs={"total_iops_sec": "100"}, discard=True),
        spec(data_path="network", encryption=Encryption("luks", "key-1")),
        spec(RBD, protocol="rbd", mode="ro"),
    ],
    ids=["host", "iscsi", "rbd"],
)
def test_a_spec_survives_json_and_holds_no_secret(made):
    text = json.dumps(made.to_json())
    assert DiskSpec.from_json(json.loads(text)) == made
    assert render(DiskSpec.from_json(json.loads(text))) == render(made)
    assert "chapsecret12" not in text + render(made)


def test_helpers():
    iscsi, rbd = Connection("iscsi", Sealed(ISCSI)), Connection("rbd", Sealed(RBD))
    assert chap_secret(iscsi) == Sealed("chapsecret12")
    assert chap_secret(rbd) is None
    assert chap_secret(Connection("iscsi", Sealed({"target_portal": "a:1"}))) is None
    assert [reaches_by_network(iscsi, path) for path in ("host", "network")] == [False, True]
    assert [reaches_by_network(rbd, path) for path in ("host", "network")] == [True, True]
