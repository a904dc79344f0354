"""The mounts of NFS shares: one for all volumes of a share, counted, and unmounted by the last.

Where a share is mounted follows os-brick and Nova: the base, then the MD5 of the export
(``os_brick/remotefs/remotefs.py: get_mount_point``), so that with Nova's base both use one mount.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tether.adapters.host.places import Places
from tether.errors import UncertainError
from tether.settings import Settings

#: The file that says that tether has mounted the share; those beside it are named after volumes.
_OURS = ".mounted-by-tether"
_OCTAL = re.compile(r"\\([0-7]{3})")


def key_of(export: str) -> str:
    """Return the name of an export's mount point below the base."""
    return hashlib.md5(export.encode(), usedforsecurity=False).hexdigest()


class Shares:
    """The mounts below one base, and which volumes use each.

    The count is kept in ``<run_dir>/shares``, which goes with a reboot as the mounts do: a volume is written there
    before its share is mounted, and taken out only when nothing of it is left.

    Args:
        settings: ``nfs_mount_point_base``, ``run_dir`` and ``lock_path``.
        places: the host's file systems.
    """

    def __init__(self, settings: Settings, places: Places) -> None:
        self._base = Path(settings.nfs_mount_point_base)
        self._counts = Path(settings.run_dir) / "shares"
        self._locks = Path(settings.lock_path)
        self._mountinfo = Path(places.proc) / "self/mountinfo"

    def mount_point(self, export: str) -> Path:
        """Return where the share is mounted, or would be."""
        return self._base / key_of(export)

    @contextmanager
    def locked(self, export: str) -> Iterator[None]:
        """Keep other helpers from mounting or unmounting the share; the lock goes with the process."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"tether-share-{key_of(export)}").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def is_mounted(self, export: str) -> bool:
        """Return True if something is mounted at the share's mount point.

        Raises:
            UncertainError: the mounts cannot be read, so an absence would prove nothing.
        """
        try:
            lines = self._mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise UncertainError(
                f"{self._mountinfo} cannot be read, so nothing can be said about this host's mounts",
                hint="run tether where the host's /proc is mounted",
            ) from error
        places = {_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}
        return str(self.mount_point(export)) in places

    def count_in(self, export: str, volume_id: str, image_format: str) -> None:
        """Write down that a volume uses the share, and whether the mount will be ours."""
        folder = self._counts / key_of(export)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_mounted(export):
            (folder / _OURS).touch()
        (folder / volume_id).write_text(image_format, encoding="utf-8")

    def format_of(self, path: Path, volume_id: str) -> str:
        """Return the format that a volume was counted in with, or empty."""
        try:
            return (self._counts / path.parent.name / volume_id).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def left(self, export: str, volume_id: str) -> list[str]:
        """Return what is left of the volume's use of the share: its count, and a mount that was for it alone."""
        folder = self._counts / key_of(export)
        counted = [f"use of share {export}"] if (folder / volume_id).exists() else []
        alone = (folder / _OURS).exists() and not self._others(export, volume_id)
        mounted = [f"mount {self.mount_point(export)}"] if alone and self.is_mounted(export) else []
        return counted + mounted

    def count_out(self, export: str, volume_id: str, others: Collection[str]) -> None:
        """Take a volume out, and unmount the share if tether has mounted it and nobody else uses it.

        Args:
            others: what other disks of this host name as their source. If one is a file of the share, the mount is
                that disk's from now on.

        Raises:
            subprocess.CalledProcessError: it cannot be unmounted, as while a file of it is open.
        """
        folder = self._counts / key_of(export)
        point = self.mount_point(export)
        if not self._others(export, volume_id):
            if (folder / _OURS).exists() and not any(point in Path(other).parents for other in others):
                if self.is_mounted(export):
                    unmount(point)
                if point.is_dir():
                    point.rmdir()
            (folder / _OURS).unlink(missing_ok=True)
        (folder / volume_id).unlink(missing_ok=True)
        if folder.is_dir() and not os.listdir(folder):  # noqa: PTH208  whether there is any
            folder.rmdir()

    def _others(self, export: str, volume_id: str) -> list[str]:
        return [entry.name for entry in self._counted(key_of(export)) if entry.name != volume_id]

    def _counted(self, key: str) -> list[Path]:
        folder = self._counts / key
        return [entry for entry in sorted(folder.iterdir()) if entry.name != _OURS] if folder.is_dir() else []


def unmount(point: Path) -> None:
    """Unmount a share; never lazily, so that an open file keeps it.

    Raises:
        subprocess.CalledProcessError: umount refused.
    """
    subprocess.run(["umount", str(point)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
