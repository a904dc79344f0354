"""SIGKILL at every fault point of every repair's flow, then one ``job resume`` or ``job abort``, then an audit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, SimWorld
from tests.integration import drifts
from tests.integration.drifts import Expected
from tether.flows import detach, repair
from tether.persistence.ledger import Params
from tether.tasks.step import Step


def missing_device(sim: SimWorld) -> Expected:
    """After a reboot of the host: the server is shut off, and its device is gone."""
    return _missing(sim, drifts.VOL1)


def missing_encrypted(sim: SimWorld) -> Expected:
    return _missing(sim, "55555555-5555-4555-8555-555555555555")


def _missing(sim: SimWorld, volume: str) -> Expected:
    assert sim.tether("attach", volume, "stopped1").code == DONE
    drifts.disconnect(sim, volume)
    return Expected(drifts.Kind.MISSING_DEVICE, volume, "stopped1")


def detaching(sim: SimWorld) -> Expected:
    volume = drifts.attached(sim, "detaching")
    with drifts.book(sim, "cinder") as cinder:
        cinder["volumes"][volume]["status"] = "detaching"
    return Expected(drifts.Kind.CINDER_CONTRADICTION, volume)


def stray(sim: SimWorld) -> Expected:
    """An attachment of a job that has ended, with its device: the mapping went by a hand in the database."""
    volume = drifts.attached(sim, "stray")
    drifts.remove_disk(sim, volume, "guest1")
    drifts.execute(sim, "DELETE FROM tether_mappings WHERE volume_id = ?", volume)
    drifts.execute(sim, "DELETE FROM tether_secrets WHERE name = 'connection'")
    return Expected(drifts.Kind.UNUSED_DEVICE, volume)


#: kind, drift, steps, and whether the job can be turned back at all.
CASES: dict[str, tuple[Callable[[SimWorld], Expected], list[type[Step]], bool]] = {
    "connect": (missing_device, repair.connect_steps(Params()), True),
    "connect-encrypted": (missing_encrypted, repair.connect_steps(Params(encrypted=True)), True),
    "connect-network": (drifts.stale_connection, repair.connect_steps(Params(data_path="network")), True),
    "reserve": (drifts.disk_without_attachment, repair.reserve_steps(Params()), True),
    "attach": (drifts.disk_without_attachment, repair.attach_steps(Params()), False),
    "attach-network": (drifts.disk_without_attachment, repair.attach_steps(Params(data_path="network")), False),
    "define-persistent": (drifts.live_only_disk, repair.define_steps(Params()), True),
    "define-live": (drifts.persistent_only_disk, repair.define_steps(Params()), True),
    "complete": (detaching, repair.complete_steps(Params()), True),
    "release": (drifts.attachment_without_disk, detach.release_steps(Params()), False),
    "clean": (stray, repair.clean_steps(Params()), False),
}
POINTS = [
    (case, f"{prefix}{step.code.partition('/')[0]}.{{}}.{moment}", step)
    for case, (_drift, steps, _back) in CASES.items()
    for step in steps
    if step.book
    for prefix in ("commit.", "")
    for moment in ("before", "after")
]


def world(sim: SimWorld, case: str) -> tuple[SimWorld, str]:
    """Put the case's drift into the world; return the world with its data path, and the volume."""
    sim = SimWorld(sim.directory, "network" if case.endswith("-network") else "host")
    return sim, CASES[case][0](sim).volume_id


def audit(sim: SimWorld) -> list[dict[str, Any]]:
    return list(json.loads(sim.tether("audit", "-f", "json").out or "[]"))


def orphans(sim: SimWorld) -> list[Any]:
    """Return sealed connections that no mapping has."""
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        return connection.execute(
            "SELECT job_id FROM tether_secrets WHERE name = 'connection'"
            " AND job_id NOT IN (SELECT job_id FROM tether_mappings)"
        ).fetchall()


def killed(sim: SimWorld, volume: str, point: str) -> None:
    done = sim.tether("--fault", f"{point}=kill", "repair", "--apply", "--volume", volume)
    assert done.code == KILLED, done.err


@pytest.mark.parametrize(("case", "point"), [(case, point.format("act")) for case, point, _step in POINTS])
def test_a_repair_killed_and_resumed(sim: SimWorld, case: str, point: str) -> None:
    sim, volume = world(sim, case)
    killed(sim, volume, point)
    done = sim.tether("job", "resume", "--last")
    assert done.code == DONE, done.err
    assert audit(sim) == []
    assert orphans(sim) == []
    if sim.books()["ledger"]["mappings"]:
        ((volume, server, *_rest),) = sim.books()["ledger"]["mappings"]
        done = sim.tether("detach", volume, server)
        assert done.code == DONE, done.err
        assert audit(sim) == []
        assert not sim.books()["host"]["devices"]


BACK = [(case, point.format("act")) for case, point, step in POINTS if CASES[case][2] and not step.forward_only]


@pytest.mark.parametrize(("case", "point"), BACK)
def test_a_repair_killed_and_aborted(sim: SimWorld, case: str, point: str) -> None:
    sim, volume = world(sim, case)
    before, found = sim.books(), [row["kind"] for row in audit(sim)]
    killed(sim, volume, point)
    done = sim.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    assert judge.diff(before, sim.books()) == []
    assert [row["kind"] for row in audit(sim)] == found
    assert orphans(sim) == []
    assert sim.tether("repair", "--apply").code == DONE


def test_a_device_that_a_guest_may_have_opened_is_not_taken_back(sim: SimWorld) -> None:
    """A running guest has the disk: an abort leaves the connection, and says so."""
    volume = drifts.missing_device(sim).volume_id
    killed(sim, volume, "reconnect-host.act.after")
    done = sim.tether("job", "abort", "--last")
    assert done.code == BLOCKED, done.err
    assert "is open" in done.err
    assert volume in sim.books()["host"]["links"]


@pytest.mark.parametrize("point", ["reexport-volume.act.before", "complete-attachment.act.before"])
def test_past_its_pivot_a_repair_only_goes_forward(sim: SimWorld, point: str) -> None:
    volume = drifts.disk_without_attachment(sim).volume_id
    killed(sim, volume, point)
    done = sim.tether("job", "abort", "--last")
    assert done.code == 2, done.err
    assert "past its pivot" in done.err
    assert sim.tether("job", "resume", "--last").code == DONE
    assert audit(sim) == []


def test_a_kill_is_taken_up_by_the_next_repair(sim: SimWorld) -> None:
    sim, volume = world(sim, "connect")
    killed(sim, volume, "reconnect-host.act.after")
    done = sim.tether("repair", "--apply", "-f", "json")
    assert done.code == DONE, done.err
    assert [row["action"] for row in json.loads(done.out)] == ["resume"]
