"""How each protocol's connection info names the volume's disk on this host, and what of it a logout takes away.

iSCSI and NVMe are read in :mod:`tether.adapters.host.probes`, NFS in :mod:`tether.adapters.host.files`. The keys are
those of Cinder's drivers, and the places those where os-brick's connectors look (``os_brick/initiator/connectors``:
fibre_channel.py, scaleio.py, storpool.py, lightos.py, local.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tether.adapters.host.places import Places
from tether.adapters.host.sysfs import children, read

#: What names the volume's device, by protocol: of each group at least one key. Without it an absence would prove
#: nothing, so such a connection is refused before anything is done.
NAMED_BY: dict[str, tuple[tuple[str, ...], ...]] = {
    "iscsi": (("target_iqn", "target_iqns"),),
    "iser": (("target_iqn", "target_iqns"),),
    "fibre_channel": (("target_wwn", "target_wwns"),),
    "nvmeof": (("target_nqn", "nqn"),),
    "nvme": (("target_nqn", "nqn"),),
    "scaleio": (("scaleIO_volume_id",),),
    "storpool": (("volume",),),
    "lightos": (("uuid",), ("subsysnqn",)),
    "local": (("device_path",),),
    "nfs": (("export",), ("name",)),
}
#: What the file of an NFS volume may be.
FORMATS = ("raw", "qcow2")

#: LUNs from here on have a by-path name of 16 hex digits (os-brick: LinuxSCSI._format_lun_id).
_LONG_LUN = 256
#: What flat addressing adds to a LUN (os-brick: LinuxSCSI.lun_for_addressing).
_FLAT = 0x4000


def refusal(protocol: str, data: Mapping[str, Any]) -> str:
    """Return why the host's data path does not handle a connection, or an empty text if it does."""
    if protocol not in NAMED_BY:
        return f"is reached by {protocol}, which the host data path does not handle"
    if data.get("volume_replicas"):
        return f"is reached by {protocol} as replicas, which the host data path does not put together"
    for keys in NAMED_BY[protocol]:
        if not any(data.get(key) for key in keys):
            return f"is reached by {protocol}, and its connection info does not have {' or '.join(keys)}"
    return _file_refusal(data) if protocol == "nfs" else ""


def _file_refusal(data: Mapping[str, Any]) -> str:
    name, image_format = str(data["name"]), data.get("format", "raw")
    if Path(name).name != name or name in {".", ".."}:
        return f"is reached by nfs, and {name!r} is no name of a file in the share"
    if image_format not in FORMATS:
        return f"is reached by nfs as a file of format {image_format!r}, which is neither raw nor qcow2"
    return ""


def stays(protocol: str, data: Mapping[str, Any]) -> bool:
    """Return True if the device is not the host's to take away, so that its presence is no residue.

    A local device is the host's own. PowerFlex maps and unmaps, and LightOS gives and takes access, when Cinder makes
    and deletes the attachment: os-brick's disconnect leaves such a device in place.
    """
    return protocol in {"local", "lightos"} or (protocol == "scaleio" and bool(data.get("sdc_guid")))


def ports(data: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the (port, LUN) pairs of Fibre Channel data; the LUN is as the kernel counts it."""
    named = data.get("target_wwns") or data.get("target_wwn") or []
    names = [named] if isinstance(named, str) else list(named)
    luns = data.get("target_luns") or [data.get("target_lun", 0)]
    # One LUN may stand for all ports.
    luns = list(luns) * len(names) if len(luns) == 1 else list(luns)
    mode = data.get("addressing_mode")
    return [(str(name).lower(), _addressed(int(lun), mode)) for name, lun in zip(names, luns, strict=False)]


def _addressed(lun: int, mode: object) -> int:
    flat = mode == "SAM3-flat" or (mode == "SAM2" and lun >= _LONG_LUN)
    return lun + _FLAT if flat else lun


def _lun_text(lun: int) -> str:
    """Return a LUN as udev's by-path links have it."""
    return str(lun) if lun < _LONG_LUN else f"0x{lun & 0xFFFF:04x}{lun >> 16 & 0xFFFF:04x}00000000"


class Fabrics:
    """Finds what a connection leads to.

    Args:
        places: the host's file systems.
    """

    def __init__(self, places: Places) -> None:
        self._sys = Path(places.sys)
        self._dev = Path(places.dev)
        self._discovery = Path(places.etc) / "discovery-client/discovery.d"

    def paths(self, protocol: str, data: Mapping[str, Any]) -> list[Path]:
        """Return the device nodes and links that the connection may have brought; they need not lead anywhere."""
        match protocol:
            case "fibre_channel":
                return self._fibre_channel(data)
            case "scaleio":
                ending = str(data.get("scaleIO_volume_id"))
                links = children(self._dev / "disk/by-id")
                return [link for link in links if link.name.startswith("emc-vol") and link.name.endswith(ending)]
            case "storpool":
                ending = f"--volume-{data.get('volume')}"
                return [link for link in children(self._dev / "storpool") if link.name.endswith(ending)]
            case "lightos":
                return self._lightos(data)
            case "local":
                path = str(data.get("device_path"))
                return [self._dev / path.removeprefix("/dev/") if path.startswith("/dev/") else Path(path)]
        return []

    def left(self, protocol: str, data: Mapping[str, Any]) -> list[str]:
        """Return what is left of a connection beside its disks and maps."""
        if protocol != "lightos":
            return []
        # The discovery client connects to what is listed there for as long as it is.
        entry = self._discovery / f"{data.get('uuid')}.conf"
        return [f"discovery entry {entry}"] if entry.exists() else []

    def _fibre_channel(self, data: Mapping[str, Any]) -> list[Path]:
        """Return the disks by udev's links, and by the kernel's own word: a link may not be there yet, or no more."""
        wanted = ports(data)
        endings = tuple(f"-fc-0x{port}-lun-{_lun_text(lun)}" for port, lun in wanted)
        found = [link for link in children(self._dev / "disk/by-path") if endings and link.name.endswith(endings)]
        for target in children(self._sys / "class/fc_transport"):
            port = read(target / "port_name").removeprefix("0x")
            for name, lun in wanted:
                if name == port:
                    address = f"{target.name.removeprefix('target')}:{lun}"
                    found += children(self._sys / f"class/scsi_device/{address}/device/block")
        return found

    def _lightos(self, data: Mapping[str, Any]) -> list[Path]:
        wanted = f"uuid.{data.get('uuid')}"
        blocks = [entry for entry in children(self._sys / "class/block") if entry.name.startswith("nvme")]
        # nvme0c1n1 is one path of nvme0n1, which is the device
        return [entry for entry in blocks if "c" not in entry.name and read(entry / "wwid") == wanted]
