"""What others do between a crash and the resume: each check of a step that only such a change can fail."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.outsider import Outsider
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tether.matrix import wrecks

VOL1 = "11111111-1111-4111-8111-111111111111"
GUEST1 = "9e570000-0000-4000-8000-000000000001"
LIVE = Path("guests") / GUEST1 / "live.xml"


def with_its_disk(sim: SimWorld, data_path: str) -> str:
    """Return guest1's live definition as a snapshot of it keeps it while vol1 is attached."""
    copy = sim.directory.parent / "copy"
    shutil.copytree(sim.directory, copy)
    assert SimWorld(copy, data_path).tether("attach", "vol1", "guest1").code == DONE
    return (copy / LIVE).read_text()


@contextmanager
def put_back(sim: SimWorld, disk: str) -> Iterator[None]:
    """Put guest1 back to a live definition, for a while."""
    live = sim.directory / LIVE
    now = live.read_text()
    live.write_text(disk)
    yield
    live.write_text(now)


def known_pending(sim: SimWorld) -> dict[str, Any]:
    """Return the books without the note that an unplug was asked for: it is kept, since the guest may yet answer."""
    books = sim.books()
    books["ledger"]["mappings"] = [(*row[:-1], 0) for row in books["ledger"]["mappings"]]
    return books


def test_an_attach_that_is_refused_for_good_ends(sim: SimWorld, tmp_path: Path) -> None:
    """Cinder refuses a multiattach volume while a stranger attaches it: waited for, but not for ever."""
    config = tmp_path / "tether.conf"
    config.write_text("[DEFAULT]\nstep_retry_time = 0.3\nretry_interval = 0.05\n")
    Outsider(sim.directory).reserve("shared1")
    before = sim.books()
    command = sim.start("attach", "shared1", "guest1", config=str(config))
    deadline = time.monotonic() + 20
    while not (ended := os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        if time.monotonic() > deadline:
            os.kill(command.pid, signal.SIGKILL)
        time.sleep(0.05)
    assert ended.si_status == ROLLED_BACK
    assert command.wait().code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("data_path", ["host", "network"])
def test_an_export_is_not_dropped_under_a_disk_that_came_back(sim: SimWorld, data_path: str) -> None:
    """The guest is put back, disk and all, while an attach is undone."""
    world, before, disk = SimWorld(sim.directory, data_path), sim.books(), with_its_disk(sim, data_path)
    faults = ("--fault", "plug-live.act.before=fail", "--fault", "export-volume.undo.before=kill")
    assert world.tether(*faults, "attach", "vol1", "guest1").code == KILLED
    with put_back(sim, disk):
        between = sim.books()
        assert world.tether("job", "resume", "--last").code == BLOCKED
        assert sim.books()["cinder"] == between["cinder"]
    assert world.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


def test_an_attachment_is_not_deleted_under_a_disk_that_came_back(sim: SimWorld) -> None:
    before, disk = sim.books(), with_its_disk(sim, "host")
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", "release-attachment.act.before=kill", "detach", "vol1", "guest1").code == KILLED
    with put_back(sim, disk):
        between = sim.books()
        assert sim.tether("job", "resume", "--last").code == BLOCKED
        assert sim.books()["cinder"] == between["cinder"]
    assert sim.tether("job", "resume", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_strangers_detaching_is_not_rolled_back(sim: SimWorld) -> None:
    """In the legacy dialect nothing but our own recorded answer shows that the status is ours."""
    assert sim.tether("attach", "vol1", "guest1", "--dialect", "legacy").code == DONE
    assert sim.tether("--fault", "begin-detaching.act.before=kill", "detach", "vol1", "guest1").code == KILLED
    wrecks.detaching(sim.directory, VOL1)
    done = sim.tether("job", "abort", "--last")
    assert done.code == BLOCKED
    assert "cannot be known" in done.err
    assert sim.books()["cinder"]["vol1"]["status"] == "detaching"


def test_a_guest_that_was_paused_meanwhile_is_not_asked(sim: SimWorld) -> None:
    """It could not answer, and would let the disk go as soon as it runs on, after the detach was undone."""
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    before = sim.books()
    assert sim.tether("--fault", "unplug-live.act.before=kill", "detach", "vol1", "guest1").code == KILLED
    outsider = Outsider(sim.directory)
    outsider.pause("guest1")
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    outsider.unpause("guest1")
    assert judge.diff(before, known_pending(sim)) == []


def test_a_disk_is_not_given_up_to_an_image_that_lacks_it(sim: SimWorld) -> None:
    """The guest is saved without the disk that an undone detach has to put back."""
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    before = sim.books()
    faults = ("--fault", "unplug-live.act.after=fail", "--fault", "unplug-live.undo.before=kill")
    assert sim.tether(*faults, "detach", "vol1", "guest1").code == KILLED
    outsider = Outsider(sim.directory)
    outsider.save("guest1")
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert "managed-save" in done.err
    outsider.start("guest1")
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, known_pending(sim)) == []


def test_a_disk_that_left_meanwhile_is_not_adopted(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    wrecks.by_hand(sim.directory, VOL1)
    assert sim.tether("job", "list").code == DONE
    assert sim.tether("--fault", "adopt-disk.act.before=kill", "adopt", "vol1", "guest1").code == KILLED
    Outsider(sim.directory).attach_disk("guest1", "vdc", "0x09")
    wrecks.live_only(sim.directory, VOL1)
    wrecks.persistent_only(sim.directory, VOL1)
    done = sim.tether("job", "resume", "--last")
    assert done.code == ROLLED_BACK, done.err
    assert "has left the" in done.err
    assert sim.books()["ledger"]["mappings"] == []


@pytest.mark.parametrize("point", ["clear-secret.act.before", "clear-host.act.before", "clear-rows.act.before"])
@pytest.mark.parametrize("data_path", ["host", "network"])
def test_what_is_used_again_meanwhile_is_not_cleared(sim: SimWorld, point: str, data_path: str) -> None:
    world, disk = SimWorld(sim.directory, data_path), with_its_disk(sim, data_path)
    assert world.tether("attach", "vol1", "guest1").code == DONE
    wrecks.stray(sim.directory, VOL1)
    words = ("--fault", f"{point}=kill", "repair", "--apply", "--volume", "vol1")
    assert world.tether(*words).code == KILLED
    with put_back(sim, disk):
        between = sim.books()
        done = world.tether("job", "resume", "--last")
        assert done.code == BLOCKED, done.err
        assert [line for line in judge.diff(between, sim.books()) if not line.startswith("/ledger/leases")] == []
    assert world.tether("job", "resume", "--last").code == DONE
    assert sim.books()["cinder"]["vol1"]["status"] == "available"
