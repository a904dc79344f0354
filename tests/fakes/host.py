"""A pretend host for the real host adapter: file trees, a stand-in for os-brick and one for cryptsetup."""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from tether.adapters.cinder.model import Connection
from tether.adapters.host.brick import BrickHost
from tether.adapters.host.places import Places
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

    def flush(self, how: str) -> None:
        """Have every flush of a device ``fail`` or ``hang`` from now on."""
        (self.root / "flush").write_text(how)

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []
