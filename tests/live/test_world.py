"""The live world itself: a straight-line attach by Cinder's client and virsh, without tether."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from cinderclient import exceptions as cinder_exceptions

from tests.live.conftest import BIN_LIVE, Live, wait_for
from tests.live.world.layout import World
from tether.matrix.live_judge import diff

pytestmark = pytest.mark.live
GUEST = "guest1"
CONNECTOR = {"host": "live", "ip": "127.0.0.1", "multipath": False, "platform": "x86_64", "os_type": "linux"}


def connector(initiator: str) -> dict[str, object]:
    return {**CONNECTOR, "initiator": initiator}


def disk_xml(volume_id: str, info: dict, initiator: str, dev: str, bus: str) -> str:
    host, port = info["target_portal"].split(":")
    return (
        f"<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>"
        f"<source protocol='iscsi' name='{info['target_iqn']}/{info['target_lun']}'><host name='{host}' port='{port}'/>"
        f"<auth username='{info['auth_username']}'><secret type='iscsi' usage='{volume_id}'/></auth>"
        f"<initiator><iqn name='{initiator}'/></initiator></source>"
        f"<target dev='{dev}' bus='{bus}'/><serial>{volume_id}</serial></disk>"
    )


def define_secret(live: Live, volume_id: str, password: str, tmp_path: Path) -> str:
    file = tmp_path / "secret.xml"
    secret = str(uuid.uuid4())
    file.write_text(
        f"<secret ephemeral='yes' private='yes'><uuid>{secret}</uuid>"
        f"<usage type='iscsi'><target>{volume_id}</target></usage></secret>"
    )
    live.virsh("secret-define", str(file))
    value = tmp_path / "value"
    value.write_text(password)
    live.virsh("secret-set-value", secret, "--file", str(value), "--plain")
    return secret


def attach(live: Live, volume_id: str, target: tuple[str, str], tmp_path: Path, initiator: str | None = None):
    """Attach in a straight line; return what detach needs."""
    dev, bus = target
    row = live.cinder.attachments.create(volume_id, connector(live.initiator), str(uuid.uuid4()))
    info = row["connection_info"]
    secret = define_secret(live, volume_id, info["auth_password"], tmp_path)
    disk = tmp_path / f"{dev}.xml"
    disk.write_text(disk_xml(volume_id, info, initiator or live.initiator, dev, bus))
    return row["id"], secret, disk


def plug(live: Live, attachment_id: str, disk: Path) -> None:
    live.virsh("attach-device", GUEST, str(disk), "--live", "--config")
    live.cinder.attachments.complete(attachment_id)


def release(live: Live, attachment_id: str, secret: str) -> None:
    live.virsh("secret-undefine", secret)
    live.cinder.attachments.delete(attachment_id)


@pytest.mark.parametrize(("dev", "bus", "kind"), [("sda", "scsi", "iscsi"), ("vda", "virtio", "bound")])
def test_straight_line_attach_and_detach(live: Live, tmp_path: Path, dev: str, bus: str, kind: str) -> None:
    volume_id = live.new_volume(kind)
    before = live.judge.snapshot()
    console = live.consoles[GUEST]
    started = time.monotonic()

    attachment_id, secret, disk = attach(live, volume_id, (dev, bus), tmp_path)
    plug(live, attachment_id, disk)
    attached = time.monotonic()
    seen = console.wait_for_disk(volume_id)
    assert (seen.name, seen.sectors, seen.read_only, seen.head) == (dev, 2 * 1024 * 1024, False, "")

    during = live.judge.snapshot(volume_id)
    target = during["tgt"]["targets"][f"iqn.2010-10.org.openstack:volume-{volume_id}"]
    assert target["initiators"] == [live.initiator]
    assert target["luns"] == {1: str(live.backing_file(volume_id))}
    assert target["accounts"] == during["tgt"]["accounts"]
    assert len(target["accounts"]) == 1
    assert target["acls"] == ["ALL" if kind == "iscsi" else live.initiator]
    assert during["cinder"]["volumes"][volume_id]["status"] == "in-use"
    assert during["cinder"]["attachments"][attachment_id]["attach_status"] == "attached"
    assert list(during["libvirt"]["domains"][GUEST]["live"]["disks"]) == [dev]
    assert list(during["libvirt"]["domains"][GUEST]["persistent"]["disks"]) == [dev]
    assert during["libvirt"]["secrets"] == [f"iscsi {volume_id}"]

    console.run(f"printf 'written by the guest to {dev}' | dd of=/dev/{dev} conv=fsync")
    with live.backing_file(volume_id).open("rb") as file:
        assert file.read(64).rstrip(b"\0") == f"written by the guest to {dev}".encode()

    detaching = time.monotonic()
    live.virsh("detach-device", GUEST, str(disk), "--live", "--config")
    console.wait_until_gone(volume_id)
    release(live, attachment_id, secret)
    detached = time.monotonic()
    print(f"{bus}: attach {attached - started:.2f} s, detach {detached - detaching:.2f} s")

    assert diff(before, live.judge.snapshot()) == []
    live.delete_volume(volume_id)


def test_a_bound_target_lets_no_other_initiator_in(live: Live, tmp_path: Path) -> None:
    volume_id = live.new_volume("bound")
    attachment_id, secret, disk = attach(live, volume_id, ("sdb", "scsi"), tmp_path, f"{live.initiator}-other")
    with pytest.raises(Exception, match="Failed to log in to target"):
        live.virsh("attach-device", GUEST, str(disk), "--live", "--config")
    release(live, attachment_id, secret)
    live.delete_volume(volume_id)


def test_a_scripted_failure_and_the_judge_who_sees_what_stays(live: Live) -> None:
    volume_id = live.new_volume()
    before = live.judge.snapshot()
    fault = live.fault("initialize_connection", "fail", volume_id)
    with pytest.raises(cinder_exceptions.ClientException) as failure:
        live.cinder.attachments.create(volume_id, connector(live.initiator), None)
    assert failure.value.code == 500
    fault.unlink()
    differences = diff(before, live.judge.snapshot())
    assert any("cinder.attachments" in line and "new" in line for line in differences), differences
    for row in live.cinder.attachments.list(search_opts={"volume_id": volume_id}):
        live.cinder.attachments.delete(row.id)
    live.delete_volume(volume_id)


def test_quality_of_service_reaches_the_connection(live: Live) -> None:
    volume_id = live.new_volume("qos")
    row = live.cinder.attachments.create(volume_id, connector(live.initiator), None)
    assert row["connection_info"]["qos_specs"]["total_iops_sec"] == "500"
    live.cinder.attachments.delete(row["connection_info"]["attachment_id"])
    live.delete_volume(volume_id)


def test_a_multiattach_volume_has_two_attachments(live: Live) -> None:
    volume_id = live.volume_id("shared1")
    before = live.judge.snapshot(volume_id)
    ids = []
    for name in ("first", "second"):
        row = live.cinder.attachments.create(
            volume_id, {**connector(f"{live.initiator}-{name}"), "host": name}, str(uuid.uuid4())
        )
        live.cinder.attachments.complete(row["id"])
        ids.append(row["id"])
    live.cinder.attachments.delete(ids[0])
    left = live.judge.snapshot(volume_id)
    assert list(left["cinder"]["attachments"]) == [ids[1]]
    assert len(left["tgt"]["targets"]) == 1
    live.cinder.attachments.delete(ids[1])
    assert diff(before, live.judge.snapshot(volume_id)) == []


def test_up_again_changes_nothing_and_status_says_up(live: Live) -> None:
    before = live.judge.snapshot()
    pids = sorted(path.read_text() for path in live.world.directory.glob("*.pid"))
    assert bin_live("up", live.world.directory).returncode == 0
    assert sorted(path.read_text() for path in live.world.directory.glob("*.pid")) == pids
    assert diff(before, live.judge.snapshot()) == []
    assert set(parts(live.world.directory).values()) == {"up", "shut off"}


def parts(directory: Path) -> dict[str, str]:
    """Return what ``bin/live status`` says of every part."""
    done = bin_live("status", directory)
    states = {line.split()[0]: line.split(maxsplit=2)[2] for line in done.stdout.splitlines()}
    assert done.returncode == (0 if set(states.values()) == {"up", "shut off"} else 1)
    return states


def bin_live(verb: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TETHER_LIVE_DIR": str(directory)}
    return subprocess.run([BIN_LIVE, verb], check=False, capture_output=True, text=True, env=environment)


def processes_that_mention(text: str) -> list[str]:
    """Return the names of the processes with this text in their arguments or environment, ourselves left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    found.append((entry / "comm").read_text().strip())
    return found


@pytest.mark.parametrize("killed", [("tgtd",), ("cinder", "libvirtd", "tgtd")])
def test_up_brings_back_what_was_killed_below_an_attached_disk(
    live: Live, tmp_path: Path, killed: tuple[str, ...]
) -> None:
    volume_id = live.new_volume()
    console = live.consoles[GUEST]
    attachment_id, secret, disk = attach(live, volume_id, ("vdb", "virtio"), tmp_path)
    plug(live, attachment_id, disk)
    console.run(f"echo before > /dev/{console.wait_for_disk(volume_id).name}; sync")
    before = live.judge.snapshot()
    guest = (live.world.libvirt / f"run/qemu/{GUEST}.pid").read_text()

    for name in killed:
        os.kill(int((live.world.directory / f"{name}.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: {name for name, state in parts(live.world.directory).items() if state == "down"} == set(killed))
    done = bin_live("up", live.world.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(parts(live.world.directory).values()) == {"up", "shut off"}

    assert (live.world.libvirt / f"run/qemu/{GUEST}.pid").read_text() == guest
    device = console.wait_for_disk(volume_id).name
    assert console.run(f"echo 3 > /proc/sys/vm/drop_caches; head -c 6 /dev/{device}", timeout=60) == "before"
    after = live.judge.snapshot()
    # an ephemeral secret lives in libvirtd's memory alone
    lost = [f"libvirt.secrets: gone: 'iscsi {volume_id}'"] if "libvirtd" in killed else []
    assert diff(before, after) == lost
    live.virsh("detach-device", GUEST, str(disk), "--live", "--config")
    console.wait_until_gone(volume_id)
    if not lost:
        live.virsh("secret-undefine", secret)
    live.cinder.attachments.delete(attachment_id)
    live.delete_volume(volume_id)


@pytest.mark.timeout(600)
def test_a_second_world_beside_the_first_goes_without_a_trace(live: Live) -> None:
    before = live.judge.snapshot()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="tether-") as scratch:
        directory = Path(scratch, "world")
        done = bin_live("up", directory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(parts(directory).values()) == {"up", "shut off"}
        second = Live(World(directory))
        assert second.endpoint != live.endpoint
        assert second.consoles[GUEST].run("echo here") == "here"
        assert {"tgtd", "python", "libvirtd"} <= set(processes_that_mention(str(directory)))
        done = bin_live("down", directory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(Path(scratch).iterdir()) == []
        assert processes_that_mention(str(directory)) == []
        assert str(directory) not in Path("/proc/mounts").read_text()
    assert diff(before, live.judge.snapshot()) == []
    assert set(parts(live.world.directory).values()) == {"up", "shut off"}
