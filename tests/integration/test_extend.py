"""``tether extend``: the volume, the host's device and the guest's disk grow together, or nothing has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tether.errors import UsageError
from tether.sim.cinder.seed import SEEDED as VOLUMES
from tether.sim.disks import LUKS_HEADER
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.guest import SimGuest
from tether.sim.host import SimHost
from tether.sim.store import Store

GIB = 1024**3
USAGE, CONFLICT, HELD, NOT_FOUND = UsageError.exit_code, 2, 5, 6


def sizes(sim: SimWorld, volume: str = "vol1", server: str = "guest1") -> dict[str, Any]:
    """Return how large the volume is in Cinder (GiB), on the host and in the running guest (bytes)."""
    store, volume_id = Store(sim.directory), VOLUMES[volume][0]
    row = store.read("cinder")["volumes"][volume_id]
    found: dict[str, Any] = {"cinder": row["size"], "status": row["status"]}
    host, guest = SimHost(store), SimGuest(store)
    if host.find(volume_id) is not None:
        found |= {"device": store.read("host")["devices"][volume_id]["size"], "usable": host.usable_size(volume_id)}
    live = guest.show_server(SERVERS[server]).live
    disk = None if live is None else live.disk(volume_id)
    return found | ({"guest": guest.capacity(SERVERS[server], disk.target)} if disk else {})


def change(sim: SimWorld, volume: str = "vol1", **facts: Any) -> None:
    """Change a volume's row in Cinder."""
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOLUMES[volume][0]].update(facts)


def attach(sim: SimWorld, volume: str = "vol1", server: str = "guest1") -> SimWorld:
    done = sim.tether("attach", volume, server)
    assert done.code == DONE, done.err
    return sim


CASES = {
    "host": ("host", "vol1", "guest1"),
    "network": ("network", "vol1", "guest1"),
    "dm-crypt": ("host", "secret1", "guest1"),
    "LUKS in QEMU": ("network", "secret1", "guest1"),
    "paused": ("host", "vol1", "paused1"),
    "shut off": ("host", "vol1", "stopped1"),
}


@pytest.mark.parametrize("case", CASES)
def test_all_books_grow_and_the_volume_is_detached_as_any_other(tmp_path: Path, case: str) -> None:
    data_path, volume, server = CASES[case]
    sim = SimWorld(tmp_path / "world", data_path)
    assert sim.tether("job", "list").code == DONE
    before = sim.books()
    attach(sim, volume, server)
    done = sim.tether("extend", volume, "3", "-f", "json")
    assert done.code == DONE, done.err
    shown = json.loads(done.out)
    assert (shown["state"], shown["size"], shown["exit_code"]) == ("attached", 3, 0)
    header = LUKS_HEADER if volume == "secret1" else 0
    wanted: dict[str, Any] = {"cinder": 3, "status": "in-use"}
    wanted |= {"device": 3 * GIB, "usable": 3 * GIB - header} if data_path == "host" else {}
    wanted |= {} if server == "stopped1" else {"guest": 3 * GIB - header}
    assert sizes(sim, volume, server) == wanted
    if server != "paused1":  # such a guest lets nothing go
        assert sim.tether("detach", volume, server).code == DONE
        change(sim, volume, size=1)
        assert judge.diff(before, sim.books()) == []


def test_host_and_guest_catch_up_with_a_volume_that_was_extended_elsewhere(sim: SimWorld) -> None:
    attach(sim, "secret1")
    change(sim, "secret1", size=2)
    assert sizes(sim, "secret1")["guest"] == GIB - LUKS_HEADER
    sim.script("cinder.extend", "fail")  # it is not even asked
    for _ in range(2):
        done = sim.tether("extend", "secret1", "2")
        assert done.code == DONE, done.err
        assert sizes(sim, "secret1")["guest"] == 2 * GIB - LUKS_HEADER


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a smaller size": ("1", {"size": 2}, ROLLED_BACK, "makes no volume smaller"),
    "no size": ("0", {}, USAGE, "no size of a volume"),
    "another status": ("2", {"status": "detaching"}, ROLLED_BACK, "it is detaching, not in-use"),
    "no space": ("2", {"extends": "no-space"}, ROLLED_BACK, "given the volume back as it was"),
    "a policy": ("2", {}, ROLLED_BACK, "Cinder says 403"),
    "a quota": ("2", {}, ROLLED_BACK, "exceeds allowed gigabytes quota"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_has_changed_nothing(sim: SimWorld, case: str) -> None:
    size, facts, code, text = REFUSED[case]
    attach(sim)
    if case == "a policy":
        sim.script("cinder.extend", "fail", status=403)
    if case == "a quota":
        with Store(sim.directory).change("cinder") as book:
            book["quota"] = 5
    change(sim, **facts)
    before = sim.books()
    done = sim.tether("extend", "vol1", size)
    assert (done.code, text in done.err) == (code, True), done.err
    assert judge.diff(before, sim.books()) == []
    assert case != "a quota" or "quota show" in done.err


def test_only_what_tether_has_attached_here_and_once_is_extended(sim: SimWorld) -> None:
    done = sim.tether("extend", "vol2", "2")
    assert (done.code, "openstack volume set --size" in done.err) == (USAGE, True), done.err
    assert sim.tether("extend", "nothing", "2").code == NOT_FOUND
    attach(attach(sim, "shared1", "guest1"), "shared1", "guest2")
    done = sim.tether("extend", "shared1", "2")
    assert (done.code, "attached to 2 servers" in done.err) == (ROLLED_BACK, True), done.err


def test_a_guest_with_saved_memory_is_refused(sim: SimWorld) -> None:
    attach(sim)
    SimGuest(Store(sim.directory)).managed_save(SERVERS["guest1"])
    done = sim.tether("extend", "vol1", "2")
    assert (done.code, "managed-save" in done.err) == (ROLLED_BACK, True), done.err
    assert sizes(sim)["cinder"] == 1


def test_a_driver_that_fails_blocks_the_job_until_the_status_is_reset(sim: SimWorld) -> None:
    attach(sim)
    change(sim, extends="driver-fails")
    done = sim.tether("extend", "vol1", "2")
    assert (done.code, "openstack volume set --state in-use" in done.err) == (BLOCKED, True), done.err
    assert "job abort" not in done.err
    assert sim.tether("job", "abort", "--last").code == CONFLICT
    assert sim.tether("detach", "vol1", "guest1").code == HELD
    assert sim.tether("job", "resume", "--last").code == BLOCKED
    change(sim, extends="", status="in-use")
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sizes(sim) == {"cinder": 2, "status": "in-use", "device": 2 * GIB, "usable": 2 * GIB, "guest": 2 * GIB}


def test_an_extend_that_is_given_up_leaves_the_volume_attached(sim: SimWorld) -> None:
    attach(sim)
    change(sim, extends="driver-fails")
    assert sim.tether("extend", "vol1", "2").code == BLOCKED
    change(sim, status="in-use")
    done = sim.tether("job", "settle", "--last", "--as", "attached", "--reason", "the backend cannot")
    assert done.code == DONE, done.err
    assert sim.tether("detach", "vol1", "guest1").code == DONE


def test_a_target_that_does_not_grow_blocks_the_job_with_its_reason(sim: SimWorld) -> None:
    attach(sim)
    change(sim, device_size=GIB)
    done = sim.tether("extend", "vol1", "2")
    assert (done.code, "still has 1073741824 bytes" in done.err) == (BLOCKED, True), done.err
    assert sizes(sim)["guest"] == GIB
    change(sim, device_size=2 * GIB)
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sizes(sim)["guest"] == 2 * GIB


def test_a_guest_that_is_shut_off_meanwhile_needs_no_resize(sim: SimWorld) -> None:
    attach(sim)
    assert sim.tether("--fault", "resize-guest.act.before=kill", "extend", "vol1", "2").code == KILLED
    guest = SimGuest(Store(sim.directory))
    guest.stop(SERVERS["guest1"])
    assert sim.tether("job", "resume", "--last").code == DONE
    guest.start(SERVERS["guest1"])
    assert sizes(sim)["guest"] == 2 * GIB


def test_one_request_is_one_job(sim: SimWorld) -> None:
    attach(sim)
    jobs = [json.loads(sim.tether("extend", "vol1", "2", "--request-id", "k", "-f", "json").out) for _ in range(2)]
    assert jobs[0]["job"] == jobs[1]["job"]
    done = sim.tether("extend", "vol1", "3", "--request-id", "k")
    assert (done.code, "belongs to job" in done.err) == (CONFLICT, True), done.err
    assert sizes(sim)["cinder"] == 2


def test_an_open_job_has_the_volume(sim: SimWorld) -> None:
    attach(sim)
    assert sim.tether("--fault", "extend-volume.act.after=kill", "extend", "vol1", "2").code == KILLED
    done = sim.tether("extend", "vol1", "3")
    assert (done.code, "job resume" in done.err) == (HELD, True), done.err
