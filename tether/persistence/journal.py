"""What a runner writes of its jobs: fenced by the job's lease, and committed together.

Every write of a running job goes through here, and names the lease's generation: who has lost the lease writes nothing
more. Flows of several threads that come to write while a commit is under way share the next one, so that eight jobs at
a time need hardly more commits than one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tether.errors import Interrupted, LostLease, TetherError, UncertainError
from tether.persistence.database import Database, Prepared
from tether.persistence.schema import flows, jobs, secrets


@dataclass(frozen=True, slots=True)
class Lease:
    """A runner's hold on a job.

    Args:
        generation: higher with each runner; what fences the one before.
        ttl: seconds until it lapses if nothing is written.
    """

    job_id: str
    generation: int
    ttl: float


@dataclass
class Entry:
    """What is to be written of one job in one transaction.

    Args:
        values: columns of the job's row.
        flows: rows of ``tether_flows``, put in the place of those with the same id.
        secrets: rows of ``tether_secrets``, likewise.
        intent: a step is to start: refused while another command asks the runner to stop.
        seen: when the row was last changed, as it was read: refused if it was changed since. None: does not matter.
    """

    lease: Lease
    values: Mapping[str, Any]
    flows: Sequence[Mapping[str, Any]] = ()
    secrets: Sequence[Mapping[str, Any]] = ()
    intent: bool = False
    seen: float | None = None
    done: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)


class Journal:
    """The one writer of a database's running jobs in this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[Entry] = []
        self._queue_lock = threading.Lock()
        self._commit_lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Make an entry durable, on SQLite together with those of other threads that wait.

        PostgreSQL lets the commits of several connections share its log's writes by itself. There an ordinary barrier
        is one statement, which is its own transaction: one way to the server and back.

        Raises:
            LostLease: another runner has taken the job over; nothing of the entry is kept.
            Interrupted: the runner is asked to stop, and the entry was an intent; nothing of it is kept.
            UncertainError: the database does not answer; the entry may or may not be there.
        """
        if self._database.dialect.name == "postgresql" and not (entry.flows[1:] or entry.secrets):
            self._write_at_once(entry)
            return
        with self._queue_lock:
            self._queue.append(entry)
        with self._commit_lock:
            if not entry.done:  # who had the lock before may have written it
                with self._queue_lock:
                    batch, self._queue = self._queue, []
                self._commit(batch)
        if entry.error is not None:
            raise entry.error

    def _write_at_once(self, entry: Entry) -> None:
        with self._database.at_once() as connection:
            if not _fence(connection, entry, entry.flows[0] if entry.flows else None):
                raise _why_fenced(connection, entry)

    def _commit(self, batch: list[Entry]) -> None:
        try:
            with self._database.write() as connection:
                for entry in batch:
                    self._put(connection, entry)
        except BaseException as error:
            # Whatever it was: nothing of the batch is there, and none of those who wait may take it for durable.
            told = error if isinstance(error, TetherError) else UncertainError(f"the commit failed: {error}")
            for entry in batch:
                entry.error = entry.error or told
            if told is not error:
                raise
        finally:
            for entry in batch:
                entry.done = True

    def _put(self, connection: sa.Connection, entry: Entry) -> None:
        if not _fence(connection, entry):
            entry.error = _why_fenced(connection, entry)
            return
        for table, rows in ((flows, entry.flows), (secrets, entry.secrets)):
            for row in rows:
                _replacement(table, connection.dialect).run(connection, row)


def fence(connection: sa.Connection, lease: Lease, values: Mapping[str, Any]) -> bool:
    """Change a job's row in the caller's transaction; return False if the lease is lost."""
    return _fence(connection, Entry(lease, values))


def _fence(connection: sa.Connection, entry: Entry, row: Mapping[str, Any] | None = None) -> bool:
    """Change a job's row, and put a flow's with it if one is given; return False if nothing was changed."""
    kind = _Kind(tuple(sorted(entry.values)), entry.intent, entry.seen is not None)
    given = {"b_id": entry.lease.job_id, "b_generation": entry.lease.generation, "b_seen": entry.seen, **entry.values}
    if row is None:
        return _change(kind, connection.dialect).run(connection, given).rowcount == 1
    given |= {f"f_{name}": value for name, value in row.items()}
    return _barrier(kind, connection.dialect).run(connection, given).rowcount == 1


class _Kind(NamedTuple):
    """What decides the text of a fenced update."""

    names: tuple[str, ...]
    intent: bool
    seen: bool


def _why_fenced(connection: sa.Connection, entry: Entry) -> BaseException:
    lease = entry.lease
    row = connection.execute(sa.select(jobs.c.generation, jobs.c.asked).where(jobs.c.id == lease.job_id)).first()
    if entry.intent and row is not None and row.generation == lease.generation:
        return Interrupted(f"asked to stop ({row.asked})")
    return LostLease(f"job {lease.job_id} was taken over by another runner")


@functools.cache
def _change(kind: _Kind, dialect: sa.Dialect) -> Prepared:
    return Prepared(_fenced_update(kind), dialect)


def _fenced_update(kind: _Kind) -> sa.Update:
    statement = (
        sa.update(jobs)
        .where(jobs.c.id == sa.bindparam("b_id"), jobs.c.generation == sa.bindparam("b_generation"))
        .values({name: sa.bindparam(name) for name in kind.names})
    )
    if kind.intent:
        statement = statement.where(jobs.c.asked.is_(None))
    return statement.where(jobs.c.updated_at == sa.bindparam("b_seen")) if kind.seen else statement


@functools.cache
def _barrier(kind: _Kind, dialect: sa.Dialect) -> Prepared:
    """Return the statement of a barrier with one flow: its row is put only if the job's row could be changed."""
    fenced = _fenced_update(kind).returning(jobs.c.id).cte("fenced")
    columns = list(flows.columns)
    row = sa.select(*(sa.bindparam(f"f_{column.name}", type_=column.type) for column in columns)).select_from(fenced)
    insert = postgresql.insert(flows).from_select([column.name for column in columns], row)
    others = {column.name: insert.excluded[column.name] for column in columns if not column.primary_key}
    return Prepared(insert.on_conflict_do_update(index_elements=["id"], set_=others), dialect)


@functools.cache
def _replacement(table: sa.Table, dialect: sa.Dialect) -> Prepared:
    """Return the statement that puts a row in the place of the one with the same key, if there is one."""
    insert: Any = (postgresql if dialect.name == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.primary_key]
    others = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
    values: dict[str, Any] = {column.name: sa.bindparam(column.name) for column in table.columns}
    return Prepared(insert.values(values).on_conflict_do_update(index_elements=keys, set_=others), dialect)
