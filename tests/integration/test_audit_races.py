"""What happens while the books are read: a job, from its beginning to its end, or a call of somebody else's."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.crash.world import DONE, KILLED, SimWorld
from tests.integration import drifts
from tether.audit.kinds import judge
from tether.audit.survey import read_survey
from tether.runner.world import open_world
from tether.settings import Settings
from tether.sim.world import fit
from tether.tasks.run import Toolbox


class Meanwhile:
    """An adapter, before one of whose calls something else happens."""

    def __init__(self, adapter: Any, call: str, happens: Callable[[], object]) -> None:
        self._adapter, self._call, self._happens = adapter, call, happens

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            self._happens()
        return getattr(self._adapter, name)


@pytest.fixture
def tools(sim: SimWorld) -> Iterator[Toolbox]:
    with open_world(fit(Settings(), sim.directory), sim=sim.directory) as world:
        yield world.tools


BEGUN = {
    "attach": ([], ["attach", "vol1", "guest1"]),
    "detach": ([["attach", "vol1", "guest1"]], ["detach", "vol1", "guest1"]),
    "resume": ([["--fault", "plug-live.act.before=kill", "attach", "vol1", "guest1"]], ["job", "resume", "--last"]),
    "abort": ([["--fault", "plug-live.act.before=kill", "attach", "vol1", "guest1"]], ["job", "abort", "--last"]),
}


@pytest.mark.parametrize("what", BEGUN)
@pytest.mark.parametrize("call", ["guest.survey", "host.survey", "cinder.list_volumes"])
def test_a_job_that_ends_while_the_books_are_read(sim: SimWorld, tools: Toolbox, call: str, what: str) -> None:
    before, words = BEGUN[what]
    for each in before:
        assert sim.tether(*each).code in {DONE, KILLED}

    def happens() -> None:
        done = sim.tether(*words)
        assert done.code == DONE, done.err

    book, _, verb = call.partition(".")
    survey = read_survey(replace(tools, **{book: Meanwhile(getattr(tools, book), verb, happens)}))
    assert judge(survey) == []
    assert survey.is_busy(drifts.VOL1)
    again = read_survey(tools)
    assert (judge(again), again.is_busy(drifts.VOL1)) == ([], False)


def test_what_cinder_changes_while_it_is_read_is_in_motion(sim: SimWorld, tools: Toolbox) -> None:
    def happens() -> None:
        tools.cinder.create_attachment(drifts.VOL1, owner=str(uuid.uuid4()), mode="rw")

    survey = read_survey(replace(tools, cinder=Meanwhile(tools.cinder, "list_volumes", happens)))  # type: ignore[arg-type]
    assert judge(survey) == []
    assert survey.is_busy(drifts.VOL1)
    assert [str(item.kind) for item in judge(read_survey(tools))] == ["reserved-without-job"]
