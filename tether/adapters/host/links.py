"""tether's own links to connected volumes, and what each device reported when it was connected."""

from __future__ import annotations

import os
from pathlib import Path


class Links:
    """The folder ``<run_dir>/volumes``, and beside it ``<run_dir>/identities``.

    Both vanish with a reboot, as the connections do. The folders may be passed through but not listed by
    others (0711): QEMU opens the link as its own user.

    Args:
        run_dir: the setting.
    """

    def __init__(self, run_dir: str) -> None:
        self._volumes = Path(run_dir) / "volumes"
        self._identities = Path(run_dir) / "identities"

    def path(self, volume_id: str) -> Path:
        """Return where the volume's link is, or would be."""
        return self._volumes / volume_id

    def target(self, volume_id: str) -> str:
        """Return what the link points to, or empty if there is no link."""
        try:
            return str(self.path(volume_id).readlink())
        except FileNotFoundError:
            return ""

    def all(self) -> list[tuple[str, str]]:
        """Return every link: the volume's id, and where the link is."""
        try:
            entries = sorted(self._volumes.iterdir())
        except FileNotFoundError:
            return []
        return [(entry.name, str(entry)) for entry in entries if not entry.name.startswith(".")]

    def point(self, volume_id: str, target: str) -> None:
        """Make the link, or point it elsewhere, in one step."""
        self._make(self._volumes)
        temporary = self._volumes / f".{volume_id}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.path(volume_id))

    def identity(self, volume_id: str) -> str:
        """Return what the device reported when it was connected, or empty."""
        try:
            return (self._identities / volume_id).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def remember(self, volume_id: str, identity: str) -> None:
        """Keep what the device reports: it names a multipath map that has lost its paths."""
        self._make(self._identities)
        temporary = self._identities / f".{volume_id}.{os.getpid()}"
        temporary.write_text(identity, encoding="utf-8")
        temporary.replace(self._identities / volume_id)

    def remove(self, volume_id: str) -> None:
        """Remove the link, then the identity."""
        self.path(volume_id).unlink(missing_ok=True)
        (self._identities / volume_id).unlink(missing_ok=True)

    @staticmethod
    def _make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
