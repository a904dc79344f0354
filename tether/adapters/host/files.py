"""Volumes that are a file of an NFS share: the host's verbs for them.

os-brick's RemoteFs connector mounts the share, and leaves the mount for ever; the unmounting is tether's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tether.adapters.host import brick_calls
from tether.adapters.host.errors import mapped
from tether.adapters.host.links import Links
from tether.adapters.host.model import Device
from tether.adapters.host.places import Places
from tether.adapters.host.probes import Probes
from tether.adapters.host.shares import Shares
from tether.errors import FinalError, UncertainError
from tether.settings import Settings

PROTOCOL = "nfs"
#: The head of a qcow2 file: magic, version, offset of the backing file's name, its length, cluster bits, then the
#: virtual size in bytes; all big-endian (QEMU: docs/interop/qcow2.rst).
_MAGIC, _BACKING, _SIZE, _HEAD = b"QFI\xfb", slice(8, 16), slice(24, 32), 32


class FileHost:
    """Carries out the verbs; each changes a share's mount under its lock.

    Args:
        settings: of the host section.
        places: the host's file systems.
        links: tether's links.
        probes: who has a file open.
    """

    def __init__(self, settings: Settings, places: Places, links: Links, probes: Probes) -> None:
        self._settings = settings
        self._links = links
        self._probes = probes
        self._shares = Shares(settings, places)

    def connect(self, volume_id: str, data: Mapping[str, Any]) -> Device:
        """Mount the share unless it is, and make the link to the file.

        Raises:
            FinalError: it cannot be mounted, has no such file, or one that a guest could not open through a link.
        """
        export, path = str(data["export"]), self._path(data)
        established = bool(self._links.target(volume_id))
        with self._shares.locked(export):

            def clean() -> bool:
                if not established:
                    self._release(volume_id, export, ())
                return not established and not self._shares.left(export, volume_id)

            with mapped("connecting", volume_id, clean=clean):
                self._shares.count_in(export, volume_id, str(data.get("format", "raw")))
                brick_calls.set_up(self._settings)
                brick_calls.connect(self._settings, PROTOCOL, data)
            if wrong := self._wrong(path, volume_id):
                if not established:
                    self._release(volume_id, export, ())
                raise FinalError(
                    f"volume {volume_id}: {path} of {export} {wrong[0]}",
                    resource=f"volume {volume_id}",
                    hint=wrong[1],
                )
            self._links.point(volume_id, str(path))
        return self.device(volume_id, str(path))

    def device(self, volume_id: str, path: str) -> Device:
        """Return the file at a path as a device; the size is the guest's."""
        size = _size(Path(path), self._shares.format_of(Path(path), volume_id))
        users = self._probes.openers_of(Path(path))
        return Device(str(self._links.path(volume_id)), path, "file", size, open_count=len(users))

    def find(self, volume_id: str) -> Device | None:
        """Return the file behind the link, or None."""
        target = self._links.target(volume_id)
        return self.device(volume_id, target) if target and Path(target).is_file() else None

    def device_at(self, volume_id: str, path: str, data: Mapping[str, Any]) -> Device | None:
        """Return the file at a path if it is the connection's."""
        own = self._path(data)
        same = own.is_file() and Path(path).exists() and own.samefile(path)
        return self.device(volume_id, str(own)) if same else None

    def disconnect(self, volume_id: str, data: Mapping[str, Any], others: Collection[str]) -> None:
        """Remove the link, and unmount the share if nobody else uses it.

        Raises:
            FinalError: the file is open.
            UncertainError: the share cannot be unmounted.
        """
        export, path = str(data["export"]), self._path(data)
        with self._shares.locked(export):
            if users := self._probes.openers_of(path):
                raise FinalError(
                    f"volume {volume_id} cannot be disconnected: its file is open: {', '.join(users)}",
                    resource=f"volume {volume_id}",
                    hint="detach the disk from the guest, or end what uses the file",
                )
            self._release(volume_id, export, others)
            self._links.remove(volume_id)

    def left(self, volume_id: str, data: Mapping[str, Any]) -> list[str]:
        """Return what is left of the volume, its link aside."""
        return self._shares.left(str(data["export"]), volume_id)

    def _release(self, volume_id: str, export: str, others: Collection[str]) -> None:
        try:
            self._shares.count_out(export, volume_id, others)
        except (subprocess.CalledProcessError, OSError) as error:
            told = getattr(error, "stderr", None)
            reason = told.decode(errors="replace").strip() if isinstance(told, bytes) and told else str(error)
            point = self._shares.mount_point(export)
            raise UncertainError(
                f"volume {volume_id} is not disconnected: {point} stays mounted: {reason}",
                resource=f"volume {volume_id}",
                hint=f"see what uses it: fuser -vm {point}",
            ) from error

    def _path(self, data: Mapping[str, Any]) -> Path:
        return self._shares.mount_point(str(data["export"])) / str(data["name"])

    def _wrong(self, path: Path, volume_id: str) -> tuple[str, str] | None:
        """Return what is wrong with the file of a mounted share, and what to do."""
        if not path.is_file() or path.is_symlink():
            return "is no file there", "look at the share, and at the backend driver's log in Cinder"
        if self._shares.format_of(path, volume_id) == "qcow2":
            with path.open("rb") as handle:
                head = handle.read(_HEAD)
            if len(head) < _HEAD or not head.startswith(_MAGIC):
                return "is said to be qcow2, and is not", "look at the backend driver's log in Cinder"
            if any(head[_BACKING]):
                # Cinder names it relative to the file, QEMU takes it relative to the name that it opens: the link.
                return "rests on another file, for it has snapshots", "delete the volume's snapshots, then attach it"
        return None


def _size(path: Path, image_format: str) -> int:
    """Return the size of the disk in a file; never guessed from the bytes of a raw one, which are the guest's."""
    if image_format != "qcow2":
        return path.stat().st_size
    with path.open("rb") as handle:
        return int.from_bytes(handle.read(_HEAD)[_SIZE], "big")
