"""The backend that TaskFlow writes to, seen from TaskFlow's side."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from taskflow import exceptions, states
from taskflow.persistence import models

from tether import faults
from tether.clock import SystemClock
from tether.errors import FinalError, UncertainError
from tether.persistence.database import Database
from tether.persistence.journal import Entry, Lease
from tether.persistence.ledger import Job, Ledger, Place
from tether.persistence.logbook import JobConnection, Logbook
from tether.persistence.migrations import upgrade
from tether.persistence.params import Params

JOB = "j"
A_JOB = Job(JOB, "attach", 1, "running", "v", "vol", "s", "guest", "req-j", Params(), Place(*[""] * 7))


@pytest.fixture
def logbook(tmp_path: Path) -> Iterator[Logbook]:
    database = Database(f"sqlite:///{tmp_path / 'tether.sqlite'}")
    upgrade(database)
    Ledger(database, SystemClock()).add_job(A_JOB, generation=1)
    yield Logbook(database, SystemClock())
    database.close()


@pytest.fixture
def connection(logbook: Logbook) -> JobConnection:
    return logbook.backend(Lease(JOB, 1, 30.0)).get_connection()


def a_flow(*steps: str) -> models.FlowDetail:
    flow = models.FlowDetail("attach", str(uuid.uuid4()))
    for step in steps:
        atom = models.TaskDetail(step, str(uuid.uuid4()))
        atom.state = states.PENDING  # as TaskFlow makes it
        flow.add(atom)
    return flow


def stored(logbook: Logbook) -> dict[str, str]:
    flow = logbook.flow(JOB, "attach")
    return {} if flow is None else {atom.name: atom.state for atom in flow}


@pytest.fixture
def flow(connection: JobConnection) -> models.FlowDetail:
    flow = a_flow("a/1", "b/1")
    connection.update_flow_details(flow)
    return flow


def put(connection: JobConnection, flow: models.FlowDetail, step: str, state: str) -> None:
    atom = next(atom for atom in flow if atom.name == step)
    atom.state = state
    connection.update_atom_details(atom)


def test_what_is_no_intent_waits_for_the_next_barrier(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail
) -> None:
    put(connection, flow, "a/1", states.PENDING)
    assert logbook.flow(JOB, "attach") is None
    put(connection, flow, "a/1", states.RUNNING)
    assert stored(logbook) == {"a/1": states.RUNNING}
    put(connection, flow, "a/1", states.SUCCESS)
    assert stored(logbook) == {"a/1": states.RUNNING}
    put(connection, flow, "b/1", states.REVERTING)
    assert stored(logbook) == {"a/1": states.SUCCESS, "b/1": states.REVERTING}


@pytest.mark.parametrize("state", [states.SUCCESS, states.REVERTED])
def test_the_end_of_a_flow_is_written_with_the_end_of_its_job(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail, state: str
) -> None:
    put(connection, flow, "a/1", states.SUCCESS)
    flow.state = state
    connection.update_flow_details(flow)
    assert logbook.flow(JOB, "attach") is None
    connection.write({"state": "attached"})
    found = logbook.flow(JOB, "attach")
    assert found is not None
    assert found.state == state
    assert stored(logbook) == {"a/1": states.SUCCESS}


def test_a_flow_under_way_is_no_barrier(logbook: Logbook, connection: JobConnection, flow: models.FlowDetail) -> None:
    flow.state = states.RUNNING
    connection.update_flow_details(flow)
    assert logbook.flow(JOB, "attach") is None


def test_every_barrier_has_its_fault_points(
    connection: JobConnection, flow: models.FlowDetail, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(faults, "point", passed.append)
    put(connection, flow, "a/1", states.RUNNING)
    put(connection, flow, "b/1", states.REVERTING)
    connection.write({}, what="job.end")
    assert [name for name in passed if not name.startswith("database.")] == [
        f"commit.{what}.{moment}" for what in ("a.act", "b.undo", "job.end") for moment in ("before", "after")
    ]


def test_what_a_barrier_did_not_write_is_written_by_the_next(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail
) -> None:
    faults.arm("commit.a.act.before=fail")
    try:
        with pytest.raises(FinalError):
            put(connection, flow, "a/1", states.RUNNING)
    finally:
        faults.disarm()
    assert logbook.flow(JOB, "attach") is None
    put(connection, flow, "b/1", states.RUNNING)
    assert stored(logbook) == {"a/1": states.RUNNING, "b/1": states.RUNNING}


def test_a_flow_that_is_turned_back_is_stored_whole_in_one_transaction(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail
) -> None:
    for atom in flow:
        atom.state, atom.intention = states.REVERTING, states.REVERT
    connection.update_flow_details(flow)
    connection.write({})
    assert stored(logbook) == {"a/1": states.REVERTING, "b/1": states.REVERTING}
    found = logbook.flow(JOB, "attach")
    assert found is not None
    assert {atom.intention for atom in found} == {states.REVERT}


def test_meta_is_kept(logbook: Logbook, connection: JobConnection, flow: models.FlowDetail) -> None:
    flow.meta = {"version": 1}
    connection.update_flow_details(flow)
    put(connection, flow, "a/1", states.RUNNING)
    found = logbook.flow(JOB, "attach")
    assert found is not None
    assert found.meta == {"version": 1}


def test_a_logbook_is_the_jobs_own_and_stays(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail
) -> None:
    put(connection, flow, "a/1", states.RUNNING)
    assert [book.uuid for book in connection.get_logbooks()] == [JOB]
    assert [detail.uuid for detail in connection.get_logbook(JOB)] == [flow.uuid]
    for ask in (connection.get_logbook, connection.get_flow_details, connection.get_atom_details):
        with pytest.raises(exceptions.NotFound):
            ask("another")
    for destroy in (lambda: connection.destroy_logbook(JOB), connection.clear_all):
        with pytest.raises(exceptions.StorageFailure):
            destroy()
    assert stored(logbook) == {"a/1": states.RUNNING}


def test_another_jobs_flows_are_not_seen(logbook: Logbook, connection: JobConnection, flow: models.FlowDetail) -> None:
    put(connection, flow, "a/1", states.RUNNING)
    assert logbook.flow("another", "attach") is None
    assert logbook.flows("another") == []


def test_an_older_state_never_replaces_a_newer_one(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heart flushes while the engine comes to its next barrier: two threads write one flow."""
    put(connection, flow, "a/1", states.RUNNING)
    put(connection, flow, "a/1", states.SUCCESS)
    taken, newer = threading.Event(), threading.Event()
    write = logbook.journal.write

    def slow(entry: Entry) -> None:
        if threading.current_thread().name == "heart":
            taken.set()
            newer.wait(0.3)
        write(entry)

    monkeypatch.setattr(logbook.journal, "write", slow)
    heart = threading.Thread(target=connection.flush_due, name="heart")
    heart.start()
    assert taken.wait(20)
    put(connection, flow, "b/1", states.RUNNING)
    newer.set()
    heart.join(20)
    assert stored(logbook) == {"a/1": states.SUCCESS, "b/1": states.RUNNING}


def test_who_shared_a_commit_that_failed_is_told(logbook: Logbook) -> None:
    """Whatever it failed with: what was rolled back must not count as durable."""
    first, second = (Entry(Lease(JOB, 1, 30.0), values) for values in ({"state": None}, {"step": "x"}))
    with pytest.raises(sa.exc.IntegrityError):
        logbook.journal._commit([first, second])
    for entry in (first, second):
        assert isinstance(entry.error, UncertainError)
        assert entry.done


def test_a_flow_that_could_not_be_written_stays_to_be_written(
    logbook: Logbook, connection: JobConnection, flow: models.FlowDetail
) -> None:
    atom = next(iter(flow))
    unsayable: dict[str, Any] = {"a": object()}
    atom.meta, atom.state = unsayable, states.SUCCESS
    connection.update_atom_details(atom)
    with pytest.raises(TypeError):
        connection.write({})
    atom.meta = {}
    connection.write({})
    assert stored(logbook) == {"a/1": states.SUCCESS}
