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
#: Past the pivot: a refusal blocks, it never undoes.
FORWARD = {"cinder.complete_attachment", "cinder.attach"}
#: The legacy dialect's reserve has no owner: what may have happened cannot be told from a stranger's.
BLOCKS = {("legacy", "cinder.reserve", "lost-reply"), ("legacy", "cinder.reserve", "late")}


def expected(dialect: str, call: str, action: str) -> int:
    if (dialect, call, action) in BLOCKS:
        return BLOCKED
    if action == "fail":
        return BLOCKED if call in FORWARD else ROLLED_BACK
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
        if call in FORWARD:
            assert sim.tether("job", "resume", "--last").code == DONE
    elif done.code == ROLLED_BACK:
        without_legacy_residue = judge.diff(before, sim.books())
        if dialect == "legacy":
            without_legacy_residue = [line for line in without_legacy_residue if not line.endswith("False -> True")]
        assert without_legacy_residue == []
        assert done.err.splitlines()[-1].startswith("next: ")
    if done.code == DONE or call in FORWARD:
        assert sim.jobs()[0] == ("attach", "attached")
        assert sim.tether("detach", "vol1", "guest1").code == DONE
        assert judge.diff(before, sim.books()) == []
