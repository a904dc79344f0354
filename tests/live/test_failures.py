"""Refusals and failures of real parts: exit code, words, the hint on the last line, and the books as before."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.live import commands
from tests.live.commands import BLOCKED, CONFLICT, DONE, NOT_FOUND, ROLLED_BACK, Outcome
from tests.live.conftest import BIN_LIVE, Live, wait_for
from tether.matrix.live_judge import diff

NewVolume = Callable[..., str]
GUEST, OTHER = "guest1", "guest2"
UNKNOWN = "9e570000-0000-4000-8000-00000000dead"


def refused(outcome: Outcome, code: int, *words: str) -> None:
    """Check a command that did not do it: its code, its words, and that the last line says what to do."""
    assert outcome.code == code, outcome.err
    for each in words:
        assert each in outcome.err
    assert outcome.last_line.startswith("next: "), outcome.err
    assert len(outcome.last_line) > len("next: ")


@contextmanager
def faulty(live: Live, method: str, text: str, volume_id: str) -> Iterator[None]:
    path = live.fault(method, text, volume_id)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def attached(live: Live, volume_id: str, name: str = GUEST, *words: str) -> Iterator[dict[str, Any]]:
    """Attach, give the books as they are then, and detach."""
    done = live.tether("attach", volume_id, name, *words)
    assert done.code == DONE, done.err
    yield live.judge.snapshot()
    done = live.tether("detach", volume_id, name)
    assert done.code == DONE, done.err


# -- refused before any effect -----------------------------------------------------------------------------------


def test_no_such_volume(live: Live) -> None:
    refused(live.tether("attach", UNKNOWN, GUEST), NOT_FOUND, UNKNOWN)
    refused(live.tether("detach", UNKNOWN, GUEST), NOT_FOUND, UNKNOWN)


def test_no_such_server(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    refused(live.tether("attach", volume_id, "no-such-guest"), NOT_FOUND, "no-such-guest")
    live.assert_books(before)


def test_nothing_to_detach(live: Live, new_volume: NewVolume) -> None:
    refused(live.tether("detach", new_volume(), GUEST), NOT_FOUND, "has not attached volume", "tether mapping list")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("error", ("is in status error",)),
        ("maintenance", ("is in status maintenance, not available",)),
        ("attaching", ("is attaching", "another attach or detach")),
        ("detaching", ("is detaching",)),
    ],
)
def test_a_volume_in_a_wrong_state(live: Live, new_volume: NewVolume, status: str, words: tuple[str, ...]) -> None:
    volume_id = new_volume()
    live.cinder.volumes.reset_state(volume_id, status)
    before = live.judge.snapshot()
    refused(live.tether("attach", volume_id, GUEST), ROLLED_BACK, *words)
    live.assert_books(before)


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_volume_that_somebody_else_has_reserved(live: Live, new_volume: NewVolume, dialect: str) -> None:
    volume_id = new_volume()
    live.cinder.attachments.create(volume_id, None, str(uuid.uuid4()))
    before = live.judge.snapshot()
    refused(live.tether("attach", volume_id, GUEST, "--dialect", dialect), ROLLED_BACK, "is reserved", "who")
    live.assert_books(before)


def test_a_volume_that_is_in_use_elsewhere(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    with attached(live, volume_id) as books:
        refused(live.tether("attach", volume_id, OTHER), ROLLED_BACK, "is in use", "detach it there first")
        live.assert_books(books)


def test_a_server_with_a_managed_save_image(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    live.virsh("managedsave", OTHER)
    try:
        before = live.judge.snapshot()
        refused(live.tether("attach", volume_id, OTHER), ROLLED_BACK, "managed-save image", "virsh managedsave-remove")
        live.assert_books(before)
    finally:
        live.virsh("start", OTHER)


def test_a_device_name_of_another_bus(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    refused(live.tether("attach", volume_id, GUEST, "--device", "sdb"), CONFLICT, "'sdb' is not a device name")
    live.assert_books(before)


def test_a_device_name_that_the_ledger_holds(live: Live, new_volume: NewVolume) -> None:
    volume_id, holder = new_volume(), new_volume()
    with attached(live, holder, GUEST, "--device", "vdq") as books:
        refused(live.tether("attach", volume_id, GUEST, "--device", "/dev/vdq"), CONFLICT, "vdq", f"volume {holder}")
        live.assert_books(books)


def test_a_device_name_that_a_foreign_disk_has(live: Live, new_volume: NewVolume, tmp_path: Path) -> None:
    volume_id = new_volume()
    image = tmp_path / "foreign.img"
    image.touch()
    os.truncate(image, 1 << 20)
    live.virsh("attach-disk", live.stopped, str(image), "vdq", "--config", "--targetbus", "virtio")
    try:
        before = live.judge.snapshot()
        done = live.tether("attach", volume_id, live.stopped, "--device", "vdq")
        refused(done, ROLLED_BACK, "vdq is taken by", str(image), "choose another name")
        live.assert_books(before)
    finally:
        live.virsh("detach-disk", live.stopped, "vdq", "--config")


@pytest.fixture
def full_guest(live: Live) -> Iterator[str]:
    """A guest that is shut off, with the one free PCI port that libvirt adds to what it needs."""
    name = f"full-{uuid.uuid4().hex[:8]}"
    xml = live.virsh("dumpxml", "--inactive", live.stopped)
    xml = re.sub(r"<controller type='pci' [^>]*model='pcie-root-port'>.*?</controller>", "", xml, flags=re.DOTALL)
    xml = re.sub(r"<address type='pci' [^>]*/>|<uuid>.*?</uuid>", "", xml)
    file = live.world.directory / f"{name}.xml"
    file.write_text(re.sub(r"<name>.*?</name>", f"<name>{name}</name>", xml))
    live.virsh("define", str(file))
    file.unlink()
    yield name
    live.virsh("undefine", name)


def test_a_server_without_a_free_slot(live: Live, new_volume: NewVolume, full_guest: str) -> None:
    with attached(live, new_volume(), full_guest) as books:
        done = live.tether("attach", new_volume(), full_guest)
        refused(done, ROLLED_BACK, "no free PCI slot", "add pcie-root-port controllers")
        books["cinder"]["volumes"] = live.judge.snapshot()["cinder"]["volumes"]
        live.assert_books(books)


def test_cinder_that_cannot_be_reached(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    done = live.tether("attach", volume_id, GUEST, cinder__endpoint_override="http://127.0.0.1:1/v3")
    refused(done, ROLLED_BACK, "unreachable at http://127.0.0.1:1/v3", "check that cinder-api runs")
    live.assert_books(before)


def test_libvirt_that_cannot_be_reached(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    done = live.tether("attach", volume_id, GUEST, libvirt__libvirt_uri="qemu+unix:///system?socket=/nonexistent/sock")
    refused(done, ROLLED_BACK, "start libvirtd")
    live.assert_books(before)


# -- failed, and rolled back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
@pytest.mark.parametrize(
    ("method", "text"),
    [("create_export", "fail"), ("initialize_connection", "fail"), ("initialize_connection", "boom")],
)
def test_a_backend_that_fails_to_export(
    live: Live, new_volume: NewVolume, method: str, text: str, dialect: str
) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    with faulty(live, method, text, volume_id):
        done = live.tether("attach", volume_id, GUEST, "--dialect", dialect)
    refused(done, ROLLED_BACK, "Cinder says 500", "see why the backend failed")
    live.assert_books(before)


def test_a_backend_that_fails_in_a_way_cinder_does_not_know(live: Live, new_volume: NewVolume) -> None:
    """Its 500 has the text of an RPC that timed out: blocked until the update answers, then rolled back."""
    volume_id = new_volume()
    before = live.judge.snapshot()
    with faulty(live, "create_export", "boom", volume_id):
        done = live.tether("attach", volume_id, GUEST, DEFAULT__step_retry_time=1)
        refused(done, BLOCKED, "Cinder says 500", "is blocked", "tether job resume")
    refused(live.tether("job", "resume", "--last"), ROLLED_BACK)
    live.assert_books(before)


@pytest.mark.proves("iscsi-qemu", "CHAP")
@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_wrong_chap_password(live: Live, new_volume: NewVolume, dialect: str) -> None:
    volume_id = new_volume()
    with attached(live, volume_id):
        pass  # from now on Cinder has an account for it, and makes it again with each export
    before = live.judge.snapshot()
    with wrong_account(live, volume_id):
        done = live.tether("attach", volume_id, GUEST, "--dialect", dialect)
    refused(done, ROLLED_BACK, "check the CHAP user and password")
    assert live.chap_password(volume_id) not in done.err
    left = diff(before, live.judge.snapshot())
    if dialect == "legacy":  # the backend's export stays, as Cinder leaves it
        (line,) = left
        assert line.startswith(f"tgt.targets.iqn.2010-10.org.openstack:volume-{volume_id}: new")
    else:
        assert left == []


@contextmanager
def wrong_account(live: Live, volume_id: str) -> Iterator[None]:
    """Make the volume's account with another password: the driver's own attempt is then refused, and ignored."""
    account = ["tgtadm", "--lld", "iscsi", "--mode", "account", "--user", live.chap_user(volume_id)]
    subprocess.run([*account, "--op", "new", "--password", "wrong"], check=True, env=live.world.environment)
    yield
    # the rollback has removed it with the export
    with suppress(subprocess.CalledProcessError):
        subprocess.run([*account, "--op", "delete"], check=True, capture_output=True, env=live.world.environment)


def test_a_rollback_that_fails_is_blocked_and_resumed(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    with attached(live, volume_id):
        pass
    before = live.judge.snapshot()
    with wrong_account(live, volume_id):
        with faulty(live, "terminate_connection", "fail", volume_id):
            done = live.tether("attach", volume_id, GUEST, DEFAULT__step_retry_time=1)
            refused(done, BLOCKED, "is blocked", "tether job resume")
        refused(live.tether("job", "resume", "--last"), ROLLED_BACK)
    live.assert_books(before)


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_detach_whose_release_fails_is_blocked_and_resumed(live: Live, new_volume: NewVolume, dialect: str) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    assert live.tether("attach", volume_id, GUEST, "--dialect", dialect).code == DONE
    with faulty(live, "terminate_connection", "fail", volume_id):
        done = live.tether("detach", volume_id, GUEST, DEFAULT__step_retry_time=1)
        refused(done, BLOCKED, "at release-attachment", "tether job resume")
        refused(live.tether("job", "abort", "--last"), CONFLICT, "past its pivot")
        held = live.tether("attach", volume_id, GUEST)
        refused(held, commands.HELD, "is held by job", "tether job resume")
    assert live.tether("job", "resume", "--last").code == DONE
    live.assert_books(before)


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_failing_detach_puts_everything_back(live: Live, new_volume: NewVolume, dialect: str) -> None:
    volume_id = new_volume()
    with attached(live, volume_id, GUEST, "--dialect", dialect) as books:
        done = live.tether("--fault", "unplug-persistent.act.after=fail", "detach", volume_id, GUEST)
        refused(done, ROLLED_BACK, "injected failure")
        live.assert_books(books)


# -- late, silent and dying parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["create_export", "initialize_connection"])
def test_an_export_that_is_slower_than_cinder_waits(live: Live, new_volume: NewVolume, method: str) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    with faulty(live, method, f"sleep {live.rpc_timeout + 1}", volume_id):
        done = live.tether("attach", volume_id, GUEST, DEFAULT__step_retry_time=0)
    refused(done, ROLLED_BACK, "Cinder says 500")
    live.assert_books(before)


def test_an_abort_waits_for_the_export_of_a_runner_that_was_killed(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    pause = live.rpc_timeout + 1
    with faulty(live, "create_export", f"sleep {pause}", volume_id):
        with running(live, "attach", volume_id, GUEST) as process:
            wait_for(lambda: "reserved" in statuses(live, volume_id))
            time.sleep(0.5)  # the update is on its way by then; if it is not, the abort has less to wait for
            process.kill()
        late = time.monotonic() + pause
    done = live.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    wait_for(lambda: time.monotonic() > late)
    live.assert_books(before)


def statuses(live: Live, volume_id: str) -> list[str]:
    rows = live.judge.cinder(volume_id)["attachments"].values()
    return [row["attach_status"] for row in rows]


@contextmanager
def running(live: Live, *words: str, **changes: object) -> Iterator[subprocess.Popen[str]]:
    """Start a command and leave it running."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    with subprocess.Popen(
        [str(commands.PROGRAM), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=commands.environment(live.world, settings),
    ) as process:
        yield process


def test_ctrl_c_rolls_back(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    with (
        faulty(live, "initialize_connection", "sleep 2", volume_id),
        running(live, "attach", volume_id, GUEST) as process,
    ):
        wait_for(lambda: live.judge.tgt(volume_id)["targets"])
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
    assert process.returncode == ROLLED_BACK, err
    live.assert_books(before)


def test_cinder_dies_in_the_middle(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    with (
        faulty(live, "initialize_connection", "sleep 3", volume_id),
        running(live, "attach", volume_id, GUEST, DEFAULT__step_retry_time=1) as process,
    ):
        wait_for(lambda: live.judge.tgt(volume_id)["targets"])
        kill(live, "cinder")
        _out, err = process.communicate(timeout=60)
    assert process.returncode == BLOCKED, err
    assert "tether job resume" in err.strip().splitlines()[-1]
    bring_back(live)
    refused(live.tether("job", "resume", "--last"), ROLLED_BACK)
    live.assert_books(before)


def test_the_target_is_not_running(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    kill(live, "tgtd")
    try:
        done = live.tether("attach", volume_id, GUEST, DEFAULT__step_retry_time=1)
        refused(done, BLOCKED, "Cinder says 500", "tether job resume")
    finally:
        bring_back(live)
    refused(live.tether("job", "resume", "--last"), ROLLED_BACK)
    live.assert_books(before)


def test_libvirt_dies_in_the_middle(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    assert live.tether("--fault", "plug-persistent.act.after=kill", "attach", volume_id, GUEST).code == commands.KILLED
    kill(live, "libvirtd")
    try:
        refused(live.tether("job", "resume", "--last"), BLOCKED, "libvirt")
    finally:
        bring_back(live)
    assert live.tether("job", "resume", "--last").code == DONE
    assert live.tether("detach", volume_id, GUEST).code == DONE
    live.assert_books(before)


def kill(live: Live, name: str) -> None:
    pid = int((live.world.directory / f"{name}.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def bring_back(live: Live) -> None:
    done = subprocess.run([BIN_LIVE, "up"], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


#: The interrupt by which QEMU tells a q35 guest of PCI hot-plug.
HOT_PLUG_EVENT = "/sys/firmware/acpi/interrupts/gpe01"


@contextmanager
def deaf(live: Live, name: str) -> Iterator[None]:
    """A guest that does not hear of a hot-unplug, as in its boot loader."""
    live.consoles[name].run(f"echo disable > {HOT_PLUG_EVENT}")
    try:
        yield
    finally:
        live.consoles[name].run(f"echo enable > {HOT_PLUG_EVENT}")


def test_a_guest_that_does_not_let_go(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    assert live.tether("attach", volume_id, GUEST).code == DONE
    live.consoles[GUEST].wait_for_disk(volume_id)
    during = live.judge.snapshot(volume_id)
    with deaf(live, GUEST):
        done = live.tether(
            "detach", volume_id, GUEST, libvirt__device_detach_attempts=2, libvirt__device_detach_timeout=1
        )
        refused(done, BLOCKED, "waiting for the guest", "tether job resume")
        waiting = live.judge.snapshot(volume_id)
        assert (waiting["tgt"], waiting["libvirt"]["secrets"]) == (during["tgt"], during["libvirt"]["secrets"])
        assert waiting["cinder"]["attachments"] == during["cinder"]["attachments"]
        assert waiting["libvirt"]["domains"][GUEST]["live"] == during["libvirt"]["domains"][GUEST]["live"]
    resumed = live.tether("job", "resume", "--last")
    assert resumed.code == DONE, resumed.err
    live.consoles[GUEST].wait_until_gone(volume_id)
    live.assert_books(before)


def test_the_abort_of_a_detach_that_the_guest_did_not_answer(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    assert live.tether("attach", volume_id, GUEST).code == DONE
    live.consoles[GUEST].wait_for_disk(volume_id)
    during = live.judge.snapshot()
    with deaf(live, GUEST):
        done = live.tether(
            "detach", volume_id, GUEST, libvirt__device_detach_attempts=1, libvirt__device_detach_timeout=1
        )
        refused(done, BLOCKED, "waiting for the guest")
        aborted = live.tether("job", "abort", "--last")
        assert aborted.code == DONE, aborted.err
        after = live.judge.snapshot()
        (mapping,) = live.judge.ledger(volume_id)
        assert mapping["pending_unplug"]
        after["ledger"] = during["ledger"]
        assert after == during
    assert live.tether("detach", volume_id, GUEST).code == DONE
    live.assert_books(before)
