"""A pretend host for the real host adapter: file trees, a stand-in for os-brick and one for cryptsetup."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tether.adapters.cinder.model import Connection
from tether.adapters.host.brick import BrickHost
from tether.adapters.host.places import Places
from tether.errors import TetherError
from tether.sealed import Sealed
from tether.settings import Settings

FAKE = Path(__file__).parent / "brick"
PASSWORD = "chap-Secret-12"
PASSPHRASE = "correct horse battery staple"
GIB = 1024**3


class PretendHost:
    """The trees under one directory; its environment reaches the helper by monkeypatch."""

    def __init__(self, root: Path, monkeypatch: Any) -> None:
        self.root = root
        for folder in ("sys/class/block", "dev", "etc/iscsi", "proc/sys/kernel/random", "exports", "headers"):
            (root / folder).mkdir(parents=True)
        (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (root / "etc/iscsi/initiatorname.iscsi").write_text("InitiatorName=iqn.1993-08.org.debian:01:abc\n")
        (root / "proc/sys/kernel/random/boot_id").write_text("7e9f5a52-5d5e-4c52-8d8c-2f4a1a2b3c4d\n")
        monkeypatch.setenv("FAKE_BRICK_DIR", str(root))
        monkeypatch.setenv("PYTHONPATH", str(FAKE))
        path = os.pathsep.join([str(FAKE / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        monkeypatch.setenv("PATH", path)
        self.settings = Settings(
            run_dir=str(root / "run"), lock_path=str(root / "locks"), host_name="pretend", host_timeout=60.0
        )
        self.places = Places(*(str(root / name) for name in ("sys", "dev", "proc", "etc", "var")))

    def host(self, **changes: Any) -> BrickHost:
        return BrickHost(self.settings.but(**changes), self.places)

    def exported(self, **facts: Any) -> tuple[str, Connection]:
        volume_id = str(uuid.uuid4())
        iqn = f"iqn.2010-10.org.openstack:volume-{volume_id}"
        wwid = "naa.6001405" + uuid.UUID(volume_id).hex[:25]
        (self.root / "exports" / iqn).write_text(
            json.dumps({"size": GIB, "wwid": wwid, "passphrase": PASSPHRASE, **facts})
        )
        data = {
            "target_iqn": iqn,
            "target_portal": "10.0.0.1:3260",
            "target_lun": 1,
            "target_iqns": [iqn, iqn],
            "target_portals": ["10.0.0.1:3260", "10.0.0.2:3260"],
            "target_luns": [1, 1],
            "auth_method": "CHAP",
            "auth_username": "user",
            "auth_password": PASSWORD,
            "encrypted": True,
        }
        return volume_id, Connection(protocol="iscsi", data=Sealed(data), auth=True)

    def grow(self, volume_id: str, size: int) -> None:
        path = self.root / f"exports/iqn.2010-10.org.openstack:volume-{volume_id}"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))

    def unexport(self, volume_id: str) -> None:
        (self.root / f"exports/iqn.2010-10.org.openstack:volume-{volume_id}").unlink()

    def behave(self, **calls: list[str]) -> None:
        (self.root / "behave.json").write_text(json.dumps(calls))

    def loads(self) -> int:
        """Return how often os-brick has been loaded."""
        path = self.root / "loads"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def flush(self, how: str) -> None:
        """Have every flush of a device ``fail`` or ``hang`` from now on."""
        (self.root / "flush").write_text(how)

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], bool], what: str, limit: float = 60.0) -> None:
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, f"waited in vain for {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """A zombie has ended: whoever inherits orphans may reap them late."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX"


def pids(pretend: PretendHost) -> list[int]:
    """The helper's process id and that of the command which it has started."""
    lines = [line for line in pretend.calls() if line.startswith("pids")]
    return [int(word) for word in lines[0].split()[1:]] if lines else []


def started(pretend: PretendHost) -> list[int]:
    """The origin and the helpers that run for this pretend host."""
    mark = f"FAKE_BRICK_DIR={pretend.root}\0".encode()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_ours(entry, mark)]


def _is_ours(entry: Path, mark: bytes) -> bool:
    try:
        return b"tether.adapters.host.origin" in (entry / "cmdline").read_bytes() and mark in (
            (entry / "environ").read_bytes() + b"\0"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def the_origin(pretend: PretendHost) -> int:
    (number,) = set(started(pretend)) - set(pids(pretend))
    return number


class Hanging:
    """A connect that hangs in another thread."""

    def __init__(self, pretend: PretendHost) -> None:
        pretend.behave(connect=["hang"])
        volume_id, connection = pretend.exported()
        self.error: TetherError | None = None

        def connect() -> None:
            try:
                pretend.host().connect(volume_id, connection)
            except TetherError as error:
                self.error = error

        self.thread = threading.Thread(target=connect)
        self.thread.start()
        until(lambda: bool(pids(pretend)), "the hanging call")
        self.helper, self.command = pids(pretend)

    def end(self) -> None:
        if runs(self.helper):
            os.kill(self.helper, signal.SIGKILL)
        self.thread.join()
