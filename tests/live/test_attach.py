"""Attach and detach by the command line on real parts: the guest's own view, and equal books afterwards."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.live.commands import CONFLICT, DONE, KILLED, ROLLED_BACK, Outcome
from tests.live.conftest import Live

NewVolume = Callable[..., str]
GUEST, OTHER = "guest1", "guest2"
SECTORS = 2 * 1024 * 1024  # of a volume of 1 GiB
OUR_NAMESPACE = re.compile(r"tether", re.IGNORECASE)


def domain(live: Live, name: str, *, persistent: bool) -> ET.Element:
    return ET.fromstring(live.virsh("dumpxml", *(["--inactive"] if persistent else []), name))


def disk_of(live: Live, name: str, volume_id: str, *, persistent: bool = False) -> ET.Element | None:
    for disk in domain(live, name, persistent=persistent).iterfind("devices/disk"):
        if disk.findtext("serial") == volume_id:
            return disk
    return None


def place(disk: ET.Element | None) -> tuple[dict[str, str], dict[str, str], str | None]:
    """Return the disk's target, address and alias."""
    assert disk is not None
    target, address, alias = disk.find("target"), disk.find("address"), disk.find("alias")
    assert target is not None
    assert address is not None
    return dict(target.attrib), dict(address.attrib), None if alias is None else alias.get("name")


def marks(live: Live, name: str, *, persistent: bool) -> str:
    found = domain(live, name, persistent=persistent).findall("metadata/*")
    return "".join(ET.tostring(each, encoding="unicode") for each in found if OUR_NAMESPACE.search(each.tag))


def attached(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == DONE, outcome.err
    fields = json.loads(outcome.out)
    assert fields["state"] == "attached"
    return fields  # type: ignore[no-any-return]


def detach(live: Live, volume_id: str, name: str) -> None:
    done = live.tether("detach", volume_id, name)
    assert done.code == DONE, done.err


def write_in_guest(live: Live, name: str, volume_id: str) -> None:
    """Write a pattern in the guest and read it from the backing file."""
    console = live.consoles[name]
    text = f"written by {name} {uuid.uuid4()}"
    console.run(f"printf '{text}' | dd of=/dev/{console.wait_for_disk(volume_id).name} conv=fsync")
    with live.backing_file(volume_id).open("rb") as file:
        assert file.read(len(text)).decode() == text


@pytest.mark.proves("iscsi-qemu", "attach", "detach", "CHAP", "read-only")
@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
@pytest.mark.parametrize("mode", ["rw", "ro"])
@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_a_running_guest(live: Live, new_volume: NewVolume, bus: str, mode: str, dialect: str) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    job = attached(
        live.tether("attach", volume_id, GUEST, "--bus", bus, "--mode", mode, "--dialect", dialect, "-f", "json")
    )

    seen = live.consoles[GUEST].wait_for_disk(volume_id)
    assert (seen.name, seen.sectors, seen.read_only) == (job["device"], SECTORS, mode == "ro")
    if mode == "rw":
        write_in_guest(live, GUEST, volume_id)
    persistent, running = (disk_of(live, GUEST, volume_id, persistent=each) for each in (True, False))
    assert place(persistent) == place(running)
    assert place(running)[0] == {"dev": job["device"], "bus": bus}
    assert place(running)[2] == f"ua-{volume_id}"
    for each in (True, False):
        assert f"{volume_id}" in marks(live, GUEST, persistent=each)
        assert job["job"] in marks(live, GUEST, persistent=each)
    during = live.judge.snapshot(volume_id)
    (row,) = during["cinder"]["attachments"].values()
    assert (row["attach_status"], row["attach_mode"]) == ("attached", mode)
    assert during["cinder"]["volumes"][volume_id]["status"] == "in-use"
    (target,) = during["tgt"]["targets"].values()
    assert target["initiators"] == [live.initiator]
    (mapping,) = during["ledger"]
    assert (mapping["state"], mapping["attachment_id"]) == ("attached", row["id"])
    assert during["libvirt"]["secrets"] == [f"iscsi {volume_id}"]

    detach(live, volume_id, GUEST)
    live.consoles[GUEST].wait_until_gone(volume_id)
    live.assert_books(before)


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata"])
def test_a_stopped_guest(live: Live, new_volume: NewVolume, bus: str, dialect: str) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    job = attached(live.tether("attach", volume_id, live.stopped, "--bus", bus, "--dialect", dialect, "-f", "json"))
    assert place(disk_of(live, live.stopped, volume_id, persistent=True))[0] == {"dev": job["device"], "bus": bus}
    assert live.virsh("domstate", live.stopped).strip() == "shut off"
    assert live.judge.snapshot(volume_id)["cinder"]["volumes"][volume_id]["status"] == "in-use"
    detach(live, volume_id, live.stopped)
    live.assert_books(before)


def test_a_disk_of_a_stopped_guest_is_there_when_it_starts(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    attached(live.tether("attach", volume_id, live.stopped, "-f", "json"))
    live.virsh("start", live.stopped)
    try:
        (target,) = live.judge.snapshot(volume_id)["tgt"]["targets"].values()
        assert target["initiators"] == [live.initiator]
        assert disk_of(live, live.stopped, volume_id) is not None
    finally:
        live.virsh("destroy", live.stopped)
    detach(live, volume_id, live.stopped)
    live.assert_books(before)


def test_a_paused_guest_takes_a_disk_and_gives_it_back_once_it_runs(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    live.virsh("suspend", GUEST)
    try:
        attached(live.tether("attach", volume_id, GUEST, "-f", "json"))
        with_disk = live.judge.snapshot()
        refused = live.tether("detach", volume_id, GUEST)
        assert refused.code == 3
        assert "is paused" in refused.err
        assert refused.last_line == f"next: resume it first: virsh resume {GUEST}"
        live.assert_books(with_disk)
    finally:
        live.virsh("resume", GUEST)
    write_in_guest(live, GUEST, volume_id)
    detach(live, volume_id, GUEST)
    live.assert_books(before)


def test_two_volumes_on_one_guest(live: Live, new_volume: NewVolume) -> None:
    volumes = [new_volume(), new_volume()]
    before = live.judge.snapshot()
    jobs = [attached(live.tether("attach", each, GUEST, "-f", "json")) for each in volumes]
    assert jobs[0]["device"] != jobs[1]["device"]
    for each in volumes:
        write_in_guest(live, GUEST, each)
    detach(live, volumes[0], GUEST)
    live.consoles[GUEST].wait_until_gone(volumes[0])
    write_in_guest(live, GUEST, volumes[1])
    detach(live, volumes[1], GUEST)
    live.assert_books(before)


@pytest.mark.proves("iscsi-qemu", "multiattach")
def test_a_multiattach_volume_on_two_guests(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume("multiattach")
    before = live.judge.snapshot()
    for name in (GUEST, OTHER):
        attached(live.tether("attach", volume_id, name, "-f", "json"))
        disk = disk_of(live, name, volume_id)
        assert disk is not None
        assert disk.find("shareable") is not None
    write_in_guest(live, GUEST, volume_id)
    write_in_guest(live, OTHER, volume_id)
    detach(live, volume_id, GUEST)
    live.consoles[GUEST].wait_until_gone(volume_id)
    write_in_guest(live, OTHER, volume_id)
    left = live.judge.snapshot(volume_id)
    assert (len(left["cinder"]["attachments"]), len(left["ledger"])) == (1, 1)
    assert left["libvirt"]["secrets"] == [f"iscsi {volume_id}"]
    detach(live, volume_id, OTHER)
    live.assert_books(before)


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_target_that_lets_in_only_our_initiator(live: Live, new_volume: NewVolume, dialect: str) -> None:
    volume_id = new_volume("bound")
    before = live.judge.snapshot()
    attached(live.tether("attach", volume_id, GUEST, "--dialect", dialect, "-f", "json"))
    write_in_guest(live, GUEST, volume_id)
    (target,) = live.judge.snapshot(volume_id)["tgt"]["targets"].values()
    assert (target["acls"], target["initiators"]) == ([live.initiator], [live.initiator])
    detach(live, volume_id, GUEST)
    live.assert_books(before)


@pytest.mark.proves("iscsi-qemu", "QoS")
def test_quality_of_service_reaches_qemu(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume("qos")
    before = live.judge.snapshot()
    job = attached(live.tether("attach", volume_id, GUEST, "-f", "json"))
    disk = disk_of(live, GUEST, volume_id)
    assert disk is not None
    limits = {each.tag: each.text for each in disk.iterfind("iotune/*")}
    assert limits == {"total_bytes_sec": "10485760", "total_iops_sec": "500"}
    in_force = dict(re.findall(r"(\w+)\s*: (\d+)", live.virsh("blkdeviotune", GUEST, job["device"])))
    assert (in_force["total_iops_sec"], in_force["total_bytes_sec"]) == ("500", "10485760")
    detach(live, volume_id, GUEST)
    live.assert_books(before)


@pytest.fixture
def limit_type(live: Live) -> Iterator[Callable[[dict[str, str]], None]]:
    """Give the volume type ``qos`` other QoS specs; it has its own again after the test."""
    before = live.limits()
    yield live.limit
    live.limit(before)


@pytest.mark.proves("iscsi-qemu", "QoS")
@pytest.mark.parametrize("power", ["running", "stopped"])
def test_limits_that_change_in_cinder_reach_an_attached_disk(
    live: Live, new_volume: NewVolume, limit_type: Callable[[dict[str, str]], None], power: str
) -> None:
    server = GUEST if power == "running" else live.stopped
    scopes = ("--live", "--config") if power == "running" else ("--config",)
    volume_id = new_volume("qos")
    before = live.judge.snapshot()
    device = attached(live.tether("attach", volume_id, server, "-f", "json"))["device"]
    with_disk = live.judge.snapshot()

    def in_force(scope: str) -> dict[str, str]:
        said = re.findall(r"(\w+)\s*: (\d+)", live.virsh("blkdeviotune", server, device, scope))
        return {name: value for name, value in said if value != "0"}

    first = in_force("--config")
    assert first["total_iops_sec"] == "500"
    for specs, limits in (
        ({"write_iops_sec": "70", "read_bytes_sec_per_gb": "4096000"}, {"write_iops_sec", "read_bytes_sec"}),
        ({}, set[str]()),
    ):
        limit_type(specs)
        done = live.tether("qos", volume_id, server)
        assert done.code == DONE, done.err
        for scope in scopes:
            found = in_force(scope)
            assert {name for name in found if not name.endswith("_max_length")} == limits, scope
            assert found.get("read_bytes_sec", "4096000") == "4096000"
    limit_type({"total_iops_sec": "500", "total_bytes_sec": "10485760"})
    assert live.tether("qos", volume_id, server).code == DONE
    assert in_force(scopes[0]) == first
    live.assert_books(with_disk)
    detach(live, volume_id, server)
    live.assert_books(before)


@pytest.mark.proves("iscsi-qemu", "read-only")
def test_a_volume_that_cinder_calls_read_only(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    live.cinder.volumes.update_readonly_flag(volume_id, flag=True)
    before = live.judge.snapshot()
    assert attached(live.tether("attach", volume_id, GUEST, "-f", "json"))["mode"] == "ro"
    assert live.consoles[GUEST].wait_for_disk(volume_id).read_only
    detach(live, volume_id, GUEST)
    live.assert_books(before)


@pytest.fixture
def disk(live: Live, new_volume: NewVolume) -> Iterator[tuple[str, dict[str, Any]]]:
    """A volume that is attached read-write, with the job that did it."""
    volume_id = new_volume()
    before = live.judge.snapshot()
    yield volume_id, attached(live.tether("attach", volume_id, GUEST, "--request-id", f"key {volume_id}", "-f", "json"))
    detach(live, volume_id, GUEST)
    live.assert_books(before)


def test_the_same_attach_twice_is_one(live: Live, disk: tuple[str, dict[str, Any]]) -> None:
    volume_id, job = disk
    before = live.judge.snapshot()
    for words in ((), ("--request-id", f"key {volume_id}"), ("--device", job["device"]), ("--bus", job["bus"])):
        again = attached(live.tether("attach", volume_id, GUEST, *words, "-f", "json"))
        assert again["job"] == job["job"], words
    live.assert_books(before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "ro"), "with mode rw, not ro"),
        (("--bus", "scsi"), "with bus virtio, not scsi"),
        (("--device", "vdq"), "not vdq"),
        (("--dialect", "legacy"), "with dialect attachments, not legacy"),
    ],
)
def test_the_same_attach_in_another_way_is_a_conflict(
    live: Live, disk: tuple[str, dict[str, Any]], words: tuple[str, ...], said: str
) -> None:
    volume_id, _job = disk
    before = live.judge.snapshot()
    refused = live.tether("attach", volume_id, GUEST, *words)
    assert refused.code == CONFLICT
    assert said in refused.err
    assert refused.last_line == f"next: detach it first: tether detach {volume_id} {GUEST}"
    live.assert_books(before)


def test_a_request_id_of_another_request_is_a_conflict(live: Live, disk: tuple[str, dict[str, Any]]) -> None:
    volume_id, _job = disk
    refused = live.tether("attach", volume_id, OTHER, "--request-id", f"key {volume_id}")
    assert refused.code == CONFLICT
    assert "use a new --request-id" in refused.last_line


def test_the_installed_program_does_it_by_names(live: Live) -> None:
    before = live.judge.snapshot()
    volume_id = live.volume_id("vol1")
    for words in (("attach", "vol1", GUEST), ("job", "show", "--last"), ("mapping", "list"), ("detach", "vol1", GUEST)):
        done = live.installed_tether(*words)
        assert done.code == DONE, done.err
        assert volume_id in done.out
    live.assert_books(before)


def test_no_secret_is_anywhere_but_in_libvirt_and_cinder(live: Live, new_volume: NewVolume) -> None:
    """Nor after a failure, a SIGKILL and a resume: not in the database, its WAL, the logs, or what was printed."""
    volume_id = new_volume()
    log = live.world.logs / f"tether-{volume_id}.log"
    keys = live.world.directory / "keys"
    said = []

    def ask(*words: str) -> int:
        done = live.tether("--debug", *["--log-json"] * (len(said) % 2), "--log-file", str(log), *words)
        said.append(done.out + done.err)
        password = live.chap_password(volume_id)
        secrets = {password.encode(), base64.b64encode(password.encode()), password.encode("utf-16-le")}
        secrets |= set(keys.read_bytes().split())
        texts = {"what was printed": "".join(said).encode(), log.name: log.read_bytes()}
        texts |= {path.name: path.read_bytes() for path in live.world.ledger.parent.glob(f"{live.world.ledger.name}*")}
        assert [name for name, text in texts.items() for secret in secrets if secret in text] == []
        return done.code

    assert ask("--fault", "plug-live.act.before=fail", "attach", volume_id, GUEST) == ROLLED_BACK
    assert ask("job", "show", "--last", "-f", "json") == DONE
    assert ask("--fault", "plug-live.act.after=kill", "attach", volume_id, GUEST) == KILLED
    assert ask("job", "resume", "--last") == DONE
    assert ask("mapping", "show", volume_id, GUEST, "-f", "json") == DONE
    assert ask("key", "rotate") == DONE
    assert ask("detach", volume_id, GUEST) == DONE
    assert keys.stat().st_mode & 0o777 == 0o600
    assert log.stat().st_size > 0


def test_several_volumes_as_one(live: Live, new_volume: NewVolume) -> None:
    volumes = [new_volume(), new_volume(), new_volume()]
    before = live.judge.snapshot()
    both = ("attach", "--all", *volumes, GUEST)

    done = live.tether("--fault", "plug-live.act.before=fail", *both)
    assert done.code == ROLLED_BACK, done.err
    live.assert_books(before)

    # The guest has some of them by then: it gives them back.
    killed = live.tether("--fault", "finish-mapping.act.after=kill", *both)
    assert killed.code == KILLED, killed.err
    done = live.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    live.assert_books(before)

    killed = live.tether("--fault", "plug-live.act.after=kill", *both)
    assert killed.code == KILLED, killed.err
    done = live.tether("job", "resume", "--last")
    assert done.code == DONE, done.err
    for each in volumes:
        write_in_guest(live, GUEST, each)
    names = [live.consoles[GUEST].wait_for_disk(each).name for each in volumes]
    assert names == sorted(names)
    for each in volumes:
        detach(live, each, GUEST)
    live.assert_books(before)
