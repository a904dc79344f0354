"""The lock of a backend's targets on this host, the one that os-brick's ``guard_connection`` takes in Nova.

Where several volumes share one iSCSI target and the initiator scans by itself, a volume that is unexported while
another logs in may come back as a device. So who exports and connects, or disconnects and unexports, keeps the others
of this host out meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from tether.errors import ConfigError

#: ``struct flock``: type, whence, start, length, process. An open file's lock, unlike a process's, keeps this process's
#: other threads out too, and is not let go when another descriptor of the file is closed here; both exclude each other.
_FLOCK = "hhqqi4x"
#: How the names of os-brick's lock files begin.
_PREFIX = "os-brick-"


class TargetLock:
    """The lock of one Cinder service's targets: os-brick's file, in its ``lock_path``, and of its kind.

    It goes with the process.

    Args:
        folder: ``lock_path``.
        service: ``service_uuid`` of the volume.
    """

    def __init__(self, folder: Path, service: str) -> None:
        # As oslo.concurrency names it: the service is Cinder's word, and stays one file of this folder.
        self.path = folder / f"{_PREFIX}{service.replace(os.sep, '_')}"
        self._handle: int | None = None

    def take(self) -> bool:
        """Return True if the lock is held, by now or already; False if somebody else has it.

        Raises:
            ConfigError: the file cannot be made.
        """
        if self._handle is not None:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            hand_over(self.path.parent)
        except OSError as error:
            raise ConfigError(
                f"the lock {self.path} cannot be made: {error.strerror}",
                hint="make the folder, or set [host] lock_path to the one that Nova and Cinder use on this host",
            ) from error
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        """Let it go, if it is held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def hand_over(folder: Path) -> None:
    """Give the lock files that root has made to the folder's owner: Nova is not root, and opens them to write.

    Args:
        folder: ``lock_path``.
    """
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for entry in os.scandir(folder):
        if not entry.name.startswith(_PREFIX) or not entry.is_file(follow_symlinks=False):
            continue
        found = entry.stat(follow_symlinks=False)
        # The owner may put what it likes there, but no second name of a file of root's comes into its hands by this.
        if found.st_uid == 0 and found.st_nlink == 1:
            os.chown(entry.path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def scans_manually(iscsiadm: Path) -> bool:
    """Return True if open-iscsi leaves scans to os-brick, so that nothing appears by itself.

    As ``os_brick.initiator.utils.check_manual_scan`` finds it out.

    Args:
        iscsiadm: the program.
    """
    try:
        return b"node.session.scan" in iscsiadm.read_bytes()
    except OSError:
        return False
