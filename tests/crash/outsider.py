"""What others do to Cinder, to libvirt and to guests behind tether's back; written straight into the world's files."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.crash.pairs import SERVERS, STRANGER, VOLUMES, Facts

ET.register_namespace("tether", "https://tether.dev/xmlns/1")

STRANGERS_VOLUME = "99999999-9999-4999-8999-999999999999"
ALIAS = f"ua-{STRANGERS_VOLUME}"
IQN = "iqn.2010-10.org.openstack:volume-"
EXPORT = {
    "target_portal": "192.0.2.10:3260",
    "target_lun": 1,
    "auth_method": "CHAP",
    "auth_username": "stranger",
    "auth_password": "not a secret",
}


class Outsider:
    """Everybody else.

    Args:
        world: the world's directory.
    """

    def __init__(self, world: Path) -> None:
        self.world = world

    # -- what is there from the start, and must stay as it is ------------------------------------------------

    def furnish(self) -> None:
        """Put a stranger's volume, attachments, device and disks into the world."""
        with self._book("cinder") as cinder:
            plain = cinder["volumes"][VOLUMES["vol1"]]
            cinder["volumes"][STRANGERS_VOLUME] = copy.deepcopy(plain) | {
                "id": STRANGERS_VOLUME,
                "name": "strange1",
                "status": "in-use",
                "attach_status": "attached",
            }
            cinder["exports"][STRANGERS_VOLUME] = EXPORT | {"target_iqn": f"{IQN}{STRANGERS_VOLUME}"}
            _add_row(cinder, STRANGERS_VOLUME, "attached")
        with self._book("host") as host:
            host["devices"][STRANGERS_VOLUME] = {
                "path": "/dev/sdx",
                "size": 2**30,
                "identity": "6001405ffffffffffffffffffffffffff",
                "identities_differ": False,
                "open_count": 1,
                "iqn": f"{IQN}{STRANGERS_VOLUME}",
                "sessions": [],
            }
        for server in ("guest1", "stopped1"):
            for scope in ("live", "persistent"):
                if self._xml(server, scope).exists():
                    with self._definition(server, scope) as root:
                        _devices(root).append(_disk("vdx", "0x08", f"<alias name='{ALIAS}'/>"))

    def belongings(self) -> dict[str, Any]:
        """Return everything that is a stranger's, to be compared."""
        cinder, host = _load(self.world / "cinder.json"), _load(self.world / "host.json")
        found: dict[str, Any] = {
            "rows": {key: row for key, row in cinder["attachments"].items() if row["instance_uuid"] == STRANGER},
            "volume": cinder["volumes"][STRANGERS_VOLUME],
            "export": cinder["exports"].get(STRANGERS_VOLUME),
            "device": host["devices"].get(STRANGERS_VOLUME),
        }
        for server in SERVERS:
            for scope in ("live", "persistent"):
                path = self._xml(server, scope)
                root = ET.parse(path).getroot() if path.exists() else None
                if root is None:
                    continue
                disks = [ET.canonicalize(ET.tostring(disk, "unicode"), strip_text=True) for disk in _strange(root)]
                found[f"{server} {scope}"] = (
                    disks,
                    [ET.canonicalize(ET.tostring(item, "unicode")) for item in root.iterfind("devices/controller")],
                )
        return found

    # -- in Cinder -------------------------------------------------------------------------------------------

    def delete_attachment(self, attachment_id: str) -> None:
        """Delete an attachment, as an administrator's DELETE does."""
        with self._book("cinder") as cinder:
            row = cinder["attachments"].pop(attachment_id)
            _follow(cinder, row["volume_id"])

    def reset(self, volume: str) -> None:
        """Let an administrator reset the volume's state to available and detached: the rows go, the export stays."""
        with self._book("cinder") as cinder:
            for key, row in list(cinder["attachments"].items()):
                if row["volume_id"] == VOLUMES[volume]:
                    del cinder["attachments"][key]
            cinder["volumes"][VOLUMES[volume]] |= {"status": "available", "attach_status": "detached"}

    def reserve(self, volume: str) -> None:
        """Let a stranger reserve the volume, which is available."""
        with self._book("cinder") as cinder:
            _add_row(cinder, VOLUMES[volume], "reserved")
            cinder["volumes"][VOLUMES[volume]] |= {"status": "reserved", "attach_status": "reserved"}

    def attach(self, volume: str) -> None:
        """Let a stranger attach the multiattach volume on another host."""
        with self._book("cinder") as cinder:
            _add_row(cinder, VOLUMES[volume], "attached")
            cinder["exports"].setdefault(VOLUMES[volume], EXPORT | {"target_iqn": f"{IQN}{VOLUMES[volume]}"})
            cinder["volumes"][VOLUMES[volume]] |= {"status": "in-use", "attach_status": "attached"}

    def leave(self, volume: str) -> None:
        """Let the stranger give the volume up again."""
        with self._book("cinder") as cinder:
            for key, row in list(cinder["attachments"].items()):
                if row["volume_id"] == VOLUMES[volume] and row["instance_uuid"] == STRANGER:
                    del cinder["attachments"][key]
            _follow(cinder, VOLUMES[volume])

    # -- at the guest ----------------------------------------------------------------------------------------

    def detach_disk(self, server: str, volume: str, scope: str) -> None:
        """Do what ``virsh detach-disk`` does, in one definition; tether's mark stays."""
        with self._definition(server, scope) as root:
            _remove(root, f"ua-{VOLUMES[volume]}")

    def attach_disk(self, server: str, target: str, bus: str) -> None:
        """Do what ``virsh attach-disk --persistent`` does with a file of the stranger's.

        Args:
            bus: the PCI bus of its address.
        """
        for scope in ("live", "persistent"):
            if self._xml(server, scope).exists():
                with self._definition(server, scope) as root:
                    _devices(root).append(_disk(target, bus, ""))

    def stop(self, server: str) -> None:
        """Shut the guest off, or destroy it."""
        self._xml(server, "live").unlink()
        with self._state(server) as state:
            state.update(power="shutoff", pending={})

    def start(self, server: str) -> None:
        """Start the guest, from its managed-save image if it has one."""
        image = self._xml(server, "saved")
        root = ET.parse(image if image.exists() else self._xml(server, "persistent")).getroot()
        root.set("id", "1")
        self._xml(server, "live").write_text(ET.tostring(root, "unicode"))
        with self._state(server) as state:
            state["power"] = "running"
        image.unlink(missing_ok=True)

    def can_start(self, facts: Facts, server: str) -> bool:
        """Return True unless QEMU would find no link, or libvirt no secret, behind one of its disks."""
        scopes = facts.guests[server]
        disks = scopes.get("saved", scopes["persistent"]).disks
        for volume in (disk.volume for disk in disks if disk.volume):
            row = facts.mappings.get((volume, server))
            if row is None or (volume not in facts.links if row["data_path"] == "host" else False):
                return False
        return True

    def pause(self, server: str) -> None:
        with self._state(server) as state:
            state["power"] = "paused"

    def unpause(self, server: str) -> None:
        """Let it run on; it now answers what was asked of it while it was paused."""
        self._answer(server, {"paused"})
        with self._state(server) as state:
            state["power"] = "running"

    def reset_guest(self, server: str) -> None:
        """Let the guest reboot: QEMU carries every pending unplug out."""
        self._answer(server, {"paused", "ignored"})

    def save(self, server: str) -> None:
        """Do what ``virsh managedsave`` does."""
        live = self._xml(server, "live")
        live.rename(self._xml(server, "saved"))
        with self._state(server) as state:
            state.update(power="shutoff", pending={})

    def drop_image(self, server: str) -> None:
        """Do what ``virsh managedsave-remove`` does."""
        self._xml(server, "saved").unlink()

    def _answer(self, server: str, reasons: set[str]) -> None:
        with self._state(server) as state, self._definition(server, "live") as root:
            for alias in [alias for alias, reason in state["pending"].items() if reason in reasons]:
                del state["pending"][alias]
                _remove(root, alias)

    # -- files -----------------------------------------------------------------------------------------------

    @contextmanager
    def _book(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.world / f"{name}.json"
        book = _load(path)
        yield book
        path.write_text(json.dumps(book, indent=1, sort_keys=True))

    @contextmanager
    def _state(self, server: str) -> Iterator[dict[str, Any]]:
        with self._book(f"guests/{SERVERS[server]}/state") as state:
            yield state

    @contextmanager
    def _definition(self, server: str, scope: str) -> Iterator[ET.Element]:
        path = self._xml(server, scope)
        root = ET.parse(path).getroot()
        yield root
        path.write_text(ET.tostring(root, "unicode"))

    def _xml(self, server: str, scope: str) -> Path:
        return self.world / "guests" / SERVERS[server] / f"{scope}.xml"


def _load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _add_row(cinder: dict[str, Any], volume_id: str, status: str) -> None:
    number = cinder["serial"] = int(cinder.get("serial", 0)) + 1
    key = f"0ff0ff00-0000-4000-9000-{number:012}"
    cinder["attachments"][key] = {
        "id": key,
        "serial": number,
        "volume_id": volume_id,
        "attach_status": status,
        "instance_uuid": STRANGER,
        "attached_host": "elsewhere" if status == "attached" else None,
        "mountpoint": "/dev/vdb" if status == "attached" else None,
        "attach_time": None,
        "attach_mode": "rw",
        "connector": {"host": "elsewhere"} if status == "attached" else None,
        "connection_info": {"driver_volume_type": "iscsi"} if status == "attached" else None,
    }


def _follow(cinder: dict[str, Any], volume_id: str) -> None:
    """Make a volume's status follow from the attachments that are left, as Cinder does; without one, no export."""
    states = sorted(row["attach_status"] for row in cinder["attachments"].values() if row["volume_id"] == volume_id)
    state = states[0] if states else "detached"
    status = {"attached": "in-use", "detached": "available"}.get(state, state)
    cinder["volumes"][volume_id] |= {"status": status, "attach_status": state}
    if not states:
        cinder["exports"].pop(volume_id, None)


def _devices(root: ET.Element) -> ET.Element:
    found = root.find("devices")
    assert found is not None
    return found


def _disk(target: str, bus: str, more: str) -> ET.Element:
    return ET.fromstring(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='/var/lib/libvirt/images/strange-{target}.img'/><target dev='{target}' bus='virtio'/>{more}"
        f"<address type='pci' domain='0x0000' bus='{bus}' slot='0x00' function='0x0'/></disk>"
    )


def _strange(root: ET.Element) -> list[ET.Element]:
    ours = {f"ua-{uuid}" for uuid in VOLUMES.values()}
    return [
        disk
        for disk in root.iterfind("devices/disk")
        if (alias := disk.find("alias")) is None or alias.get("name") not in ours
    ]


def _remove(root: ET.Element, alias: str) -> None:
    devices = _devices(root)
    for disk in devices.findall("disk"):
        found = disk.find("alias")
        if found is not None and found.get("name") == alias:
            devices.remove(disk)
