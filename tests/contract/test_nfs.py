"""NFS volumes on the host: one mount for all volumes of a share, and what keeps it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.recorded import RecordedHost, VolumeDeviceNotFound
from tether.adapters.host import shares
from tether.adapters.host.local import LocalHost
from tether.errors import FinalError, UncertainError

RECORD = json.loads((Path(__file__).parent / "protocols/nfs_raw.json").read_text(encoding="utf-8"))
EXPORT = RECORD["data"]["export"]
RAW = (RECORD["volume_id"], "nfs", RECORD["data"])
QCOW2 = ("0f5b2d7e-1111-4222-8333-444455556666", "nfs", {**RECORD["data"], "name": "volume-2", "format": "qcow2"})
GIB = 1024**3


def qcow2(size: int, *, backing: bytes = b"") -> bytes:
    """Return the head of a qcow2 file."""
    offset = (72).to_bytes(8, "big") if backing else bytes(8)
    return b"QFI\xfb\x00\x00\x00\x03" + offset + len(backing).to_bytes(4, "big") + bytes(4) + size.to_bytes(8, "big")


class Share:
    """The files of the export, the mount of it, and the os-brick that mounts it."""

    def __init__(self, recorded: RecordedHost) -> None:
        self.recorded = recorded
        self.point = recorded.root / "mnt" / shares.key_of(EXPORT)
        self.files: dict[str, bytes] = {}
        self.lengths: dict[str, int] = {}
        self.mountinfo = recorded.root / "proc/self/mountinfo"
        self.mountinfo.parent.mkdir()
        self.mountinfo.write_text("22 1 0:20 / / rw - ext4 /dev/vda rw\n")
        self.trouble = ""
        self.busy = False
        self.options: Mapping[str, Any] = {}

    def factory(self, protocol: str, root_helper: str | None, **options: Any) -> Share:
        assert protocol == "NFS"
        self.options = options
        return self

    def connect_volume(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if self.trouble == "early":
            self.point.mkdir(parents=True, exist_ok=True)  # os-brick makes it before it mounts
            raise VolumeDeviceNotFound("no route to host")
        if not self.mounted:
            self.mount()
        if self.trouble == "late":
            raise VolumeDeviceNotFound("the command's answer was lost")
        return {"path": str(self.point / data["name"])}

    @property
    def mounted(self) -> bool:
        return str(self.point) in self.mountinfo.read_text().split()

    def mount(self) -> None:
        self.point.mkdir(parents=True, exist_ok=True)
        with self.mountinfo.open("a") as handle:
            handle.write(f"40 22 0:44 / {self.point} rw,relatime - nfs4 {EXPORT} rw\n")
        for name, head in self.files.items():
            (self.point / name).write_bytes(head)
            if name in self.lengths:
                with (self.point / name).open("r+b") as handle:
                    handle.truncate(self.lengths[name])

    def unmount(self, point: Path) -> None:
        assert point == self.point
        if self.busy:
            raise subprocess.CalledProcessError(32, ["umount"], stderr=b"umount: target is busy.")
        for entry in point.iterdir():
            entry.unlink()
        lines = self.mountinfo.read_text().splitlines(keepends=True)
        self.mountinfo.write_text("".join(line for line in lines if str(point) not in line.split()))


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    recorded = RecordedHost(tmp_path, monkeypatch)
    made = Share(recorded)
    recorded.brick.InitiatorConnector = made  # type: ignore[assignment]
    monkeypatch.setattr(shares, "unmount", made.unmount)
    made.files = {RECORD["data"]["name"]: b"raw", "volume-2": qcow2(2 * GIB)}
    made.lengths = {RECORD["data"]["name"]: GIB}
    return made


@pytest.fixture
def host(share: Share) -> LocalHost:
    return share.recorded.local(nfs_mount_point_base=str(share.point.parent), nfs_mount_options="vers=4.2")


def left(share: Share) -> list[str]:
    """Return all files that the host has, but for locks, which stay."""
    return [name for name in share.recorded.books() if not name.startswith("locks/")]


@pytest.mark.proves("nfs", "attach", "detach")
def test_a_file_is_linked_and_its_share_is_unmounted_after_it(host: LocalHost, share: Share) -> None:
    before = left(share)
    assert host.residue(*RAW) == []
    device = host.connect(*RAW)
    assert (device.kind, device.size, device.open_count) == ("file", GIB, 0)
    assert device.path == str(share.point / RECORD["data"]["name"])
    assert Path(device.link).resolve() == Path(device.path)
    assert host.find(RAW[0]) == host.connect(*RAW) == device
    for path in (device.path, device.link):
        assert host.device_at(RAW[0], path, *RAW[1:]) == device
    assert host.device_at(RAW[0], str(share.mountinfo), *RAW[1:]) is None
    assert dict(host.survey().devices) == {RAW[0]: device}
    assert host.residue(*RAW) == [f"use of share {EXPORT}", f"mount {share.point}", f"link {device.link}"]
    assert share.options == {
        "conn": {"mount_point_base": str(share.point.parent)},
        "nfs_mount_options": "vers=4.2",
    }
    for _ in range(2):
        host.disconnect(*RAW)
        assert not share.mounted
        assert host.find(RAW[0]) is None
        assert host.residue(*RAW) == []
        assert left(share) == before
        assert not share.point.exists()


@pytest.mark.proves("nfs", "attach", "detach")
def test_the_size_of_a_qcow2_file_is_the_guests(host: LocalHost, share: Share) -> None:
    device = host.connect(*QCOW2)
    assert device.size == 2 * GIB
    assert host.find(QCOW2[0]) == device
    host.disconnect(*QCOW2)
    assert host.residue(*QCOW2) == []


def test_a_raw_file_is_never_looked_into(host: LocalHost, share: Share) -> None:
    """Its bytes are the guest's: a head of qcow2 written there must change nothing."""
    share.files[RECORD["data"]["name"]] = qcow2(512 * GIB, backing=b"/etc/shadow")
    assert host.connect(*RAW).size == GIB


@pytest.mark.proves("nfs", "shared")
def test_the_mount_stays_for_another_volume(host: LocalHost, share: Share) -> None:
    kept = host.connect(*QCOW2)
    host.connect(*RAW)
    host.disconnect(*RAW)
    assert share.mounted
    assert (host.residue(*RAW), host.find(QCOW2[0])) == ([], kept)
    host.disconnect(*QCOW2)
    assert not share.mounted


@pytest.mark.proves("nfs", "shared")
def test_the_mount_stays_for_the_disk_of_another_server(host: LocalHost, share: Share) -> None:
    """Also of one that is shut off, which has nothing open; from then on the mount is that disk's."""
    host.connect(*RAW)
    host.disconnect(*RAW, others=[str(share.point / "volume-of-another"), "/var/lib/libvirt/images/root.qcow2"])
    assert share.mounted
    assert host.residue(*RAW) == []
    host.connect(*RAW)
    host.disconnect(*RAW)
    assert share.mounted, "tether did not mount it this time"
    assert host.residue(*RAW) == []


@pytest.mark.proves("nfs", "shared")
def test_a_mount_that_was_there_before_stays(host: LocalHost, share: Share) -> None:
    share.mount()
    host.connect(*RAW)
    assert host.residue(*RAW)[0] == f"use of share {EXPORT}"
    assert not any(line.startswith("mount") for line in host.residue(*RAW))
    host.disconnect(*RAW)
    assert share.mounted
    assert host.residue(*RAW) == []


def test_a_share_that_is_busy_is_no_clean_host(host: LocalHost, share: Share) -> None:
    device = host.connect(*RAW)
    share.busy = True
    with pytest.raises(UncertainError, match=r"stays mounted: umount: target is busy"):
        host.disconnect(*RAW)
    assert host.find(RAW[0]) == device
    share.busy = False
    host.disconnect(*RAW)
    assert host.residue(*RAW) == []


@pytest.mark.proves("nfs", "undo")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_mount_that_failed_is_undone(host: LocalHost, share: Share, when: str) -> None:
    before = left(share)
    share.trouble = when
    with pytest.raises(FinalError, match="VolumeDeviceNotFound"):
        host.connect(*RAW)
    assert (share.mounted, host.residue(*RAW), left(share)) == (False, [], before)


@pytest.mark.proves("nfs", "undo", "identity")
@pytest.mark.parametrize(
    ("head", "said"),
    [
        (None, "is no file there"),
        (b"not at all" * 10, "is said to be qcow2, and is not"),
        (qcow2(GIB, backing=b"volume-base"), "rests on another file"),
    ],
)
def test_a_file_that_is_not_the_volumes_disk_is_refused(
    host: LocalHost, share: Share, head: bytes | None, said: str
) -> None:
    share.files = {} if head is None else {"volume-2": head}
    before = left(share)
    with pytest.raises(FinalError, match=said):
        host.connect(*QCOW2)
    assert (share.mounted, host.residue(*QCOW2), left(share)) == (False, [], before)


def test_an_open_file_is_not_disconnected(host: LocalHost, share: Share) -> None:
    device = host.connect(*RAW)
    handle = share.recorded.root / "proc/77/fd/5"
    handle.parent.mkdir(parents=True)
    handle.symlink_to(device.path)
    (share.recorded.root / "proc/77/comm").write_text("qemu-system-x86\n")
    with pytest.raises(FinalError, match=r"process 77 \(qemu-system-x86\)"):
        host.disconnect(*RAW)
    assert share.mounted
    handle.unlink()
    host.disconnect(*RAW)
    assert not share.mounted


def test_without_the_mounts_nothing_is_said(host: LocalHost, share: Share) -> None:
    host.connect(*RAW)
    share.mountinfo.unlink()
    for call in (host.residue, host.disconnect):
        with pytest.raises(UncertainError, match="nothing can be said about this host's mounts"):
            call(*RAW)


def test_dm_crypt_is_not_for_files(host: LocalHost) -> None:
    host.connect(*RAW)
    with pytest.raises(FinalError, match="is a file, whose encryption dm-crypt does not open"):
        host.open_encryption(RAW[0], provider="luks", cipher="aes-xts-plain64", key_size=256, passphrase="x")
