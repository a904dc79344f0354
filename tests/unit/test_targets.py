"""The lock of a backend's targets: os-brick's own, as Nova takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.tree import ROOT
from tether.adapters.host.targets import TargetLock, hand_over, scans_manually
from tether.errors import ConfigError
from tether.flows.plan import shape
from tether.flows.registry import CURRENT
from tether.persistence.params import Params

SERVICE = "c0de0000-0000-4000-8000-00000000cafe"
#: Another service of the host: os-brick's context manager, held until its standard input ends.
OTHER = """
import sys
from oslo_concurrency import lockutils
from tether.adapters.host import brick_calls
brick_calls.load()
lockutils.set_defaults(sys.argv[1])
from os_brick.initiator.utils import guard_connection
with guard_connection({"shared_targets": None, "service_uuid": sys.argv[2]}):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


def other(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OTHER, str(folder), SERVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_os_brick_holds_what_we_ask_for(tmp_path: Path) -> None:
    lock = TargetLock(tmp_path, SERVICE)
    with other(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not lock.take()
        assert not lock.take()
        assert process.communicate("")[0] == "released\n"
    assert lock.take()
    lock.release()


def test_os_brick_waits_for_what_we_hold(tmp_path: Path) -> None:
    lock = TargetLock(tmp_path, SERVICE)
    assert lock.take()
    with other(tmp_path) as process:
        assert process.stdout is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        # Another job of this process comes and goes meanwhile: ours stays.
        second = TargetLock(tmp_path, SERVICE)
        assert not second.take()
        second.release()
        assert process.poll() is None
        lock.release()
        assert process.communicate("")[0] == "held\nreleased\n"


def test_it_is_taken_once_and_let_go_once(tmp_path: Path) -> None:
    lock = TargetLock(tmp_path / "not/yet/there", SERVICE)
    assert lock.take()
    assert lock.take()
    lock.release()
    lock.release()
    assert TargetLock(tmp_path / "not/yet/there", SERVICE).take()


def test_services_do_not_keep_each_other_out(tmp_path: Path) -> None:
    first, second = TargetLock(tmp_path, SERVICE), TargetLock(tmp_path, str(uuid4()))
    assert first.take()
    assert second.take()
    first.release()
    second.release()


def test_a_name_stays_in_its_folder(tmp_path: Path) -> None:
    assert TargetLock(tmp_path, "../../etc/passwd").path.parent == tmp_path


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        TargetLock(tmp_path / "file/locks", SERVICE).take()


@pytest.mark.parametrize(
    ("program", "manual"), [(b"\x7fELF\0node.session.scan\0", True), (b"\x7fELF\0node.startup\0", False), (None, False)]
)
def test_manual_scans_are_found_as_os_brick_finds_them(tmp_path: Path, program: bytes | None, manual: bool) -> None:
    if program is not None:
        (tmp_path / "iscsiadm").write_bytes(program)
    assert scans_manually(tmp_path / "iscsiadm") is manual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nova's folder of locks."""
    found = tmp_path / "locks"
    found.mkdir()
    os.chown(found, 1234, 1234)
    return found


def test_nova_may_use_the_lock_that_root_has_made(folder: Path) -> None:
    lock = TargetLock(folder, SERVICE)
    assert lock.take()
    assert (lock.path.stat().st_uid, lock.path.stat().st_gid) == (1234, 1234)


def test_only_lock_files_of_root_are_handed_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (folder / "os-brick-link").symlink_to(tmp_path / "secret")
    (folder / "os-brick-second-name").hardlink_to(tmp_path / "secret")
    (folder / "another").touch()
    (folder / "os-brick-others").touch()
    os.chown(folder / "os-brick-others", 4321, 4321)
    (folder / "os-brick-connect_volume").touch()
    hand_over(folder)
    owners = {entry.name: entry.lstat().st_uid for entry in folder.iterdir()}
    assert owners == {
        "os-brick-link": 0,
        "os-brick-second-name": 0,
        "another": 0,
        "os-brick-others": 4321,
        "os-brick-connect_volume": 1234,
    }
    assert (tmp_path / "secret").stat().st_uid == 0


def test_the_lock_is_no_link(tmp_path: Path) -> None:
    lock = TargetLock(tmp_path, SERVICE)
    lock.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be made"):
        lock.take()
    assert not (tmp_path / "elsewhere").exists()


def test_every_step_that_moves_a_device_of_this_host_holds_it() -> None:
    """What exports or unexports, connects or disconnects; and what begins a detach, before the guest is touched."""
    cases = [Params(dialect=dialect, encrypted=True) for dialect in ("attachments", "legacy")]
    steps = {
        step for case in cases for kind in CURRENT for flow in shape(kind, CURRENT[kind], case) for step in flow.steps
    }
    assert {step.code.partition("/")[0] for step in steps if step.on_targets} == {
        "clear-host",
        "clear-rows",
        "connect-host",
        "disconnect-host",
        "export-volume",
        "export-volume-legacy",
        "reconnect-host",
        "reexport-volume",
        "release-attachment",
        "release-attachment-legacy",
        "second-attachment",
        "unplug-persistent",
    }
