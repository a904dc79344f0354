"""TaskFlow's traps: what its engine would do wrong, and what a job does instead."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from taskflow import states
from taskflow.patterns import graph_flow

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, Outcome, SimWorld
from tests.integration.books import a_job
from tether.errors import FinalError, Interrupted
from tether.flows.registry import Part
from tether.persistence.ledger import Job
from tether.persistence.params import Params
from tether.runner.jobs import Runner
from tether.runner.world import World, open_world
from tether.settings import Settings
from tether.sim.world import fit
from tether.tasks.run import Run
from tether.tasks.step import Step


def ask(sim: SimWorld, statement: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def step_states(sim: SimWorld) -> dict[str, str]:
    documents = [json.loads(text) for (text,) in ask(sim, "SELECT steps FROM tether_flows")]
    return {step["name"].partition("/")[0]: step["state"] for document in documents for step in document}


def attach(sim: SimWorld, *faults: str) -> Outcome:
    return sim.tether(*(word for fault in faults for word in ("--fault", fault)), "attach", "vol1", "guest1")


@pytest.fixture
def hasty(sim: SimWorld) -> SimWorld:
    """A world in which an undo is not insisted on for long."""
    text = sim._config.read_text()
    sim._config.write_text(text.replace("[DEFAULT]", "[DEFAULT]\nstep_retry_time = 0.3"))
    return sim


# -- an undo that fails --------------------------------------------------------------------------------------

ORDER = ["create-mapping", "reserve-volume", "export-volume", "connect-host", "define-secret", "plug-persistent"]


@pytest.mark.parametrize("step", ORDER)
@pytest.mark.parametrize("action", ["fail*9999", "uncertain*9999"])
def test_an_undo_that_fails_blocks_the_job_and_touches_nothing_before_it(sim: SimWorld, step: str, action: str) -> None:
    before = sim.books()
    done = attach(sim, "plug-live.act.before=fail", f"{step}.undo.before={action}")
    assert done.code == BLOCKED, done.err
    assert "is blocked" in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert sim.jobs() == [("attach", "blocked")]
    now = step_states(sim)
    assert states.REVERT_FAILURE not in now.values(), "after which a second run would report a false reverted"
    assert now[step] == states.REVERTING
    assert {name: now[name] for name in ORDER[: ORDER.index(step)]} == dict.fromkeys(
        ORDER[: ORDER.index(step)], states.SUCCESS
    )
    assert ask(sim, "SELECT state FROM tether_flows") != [(states.REVERTED,)]
    held = sim.tether("job", "show", "--last", "-f", "json")
    assert json.loads(held.out)["step"].startswith(step)

    resumed = sim.tether("job", "resume", "--last")
    assert resumed.code == ROLLED_BACK, resumed.err
    assert sim.jobs() == [("attach", "rolled-back")]
    assert judge.diff(before, sim.books()) == []
    assert "plug-live.act.before" in resumed.err, "the reason is the first failure, not the undo's"


def test_an_undo_that_goes_on_failing_stays_blocked(hasty: SimWorld) -> None:
    sim = hasty
    before = sim.books()
    assert attach(sim, "plug-live.act.before=fail", "connect-host.undo.before=fail*9999").code == BLOCKED
    held = sim.books()
    for _ in range(2):
        again = sim.tether("--fault", "connect-host.undo.before=fail*9999", "job", "resume", "--last")
        assert again.code == BLOCKED, again.err
        assert judge.diff(held, sim.books()) == []
    assert attach(sim).code == 5, "a blocked job keeps its volume"
    assert sim.tether("job", "abort", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


# -- a reverted flow that would run again --------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verb", ["resume", "abort"])
def test_a_flow_that_was_rolled_back_is_not_run_again(sim: SimWorld, moment: str, verb: str) -> None:
    """Killed between the last undo and the job's own row."""
    before = sim.books()
    killed = attach(sim, "plug-live.act.before=fail", f"commit.job.end.{moment}=kill")
    assert killed.code == KILLED
    assert judge.diff(before["cinder"], sim.books()["cinder"]) == []
    stored = ask(sim, "SELECT j.state, f.state FROM tether_jobs j JOIN tether_flows f ON f.job_id = j.id")
    assert stored == ([("running", states.RUNNING)] if moment == "before" else [("rolled-back", states.REVERTED)])
    made = _attachments_ever(sim)
    done = sim.tether("job", verb, "--last")
    assert done.code == (ROLLED_BACK if verb == "resume" else DONE), done.err
    assert sim.jobs() == [("attach", "rolled-back")]
    assert _attachments_ever(sim) == made, "a step was run forward again"
    assert set(step_states(sim).values()) <= {states.REVERTED, states.PENDING}
    assert judge.diff(before, sim.books()) == []


def _attachments_ever(sim: SimWorld) -> set[str]:
    return set(json.loads((sim.directory / "cinder.json").read_text())["attachments"])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_flow_that_had_ended_well_is_not_run_again(sim: SimWorld, moment: str) -> None:
    assert attach(sim, f"commit.job.end.{moment}=kill").code == KILLED
    held, made = sim.books(), _attachments_ever(sim)
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.jobs() == [("attach", "attached")]
    assert judge.diff({**held, "ledger": 0}, {**sim.books(), "ledger": 0}) == []
    assert _attachments_ever(sim) == made


def test_a_first_flow_that_was_rolled_back_keeps_the_second_from_running(sim: SimWorld) -> None:
    """A detach is two flows: what TaskFlow calls reverted must not be followed by the release."""
    assert attach(sim).code == DONE
    before = sim.books()
    words = ("--fault", "unplug-live.act.before=fail", "--fault", "commit.job.end.before=kill")
    assert sim.tether(*words, "detach", "vol1", "guest1").code == KILLED
    done = sim.tether("job", "resume", "--last")
    assert done.code == ROLLED_BACK, done.err
    assert ask(sim, "SELECT name FROM tether_flows WHERE name LIKE 'detach%'") == [("detach-guest",)]
    assert judge.diff(before, sim.books()) == []


# -- steps of our own, in this process -----------------------------------------------------------------------


class Own(Step):
    """A step of a test; ``did`` keeps what was called."""

    book = "cinder"
    did: list[str]

    def act(self) -> Any:
        self.did.append(f"{self.label} act")
        return self.job.id

    def undo(self) -> None:
        self.did.append(f"{self.label} undo")


class First(Own):
    code = "first/1"


class Second(Own):
    code = "second/1"


@pytest.fixture
def world(sim: SimWorld) -> Iterator[World]:
    settings = fit(Settings(), sim.directory)
    with open_world(settings, sim=sim.directory) as opened:
        yield opened


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(Own, "did", calls, raising=False)
    return calls


class Jobs:
    """Runs jobs whose flow is made of test steps."""

    def __init__(self, world: World) -> None:
        self.parts: tuple[Part, ...] = ()
        self.runner = Runner(world.tools, world.logbook, parts=lambda _kind, _version: self.parts)

    def run(self, *steps: type[Step], chained: bool) -> Job:
        """Run a new job over these steps, in order or side by side."""

        def build(_params: Params) -> graph_flow.Flow:
            made = [step() for step in steps]
            flow = graph_flow.Flow("attach").add(*made)
            for before, after in pairwise(made) if chained else ():
                flow.link(before, after)
            return flow

        self.parts = (Part("attach", build),)
        return self.runner.run(self.runner.add(a_job(place=self.runner.place())))


@pytest.fixture
def jobs(world: World) -> Iterator[Jobs]:
    made = Jobs(world)
    yield made
    made.runner.close()


class Poison(Own):
    """Its effect happens, and its result cannot be stored."""

    code = "poison/1"

    def act(self) -> Any:
        super().act()
        return {"a": object()}


def test_a_result_that_cannot_be_stored_undoes_its_own_effect(jobs: Jobs, did: list[str]) -> None:
    """Stored as it is, it would leave its step running for ever, to be run again at every resume."""
    job = jobs.run(First, Poison, Second, chained=True)
    assert did == ["first act", "poison act", "poison undo", "first undo"]
    assert (job.state, job.exit_code) == ("rolled-back", ROLLED_BACK)
    assert job.error is not None
    assert job.error["step"] == "poison/1"
    assert "not JSON serializable" in job.error["message"]


class Unspeakable(Own):
    """Fails with arguments that cannot be stored."""

    code = "unspeakable/1"

    def act(self) -> Any:
        raise ValueError(object(), b"\xff", {1})


def test_an_error_that_cannot_be_stored_is_undone_like_any_other(jobs: Jobs, did: list[str]) -> None:
    job = jobs.run(First, Unspeakable, chained=True)
    assert did == ["first act", "unspeakable undo", "first undo"]
    assert (job.state, job.exit_code) == ("rolled-back", ROLLED_BACK)


class Leaves(Own):
    """Leaves the engine as soon as its sibling is under way, as SIGTERM would let it."""

    code = "leaves/1"

    def act(self) -> Any:
        assert Sibling.going.wait(20)
        raise Interrupted("asked to stop")


class Sibling(Own):
    """Goes on for a while after the engine was left."""

    code = "sibling/1"
    going = threading.Event()

    def act(self) -> Any:
        Sibling.going.set()
        assert self.run.wake.wait(20), "the run was never told to stop"
        threading.Event().wait(0.5)  # long enough for a runner that does not wait to give its lease up
        runner = self.tools.ledger.job(self.job.id).runner
        self.did.append("sibling held" if runner == self.tools.leases.me else "sibling free")


def test_a_sibling_in_flight_is_waited_for_before_the_lease_is_given_up(
    jobs: Jobs, did: list[str], world: World
) -> None:
    Sibling.going.clear()
    job = jobs.run(Leaves, Sibling, chained=False)
    assert did == ["sibling held"]
    assert (job.state, job.exit_code) == ("running", None), "interrupted: to be resumed"
    assert job.runner is None
    stored = world.logbook.flow(job.id, "attach")
    assert stored is not None
    assert {atom.name: atom.state for atom in stored} == {"leaves/1": states.RUNNING, "sibling/1": states.RUNNING}


class Meets(Own):
    """Ends only if the other one is under way at the same time."""

    both = threading.Barrier(2)

    def act(self) -> Any:
        self.both.wait(20)


class MeetsToo(Meets):
    code = "meets-too/1"


class MeetsFirst(Meets):
    code = "meets/1"


def test_steps_without_an_edge_run_in_parallel(jobs: Jobs) -> None:
    Meets.both.reset()
    assert jobs.run(MeetsFirst, MeetsToo, chained=False).state == "attached"


def test_many_jobs_at_a_time_of_one_runner(jobs: Jobs, did: list[str]) -> None:
    """Runs that look alike, and change while others are compared with them, must not be taken for each other."""
    job = jobs.run(First, Second, chained=True)
    tools = jobs.runner.tools
    assert Run(tools, job) != Run(tools, job), "a list compares while it removes one, and meanwhile another is removed"

    def many(_thread: int) -> list[str]:
        made = [jobs.runner.add(a_job(place=jobs.runner.place())) for _ in range(12)]
        return [jobs.runner.run(job).state for job in made]

    with ThreadPoolExecutor(6) as pool:
        ended = [state for found in pool.map(many, range(6)) for state in found]
    assert ended == ["attached"] * 72
    assert jobs.runner.runs == []
    assert len(did) == 2 * 73


class Refuses(Own):
    code = "refuses/1"

    def act(self) -> Any:
        raise FinalError("no", hint="none")


def test_a_failure_undoes_a_parallel_step_too(jobs: Jobs, did: list[str]) -> None:
    job = jobs.run(First, Refuses, chained=False)
    assert job.state == "rolled-back"
    assert did in (["first act", "refuses undo", "first undo"], ["first act", "first undo", "refuses undo"])
