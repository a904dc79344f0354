"""A forced detach: only with consent, still in safe order, and told as what it was."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, Outcome, SimWorld
from tests.integration.commands import Command, run
from tests.integration.test_cli_running import slow
from tether.matrix.wrecks import definitions
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.guest import SimGuest
from tether.sim.store import Store

CONSENT = ("--force", "--accept-lost-writes")
DETACH = ("detach", "vol1", "guest1")
FORCED = (*DETACH, *CONSENT)
RESUME = ("job", "resume", "--last")
VOL1 = "11111111-1111-4111-8111-111111111111"
#: What a forced detach says of a flush that failed.
LOST = "what had not been written by then may be lost"


def dead(sim: SimWorld) -> SimWorld:
    """From now on no device can be flushed."""
    sim.script("host.disconnect", "no-flush", times=-1)
    return sim


def shown(sim: SimWorld) -> dict[str, Any]:
    return dict(json.loads(run(sim, "job", "show", "--last", "-f", "json").out))


def hint(done: Outcome) -> str:
    last = done.err.splitlines()[-1]
    assert last.startswith("next: "), done.err
    return last


def clean(sim: SimWorld, fresh: dict[str, Any]) -> bool:
    return judge.diff(fresh, sim.books()) == []


@pytest.fixture
def fresh(sim: SimWorld) -> dict[str, Any]:
    """The books before anything was attached."""
    return sim.books()


# -- consent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*DETACH, "--force"), "may lose what was written"),
        ((*DETACH, "--accept-lost-writes"), "is for --force"),
        (("plan", *DETACH, "--force"), "may lose what was written"),
        ((*RESUME, "--force"), "may lose what was written"),
        (("job", "resume", "--all", *CONSENT), "--force is for one job"),
        (("job", "resume", "0000", "0001", *CONSENT), "--force is for one job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_half_a_consent_changes_nothing(attached: SimWorld, words: tuple[str, ...], says: str) -> None:
    before = attached.books()
    done = run(attached, *words)
    assert done.code == 2, done.err
    assert says in done.err
    assert done.out == ""
    assert hint(done)
    assert attached.jobs() == [("attach", "attached")]
    assert judge.diff(before, attached.books()) == []


# -- what it does --------------------------------------------------------------------------------------------


def test_a_dead_device_goes_by_force_alone(fresh: dict[str, Any], attached: SimWorld) -> None:
    sim = dead(attached)
    blocked = run(sim, *DETACH)
    assert blocked.code == BLOCKED, blocked.err
    assert "flushing /dev/sda failed: Input/output error (at disconnect-host)" in blocked.err
    job = shown(sim)
    again = f"tether job resume {job['job']}"
    assert f"then: {again}; if its storage is gone for good: {again} --force --accept-lost-writes" in hint(blocked)
    assert job["forced"] == ""
    assert set(sim.books()["host"]["devices"]) == {VOL1}

    for words in (FORCED, ("plan", *FORCED)):
        held = run(sim, *words)
        assert held.code == 5, held.err
        assert f"first: {again} --force --accept-lost-writes, or: tether job abort" in hint(held)
    assert run(sim, *RESUME).code == BLOCKED

    done = run(sim, *RESUME, *CONSENT)
    assert done.code == DONE, done.err
    assert f"volume vol1: flushing /dev/sda failed: Input/output error; {LOST}" in done.err
    assert clean(sim, fresh)
    assert shown(sim)["forced"] == "by a resume"


@pytest.mark.parametrize("volume", ["vol1", "secret1"])
@pytest.mark.parametrize("server", ["guest1", "stopped1"])
def test_a_request_may_be_forced_from_the_start(sim: SimWorld, volume: str, server: str) -> None:
    fresh = sim.books()
    assert run(sim, "attach", volume, server).code == DONE
    done = run(dead(sim), "detach", volume, server, *CONSENT)
    assert done.code == DONE, done.err
    assert LOST in done.err
    assert clean(sim, fresh)
    job = shown(sim)
    assert (job["forced"], job["state"]) == ("by its request", "detached")
    told = json.loads(run(sim, "explain", job["job"], "-f", "json").out)
    assert f": forced detach of {volume}, server {server}" in told["about"]
    assert f"forced detach of {volume} from {server}: detached" in told["history"][0]
    assert run(sim, "detach", volume, server).code == DONE, "it is detached"


def test_force_says_nothing_of_lost_writes_where_all_was_written(fresh: dict[str, Any], attached: SimWorld) -> None:
    done = run(attached, *FORCED)
    assert done.code == DONE, done.err
    assert LOST not in done.err
    assert clean(attached, fresh)


def test_force_changes_nothing_where_qemu_connects_by_itself(sim: SimWorld, tmp_path: Any) -> None:
    config = tmp_path / "network.conf"
    config.write_text("[DEFAULT]\ndata_path = network\n")
    fresh = sim.books()
    assert sim.tether("attach", "vol1", "guest1", config=str(config)).code == DONE
    done = sim.tether(*FORCED, config=str(config))
    assert done.code == DONE, done.err
    assert "--force changes nothing: volume vol1 is no device of this host" in done.err
    assert clean(sim, fresh)


def test_a_plan_tells_it(attached: SimWorld) -> None:
    plan = json.loads(run(attached, "plan", *FORCED, "-f", "json").out)
    (step,) = [step for step in plan["steps"] if step["step"] == "disconnect-host/1"]
    assert step["calls"][0] == "os-brick: disconnect_volume(force=True)"
    assert "may be lost" in plan["notes"][0]
    plain = json.loads(run(attached, "plan", *DETACH, "-f", "json").out)
    assert "force" not in json.dumps([plain["steps"], plain["notes"]])


# -- what it never does --------------------------------------------------------------------------------------


def test_a_guest_that_does_not_answer_blocks_it_until_it_is_stopped(fresh: dict[str, Any], attached: SimWorld) -> None:
    sim = dead(attached)
    sim.script("guest.unplug_live", "ignore", times=-1)
    before = sim.books()
    done = run(sim, *FORCED)
    assert done.code == BLOCKED, done.err
    assert "waiting for the guest" in done.err
    assert "--force takes no disk from a running one (virsh shutdown guest1)" in hint(done)
    assert judge.diff(before["host"], sim.books()["host"]) == []
    assert run(sim, *RESUME).code == BLOCKED
    guest = SimGuest(Store(sim.directory))
    guest.stop(SERVERS["guest1"])
    done = run(sim, *RESUME)
    assert done.code == DONE, done.err
    assert LOST in done.err
    guest.start(SERVERS["guest1"])
    assert not judge.diff(fresh["host"], sim.books()["host"])


def test_a_guest_that_refuses_keeps_its_disk(attached: SimWorld) -> None:
    sim = dead(attached)
    sim.script("guest.unplug_live", "refuse", times=-1)
    before = sim.books()
    done = run(sim, *FORCED)
    assert done.code == ROLLED_BACK, done.err
    assert "stop the guest, since --force takes no disk from a running one (virsh shutdown guest1)" in hint(done)
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("scope", ["live", "persistent"])
def test_a_device_that_a_guest_has_stays(attached: SimWorld, scope: str) -> None:
    """One that no book of tether's knows: the disk was copied by hand into another server's definition."""
    sim = dead(attached)
    link = json.loads(run(sim, "mapping", "show", "vol1", "guest1", "-f", "json").out)["device"]
    other = "guest2" if scope == "live" else "stopped1"
    host = json.loads((sim.directory / "host.json").read_text())
    device = host["devices"][VOL1]["path"]
    assert link
    path = sim.directory / "guests" / SERVERS[other] / f"{scope}.xml"
    disk = f"<disk type='block' device='disk'><source dev='{device}'/><target dev='vdz' bus='virtio'/></disk>"
    path.write_text(path.read_text().replace("</devices>", f"{disk}</devices>"))
    before = sim.books()["host"]
    done = run(sim, *FORCED)
    assert done.code == BLOCKED, done.err
    assert f"is a disk of server {other} ({scope})" in done.err
    assert judge.diff(before, sim.books()["host"]) == []
    with definitions(sim.directory, scope) as roots:
        for devices in (root.find("devices") for root in roots):
            assert devices is not None
            for item in [item for item in devices.iterfind("disk") if "vdz" in str(item.find("target").attrib)]:  # type: ignore[union-attr]
                devices.remove(item)
    assert run(sim, *RESUME).code == DONE


def test_a_device_that_another_mapping_uses_stays(sim: SimWorld) -> None:
    assert run(sim, "attach", "shared1", "guest1").code == DONE
    before = dead(sim).books()["host"]
    assert run(sim, "attach", "shared1", "guest2").code == DONE
    for server, code in (("guest1", DONE), ("guest2", DONE)):
        held = sim.books()["host"]
        done = run(sim, "detach", "shared1", server, *CONSENT)
        assert done.code == code, done.err
        assert (LOST in done.err) == (server == "guest2")
        assert (judge.diff(held, sim.books()["host"]) == []) == (server == "guest1")
    assert before["devices"]
    assert sim.books()["host"]["devices"] == {}


# -- one request, one job ------------------------------------------------------------------------------------


def test_a_resumed_job_stays_forced(fresh: dict[str, Any], attached: SimWorld) -> None:
    sim = dead(attached)
    assert run(sim, "--fault", "disconnect-host.act.before=kill", *FORCED).code == KILLED
    assert shown(sim)["forced"] == "by its request"
    held = run(sim, *FORCED)
    assert held.code == 5, held.err
    assert "is held by job" in held.err
    assert "forced detach from guest1, interrupted" in held.err
    done = run(sim, *RESUME)
    assert done.code == DONE, done.err
    assert LOST in done.err
    assert clean(sim, fresh)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_consent_of_a_resume_is_kept_or_given_again(fresh: dict[str, Any], attached: SimWorld, moment: str) -> None:
    sim = dead(attached)
    assert run(sim, *DETACH).code == BLOCKED
    assert run(sim, "--fault", f"commit.job.force.{moment}=kill", *RESUME, *CONSENT).code == KILLED
    assert shown(sim)["forced"] == ("" if moment == "before" else "by a resume")
    assert run(sim, *RESUME).code == (BLOCKED if moment == "before" else DONE)
    assert run(sim, *RESUME, *CONSENT).code == DONE
    assert clean(sim, fresh)


@pytest.mark.parametrize(("first", "other"), [(FORCED, DETACH), (DETACH, FORCED)], ids=["forced", "plain"])
def test_a_request_id_belongs_to_one_way_of_detaching(
    attached: SimWorld, first: tuple[str, ...], other: tuple[str, ...]
) -> None:
    key = ("--request-id", "K")
    for _ in range(2):
        assert run(attached, *first, *key).code == DONE
    before = attached.books()
    done = run(attached, *other, *key)
    assert done.code == 2, done.err
    assert f"asked for {'with' if first == FORCED else 'without'} --force" in done.err
    assert attached.jobs() == [("detach", "detached"), ("attach", "attached")]
    assert judge.diff(before, attached.books()) == []


def test_a_request_id_keeps_its_request_when_a_resume_forces_the_job(attached: SimWorld) -> None:
    sim, keyed = dead(attached), (*DETACH, "--request-id", "K")
    assert run(sim, *keyed).code == BLOCKED
    assert run(sim, *RESUME, *CONSENT).code == DONE
    assert run(sim, *keyed).code == DONE
    assert sim.jobs() == [("detach", "detached"), ("attach", "attached")]


def test_the_same_request_joins_and_another_does_not(attached: SimWorld) -> None:
    first = slow(attached, "host.disconnect", *FORCED)
    other = run(attached, *DETACH, "--no-wait")
    assert other.code == 5, other.err
    assert "forced detach from guest1, running" in other.err
    second = Command(attached, *FORCED).end()
    assert (first.end().code, second.code) == (DONE, DONE)
    assert run(attached, *DETACH).code == DONE
    assert attached.jobs() == [("detach", "detached"), ("attach", "attached")]


def test_only_a_detach_is_forced(sim: SimWorld) -> None:
    assert run(sim, "--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1").code == KILLED
    done = run(sim, *RESUME, *CONSENT)
    assert done.code == 2, done.err
    assert "only a detach can be forced" in done.err
    assert shown(sim)["state"] == "interrupted"
    assert run(sim, *RESUME).code == DONE


def test_a_job_of_an_earlier_release_reads_as_before(attached: SimWorld) -> None:
    """Its row says nothing of force."""
    sim = dead(attached)
    assert run(sim, *DETACH).code == BLOCKED
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as database, database:
        database.execute("UPDATE tether_jobs SET params = json_remove(params, '$.force')")
    assert shown(sim)["forced"] == ""
    assert run(sim, *RESUME, *CONSENT).code == DONE
