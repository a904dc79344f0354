"""Cinder cannot terminate what its backend has lost: it is exported once more, and then deleted."""

from __future__ import annotations

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tether.sim.cinder.seed import SEEDED as VOLUMES
from tether.sim.store import Store

#: Where the storage's host is started anew -> how the job ends then.
CASES = {
    "attach": ("connect-host.act.before", ROLLED_BACK),
    "detach": ("release-attachment.act.before", DONE),
}


def restart_storage(sim: SimWorld) -> None:
    """Lose the export, as LIO does with the targets of volumes that are on their way."""
    with Store(sim.directory).change("cinder") as book:
        volume_id = VOLUMES["vol1"][0]
        book["exports"].pop(volume_id)
        book["volumes"][volume_id]["needs_export"] = True


@pytest.mark.parametrize("kind", CASES)
def test_a_job_ends_although_its_export_is_lost(sim: SimWorld, kind: str) -> None:
    point, code = CASES[kind]
    before = sim.books()
    if kind == "detach":
        assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", f"{point}=kill", kind, "vol1", "guest1").code == KILLED
    restart_storage(sim)
    done = sim.tether("job", "resume", "--last")
    assert done.code == code, done.err
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("kind", CASES)
def test_it_is_blocked_where_cinder_does_not_answer_to_that_either(sim: SimWorld, kind: str) -> None:
    point, code = CASES[kind]
    if kind == "detach":
        assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", f"{point}=kill", kind, "vol1", "guest1").code == KILLED
    restart_storage(sim)
    sim.script("cinder.update_attachment", "fail", times=-1, status=500)
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    sim.forgive()
    done = sim.tether("job", "resume", "--last")
    assert done.code == code, done.err


def test_an_attach_whose_exports_have_no_answer_does_not_export_once_more_to_undo_it(sim: SimWorld) -> None:
    before = sim.books()
    sim.script("cinder.update_attachment", "lost-reply", times=-1)
    done = sim.tether("attach", "vol1", "guest1")
    assert done.code == ROLLED_BACK, done.err
    assert judge.diff(before, sim.books()) == []


def test_a_deletion_is_tried_again_also_if_the_export_before_it_had_no_answer(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1").code == KILLED
    sim.script("cinder.update_attachment", "lost-reply", times=-1)
    sim.script("cinder.delete_attachment", "fail", status=500)
    done = sim.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    assert judge.diff(before, sim.books()) == []
