"""What a flow leaves in the database, and when, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from taskflow import engines, exceptions, states, task
from taskflow.patterns import linear_flow
from taskflow.persistence import models

from tests.crash import judge
from tests.crash.world import DONE, SimWorld
from tests.integration.books import Books, opened
from tether.errors import Interrupted, LostLease
from tether.persistence import database as database_module
from tether.persistence import schema
from tether.persistence.logbook import JobBackend

# -- barriers ------------------------------------------------------------------------------------------------


class Noted(task.Task):  # type: ignore[misc]  # taskflow has no types
    """A step that notes what the database shows to others while it runs, and may fail."""

    def __init__(self, name: str, books: Books, seen: list[Any], *, fails: BaseException | None = None) -> None:
        super().__init__(name, provides=name.replace("/", "_"))
        self.books, self.seen, self.fails = books, seen, fails
        self.undo_fails: BaseException | None = None

    def execute(self) -> dict[str, str]:
        self._note()
        if self.fails:
            raise self.fails
        return {"made": self.name}

    def revert(self, result: Any, **_: Any) -> None:
        self._note()
        self.seen.append(result)
        if self.undo_fails:
            raise self.undo_fails

    def _note(self) -> None:
        self.seen.append(self.books.steps())


@contextmanager
def counted(books: Books) -> Iterator[list[int]]:
    """Count commits."""
    commits: list[int] = []

    def on_commit(_connection: Any) -> None:
        commits.append(1)

    def on_statement(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        if not text.startswith("SELECT"):
            commits.append(1)  # a transaction of its own

    database = books.database
    sa.event.listen(database.engine, "commit", on_commit)
    sa.event.listen(database.reader, "before_cursor_execute", on_statement)
    try:
        yield commits
    finally:
        sa.event.remove(database.engine, "commit", on_commit)
        sa.event.remove(database.reader, "before_cursor_execute", on_statement)


@pytest.fixture
def backend(books: Books) -> JobBackend:
    return books.logbook.backend(books.held_job(id="j")[1])


def load(backend: JobBackend, steps: list[Noted], detail: models.FlowDetail | None = None) -> Any:
    if detail is None:
        detail = models.FlowDetail("attach", "f")
        backend.get_connection().update_flow_details(detail)
    return engines.load(linear_flow.Flow("attach").add(*steps), flow_detail=detail, backend=backend)


def test_an_intent_is_durable_before_its_effect_in_one_transaction_with_what_came_before(
    books: Books, backend: JobBackend
) -> None:
    seen: list[Any] = []
    engine = load(backend, [Noted(name, books, seen) for name in ("a/1", "b/1", "c/1")])
    with counted(books) as commits:
        engine.run()
        backend.get_connection().write({"state": "attached"})
    done, going = states.SUCCESS, states.RUNNING
    assert seen == [{"a/1": going}, {"a/1": done, "b/1": going}, {"a/1": done, "b/1": done, "c/1": going}]
    assert len(commits) == 4, "one a step, and one at the end"
    assert books.rows("SELECT state FROM tether_flows") == [(states.SUCCESS,)]
    assert books.rows("SELECT step FROM tether_jobs") == [("c/1",)]


def test_the_intent_of_an_undo_is_durable_too(books: Books, backend: JobBackend) -> None:
    seen: list[Any] = []
    engine = load(backend, [Noted("a/1", books, seen), Noted("b/1", books, seen, fails=ValueError("no"))])
    with counted(books) as commits:
        with pytest.raises(ValueError, match="no"):
            engine.run()
        backend.get_connection().write({"state": "rolled-back"})
    assert seen[2]["b/1"] == states.REVERTING
    assert seen[4] == {"a/1": states.REVERTING, "b/1": states.REVERTED}
    assert seen[5] == {"made": "a/1"}
    assert len(commits) == 5
    assert books.rows("SELECT state FROM tether_flows") == [(states.REVERTED,)]


def test_progress_alone_is_no_barrier(books: Books, backend: JobBackend) -> None:
    class Slow(Noted):
        def execute(self) -> dict[str, str]:
            for part in range(10):
                self.update_progress(part / 10)
            return {}

    engine = load(backend, [Slow("a/1", books, [])])
    with counted(books) as commits:
        engine.run()
    assert len(commits) == 1


def test_a_flow_is_read_as_it_was_written(books: Books, backend: JobBackend) -> None:
    seen: list[Any] = []
    failing = Noted("b/1", books, seen, fails=ValueError("no", object(), {1, 2}, b"\xff"))
    engine = load(backend, [Noted("a/1", books, seen), failing])
    with pytest.raises(ValueError, match="no"):
        engine.run()
    backend.get_connection().write({})
    stored = books.logbook.flow("j", "attach")
    assert stored is not None
    assert (stored.uuid, stored.name, stored.state, len(stored)) == ("f", "attach", states.REVERTED, 2)
    atoms = {atom.name: atom for atom in stored}
    assert [atoms[name].state for name in ("a/1", "b/1")] == [states.REVERTED, states.REVERTED]
    assert atoms["b/1"].failure is None or "no" in atoms["b/1"].failure.exception_str
    assert [detail.uuid for detail in books.logbook.flows("j")] == ["f"]
    assert books.logbook.flow("j", "other") is None
    connection = backend.get_connection()
    assert [flow.uuid for flow in connection.get_flows_for_book("j")] == ["f"]
    assert {atom.name for atom in connection.get_atoms_for_flow("f")} == {"a/1", "b/1"}
    assert connection.get_atom_details(atoms["a/1"].uuid).name == "a/1"


def test_a_result_is_given_again_to_the_undo_that_is_taken_up(books: Books, backend: JobBackend) -> None:
    """Cut off inside an undo: the flow goes on there, with the result that was stored."""
    seen: list[Any] = []
    first, second = Noted("a/1", books, seen), Noted("b/1", books, seen, fails=ValueError(object()))
    first.undo_fails = Interrupted("cut off")
    with pytest.raises(Interrupted):
        load(backend, [first, second]).run()
    stored = books.logbook.flow("j", "attach")
    assert stored is not None
    assert {atom.name: atom.state for atom in stored} == {"a/1": states.REVERTING, "b/1": states.REVERTED}
    seen.clear()
    again = [Noted("a/1", books, seen), Noted("b/1", books, seen)]
    engine = load(backend, again, stored)
    with pytest.raises(exceptions.WrappedFailure):  # what had failed, read back without its exception
        engine.run()
    assert engine.storage.get_flow_state() == states.REVERTED
    assert seen == [{"a/1": states.REVERTING, "b/1": states.REVERTED}, {"made": "a/1"}]


def test_a_step_that_was_cut_off_is_run_again_and_finished_ones_are_not(books: Books, backend: JobBackend) -> None:
    seen: list[Any] = []
    with pytest.raises(Interrupted):
        load(backend, [Noted("a/1", books, seen), Noted("b/1", books, seen, fails=Interrupted("cut off"))]).run()
    stored = books.logbook.flow("j", "attach")
    assert stored is not None
    assert {atom.name: (atom.state, atom.results) for atom in stored} == {
        "a/1": (states.SUCCESS, {"made": "a/1"}),
        "b/1": (states.RUNNING, None),
    }
    seen.clear()
    engine = load(backend, [Noted("a/1", books, seen), Noted("b/1", books, seen)], stored)
    engine.run()
    assert len(seen) == 1
    assert engine.storage.fetch("a_1") == {"made": "a/1"}


def test_who_has_lost_the_lease_writes_nothing(books: Books, backend: JobBackend) -> None:
    class TakenOver(Noted):
        def execute(self) -> dict[str, str]:
            with self.books.database.write() as connection:
                connection.execute(sa.update(schema.jobs).values(generation=2))
            return super().execute()

    seen: list[Any] = []
    engine = load(backend, [TakenOver("a/1", books, seen), Noted("b/1", books, seen)])
    with pytest.raises(LostLease):
        engine.run()
    assert len(seen) == 1, "nothing more was started"
    assert books.steps() == {"a/1": states.RUNNING}
    assert books.rows("SELECT step FROM tether_jobs") == [("a/1",)]


def test_a_database_that_is_gone_interrupts_the_flow(
    books: Books, backend: JobBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no failed step: nothing is known to have failed, so nothing is undone."""
    seen: list[Any] = []

    class Unplugged(Noted):
        def execute(self) -> dict[str, str]:
            cut.__enter__()
            return {}

    cut = gone(books, monkeypatch)
    engine = load(backend, [Unplugged("a/1", books, seen), Noted("b/1", books, seen)])
    try:
        with pytest.raises(Interrupted, match="does not answer"):
            engine.run()
    finally:
        cut.__exit__(None, None, None)
    assert seen == []
    assert books.steps() == {"a/1": states.RUNNING}


@contextmanager
def gone(books: Books, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the database answer nobody: locked for good, or its server refuses every connection."""
    url = books.database.url
    if url.get_backend_name() == "sqlite":
        books.database.close()
        monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.1)
        books.database.engine = database_module._engine(url)
        assert url.database is not None
        locker = sqlite3.connect(url.database, isolation_level=None, check_same_thread=False)
        locker.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            locker.close()
        return
    server = {"host": str(url.query["host"]), "user": str(url.username), "dbname": "postgres", "autocommit": True}
    name = str(url.database)
    with psycopg.connect(**server) as connection:  # type: ignore[arg-type]
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


# -- all of it -----------------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_an_attach_and_a_detach_on_postgresql(sim: SimWorld, postgresql: str, dialect: str) -> None:
    before = sim.books()
    words = ("--database", postgresql)
    done = sim.tether(*words, "attach", "vol1", "guest1", "--dialect", dialect)
    assert done.code == DONE, done.err
    with opened(postgresql, ready=False) as books:
        assert [(job.kind, job.state) for job in books.ledger.list_jobs()] == [("attach", "attached")]
        assert [(row.state, row.target) for row in books.ledger.list_mappings()] == [("attached", "vdb")]
        assert books.rows("SELECT name FROM tether_leases") == []
    done = sim.tether(*words, "detach", "vol1", "guest1")
    assert done.code == DONE, done.err
    with opened(postgresql, ready=False) as books:
        assert (books.ledger.list_mappings(), books.ledger.list_jobs()[0].state) == ([], "detached")
    assert judge.diff(before, sim.books()) == [], "nothing went to the world's own database either"


@pytest.mark.postgresql
def test_a_killed_attach_is_resumed_on_postgresql(sim: SimWorld, postgresql: str) -> None:
    words = ("--database", postgresql)
    assert sim.tether(*words, "--fault", "connect-host.act.after=kill", "attach", "vol1", "guest1").code == 137
    done = sim.tether(*words, "job", "resume", "--last")
    assert done.code == DONE, done.err
