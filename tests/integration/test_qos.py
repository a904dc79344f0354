"""``tether qos``: a disk gets the limits that Cinder has for its volume now, in both definitions, or keeps its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tether.adapters.guest.disk import limits_in
from tether.adapters.guest.model import Scope
from tether.sim.cinder.seed import SEEDED as VOLUMES
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.guest import SimGuest
from tether.sim.store import Store

USAGE, CONFLICT, HELD = 2, 2, 5
SPECS = {"total_iops_sec": "500", "read_bytes_sec_per_gb": "1000000"}
LIMITS = {"total_iops_sec": 500, "read_bytes_sec": 1000000}


def retype(sim: SimWorld, specs: dict[str, str] | None, volume: str = "vol1") -> None:
    """Give a volume another type, with these QoS specs."""
    with Store(sim.directory).change("cinder") as book:
        row = book["volumes"][VOLUMES[volume][0]]
        row |= {"volume_type": "limited", "volume_type_id": "5" * 32, "qos_specs": specs}


def limits(sim: SimWorld, server: str = "guest1") -> dict[str, dict[str, int]]:
    """Return what the disk of vol1 is limited to, by definition."""
    shown = SimGuest(Store(sim.directory)).show_server(SERVERS[server])
    disks = {scope: shown.definition(scope) for scope in Scope}
    found = {str(scope): each.disk(VOLUMES["vol1"][0]) for scope, each in disks.items() if each is not None}
    return {scope: limits_in(disk) for scope, disk in found.items() if disk is not None}


def both(of: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"persistent": of, "live": of}


@pytest.fixture
def retyped(attached: SimWorld) -> SimWorld:
    """A world whose vol1 has other limits in Cinder than in guest1."""
    retype(attached, SPECS)
    return attached


def test_the_disk_has_the_new_limits_and_then_none(retyped: SimWorld) -> None:
    before = retyped.books()
    done = retyped.tether("qos", "vol1", "guest1", "-f", "json")
    assert done.code == DONE, done.err
    shown: dict[str, Any] = json.loads(done.out)
    assert shown["state"] == "attached"
    assert shown["limits"] == "read_bytes_sec=1000000 total_iops_sec=500"
    assert limits(retyped) == both(LIMITS)
    retype(retyped, None)
    done = retyped.tether("qos", "vol1", "guest1", "-f", "json")
    assert json.loads(done.out)["limits"] == "none"
    assert limits(retyped) == both({})
    retype(retyped, SPECS)
    assert judge.diff(before, retyped.books()) == []


@pytest.mark.parametrize("server", ["stopped1", "paused1"])
def test_a_server_that_does_not_run_has_them_too(sim: SimWorld, server: str) -> None:
    assert sim.tether("attach", "vol1", server).code == DONE
    retype(sim, SPECS)
    done = sim.tether("qos", "vol1", server)
    assert done.code == DONE, done.err
    found = limits(sim, server)
    assert found == (both(LIMITS) if server == "paused1" else {"persistent": LIMITS})


@pytest.mark.parametrize("scope", ["persistent", "live"])
def test_what_libvirt_refuses_is_undone(retyped: SimWorld, scope: str) -> None:
    assert retyped.tether("qos", "vol1", "guest1").code == DONE
    retype(retyped, {"write_iops_sec": "70"})
    before = retyped.books()
    retyped.script(f"guest.limit_{scope}", "fail")
    done = retyped.tether("qos", "vol1", "guest1")
    assert done.code == ROLLED_BACK, done.err
    assert "libvirt refused" in done.err
    assert limits(retyped) == both(LIMITS)
    assert judge.diff(before, retyped.books()) == []


def test_what_cannot_be_undone_is_blocked_and_resumed(retyped: SimWorld) -> None:
    before = retyped.books()
    assert retyped.tether("--fault", "limit-live.act.after=kill", "qos", "vol1", "guest1").code == KILLED
    retyped.script("guest.limit_persistent", "fail", times=-1)
    done = retyped.tether("job", "abort", "--last")
    assert done.code == BLOCKED, done.err
    assert limits(retyped) == {"persistent": LIMITS, "live": {}}
    retyped.forgive()
    assert retyped.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, retyped.books()) == []


def test_the_limits_of_a_job_that_was_killed_are_those_of_its_request(retyped: SimWorld) -> None:
    assert retyped.tether("--fault", "limit-live.act.before=kill", "qos", "vol1", "guest1").code == KILLED
    assert limits(retyped) == {"persistent": LIMITS, "live": {}}
    retype(retyped, {"write_iops_sec": "70"})
    done = retyped.tether("qos", "vol1", "guest1", "--no-wait")
    assert done.code == HELD, done.err
    assert retyped.tether("job", "resume", "--last").code == DONE
    assert limits(retyped) == both(LIMITS)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("vol2", "guest1"), USAGE, "not attached to server guest1 by tether"),
        (("vol1", "guest2"), USAGE, "not attached to server guest2 by tether"),
        (("nothing", "guest1"), 6, "nothing"),
        (("vol1", "nobody"), 6, "nobody"),
    ],
)
def test_what_is_not_attached_is_refused(retyped: SimWorld, words: tuple[str, str], code: int, said: str) -> None:
    before = retyped.books()
    done = retyped.tether("qos", *words)
    assert done.code == code, done.err
    assert said in done.err
    assert judge.diff(before, retyped.books()) == []


def test_a_limit_that_is_no_number_is_refused(retyped: SimWorld) -> None:
    retype(retyped, {"total_iops_sec": "many"})
    done = retyped.tether("qos", "vol1", "guest1")
    assert done.code == ROLLED_BACK, done.err
    assert "is not a number: 'many'" in done.err
    assert limits(retyped) == both({})


def test_who_may_not_see_the_specs_is_told_so(retyped: SimWorld) -> None:
    for call, said in (("list_types", "Cinder says 403"), ("show_qos", "Cinder says 403")):
        retyped.script(f"cinder.{call}", "fail", status=403)
        done = retyped.tether("qos", "vol1", "guest1")
        assert done.code == USAGE, done.err
        assert said in done.err
    assert limits(retyped) == both({})


@pytest.mark.parametrize("scope", ["live", "persistent"])
def test_a_disk_that_is_not_in_both_definitions_is_refused(retyped: SimWorld, scope: str) -> None:
    guest = SimGuest(Store(retyped.directory))
    guest.unplug(SERVERS["guest1"], Scope(scope), f"ua-{VOLUMES['vol1'][0]}")
    done = retyped.tether("qos", "vol1", "guest1")
    assert done.code == ROLLED_BACK, done.err
    assert "does not have its disk" in done.err


def test_one_request_id_is_one_job(retyped: SimWorld) -> None:
    words = ("qos", "vol1", "guest1", "--request-id", "k", "-f", "json")
    jobs = [json.loads(retyped.tether(*words).out)["job"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    done = retyped.tether("detach", "vol1", "guest1", "--request-id", "k")
    assert done.code == CONFLICT, done.err
