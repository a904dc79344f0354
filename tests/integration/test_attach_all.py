"""Several volumes as one request: all of them are attached in the end, or none."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, Outcome, SimWorld
from tests.integration.commands import Command, run
from tests.integration.test_cli_running import slow
from tether.sim.guest import SimGuest
from tether.sim.store import Store

BOTH = ("attach", "--all", "vol1", "vol2", "guest1")
HELD = 5
USAGE = 2
GUEST = "9e570000-0000-4000-8000-000000000001"
VOL1, VOL2 = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def disks(sim: SimWorld) -> list[str]:
    """Return the serials of the running guest's disks, in the order in which it got them."""
    live = SimGuest(Store(sim.directory)).show_server(GUEST).live
    assert live is not None
    return [disk.serial for disk in live.disks if disk.serial]


def states(sim: SimWorld) -> dict[str, list[str]]:
    """Return the states of the jobs by their kind; which of two began first is chance."""
    found: dict[str, list[str]] = {}
    for kind, state in sorted(sim.jobs()):
        found.setdefault(kind, []).append(state)
    return found


def shown(sim: SimWorld, *words: str) -> dict[str, Any]:
    return dict(json.loads(run(sim, "job", "show", *(words or ("--last",)), "-f", "json").out))


def part(sim: SimWorld, volume: str) -> str:
    """Return the id of the job that attaches a volume."""
    return next(line.split()[0] for line in shown(sim)["parts"] if line.split()[1] == volume)


def hint(done: Outcome) -> str:
    last = done.err.splitlines()[-1]
    assert last.startswith("next: "), done.err
    return last


@pytest.fixture
def fresh(sim: SimWorld) -> dict[str, Any]:
    return sim.books()


def clean(fresh: dict[str, Any], sim: SimWorld) -> bool:
    return judge.diff(fresh, sim.books()) == []


# -- all of them ---------------------------------------------------------------------------------------------


def test_the_guest_gets_them_in_the_order_that_was_asked_for(sim: SimWorld) -> None:
    done = run(sim, "attach", "--all", "vol2", "vol1", "guest1", "-f", "json")
    assert done.code == DONE, done.err
    said = json.loads(done.out)
    assert [(row["volume"], row["device"]) for row in said["volumes"]] == [("vol2", "vdb"), ("vol1", "vdc")]
    assert (said["kind"], said["state"], said["volume"]) == ("attach-all", "attached", "2 volumes")
    assert disks(sim) == [VOL2, VOL1]
    assert states(sim) == {"attach-all": ["attached"], "attach": ["attached"] * 2}
    assert run(sim, "audit").code == DONE


def test_each_is_a_mapping_like_any_other(sim: SimWorld) -> None:
    assert run(sim, *BOTH).code == DONE
    assert run(sim, "detach", "vol1", "guest1").code == DONE
    assert disks(sim) == [VOL2]
    assert run(sim, "audit").code == DONE


def test_what_is_attached_already_is_a_success(sim: SimWorld) -> None:
    assert run(sim, *BOTH).code == DONE
    again = json.loads(run(sim, *BOTH, "-f", "json").out)
    assert again["job"] == shown(sim)["job"]
    assert states(sim) == {"attach-all": ["attached"], "attach": ["attached"] * 2}


def test_what_was_attached_before_is_left_alone(attached: SimWorld) -> None:
    before = attached.books()
    attached.script("guest.plug_live", "fail")
    done = run(attached, *BOTH)
    assert done.code == ROLLED_BACK, done.err
    assert judge.diff(before, attached.books()) == []
    assert run(attached, *BOTH).code == DONE
    assert disks(attached) == [VOL1, VOL2]


def test_one_key_is_one_job(sim: SimWorld) -> None:
    first = json.loads(run(sim, *BOTH, "--request-id", "k", "-f", "json").out)["job"]
    assert json.loads(run(sim, *BOTH, "--request-id", "k", "-f", "json").out)["job"] == first
    done = run(sim, "attach", "--all", "vol1", "guest1", "--request-id", "k")
    assert done.code == USAGE
    assert "belongs to job" in done.err


def test_the_same_request_waits_for_the_first(sim: SimWorld) -> None:
    first = slow(sim, "host.connect", *BOTH)
    second = Command(sim, *BOTH)
    assert first.end().code == second.end().code == DONE
    assert states(sim) == {"attach-all": ["attached"], "attach": ["attached"] * 2}


# -- or none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["cinder.create_attachment", "cinder.update_attachment", "host.connect"])
def test_what_fails_before_the_guest_never_reaches_it(sim: SimWorld, fresh: dict[str, Any], call: str) -> None:
    sim.script(call, "fail")
    done = run(sim, *BOTH)
    assert done.code == ROLLED_BACK, done.err
    assert "attach of volume vol" in done.err
    assert hint(done)
    assert states(sim) == {"attach-all": ["rolled-back"], "attach": ["rolled-back"] * 2}
    assert clean(fresh, sim)


def test_what_fails_at_the_guest_takes_the_other_out_again(sim: SimWorld, fresh: dict[str, Any]) -> None:
    command = slow(sim, "guest.plug_live", *BOTH)
    sim.script("guest.plug_live", "fail")
    done = command.end()
    assert done.code == ROLLED_BACK, done.err
    assert states(sim) == {
        "attach-all": ["rolled-back"],
        "attach": ["attached", "rolled-back"],
        "detach": ["detached"],
    }
    assert clean(fresh, sim)


def test_a_volume_that_another_job_has_leaves_the_others_alone(sim: SimWorld) -> None:
    other = slow(sim, "host.connect", "attach", "vol2", "guest2", seconds=2.0)
    done = run(sim, *BOTH, "--no-wait")
    assert done.code == HELD, done.err
    assert "attach-all" not in states(sim)
    assert other.end().code == DONE


def test_a_volume_that_is_taken_meanwhile_takes_the_first_back(sim: SimWorld) -> None:
    assert sim.tether("--fault", "commit.attach-all.act.before=kill", *BOTH).code == KILLED
    whole = shown(sim)["job"]
    slow(sim, "host.connect", "attach", "vol2", "guest2").signal(signal.SIGKILL).end()
    before = sim.books()
    done = run(sim, "job", "resume", whole)
    assert done.code == HELD, done.err
    assert "volume vol2 is held by job" in done.err
    assert states(sim) == {"attach-all": ["rolled-back"], "attach": ["rolled-back", "running"]}
    assert clean(before, sim)


def test_ctrl_c_rolls_all_of_them_back(sim: SimWorld, fresh: dict[str, Any]) -> None:
    done = slow(sim, "host.connect", *BOTH).signal(signal.SIGINT).end()
    assert done.code == ROLLED_BACK, done.err
    assert clean(fresh, sim)


# -- interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("call", ["host.connect", "guest.plug_persistent", "guest.plug_live"])
def test_what_is_interrupted_goes_on(sim: SimWorld, number: int, call: str) -> None:
    done = slow(sim, call, *BOTH).signal(number).end()
    assert done.code == (KILLED if number == signal.SIGKILL else 143)
    assert run(sim, "job", "resume", "--last").code == DONE
    assert disks(sim) == [VOL1, VOL2]
    assert run(sim, "audit").code == DONE


def test_a_part_is_taken_up_as_what_it_is_a_part_of(sim: SimWorld) -> None:
    slow(sim, "host.connect", *BOTH).signal(signal.SIGKILL).end()
    done = run(sim, "job", "resume", part(sim, "vol2"), "-f", "json")
    assert done.code == DONE, done.err
    assert "is a part of job" in done.err
    assert json.loads(done.out)[0]["kind"] == "attach-all"
    assert states(sim) == {"attach-all": ["attached"], "attach": ["attached"] * 2}


def test_all_that_is_open_is_taken_up_as_one(sim: SimWorld) -> None:
    slow(sim, "host.connect", *BOTH).signal(signal.SIGKILL).end()
    done = run(sim, "job", "resume", "--all", "-f", "json")
    assert done.code == DONE, done.err
    assert [row["kind"] for row in json.loads(done.out)] == ["attach-all"]
    assert disks(sim) == [VOL1, VOL2]


def test_an_abort_of_a_part_is_one_of_the_whole(sim: SimWorld, fresh: dict[str, Any]) -> None:
    slow(sim, "guest.plug_live", *BOTH).signal(signal.SIGKILL).end()
    done = run(sim, "job", "abort", part(sim, "vol1"))
    assert done.code == DONE, done.err
    assert clean(fresh, sim)


def test_an_abort_of_what_runs_stops_its_parts(sim: SimWorld, fresh: dict[str, Any]) -> None:
    command = slow(sim, "host.connect", *BOTH, seconds=3.0)
    assert run(sim, "job", "abort", "--last").code == DONE
    assert command.end().code == 1
    assert clean(fresh, sim)


def test_a_detach_that_could_not_be_begun_is_begun_anew(sim: SimWorld, fresh: dict[str, Any]) -> None:
    """One that had no effect yet is rolled back when it is taken up: that is no reason to leave the volume attached."""
    assert run(sim, "--fault", "attach-all.act.after=kill", *BOTH).code == KILLED
    assert run(sim, "--fault", "commit.begin-detaching.act.after=kill", "job", "abort", "--last").code == KILLED
    blind = run(sim, "--fault", "cinder.token=blind", "job", "resume", "--last")
    assert blind.code == BLOCKED, blind.err
    done = run(sim, "job", "resume", "--last")
    assert done.code == ROLLED_BACK, done.err
    assert clean(fresh, sim)


# -- blocked -------------------------------------------------------------------------------------------------


def test_a_part_that_is_blocked_blocks_the_others_where_they_are(sim: SimWorld) -> None:
    sim.script("cinder.complete_attachment", "fail", times=-1)
    done = run(sim, *BOTH)
    assert done.code == BLOCKED, done.err
    assert "tether job resume" in hint(done)
    sim.forgive()
    assert run(sim, "job", "resume", "--last").code == DONE
    assert disks(sim) == [VOL1, VOL2]


def test_one_that_is_blocked_before_the_guest_holds_the_others_there(sim: SimWorld) -> None:
    store = Store(sim.directory)
    with store.change("cinder") as book:
        book["volumes"][VOL2]["device_size"] = 5
    with store.change("host") as book:
        book["devices"][VOL2] = {"path": "/dev/sdz", "open_count": 1}
    done = run(sim, *BOTH)
    assert done.code == BLOCKED, done.err
    assert "attach of volume vol2, at verify-device" in done.err
    assert states(sim) == {"attach-all": ["blocked"], "attach": ["blocked"] * 2}
    assert disks(sim) == []
    assert "the attach of volume vol2, of the same request, is blocked" in shown(sim, part(sim, "vol1"))["error"]
    with store.change("cinder") as book:
        del book["volumes"][VOL2]["device_size"]
    with store.change("host") as book:
        book["devices"][VOL2] |= {"open_count": 0, "size": 2**30}
    assert run(sim, "job", "resume", "--last").code == DONE
    assert disks(sim) == [VOL1, VOL2]


def test_a_guest_that_keeps_a_disk_blocks_the_way_back(sim: SimWorld, fresh: dict[str, Any]) -> None:
    command = slow(sim, "guest.plug_live", *BOTH)
    sim.script("guest.plug_live", "fail")
    sim.script("guest.unplug_live", "refuse", times=-1)
    done = command.end()
    assert done.code == BLOCKED, done.err
    assert "detach of volume vol1" in done.err
    assert disks(sim) == [VOL1]
    assert run(sim, "job", "resume", "--last").code == BLOCKED
    sim.forgive()
    assert run(sim, "job", "resume", "--last").code == ROLLED_BACK
    assert clean(fresh, sim)


def test_its_parts_are_settled_not_the_whole(sim: SimWorld) -> None:
    sim.script("cinder.complete_attachment", "fail", times=-1)
    assert run(sim, *BOTH).code == BLOCKED
    done = run(sim, "job", "settle", "--last", "--as", "clean", "--reason", "test")
    assert done.code == USAGE
    assert "each of which has a job of its own" in done.err


# -- told ----------------------------------------------------------------------------------------------------


def test_what_was_left_is_told_and_repaired_as_one(sim: SimWorld) -> None:
    slow(sim, "host.connect", *BOTH).signal(signal.SIGKILL).end()
    whole = shown(sim)["job"]
    resume = f"tether job resume {whole}"
    drifts = json.loads(run(sim, "audit", "-f", "json").out)
    assert [(drift["kind"], drift["volume"]) for drift in drifts] == [
        ("interrupted-job", name) for name in ("2 volumes", "vol1", "vol2")
    ]
    for word in (whole, "vol1", "guest1"):
        said = json.loads(run(sim, "explain", word, "-f", "json").out)
        assert said["next"] == resume, word
    assert "vol2: cinder" in "\n".join(json.loads(run(sim, "explain", whole, "-f", "json").out)["volumes"])
    plan = json.loads(run(sim, "repair", "--plan", "-f", "json").out)
    assert [row["action"] for row in plan] == ["resume"]
    assert run(sim, "repair", "--apply").code == DONE
    assert disks(sim) == [VOL1, VOL2]
    assert run(sim, "audit").code == DONE


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("attach", "vol1", "vol2", "guest1"), USAGE, "attach --all vol1 vol2 guest1"),
        (("attach", "--all", "vol1", VOL1, "guest1"), USAGE, "named twice"),
        ((*BOTH, "--device", "vdc"), USAGE, "--device is for one volume"),
        ((*BOTH, "--format-luks"), USAGE, "--format-luks is for one volume"),
        ((*BOTH, "-c", "device"), USAGE, "there is no column device"),
        (("attach", "--all", "vol1", "nowhere", "guest1"), 6, "nowhere"),
        (("attach", "--all", "vol1", "vol2", "nobody"), 6, "nobody"),
        (("attach", "--all", "vol1", "shared1", "guest1", "--dialect", "legacy"), ROLLED_BACK, "multiattach"),
        (("detach", "--all", "vol1", "guest1"), USAGE, "--all"),
        (("plan", "attach", "--all", "vol1", "guest1"), USAGE, "--all"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    sim: SimWorld, fresh: dict[str, Any], words: tuple[str, ...], code: int, says: str
) -> None:
    done = run(sim, *words)
    assert done.code == code, done.err
    assert says in done.err
    assert sim.jobs() == []
    assert clean(fresh, sim)


def test_a_part_whose_whole_was_pruned_is_its_own(sim: SimWorld) -> None:
    slow(sim, "host.connect", *BOTH).signal(signal.SIGKILL).end()
    name = part(sim, "vol1")
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection, connection:
        connection.execute("DELETE FROM tether_jobs WHERE kind = 'attach-all'")
    assert run(sim, "job", "resume", name).code == DONE
    assert disks(sim) == [VOL1]
