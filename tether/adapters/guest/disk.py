"""What a volume's ``<disk>`` says, after the rules of Nova's libvirt volume drivers.

Sources: Nova's ``virt/libvirt/volume/volume.py`` (serial, iotune, readonly, shareable, discard, blockio),
``volume/net.py`` (rbd), Kilo's ``LibvirtNetVolumeDriver`` (iSCSI by QEMU itself).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

from tether.adapters.cinder.model import ACCESS_MODES, Connection, Encryption, Volume
from tether.adapters.guest.model import Disk, alias_of
from tether.adapters.guest.slots import Slot
from tether.adapters.guest.xml import iscsi_source, parse_element
from tether.adapters.host.model import Device
from tether.errors import FinalError, UsageError
from tether.sealed import Sealed
from tether.settings import Settings

#: Cinder's front-end QoS keys that libvirt's <iotune> knows, as in Nova.
IOTUNE_KEYS = (
    *(f"{who}_{what}_sec" for what in ("bytes", "iops") for who in ("total", "read", "write")),
    *(f"{who}_{what}_sec_max" for what in ("bytes", "iops") for who in ("total", "read", "write")),
    "size_iops_sec",
)
ISCSI_PORT = "3260"
FILE_FORMATS = ("raw", "qcow2")
#: What an XML text cannot hold, however it is written (XML 1.0, section 2.2).
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Prefixes that the parser itself gives.
_NUMBERED = re.compile(r"ns\d+")
#: Cache modes that open the image with O_DIRECT, which is what io=native needs.
DIRECT_CACHE_MODES = ("none", "directsync")


@dataclass(frozen=True)
class DiskSpec:
    """All that a ``<disk>`` says; holds no secret, so that it may be stored with the job.

    Args:
        type: block, file or network.
        source: a path, ``iqn…/1`` or ``pool/image``.
        protocol: of a network disk: iscsi or rbd.
        format: raw, or qcow2 for a file that Cinder says is one.
        hosts: of a network disk: (name, port) of portals or monitors.
        io: the driver's io mode, or empty to leave it to libvirt.
        iotune: the limits, in bytes or operations a second.
        auth_type: iscsi, ceph, or empty where no secret is needed to log in.
        auth_usage: the secret's usage; or
        auth_uuid: the secret's UUID.
        initiator: the initiator name that QEMU logs in with.
        luks: True if QEMU itself opens the LUKS volume, with the passphrase secret of this volume.
    """

    volume_id: str
    slot: Slot
    type: str
    source: str
    protocol: str = ""
    format: str = "raw"
    hosts: tuple[tuple[str, str], ...] = ()
    cache: str = "none"
    io: str = ""
    discard: bool = False
    readonly: bool = False
    shareable: bool = False
    iotune: dict[str, int] = field(default_factory=dict)
    logical_block_size: int | None = None
    physical_block_size: int | None = None
    auth_type: str = ""
    auth_user: str = ""
    auth_usage: str = ""
    auth_uuid: str = ""
    initiator: str = ""
    luks: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {**asdict(self), "hosts": [list(host) for host in self.hosts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DiskSpec:
        """Return what :meth:`to_json` wrote."""
        hosts = tuple((str(name), str(port)) for name, port in data["hosts"])
        return cls(**{**data, "slot": Slot(**data["slot"]), "hosts": hosts})


def reaches_by_network(connection: Connection, data_path: str) -> bool:
    """Return True if QEMU connects to the volume by itself, so that the host has no part in it.

    rbd always does. Everything else does only where the settings say ``data_path = network``; a protocol that
    QEMU does not speak then fails in :func:`spec_for`.
    """
    return connection.protocol == "rbd" or data_path == "network"


def chap_secret(connection: Connection) -> Sealed[str] | None:
    """Return the CHAP password that QEMU needs to log in, or None if the target wants none."""
    data = connection.data.open()
    if connection.protocol != "iscsi" or not data.get("auth_method"):
        return None
    password = data.get("auth_password")
    if not isinstance(password, str) or not password:
        raise FinalError(
            "the connection info wants CHAP and has no password", hint="look at the backend driver's log in Cinder"
        )
    return Sealed(password)


def spec_for(
    volume: Volume,
    connection: Connection,
    *,
    slot: Slot,
    device: Device | None,
    mode: str,
    settings: Settings,
    initiator: str,
    encryption: Encryption | None,
    data_path: str,
) -> DiskSpec:
    """Return the volume's disk.

    Args:
        slot: where it goes in the guest.
        device: the host's device; None on the network path.
        mode: ``rw`` or ``ro`` as asked for; the volume's own flag and Cinder's access mode can only tighten it.
        initiator: the connector's initiator name, for iSCSI by QEMU.
        encryption: how the volume is encrypted, or None.
        data_path: ``host`` or ``network``.

    Raises:
        FinalError: the volume cannot be a disk of a guest this way; nothing has been done.
    """
    if connection.access_mode not in ACCESS_MODES:
        raise FinalError(
            f"volume {volume.id} has an access mode that is neither rw nor ro",
            resource=f"volume {volume.id}",
            hint="look at the backend driver's log in Cinder",
        )
    common: dict[str, Any] = {
        "volume_id": volume.id,
        "slot": slot,
        # A shared disk must not sit in this host's page cache.
        "cache": "none" if volume.multiattach else settings.disk_cachemode,
        "discard": connection.discard,
        "readonly": mode == "ro" or connection.access_mode == "ro" or volume.readonly,
        "shareable": volume.multiattach,
        "iotune": limits_of(volume, connection.qos_specs),
        "logical_block_size": connection.logical_block_size,
        "physical_block_size": connection.physical_block_size,
    }
    if reaches_by_network(connection, data_path):
        return _network_spec(volume, connection, common, settings=settings, initiator=initiator, encryption=encryption)
    if device is None:
        raise FinalError(
            f"volume {volume.id} has no device on this host",
            resource=f"volume {volume.id}",
            hint="connect it first: the job that attaches it does",
        )
    # io=native may block the whole guest on a file, and needs O_DIRECT (Nova bug 1841363).
    native = device.kind == "block" and common["cache"] in DIRECT_CACHE_MODES
    return DiskSpec(
        type=device.kind,
        source=device.link,
        format=_format(volume, connection, device),
        io="native" if native else "threads",
        **common,
    )


def _format(volume: Volume, connection: Connection, device: Device) -> str:
    """Return a file's format as Cinder says it: a guess from a raw file's bytes would be the guest's to make."""
    if device.kind != "file":
        return "raw"
    said = connection.data.open().get("format", "raw")
    if said not in FILE_FORMATS:
        raise FinalError(
            f"volume {volume.id} is a file of a format that is neither raw nor qcow2",
            resource=f"volume {volume.id}",
            hint="look at the backend driver's log in Cinder",
        )
    return str(said)


def source_of(spec: DiskSpec) -> str:
    """Return what the disk opens, comparable with a parsed disk's ``source``."""
    return spec.source


def sources_of(connection: Connection) -> frozenset[str]:
    """Return what a network disk may open to reach the connection, comparable with a parsed disk's ``source``.

    Empty where QEMU does not reach it by itself.
    """
    data = connection.data.open()
    if connection.protocol == "rbd":
        return frozenset({str(data["name"])} if "name" in data else ())
    if connection.protocol != "iscsi":
        return frozenset()
    names = [data["target_iqn"]] if "target_iqn" in data else []
    names += data.get("target_iqns") or []
    luns = [data.get("target_lun", 0)] if "target_iqn" in data else []
    luns += data.get("target_luns") or [data.get("target_lun", 0)] * (len(names) - len(luns))
    return frozenset(iscsi_source(f"{name}/{lun}") for name, lun in zip(names, luns, strict=False))


def render(spec: DiskSpec) -> str:
    """Return the ``<disk>`` element as text."""
    disk = ET.Element("disk", {"type": spec.type, "device": "disk"})
    driver = {"name": "qemu", "type": spec.format, "cache": spec.cache}
    if spec.io:
        driver["io"] = spec.io
    if spec.discard:
        driver["discard"] = "unmap"
    ET.SubElement(disk, "driver", driver)
    _render_source(disk, spec)
    ET.SubElement(disk, "target", {"dev": spec.slot.target, "bus": spec.slot.bus})
    if spec.iotune:
        iotune = ET.SubElement(disk, "iotune")
        for key in IOTUNE_KEYS:
            if key in spec.iotune:
                ET.SubElement(iotune, key).text = str(spec.iotune[key])
    sizes = {"logical_block_size": spec.logical_block_size, "physical_block_size": spec.physical_block_size}
    if any(sizes.values()):
        ET.SubElement(disk, "blockio", {name: str(size) for name, size in sizes.items() if size})
    if spec.readonly:
        ET.SubElement(disk, "readonly")
    if spec.shareable:
        ET.SubElement(disk, "shareable")
    ET.SubElement(disk, "serial").text = spec.volume_id
    ET.SubElement(disk, "alias", {"name": alias_of(spec.volume_id)})
    ET.SubElement(disk, "address", spec.slot.address)
    return ET.tostring(disk, encoding="unicode")


def limits_in(disk: Disk) -> dict[str, int]:
    """Return the limits that a disk of a definition has."""
    iotune = parse_element(disk.xml, "disk").find("iotune")
    found = {} if iotune is None else {each.tag: each.text or "" for each in iotune}
    return {key: int(found[key]) for key in IOTUNE_KEYS if found.get(key, "0").strip("0")}


def rehome(domain: str, specs: Iterable[DiskSpec]) -> str:
    """Return a domain's XML with what these disks open, found by their serials, as another host opens it.

    Args:
        domain: as ``virsh dumpxml --migratable`` has it.
        specs: the disks on that host.

    Raises:
        UsageError: it is no domain's XML, or lacks one of the disks.
    """
    wanted = "give what virsh dumpxml --migratable SERVER prints"
    try:
        root = parse_element(domain, "domain")
    except FinalError as error:
        raise UsageError(error.message, hint=wanted) from error
    for _event, (prefix, uri) in ET.iterparse(io.StringIO(domain), events=["start-ns"]):  # noqa: S314 - as parsed
        if not _NUMBERED.fullmatch(prefix):
            ET.register_namespace(prefix, uri)  # as they were; libvirt goes by the URI alone
    disks = list(root.iterfind("devices/disk"))
    for spec in specs:
        disk = next((disk for disk in disks if disk.findtext("serial") == spec.volume_id), None)
        if disk is None:
            raise UsageError(
                f"the domain's XML has no disk with the serial {spec.volume_id}",
                resource=f"volume {spec.volume_id}",
                hint=wanted,
            )
        for child in [child for child in disk if child.tag in {"source", "auth", "encryption"}]:
            disk.remove(child)
        _render_source(disk, spec)
        disk.insert(1, disk[-1])  # behind the driver, as libvirt has it
        del disk[-1]
    return ET.tostring(root, encoding="unicode")


def _render_source(disk: ET.Element, spec: DiskSpec) -> None:
    if spec.type != "network":
        ET.SubElement(disk, "source", {"dev" if spec.type == "block" else "file": spec.source})
        return
    source = ET.SubElement(disk, "source", {"protocol": spec.protocol, "name": spec.source})
    for name, port in spec.hosts:
        ET.SubElement(source, "host", {"name": name, "port": port} if port else {"name": name})
    if spec.initiator:
        ET.SubElement(ET.SubElement(source, "initiator"), "iqn", {"name": spec.initiator})
    if spec.auth_type:
        auth = ET.SubElement(source, "auth", {"username": spec.auth_user})
        key = {"uuid": spec.auth_uuid} if spec.auth_uuid else {"usage": spec.auth_usage}
        ET.SubElement(auth, "secret", {"type": spec.auth_type, **key})
    if spec.luks:
        encryption = ET.SubElement(source, "encryption", {"format": "luks"})
        ET.SubElement(encryption, "secret", {"type": "passphrase", "usage": spec.volume_id})


def _network_spec(
    volume: Volume,
    connection: Connection,
    common: dict[str, Any],
    *,
    settings: Settings,
    initiator: str,
    encryption: Encryption | None,
) -> DiskSpec:
    resource = f"volume {volume.id}"
    data = connection.data.open()
    # A cipher of the backend's own ("back-end") is not ours to open.
    front_end = encryption is not None and encryption.control_location == "front-end"
    if front_end and encryption is not None and encryption.provider.rpartition(".")[2] != "luks":
        raise FinalError(
            f"QEMU opens only LUKS version 1 by itself, and volume {volume.id} is encrypted with {encryption.provider}",
            resource=resource,
            hint="set data_path = host, where dm-crypt opens it",
        )
    try:
        if connection.protocol == "iscsi":
            reach = _iscsi(volume.id, data, initiator)
        elif connection.protocol == "rbd":
            reach = _rbd(volume.id, data, settings)
        else:
            raise FinalError(
                f"QEMU cannot reach volume {volume.id} over {connection.protocol} by itself",
                resource=resource,
                hint="set data_path = host",
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # Neither chained nor told but for a field's name: the data hold the password.
        field_name = f" {error}" if isinstance(error, _Garbled | KeyError) else ""
        raise FinalError(
            f"the connection info of volume {volume.id} lacks or garbles{field_name or ' what it must have'}",
            resource=resource,
            hint="look at the backend driver's log in Cinder",
        ) from None
    return DiskSpec(type="network", protocol=connection.protocol, luks=front_end, **reach, **common)


def network_source(connection: Connection) -> str:
    """Return what QEMU opens for a volume that it reaches by itself; empty if the connection does not say."""
    data = connection.data.open()
    try:
        return _iscsi_name(data) if connection.protocol == "iscsi" else str(data.get("name", ""))
    except (KeyError, IndexError, TypeError, ValueError):
        return ""


def _iscsi_name(data: Mapping[str, Any]) -> str:
    iqn, lun = _said(_first(data, "target_iqn"), "target_iqn"), _lun(_first(data, "target_lun"))
    return iscsi_source(f"{iqn}/{lun}")


def _first(data: Mapping[str, Any], name: str) -> object:
    return data[name] if name in data else data[f"{name}s"][0]


def _iscsi(volume_id: str, data: Mapping[str, Any], initiator: str) -> dict[str, Any]:
    """Return the fields of an iSCSI disk; of several portals QEMU takes one."""
    reach: dict[str, Any] = {
        "source": _iscsi_name(data),
        "hosts": (_host_port(_said(_first(data, "target_portal"), "target_portal")),),
        "initiator": initiator,
    }
    if data.get("auth_method"):
        user = _said(data["auth_username"], "auth_username")
        reach |= {"auth_type": "iscsi", "auth_user": user, "auth_usage": volume_id}
    return reach


class _Garbled(ValueError):
    """A field of the connection info is not what it must be; says its name alone."""


def _said(value: object, name: str) -> str:
    """Return a field that must be a text, and one that XML can hold."""
    if not isinstance(value, str) or not value or _NOT_XML.search(value):
        raise _Garbled(name)
    return value


def _lun(value: object) -> int:
    text = str(value)
    if isinstance(value, bool | float) or not re.fullmatch("[0-9]{1,20}", text):
        raise _Garbled("target_lun")
    return int(text)


def _host_port(portal: str) -> tuple[str, str]:
    """Split ``ip:port``, ``[ipv6]:port`` or a bare address."""
    host, separator, port = portal.rpartition(":")
    if not separator or portal.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = portal, ISCSI_PORT
    return host.removeprefix("[").removesuffix("]"), port


def _rbd(volume_id: str, data: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    if not isinstance(data["hosts"], list):
        raise _Garbled("hosts")
    hosts = [_said(host, "hosts").removeprefix("[").removesuffix("]") for host in data["hosts"]]
    ports = [_said(str(port), "ports") for port in data["ports"]] if data.get("ports") else [""] * len(hosts)
    reach: dict[str, Any] = {"source": _said(data["name"], "name"), "hosts": tuple(zip(hosts, ports, strict=True))}
    if not data.get("auth_enabled") and not settings.rbd_secret_uuid:
        return reach
    user = settings.rbd_user or str(data.get("auth_username") or "")
    secret = settings.rbd_secret_uuid or str(data.get("secret_uuid") or "")
    if not user or not secret:
        raise FinalError(
            f"volume {volume_id} needs a ceph user and a libvirt secret, and one of them is not known",
            resource=f"volume {volume_id}",
            hint="set rbd_user and rbd_secret_uuid in [libvirt]",
        )
    return reach | {
        "auth_type": "ceph",
        "auth_user": _said(user, "auth_username"),
        "auth_uuid": _said(secret, "secret_uuid"),
    }


def limits_of(volume: Volume, qos_specs: Mapping[str, str]) -> dict[str, int]:
    """Return the limits that libvirt knows; keys of the backend's own are Cinder's business.

    Raises:
        FinalError: one of them is no number.
    """
    limits: dict[str, int] = {}
    for key in IOTUNE_KEYS:
        if key not in qos_specs:
            continue
        try:
            limits[key] = int(qos_specs[key])
        except ValueError:
            raise FinalError(
                f"the QoS limit {key} of volume {volume.id} is not a number: {qos_specs[key]!r}",
                resource=f"volume {volume.id}",
                hint="correct the QoS specs of its volume type in Cinder",
            ) from None
    return limits
