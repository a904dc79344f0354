"""A failure scripted at each call in turn: the exit code, and the five books equal to those before.

Every cell names what it must end with; the legacy cells that must end *blocked* are listed in ``BLOCKS``.
"""

from __future__ import annotations

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, ROLLED_BACK, SimWorld

#: Calls with an effect, by dialect, in the order of the flow.
CALLS = {
    "attachments": (
        "cinder.create_attachment",
        "cinder.update_attachment",
        "host.connect",
        "guest.mark",
        "guest.plug_persistent",
        "guest.plug_live",
        "cinder.complete_attachment",
    ),
    "legacy": (
        "cinder.reserve",
        "cinder.initialize_connection",
        "host.connect",
        "guest.mark",
        "guest.plug_persistent",
        "guest.plug_live",
        "cinder.attach",
    ),
}
#: Seconds until a late call is carried out: less than the settle time of the embedded world's pace.
LATE = {"cinder": 0.2, "host": 0.05, "guest": 0.05}
ACTIONS = ("fail", "timeout", "lost-reply", "late")
#: May be called again after an uncertain answer, so that one such answer only costs time.
REPEATED = {
    "cinder.update_attachment",
    "cinder.initialize_connection",
    "host.connect",
    "guest.mark",
    "guest.plug_persistent",
    "guest.plug_live",
    "cinder.complete_attachment",
    "cinder.attach",
}
#: Past the pivot: a refusal is tried again, then blocks; it never undoes.
FORWARD = {"cinder.complete_attachment", "cinder.attach"}
#: The legacy dialect's reserve has no owner: what may have happened cannot be told from a stranger's.
BLOCKS = {("legacy", "cinder.reserve", "lost-reply"), ("legacy", "cinder.reserve", "late")}


def expected(dialect: str, call: str, action: str) -> int:
    if (dialect, call, action) in BLOCKS:
        return BLOCKED
    if action == "fail":
        return DONE if call in FORWARD else ROLLED_BACK
    if call in REPEATED or action in {"lost-reply", "late"}:
        return DONE
    return ROLLED_BACK


CELLS = [(dialect, call, action) for dialect, calls in CALLS.items() for call in calls for action in ACTIONS]


@pytest.mark.parametrize(("dialect", "call", "action"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_a_failing_attach(sim: SimWorld, dialect: str, call: str, action: str) -> None:
    before = sim.books()
    sim.script(call, action, seconds=LATE[call.partition(".")[0]])
    done = sim.tether("attach", "vol1", "guest1", "--dialect", dialect)
    assert done.code == expected(dialect, call, action), done.err
    if done.code == BLOCKED:
        assert "next: " in done.err
        assert "tether job resume" in done.err
    elif done.code == ROLLED_BACK:
        assert without_residue(dialect, judge.diff(before, sim.books())) == []
        assert done.err.splitlines()[-1].startswith("next: ")
    if done.code == DONE:
        assert sim.jobs()[0] == ("attach", "attached")
        assert sim.tether("detach", "vol1", "guest1").code == DONE
        assert judge.diff(before, sim.books()) == []


#: Calls that only some attaches make: the volume, the data path, the call, and its undo.
SPECIAL = {
    "chap": ("vol1", "network", "guest.define_secret", "guest.undefine_secret"),
    "luks-by-qemu": ("secret1", "network", "guest.define_secret", "guest.undefine_secret"),
    "dm-crypt": ("secret1", "host", "host.open_encryption", "host.close_encryption"),
    "keys": ("secret1", "host", "cinder.show_encryption", ""),
    "verify": ("vol1", "host", "host.find", ""),
}


@pytest.mark.parametrize("dialect", CALLS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("case", SPECIAL)
def test_a_failing_attach_of_a_special_volume(sim: SimWorld, case: str, action: str, dialect: str) -> None:
    volume, path, call, _undo = SPECIAL[case]
    world = SimWorld(sim.directory, path)
    before = world.books()
    world.script(call, action, seconds=LATE[call.partition(".")[0]])
    done = world.tether("attach", volume, "guest1", "--dialect", dialect)
    if action == "fail" or call == "host.find":  # a look that shows nothing proves nothing: the device is not used
        assert done.code == ROLLED_BACK, done.err
        assert without_residue(dialect, judge.diff(before, world.books())) == []
        assert done.err.splitlines()[-1].startswith("next: ")
        return
    assert done.code == DONE, done.err
    assert world.tether("detach", volume, "guest1").code == DONE
    assert judge.diff(before, world.books()) == []


@pytest.mark.parametrize("dialect", CALLS)
@pytest.mark.parametrize("case", [name for name, (*_call, undo) in SPECIAL.items() if undo])
def test_an_undo_of_a_special_volume_that_keeps_failing_blocks(sim: SimWorld, case: str, dialect: str) -> None:
    volume, path, _call, undo = SPECIAL[case]
    world = SimWorld(sim.directory, path)
    before = world.books()
    world.script("guest.plug_live", "fail")
    world.script(undo, "fail", times=-1)
    done = world.tether("attach", volume, "guest1", "--dialect", dialect)
    assert done.code == BLOCKED, done.err
    assert world.books()["cinder"][volume]["status"] != "available"
    world.forgive()
    assert world.tether("job", "resume", "--last").code == ROLLED_BACK
    assert without_residue(dialect, judge.diff(before, world.books())) == []


@pytest.mark.parametrize(
    ("dialect", "call"), [("attachments", "cinder.complete_attachment"), ("legacy", "cinder.attach")]
)
def test_past_the_pivot_a_lasting_refusal_blocks(sim: SimWorld, dialect: str, call: str) -> None:
    before = sim.books()
    sim.script(call, "fail", times=-1)
    done = sim.tether("attach", "vol1", "guest1", "--dialect", dialect)
    assert done.code == BLOCKED, done.err
    assert sim.books()["guests"] != before["guests"]  # the disk is not pulled
    sim.forgive()
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert judge.diff(before, sim.books()) == []


#: Calls of the undo of an attach that failed at the guest, by dialect.
UNDONE = {
    "attachments": ("cinder.delete_attachment", "host.disconnect", "guest.unplug_persistent", "guest.unmark"),
    "legacy": ("cinder.terminate_connection", "host.disconnect", "guest.unplug_persistent", "guest.unmark"),
}


@pytest.mark.parametrize(("dialect", "call"), [(dialect, call) for dialect, calls in UNDONE.items() for call in calls])
def test_an_undo_that_keeps_failing_blocks_and_is_taken_up_again(sim: SimWorld, dialect: str, call: str) -> None:
    before = sim.books()
    sim.script("guest.plug_live", "fail")
    sim.script(call, "fail", times=-1)
    done = sim.tether("attach", "vol1", "guest1", "--dialect", dialect)
    assert done.code == BLOCKED, done.err
    assert "tether job resume" in done.err
    assert "because: libvirt refused plug_live (scripted) (at plug-live)" in done.err
    held = sim.books()
    assert held["cinder"]["vol1"]["status"] != "available"  # nothing below the failed undo was undone
    assert held["ledger"]["mappings"]
    if call.startswith("guest."):
        assert held["host"]["links"]
    sim.forgive()
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert sim.jobs()[0] == ("attach", "rolled-back")
    assert without_residue(dialect, judge.diff(before, sim.books())) == []


def without_residue(dialect: str, lines: list[str]) -> list[str]:
    """Leave out what the legacy dialect leaves behind: the backend's export."""
    return [line for line in lines if dialect != "legacy" or not line.endswith("False -> True")]


#: Calls of a detach, by dialect; those before the guest has let go undo the detach if they are refused.
DETACHED = {
    "attachments": (
        "cinder.begin_detaching",
        "guest.unplug_persistent",
        "guest.unplug_live",
        "guest.unmark",
        "host.disconnect",
        "cinder.delete_attachment",
    ),
    "legacy": (
        "cinder.begin_detaching",
        "guest.unplug_persistent",
        "guest.unplug_live",
        "guest.unmark",
        "host.disconnect",
        "cinder.terminate_connection",
        "cinder.detach",
    ),
}
#: A call whose refusal puts everything back.
REVERSIBLE = {"cinder.begin_detaching", "guest.unplug_persistent", "guest.unplug_live", "guest.unmark"}
DETACH_CELLS = [(dialect, call, action) for dialect, calls in DETACHED.items() for call in calls for action in ACTIONS]


@pytest.mark.parametrize(("dialect", "call", "action"), DETACH_CELLS, ids=["-".join(cell) for cell in DETACH_CELLS])
def test_a_failing_detach(sim: SimWorld, dialect: str, call: str, action: str) -> None:
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1", "--dialect", dialect).code == DONE
    attached = sim.books()
    sim.script(call, action, seconds=LATE[call.partition(".")[0]])
    done = sim.tether("detach", "vol1", "guest1")
    if action == "fail" and call in REVERSIBLE:
        assert done.code == ROLLED_BACK, done.err
        assert judge.diff(attached, sim.books()) == []
        done = sim.tether("detach", "vol1", "guest1")
    while done.code in {ROLLED_BACK, BLOCKED} and action != "fail":
        # An unplug without an answer leaves the guest's word open: nothing else is touched until it is known.
        assert call in REVERSIBLE, done.err
        if done.code == ROLLED_BACK:
            assert judge.diff(attached, sim.books()) == []
            done = sim.tether("detach", "vol1", "guest1")
        else:
            done = sim.tether("job", "resume", "--last")
    assert done.code == DONE, done.err
    assert judge.diff(before, sim.books()) == []


def test_a_guest_that_refuses_keeps_its_disk(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    attached = sim.books()
    sim.script("guest.unplug_live", "refuse", times=-1)
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == ROLLED_BACK, done.err
    assert judge.diff(attached, sim.books()) == []


def test_a_guest_that_does_not_answer_blocks_the_detach(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    attached = sim.books()
    sim.script("guest.unplug_live", "ignore", times=-1)
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == BLOCKED
    assert "waiting for the guest" in done.err
    held = sim.books()
    assert held["host"] == attached["host"]
    assert held["cinder"]["vol1"]["attachments"] == attached["cinder"]["vol1"]["attachments"]
    sim.forgive()
    assert sim.tether("job", "resume", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_pending_unplug_is_aborted_and_remembered(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    attached = sim.books()
    sim.script("guest.unplug_live", "ignore", times=-1)
    assert sim.tether("detach", "vol1", "guest1").code == BLOCKED
    assert sim.tether("job", "abort", "--last").code == DONE
    books = sim.books()
    assert books["ledger"]["mappings"][0][-1] == 1  # pending_unplug
    assert books["cinder"] == attached["cinder"]
    for scope in ("live", "persistent"):
        name = next(iter(attached["guests"]))
        assert books["guests"][name][scope] == attached["guests"][name][scope]


@pytest.mark.parametrize(
    ("dialect", "call"),
    [("attachments", "cinder.update_attachment"), ("legacy", "cinder.initialize_connection")],
)
def test_a_backend_that_fails_and_says_so_is_rolled_back_at_once(sim: SimWorld, dialect: str, call: str) -> None:
    before = sim.books()
    sim.script(call, "fail", times=-1, status=500)
    done = sim.tether("attach", "vol1", "guest1", "--dialect", dialect)
    assert done.code == ROLLED_BACK, done.err
    assert "cinder-volume's log" in done.err
    assert judge.diff(before, sim.books()) == []
