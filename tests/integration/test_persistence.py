"""Tables, migrations, ledger, leases and barriers on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from taskflow import engines, exceptions, states, task
from taskflow.patterns import linear_flow
from taskflow.persistence import models

from tests.crash import judge
from tests.crash.world import DONE, SimWorld
from tests.integration.books import Books, a_job, a_mapping, forked, kill, opened, other_process
from tether.errors import ConfigError, ConflictError, HeldError, Interrupted, LostLease, NotFound, UncertainError
from tether.persistence import database as database_module
from tether.persistence import schema
from tether.persistence.database import Database
from tether.persistence.leases import Lease
from tether.persistence.ledger import ConnectionRow
from tether.persistence.logbook import JobBackend
from tether.persistence.migrations import upgrade

# -- the schema ----------------------------------------------------------------------------------------------


def test_the_migrations_make_what_the_code_expects(books: Books) -> None:
    with books.database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "version_table": schema.VERSION_TABLE},
        )
        assert compare_metadata(context, schema.metadata) == []
        names = set(sa.inspect(connection).get_table_names())
    assert names == {*schema.metadata.tables, schema.VERSION_TABLE}


def test_an_upgrade_may_be_repeated(url: str) -> None:
    with opened(url, ready=False) as books:
        assert upgrade(books.database) == (None, schema.HEAD)
        books.ledger.add_job(a_job())
        assert upgrade(books.database) == (schema.HEAD, schema.HEAD)
        books.database.check()
        assert len(books.ledger.list_jobs()) == 1


def test_two_upgrades_at_a_time_make_one_schema(url: str) -> None:
    """Two first uses of an embedded world, say."""

    def bring_up() -> None:
        with opened(url):
            pass

    for _ in range(3):
        pids = [forked(bring_up) for _ in range(3)]
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
        with opened(url, ready=False) as books:
            books.database.check()
            with books.database.write() as connection:
                schema.metadata.drop_all(connection)
                connection.execute(sa.text(f"DROP TABLE {schema.VERSION_TABLE}"))


def test_a_database_without_a_schema_is_refused(url: str) -> None:
    with opened(url, ready=False) as books, pytest.raises(ConfigError, match="no tether schema") as caught:
        books.database.check()
    assert "tether db upgrade" in caught.value.hint


@pytest.mark.parametrize(("version", "message", "hint"), [("9999", "newer", "release"), ("0000", "needs", "upgrade")])
def test_another_schema_is_refused(books: Books, version: str, message: str, hint: str) -> None:
    with books.database.write() as connection:
        connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = :v"), {"v": version})
    with pytest.raises(ConfigError, match=message) as caught:
        books.database.check()
    assert hint in caught.value.hint
    assert version in caught.value.message
    if version > schema.HEAD:
        with pytest.raises(ConfigError, match="newer"):
            upgrade(books.database)


@pytest.mark.postgresql
def test_taskflows_own_tables_are_left_alone(postgresql: str) -> None:
    """TaskFlow's stock backend keeps its version in ``alembic_version``, in the same database."""
    from taskflow.persistence.backends.impl_sqlalchemy import SQLAlchemyBackend

    stock = SQLAlchemyBackend({"connection": postgresql})
    stock.get_connection().upgrade()
    with opened(postgresql, ready=False) as books:
        before = books.rows("SELECT version_num FROM alembic_version")
        assert books.database.version() is None
        upgrade(books.database)
        assert books.rows("SELECT version_num FROM alembic_version") == before
        assert before != []
        books.database.check()
    stock.get_connection().upgrade()
    stock.close()


def test_sqlite_commits_outlive_a_power_loss(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'tether.sqlite'}") as books:
        for enter in (books.database.write, books.database.read):
            with enter() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize(
    "words", ["nonsense", "mysql+none://h/d", "sqlite:////no/such/folder/t.sqlite", "postgresql+none://u:pa55@h/d"]
)
def test_an_unusable_url_is_a_matter_of_configuration(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(words)
    assert caught.value.hint
    assert "pa55" not in caught.value.message


def test_a_server_that_is_not_there_is_uncertain_and_its_password_stays_unsaid(tmp_path: Path) -> None:
    database = Database(f"postgresql+psycopg://u:pa55@/d?host={tmp_path}")
    with pytest.raises(UncertainError, match="does not answer") as caught:
        database.check()
    assert "pa55" not in str(caught.value) + caught.value.hint


# -- the ledger ----------------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_written(books: Books) -> None:
    job = a_job(volume_name="Größe <&> \"q\" 'é'", idempotency_key="k")
    stored = books.ledger.add_job(job)
    assert stored == replace(job, created_at=stored.created_at, updated_at=stored.updated_at)
    books.ledger.update_job(job.id, error={"message": "m"}, exit_code=4, state="blocked")
    assert (books.ledger.job(job.id).error, books.ledger.job(job.id).open) == ({"message": "m"}, True)


def test_one_open_job_a_volume(books: Books) -> None:
    first = books.ledger.add_job(a_job())
    with pytest.raises(HeldError, match=first.id) as caught:
        books.ledger.add_job(a_job(volume_id=first.volume_id))
    assert first.id in caught.value.hint
    for state in ("running", "blocked"):
        books.ledger.update_job(first.id, state=state)
        with pytest.raises(HeldError):
            books.ledger.add_job(a_job(volume_id=first.volume_id))
    books.ledger.update_job(first.id, state="rolled-back")
    assert books.ledger.open_job(first.volume_id) is None
    books.ledger.add_job(a_job(volume_id=first.volume_id))


def test_one_job_an_idempotency_key_also_when_it_has_ended(books: Books) -> None:
    first = books.ledger.add_job(a_job(idempotency_key="k"))
    books.ledger.update_job(first.id, state="attached")
    with pytest.raises(ConflictError, match="'k'"):
        books.ledger.add_job(a_job(idempotency_key="k"))
    assert books.ledger.job_of_key("k") == books.ledger.job(first.id)


@pytest.mark.parametrize("same", [("server_id", "target"), ("server_id", "address"), ("volume_id", "server_id")])
def test_a_mapping_holds_its_pair_its_name_and_its_address(books: Books, same: tuple[str, str]) -> None:
    first = a_mapping()
    books.ledger.add_mapping(first)
    other = a_mapping(target="vdc", address={"slot": "0x06"})
    clash = replace(other, **{name: getattr(first, name) for name in same})
    with pytest.raises(ConflictError) as caught:
        books.ledger.add_mapping(clash)
    assert caught.value.hint
    books.ledger.add_mapping(replace(clash, server_id="another", volume_id="another"))
    assert len(books.ledger.list_mappings()) == 2


def test_an_address_is_the_same_in_any_order(books: Books) -> None:
    first = a_mapping(address={"slot": "1", "bus": "0"})
    books.ledger.add_mapping(first)
    with pytest.raises(ConflictError):
        books.ledger.add_mapping(a_mapping(server_id=first.server_id, target="vdz", address={"bus": "0", "slot": "1"}))


def test_one_device_identity_a_host(books: Books) -> None:
    row = ConnectionRow("m", "v1", "naa.1", "/dev/sda")
    books.ledger.record_connection(row)
    books.ledger.record_connection(replace(row, path="/dev/sdb"))
    with pytest.raises(ConflictError, match=r"naa\.1"):
        books.ledger.record_connection(replace(row, volume_id="v2"))
    books.ledger.record_connection(replace(row, volume_id="v2", machine_id="other"))
    books.ledger.record_connection(replace(row, volume_id="v3", identity=None))
    books.ledger.record_connection(replace(row, volume_id="v4", identity=""))
    assert [item.path for item in books.ledger.list_connections("m")] == ["/dev/sdb", "/dev/sda", "/dev/sda"]


@pytest.mark.parametrize("name", ["", "%", "_", "zz"])
def test_a_beginning_that_names_no_job(books: Books, name: str) -> None:
    books.ledger.add_job(a_job())
    with pytest.raises(NotFound):
        books.ledger.job(name)


# -- leases --------------------------------------------------------------------------------------------------


def test_a_living_process_keeps_its_lease(books: Books) -> None:
    def take() -> None:
        with opened(books.url, ready=False) as theirs:
            theirs.leases.take("job:x")

    books.database.close()  # no connection may be shared with the child
    with other_process(take) as pid:
        with pytest.raises(HeldError, match=f"process {pid} ") as caught:
            books.leases.take("job:x", job="x")
        assert "tether job show x" in caught.value.hint
        assert books.leases.is_live("job:x")


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_process_on_this_host_loses_its_lease(books: Books, *, reaped: bool) -> None:
    def take() -> None:
        with opened(books.url, ready=False) as theirs:
            theirs.leases.take("job:x")

    books.database.close()
    with other_process(take) as pid:
        theirs = books.leases.get("job:x")
        if reaped:
            kill(pid)
        else:
            os.kill(pid, 9)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not books.leases.is_live("job:x")
        mine = books.leases.take("job:x")
    assert theirs is not None
    assert mine.generation == theirs.generation + 1
    with pytest.raises(LostLease):
        books.leases.renew(theirs)
    books.leases.renew(mine)


def test_a_process_of_another_host_is_never_taken_for_dead(books: Books) -> None:
    far = books.another()
    far.me = replace(far.me, machine_id="another", pid=2**22 + 1)
    far.take("job:x")
    with pytest.raises(HeldError):
        books.leases.take("job:x")


def test_a_process_of_an_earlier_boot_is_dead(books: Books) -> None:
    earlier = books.another()
    earlier.me = replace(earlier.me, boot_id="earlier")
    earlier.take("job:x")
    assert books.leases.take("job:x").generation == 2


def test_a_process_id_that_was_used_again_is_dead(books: Books) -> None:
    earlier = books.another()
    earlier.me = replace(earlier.me, start_time=earlier.me.start_time - 1)
    earlier.take("job:x")
    assert books.leases.take("job:x").generation == 2


def test_two_runs_of_one_process_exclude_each_other(books: Books) -> None:
    lease = books.leases.take("server:x")
    other = books.another()
    with pytest.raises(HeldError):
        other.take("server:x")
    assert books.leases.take("server:x").generation == lease.generation, "one's own may be taken again"
    books.leases.release(lease)
    other.take("server:x")


def test_who_was_fenced_can_neither_renew_nor_release(books: Books) -> None:
    earlier = books.another()
    earlier.me = replace(earlier.me, boot_id="earlier")
    old = earlier.take("job:x")
    new = books.leases.take("job:x")
    earlier.release(old)
    assert books.leases.get("job:x") == replace(new, expires_at=books.leases.get("job:x").expires_at)  # type: ignore[union-attr]
    with pytest.raises(LostLease, match="taken over"):
        earlier.renew(old)


@pytest.mark.parametrize("dead", [False, True], ids=["free", "of-a-dead-owner"])
def test_many_who_want_one_lease_and_one_who_gets_it(books: Books, *, dead: bool) -> None:
    for turn in range(5):
        name = f"server:{turn}"
        if dead:
            earlier = books.another()
            earlier.me = replace(earlier.me, boot_id="earlier")
            earlier.take(name)
        start = threading.Barrier(6, timeout=20)

        def want(name: str, start: threading.Barrier) -> Lease | None:
            with opened(books.url, ready=False) as theirs:
                theirs.database.version()  # connected
                start.wait()
                try:
                    return theirs.leases.take(name)
                except HeldError:
                    return None

        with ThreadPoolExecutor(6) as pool:
            got = [future.result(60) for future in [pool.submit(want, name, start) for _ in range(6)]]
        assert len([lease for lease in got if lease]) == 1, got


def test_a_lease_is_waited_for_and_given_back(books: Books) -> None:
    with books.leases.held("server:x", wait=0), pytest.raises(HeldError), books.another().held("server:x", wait=0.2):
        pytest.fail("both hold it")
    with pytest.raises(RuntimeError), books.another().held("server:x", wait=0):
        raise RuntimeError
    assert books.leases.get("server:x") is None


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
        self.seen.append(dict(self.books.rows("SELECT name, state FROM tether_steps")))


@contextmanager
def counted(books: Books) -> Iterator[list[int]]:
    """Count commits."""
    commits: list[int] = []

    def on_commit(_connection: Any) -> None:
        commits.append(1)

    sa.event.listen(books.database.engine, "commit", on_commit)
    try:
        yield commits
    finally:
        sa.event.remove(books.database.engine, "commit", on_commit)


@pytest.fixture
def backend(books: Books) -> JobBackend:
    job = books.ledger.add_job(a_job(id="j"))
    return books.logbook.backend("j", books.leases.take(job.lease))


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
    done, going = states.SUCCESS, states.RUNNING
    assert seen == [{"a/1": going}, {"a/1": done, "b/1": going}, {"a/1": done, "b/1": done, "c/1": going}]
    assert len(commits) == 4, "one a step, and one at the end"
    assert books.rows("SELECT state FROM tether_flows") == [(states.SUCCESS,)]
    assert books.rows("SELECT step FROM tether_jobs") == [("c/1",)]


def test_the_intent_of_an_undo_is_durable_too(books: Books, backend: JobBackend) -> None:
    seen: list[Any] = []
    engine = load(backend, [Noted("a/1", books, seen), Noted("b/1", books, seen, fails=ValueError("no"))])
    with counted(books) as commits, pytest.raises(ValueError, match="no"):
        engine.run()
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
    assert len(commits) == 2


def test_a_flow_is_read_as_it_was_written(books: Books, backend: JobBackend) -> None:
    seen: list[Any] = []
    failing = Noted("b/1", books, seen, fails=ValueError("no", object(), {1, 2}, b"\xff"))
    engine = load(backend, [Noted("a/1", books, seen), failing])
    with pytest.raises(ValueError, match="no"):
        engine.run()
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
                connection.execute(sa.update(schema.leases).values(token="another", generation=2))
            return super().execute()

    seen: list[Any] = []
    engine = load(backend, [TakenOver("a/1", books, seen), Noted("b/1", books, seen)])
    with pytest.raises(LostLease):
        engine.run()
    assert len(seen) == 1, "nothing more was started"
    assert books.rows("SELECT name, state FROM tether_steps") == [("a/1", states.RUNNING)]
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
    assert books.rows("SELECT name, state FROM tether_steps") == [("a/1", states.RUNNING)]


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
