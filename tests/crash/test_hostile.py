"""Sequences of crashes, late calls and foreign changes that once broke the guarantee."""

from __future__ import annotations

import pytest

from tests.crash import judge
from tests.crash.world import DONE, KILLED, ROLLED_BACK, SimWorld


@pytest.mark.parametrize(
    "point",
    [
        "connect-host.act.before",
        "plug-persistent.act.after",
        "reserve-volume.act.after",
        "complete-attachment.act.after",
    ],
)
def test_an_abort_goes_backward(sim: SimWorld, point: str) -> None:
    before = sim.books()
    assert sim.tether("--fault", f"{point}=kill", "attach", "vol1", "guest1").code == KILLED
    done = sim.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    assert sim.jobs()[0] == ("attach", "rolled-back")
    assert judge.diff(before, sim.books()) == []


def test_an_abort_that_is_killed_goes_on_backward(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("--fault", "plug-persistent.act.after=kill", "attach", "vol1", "guest1").code == KILLED
    assert sim.tether("--fault", "connect-host.undo.before=kill", "job", "abort", "--last").code == KILLED
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_database_that_does_not_answer_at_an_intent_leaves_the_job_to_resume(sim: SimWorld, moment: str) -> None:
    done = sim.tether("--fault", f"commit.connect-host.act.{moment}=uncertain", "attach", "vol1", "guest1")
    assert done.code == 1, done.err
    assert "next: tether job resume" in done.err
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.jobs()[0] == ("attach", "attached")
