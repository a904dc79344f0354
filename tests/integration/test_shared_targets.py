"""Volumes that share their targets: while one comes or goes on this host, no other does, whoever moves it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import DONE, ROLLED_BACK, SimWorld
from tests.integration.commands import Command, run, wait_until
from tests.integration.test_cli_running import slow
from tether.adapters.host.targets import TargetLock
from tether.sim.cinder.seed import SERVICE_UUID
from tether.sim.store import Store

ATTACH = ("attach", "vol1", "guest1")
DETACH = ("detach", "vol1", "guest1")
HELD = 5


def say(sim: SimWorld, **facts: Any) -> None:
    """Let Cinder say this of every volume."""
    with Store(sim.directory).change("cinder") as book:
        for volume in book["volumes"].values():
            volume.update(facts)


def impatient(sim: SimWorld, **options: str) -> str:
    """Return a configuration with which nothing is waited for."""
    path = sim.directory.parent / "impatient.conf"
    pace = sim._config.read_text().replace("[DEFAULT]\n", "[DEFAULT]\nwait = 0\n")
    path.write_text(pace + "".join(f"{name} = {value}\n" for name, value in options.items()))
    return str(path)


def lock(sim: SimWorld) -> TargetLock:
    return TargetLock(sim.directory / "locks", SERVICE_UUID)


def is_free(sim: SimWorld) -> bool:
    found = lock(sim)
    taken = found.take()
    found.release()
    return taken


@pytest.fixture
def shared(sim: SimWorld) -> SimWorld:
    """A world in which nobody knows whether the targets are shared: None, which always locks."""
    say(sim, shared_targets=None)
    return sim


@pytest.fixture
def nova(shared: SimWorld) -> Iterator[TargetLock]:
    """Another service of this host that has the lock."""
    found = lock(shared)
    assert found.take()
    yield found
    found.release()


def test_it_is_held_from_the_export_until_the_end(shared: SimWorld) -> None:
    assert is_free(shared)
    command = slow(shared, "cinder.create_attachment", *ATTACH)
    assert is_free(shared)
    shared.script("cinder.complete_attachment", "slow", seconds=1.0)
    command.reaches("cinder.complete_attachment")
    assert not is_free(shared)
    assert command.end().code == DONE
    assert is_free(shared)


def test_it_is_held_from_the_unplug_until_the_end(shared: SimWorld) -> None:
    assert run(shared, *ATTACH).code == DONE
    command = slow(shared, "guest.unplug_persistent", *DETACH)
    assert not is_free(shared)
    shared.script("cinder.delete_attachment", "slow", seconds=1.0)
    command.reaches("cinder.delete_attachment")
    assert not is_free(shared)
    assert command.end().code == DONE
    assert is_free(shared)


def test_an_attach_that_waits_in_vain_leaves_nothing(shared: SimWorld, nova: TargetLock) -> None:
    before = shared.books()
    done = shared.tether(*ATTACH, config=impatient(shared))
    assert done.code == HELD, done.err
    assert "shares its targets" in done.err
    assert str(nova.path) in done.err
    assert shared.jobs() == [("attach", "rolled-back")]
    assert judge.diff(before, shared.books()) == []


def test_a_detach_that_waits_in_vain_leaves_the_guest_alone(shared: SimWorld) -> None:
    assert run(shared, *ATTACH).code == DONE
    before = shared.books()
    nova = lock(shared)
    assert nova.take()
    assert shared.tether(*DETACH, config=impatient(shared)).code == HELD
    assert judge.diff(before, shared.books()) == []
    nova.release()
    assert run(shared, *DETACH).code == DONE


def test_an_attach_waits_for_its_turn(shared: SimWorld) -> None:
    first = slow(shared, "host.connect", *ATTACH, seconds=2.0)
    second = Command(shared, "attach", "vol2", "guest2")
    wait_until(lambda: len(shared.jobs()) == 2, "the second job")
    wait_until(lambda: shared.step_of("attach") != "", "a step of it")
    exports = Store(shared.directory).read("cinder")["exports"]
    assert len(exports) == 1
    assert first.end().code == DONE
    assert second.end().code == DONE


def test_what_a_kill_leaves_is_free_and_the_resume_takes_it(shared: SimWorld) -> None:
    command = slow(shared, "host.connect", *ATTACH)
    command.signal(signal.SIGKILL).end()
    assert is_free(shared)
    shared.script("host.connect", "slow", seconds=1.0)
    resume = Command(shared, "job", "resume", "--last").reaches("host.connect")
    assert not is_free(shared)
    assert resume.end().code == DONE


def test_several_jobs_of_one_runner_take_turns(shared: SimWorld) -> None:
    for number in "12":
        slow(shared, "host.connect", "attach", f"vol{number}", f"guest{number}").signal(signal.SIGKILL).end()
    done = run(shared, "job", "resume", "--all")
    assert done.code == DONE, done.err
    assert shared.jobs() == [("attach", "attached")] * 2


def test_an_undo_takes_it_too(shared: SimWorld) -> None:
    shared.script("host.connect", "fail")
    shared.script("cinder.delete_attachment", "slow", seconds=1.0)
    command = Command(shared, *ATTACH).reaches("cinder.delete_attachment")
    assert not is_free(shared)
    assert command.end().code == ROLLED_BACK
    assert is_free(shared)


@pytest.mark.parametrize(
    ("facts", "manual", "free"),
    [
        ({"shared_targets": None}, True, False),
        ({"shared_targets": None}, False, False),
        ({"shared_targets": True}, True, True),
        ({"shared_targets": True}, False, False),
        ({"shared_targets": False}, True, True),
        ({"shared_targets": False}, False, True),
        ({"shared_targets": None, "service_uuid": ""}, False, True),
    ],
)
def test_who_needs_it(sim: SimWorld, facts: dict[str, Any], manual: bool, free: bool) -> None:
    say(sim, **facts)
    with Store(sim.directory).change("host") as book:
        book["identity"]["manual_scan"] = manual
    command = slow(sim, "host.connect", *ATTACH)
    assert is_free(sim) is free
    assert command.end().code == DONE


def test_it_is_where_the_settings_say(shared: SimWorld, tmp_path: Path) -> None:
    assert shared.tether(*ATTACH, config=impatient(shared, lock_path=f"{tmp_path}/nova")).code == DONE
    assert [entry.name for entry in (tmp_path / "nova").iterdir()] == [f"os-brick-{SERVICE_UUID}"]
