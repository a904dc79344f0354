"""A host as it was recorded, and an os-brick that brings and takes away what the record says.

A tree is a mapping of paths below the host's root: text is a file, ``{"link": target}`` a link, None a folder (the
path then ends with a slash).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tether.adapters.host import brick_calls
from tether.adapters.host.local import LocalHost
from tether.adapters.host.places import Places
from tether.settings import Settings

Tree = Mapping[str, Any]


class VolumeDeviceNotFound(Exception):
    """Named as os-brick's, by which the adapter knows it."""


class RecordedHost:
    """The file systems of one host below a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for folder in ("sys/class/block", "dev", "etc", "proc", "var"):
            (root / folder).mkdir(parents=True)
        self.brick = RecordedBrick(self)
        monkeypatch.setattr(brick_calls, "set_up", lambda settings: None)
        package, initiator = ModuleType("os_brick"), ModuleType("os_brick.initiator")
        initiator.connector = self.brick  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "os_brick", package)
        monkeypatch.setitem(sys.modules, "os_brick.initiator", initiator)

    def local(self, **settings: Any) -> LocalHost:
        """Return the host's verbs, in this process."""
        known = Settings(run_dir=str(self.root / "run"), lock_path=str(self.root / "locks")).but(**settings)
        return LocalHost(known, Places(*(str(self.root / name) for name in ("sys", "dev", "proc", "etc", "var"))))

    def lay(self, tree: Tree) -> None:
        """Put a tree there."""
        for name, content in tree.items():
            path = self.root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            elif not path.is_symlink():
                path.symlink_to(content["link"])

    def take(self, tree: Tree, kept: set[str]) -> None:
        """Remove a tree but for what others have laid too, and the folders that are then empty."""
        for name in set(tree) - kept:
            path = self.root / name
            if not name.endswith("/"):
                path.unlink(missing_ok=True)
        for name in sorted(set(tree) - kept, key=len, reverse=True):
            path = self.root / name
            for folder in (path, *path.parents):
                inside = self.root in folder.parents and folder.is_dir() and not any(folder.iterdir())
                if inside and f"{folder.relative_to(self.root)}/" not in kept:
                    folder.rmdir()
        (self.root / "sys/class/block").mkdir(parents=True, exist_ok=True)

    def books(self) -> list[str]:
        """Return every file and link of the host, and every block device's folder; tether's own included."""
        found = []
        for folder, inner, names in os.walk(self.root):
            blocks = inner if Path(folder).name == "block" else []
            links = [name for name in inner if (Path(folder) / name).is_symlink()]
            found += [str((Path(folder) / name).relative_to(self.root)) for name in {*names, *blocks, *links}]
        return sorted(found)


class RecordedBrick:
    """What ``os_brick.initiator.connector`` is to the adapter: its factory, over what is known."""

    def __init__(self, host: RecordedHost) -> None:
        self._host = host
        self._known: list[dict[str, Any]] = []
        self._connected: list[dict[str, Any]] = []
        self.InitiatorConnector = self
        #: Each call: its name, then what counts of it.
        self.calls: list[tuple[Any, ...]] = []
        #: What the next connects do: ``early`` fails before anything, ``late`` after all is there.
        self.troubles: list[str] = []
        #: The storage is gone: nothing can be connected, nor flushed.
        self.dead = False

    def know(self, data: Mapping[str, Any], tree: Tree, path: str, *, needs_info: bool = False) -> None:
        """Have a connect with these data bring the tree.

        Args:
            path: what it returns, below the root.
            needs_info: True where a disconnect without device info leaves everything there.
        """
        self._known.append({"data": {**data, "encrypted": False}, "tree": tree, "path": path, "info": needs_info})

    def factory(self, protocol: str, root_helper: str | None, **options: Any) -> RecordedBrick:
        self.calls.append(("factory", protocol, options))
        return self

    def connect_volume(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(("connect",))
        trouble = self.troubles.pop(0) if self.troubles else ""
        entry = self._entry(data)
        if trouble != "early" and not self.dead:
            self._host.lay(entry["tree"])
            self._connected = [*(each for each in self._connected if each is not entry), entry]
        if trouble or self.dead:
            raise VolumeDeviceNotFound("Volume device not found at .")
        return {"type": "block", "path": str(self._host.root / entry["path"])}

    def disconnect_volume(
        self, data: Mapping[str, Any], device_info: Mapping[str, Any] | None, force: bool, ignore_errors: bool
    ) -> None:
        self.calls.append(("disconnect", force, ignore_errors))
        entry = self._entry(data)
        if self.dead and not force:
            raise OSError(errno.EIO, "Input/output error")
        if entry["info"] and not (device_info and device_info.get("path")):
            return
        # A namespace is only taken away by the target, while another volume's is on its subsystem.
        is_namespace = any(name.endswith("/subsysnqn") for name in entry["tree"])
        if not (is_namespace and self._others(entry) & set(entry["tree"])):
            self._take(entry)
        if self.dead and not ignore_errors:
            raise OSError(errno.EIO, "Input/output error")

    def unmap(self, data: Mapping[str, Any]) -> None:
        """Be the target, which takes the volume from the host."""
        self._take(self._entry(data))

    def _take(self, entry: dict[str, Any]) -> None:
        self._host.take(entry["tree"], self._others(entry))
        self._connected = [each for each in self._connected if each is not entry]

    def _others(self, entry: dict[str, Any]) -> set[str]:
        return {name for each in self._connected if each is not entry for name in each["tree"]}

    def _entry(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return next(each for each in self._known if each["data"] == dict(data))
