"""What a job does that was left in each state that TaskFlow knows, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from taskflow import states
from taskflow.patterns import graph_flow
from taskflow.persistence import models

from tests.integration.books import Books, a_job
from tests.integration.own import Did, Jobs, own_jobs, part, step
from tether.errors import ConflictError, FinalError, HeldError, Interrupted
from tether.flows.registry import Part
from tether.flows.registry import parts as known_parts
from tether.persistence import schema
from tether.persistence.ledger import Job
from tether.runner.engine import EXECUTED, REVERTED, StepExecutor, plan_of
from tether.tasks.run import Run
from tether.tasks.step import Step

A, B, C = "a", "b", "c"


@pytest.fixture
def jobs(books: Books) -> Iterator[Jobs]:
    with own_jobs(books) as made:
        yield made


def rewrite(jobs: Jobs, job: Job, **columns: str) -> None:
    """Change how a job's flow is stored."""
    with jobs.books.database.write() as connection:
        connection.execute(sa.update(schema.flows).where(schema.flows.c.job_id == job.id).values(**columns))


def flow_state(jobs: Jobs, job: Job) -> list[str]:
    return [str(flow.state) for flow in jobs.books.logbook.flows(job.id)]


# -- forward -------------------------------------------------------------------------------------------------


def test_cut_off_in_a_step_it_is_looked_for_and_done_again(jobs: Jobs) -> None:
    job = jobs.cut_off(part("f", A, B, C), at="b act")
    assert (job.state, job.runner) == ("running", None)
    assert jobs.did == ["a act", "b act"]
    assert jobs.runner.resume(job).state == "attached"
    assert jobs.did == ["b look", "b act", "c act"]


def test_cut_off_between_two_steps_it_goes_on_with_the_next(jobs: Jobs) -> None:
    """The first one's success is durable, and the next one's intent is not."""
    job = jobs.cut_off(part("f", A, B), at="b act")
    assert jobs.stored(job) == {"a": states.SUCCESS, "b": states.RUNNING}
    text = jobs.books.rows("SELECT steps FROM tether_flows")[0][0]
    rewrite(jobs, job, steps=text[: text.index(',{"name":"b/1"')] + "]")
    assert jobs.stored(job) == {"a": states.SUCCESS}
    assert jobs.did == ["a act", "b act"]
    assert jobs.runner.resume(job).state == "attached"
    assert jobs.did == ["b act"]


@pytest.mark.parametrize("state", [states.PENDING, states.RUNNING, states.SUSPENDED, states.FAILURE])
def test_whatever_the_flow_was_called_only_what_is_not_done_runs(jobs: Jobs, state: str) -> None:
    job = jobs.cut_off(part("f", A, B, C), at="b act")
    rewrite(jobs, job, state=state)
    assert jobs.did == ["a act", "b act"]
    assert jobs.runner.resume(job).state == "attached"
    assert jobs.did == ["b look", "b act", "c act"]
    assert flow_state(jobs, job) == [states.SUCCESS]


@pytest.mark.parametrize("state", [states.SUSPENDING, states.RESUMING, states.REVERTING, "UNKNOWN"])
def test_what_an_engine_only_goes_through_is_never_stored(books: Books, state: str) -> None:
    _job, lease = books.held_job(id="j")
    connection = books.logbook.backend(lease).get_connection()
    flow = models.FlowDetail("f", "f")
    flow.state = state
    connection.update_flow_details(flow)
    connection.write({})
    assert books.rows("SELECT state FROM tether_flows") == [(states.PENDING,)]


def test_a_flow_that_is_done_is_not_run_again(jobs: Jobs) -> None:
    """Cut off in the second flow: nothing of the first is called."""
    job = jobs.cut_off(part("f", A), part("g", B, forward=True), at="b act")
    assert jobs.did == ["a act", "b act"]
    assert jobs.runner.resume(job).state == "detached"
    assert jobs.did == ["b look", "b act"]


def test_a_step_that_is_done_again_and_fails_is_undone_like_any_other(jobs: Jobs) -> None:
    job = jobs.cut_off(part("f", A, B, C), at="b act")
    Did.raises = {"b act": FinalError("no")}
    assert jobs.did == ["a act", "b act"]
    assert jobs.runner.resume(job).state == "rolled-back"
    assert jobs.did == ["b look", "b act", "b undo", "a undo"]


# -- backward ------------------------------------------------------------------------------------------------


def test_cut_off_in_an_undo_it_is_undone_again_and_what_never_ran_is_not(jobs: Jobs) -> None:
    job = jobs.cut_off(part("f", A, B, C), at="a undo", **{"b act": FinalError("no")})
    assert jobs.did == ["a act", "b act", "b undo", "a undo"]
    assert jobs.stored(job) == {"a": states.REVERTING, "b": states.REVERTED, "c": states.PENDING}
    assert jobs.runner.resume(job).state == "rolled-back"
    assert jobs.did == ["a undo"]


def test_an_undo_that_failed_is_taken_up_again(jobs: Jobs) -> None:
    raises = {"c act": FinalError("no"), "b undo": HeldError("busy")}
    job = jobs.run(part("f", A, B, C), raises=raises)
    assert (job.state, job.step) == ("blocked", "b/1")
    assert jobs.did == ["a act", "b act", "c act", "c undo", "b undo"]
    assert jobs.stored(job) == {"a": states.SUCCESS, "b": states.REVERTING, "c": states.REVERTED}
    assert jobs.runner.resume(job).state == "rolled-back"
    assert jobs.did == ["b undo", "a undo"]


def test_cut_off_between_the_last_undo_and_the_end_it_is_not_run_from_its_start(jobs: Jobs) -> None:
    job = jobs.run(part("f", A, B), raises={"b act": FinalError("no")})
    assert jobs.did == ["a act", "b act", "b undo", "a undo"]
    with jobs.books.database.write() as connection:
        connection.execute(sa.update(schema.jobs).values(state="running", open_volume=job.volume_id, finished_at=None))
    job = jobs.books.ledger.job(job.id)
    assert flow_state(jobs, job) == [states.REVERTED]
    assert jobs.runner.resume(job).state == "rolled-back"
    assert jobs.did == []


# -- siblings ------------------------------------------------------------------------------------------------


def test_siblings_in_flight_when_the_engine_was_left_are_looked_for(jobs: Jobs) -> None:
    job = jobs.cut_off(part("f", A, B, C, chained=False), at="b act")
    assert "b act" in jobs.did  # the others may have begun or not
    stored = {name: jobs.stored(job).get(name, states.PENDING) for name in (A, B, C)}
    assert stored["b"] == states.RUNNING
    assert jobs.runner.resume(job).state == "attached"
    looked = [f"{name} look" for name, state in stored.items() if state == states.RUNNING]
    acted = [f"{name} act" for name, state in stored.items() if state != states.SUCCESS]
    assert sorted(jobs.did) == sorted([*looked, *acted])


def test_what_never_began_is_not_undone_although_taskflow_reverts_it(jobs: Jobs) -> None:
    """TaskFlow reverts, all at once, what was about to begin when a step beside it failed."""
    plan = plan_of(part("f", A, B), a_job().params)
    run = Run(jobs.runner.tools, a_job())
    executor = StepExecutor(run, plan, jobs.runner.pool)
    first, second = sorted((atom for atom, _data in plan.flow.iter_nodes()), key=lambda atom: atom.name)
    assert executor.execute_task(first, "1", {}).result() == (EXECUTED, {"made": "a"})
    for atom in (first, second):
        assert executor.revert_task(atom, "1", {}, None, {}).result() == (REVERTED, None)
    assert jobs.did == ["a act", "a undo"]


def test_nor_is_it_after_an_interruption(jobs: Jobs) -> None:
    job = jobs.cut_off(part("f", A, B), at="a undo", **{"a act": FinalError("no")})
    assert jobs.did == ["a act", "a undo"]
    text = jobs.books.rows("SELECT steps FROM tether_flows")[0][0]
    (first,) = (found for found in json.loads(text) if found["name"] == "a/1")
    never = first | {"name": "b/1", "uuid": "b", "history": [[states.REVERTING, 1.0]]}
    del never["failure"]
    rewrite(jobs, job, steps=json.dumps([first, never]))
    assert jobs.runner.resume(job).state == "rolled-back"
    assert jobs.did == ["a undo"]
    assert jobs.stored(job) == {"a": states.REVERTED, "b": states.REVERTED}


# -- results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [object(), {1}, b"a", {"a": {1: 2}}, math.nan, [math.inf]], ids=range(6))
def test_a_result_that_cannot_be_stored_undoes_its_own_effect(jobs: Jobs, result: Any) -> None:
    """Stored as it is, it would leave its step running for ever, to be run again at every resume."""

    def act(self: Did) -> Any:
        Did.act(self)
        return result

    act.__annotations__ = {"return": Any}
    made = graph_flow.Flow("f").add(step("a", act=act)())
    job = jobs.run(Part("f", lambda _params: made))
    assert (job.state, jobs.did) == ("rolled-back", ["a act", "a undo"])
    assert job.error is not None
    assert "JSON" in job.error["message"]


@pytest.mark.parametrize(
    "result", [tuple[int, ...], set[str], bytes, dict[int, str], list[set[str]], Path, dict[str, bytes], Step]
)
def test_a_step_that_declares_such_a_result_cannot_be_written(result: Any) -> None:
    def act(self: Did) -> Any:
        raise NotImplementedError

    act.__annotations__ = {"return": result}
    with pytest.raises(TypeError, match="not JSON"):
        step("a", act=act)


# -- the pivot -----------------------------------------------------------------------------------------------


def test_a_job_whose_first_flow_is_done_only_goes_forward(jobs: Jobs) -> None:
    """Also where the second flow has left no trace yet."""
    job = jobs.cut_off(part("f", A), part("g", B, forward=True), at="b act")
    with jobs.books.database.write() as connection:
        connection.execute(sa.delete(schema.flows).where(schema.flows.c.name == "g"))
    with pytest.raises(ConflictError, match="past its pivot"):
        jobs.runner.abort(job)
    assert jobs.books.ledger.job(job.id) == job
    assert jobs.runner.resume(job).state == "detached"


# -- versions ------------------------------------------------------------------------------------------------


def test_a_job_of_an_unknown_version_is_refused_and_left_as_it_is(jobs: Jobs) -> None:
    job = jobs.run(part("f", A, B), raises={"b act": Interrupted("cut off")}, version=99)
    jobs.runner.parts = known_parts
    for verb in (jobs.runner.resume, jobs.runner.abort):
        with pytest.raises(ConflictError, match="does not know attach version 99") as caught:
            verb(job)
        assert "the release that made it" in caught.value.hint
        assert jobs.books.ledger.job(job.id) == job


def test_a_flow_that_no_longer_has_a_stored_step_is_not_run(jobs: Jobs) -> None:
    """Renamed or removed without a new version: TaskFlow would forget its effect."""
    job = jobs.cut_off(part("f", A, B, C), at="c act")
    assert jobs.did == ["a act", "b act", "c act"]
    jobs.parts = (part("f", A, "renamed", C),)
    blocked = jobs.runner.resume(job)
    assert (blocked.state, jobs.did) == ("blocked", [])
    assert blocked.error is not None
    assert "b/1" in blocked.error["message"]
    assert "the release that made it" in blocked.error["hint"]
    jobs.parts = (part("f", A, B, C),)
    assert jobs.runner.resume(blocked).state == "attached"
    assert jobs.did == ["c look", "c act"]
