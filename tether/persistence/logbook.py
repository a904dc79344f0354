"""The logbook: TaskFlow's persistence backend over our own tables.

TaskFlow's engine never reads back while it runs, so what it saves may be buffered. A *barrier* writes all that is
dirty of a flow in one transaction, and comes where something must be durable before what follows: when a step with an
effect is about to execute or revert (TaskFlow submits it only after that save returned). The end of a flow is not one:
it is written together with what follows, the next flow's first intent or the job's end. What a step of the same flow
has left while others are still under way is flushed within a bounded time (:meth:`JobConnection.flush_due`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from taskflow import exceptions, states
from taskflow.persistence import base, models

from tether import faults
from tether.clock import Clock
from tether.errors import Interrupted, UncertainError
from tether.persistence.database import Database
from tether.persistence.details import check_storable, decode_atom, encode_atom, is_untouched
from tether.persistence.intact import LATEST, intact, loaded, moments, parsed, reading
from tether.persistence.journal import Entry, Journal, Lease
from tether.persistence.ledger import job_columns
from tether.persistence.schema import flows

#: States of a step that say: its effect, or its undo, may be happening.
INTENTS = {states.RUNNING: "act", states.REVERTING: "undo"}
#: States with which a flow has ended.
ENDS = (states.SUCCESS, states.REVERTED, states.FAILURE, states.SUSPENDED)
#: States that a flow's row may have.
STATES = (*ENDS, states.PENDING, states.RUNNING)
#: Seconds within which a finished step is durable although a sibling runs on.
MAX_LAG = 0.05

#: Made once, as it is asked for each job that is taken up.
_OF_JOB = sa.select(flows).where(flows.c.job_id == sa.bindparam("job_id")).order_by(flows.c.created_at)


#: The rows of a job's flows, in the order in which they began.
Rows = list[Mapping[Any, Any]]


def details(rows: Rows) -> list[models.FlowDetail]:
    """Return what TaskFlow knows of these flows."""
    return [_flow_detail(row) for row in rows]


class Logbook:
    """Reads the flows of any job; hands out the backend that writes one job's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.journal = Journal(database)

    def flow(self, job_id: str, name: str) -> models.FlowDetail | None:
        """Return a job's flow as it was last written, or None if it has not begun."""
        return next((detail for detail in self.flows(job_id) if detail.name == name), None)

    def flows(self, job_id: str) -> list[models.FlowDetail]:
        """Return all flows of a job, in the order in which they began."""
        return details(self.rows(job_id))

    def rows_of(self, job_ids: Sequence[str]) -> dict[str, Rows]:
        """Return the rows of the flows of several jobs, by job, for :func:`details`."""
        found: dict[str, Rows] = {job_id: [] for job_id in job_ids}
        query = sa.select(flows).where(flows.c.job_id.in_(job_ids)).order_by(flows.c.created_at)
        with self.database.read() as connection:
            for row in connection.execute(query).mappings():
                found[row["job_id"]].append(row)
        return found

    def rows(self, job_id: str) -> Rows:
        """Return the rows of a job's flows, in the order in which they began."""
        with self.database.read() as connection:
            return [*connection.execute(_OF_JOB, {"job_id": job_id}).mappings()]

    def backend(self, lease: Lease, has_effect: Callable[[str], bool] = lambda _step: True) -> JobBackend:
        """Return the backend for one run of one job.

        Args:
            has_effect: tells by a step's name whether its start must be durable before it.
        """
        return JobBackend(self, lease, has_effect)


class JobBackend(base.Backend):  # type: ignore[misc]  # taskflow has no types
    """TaskFlow's backend for one job, fenced by the job's lease."""

    def __init__(self, logbook: Logbook, lease: Lease, has_effect: Callable[[str], bool]) -> None:
        super().__init__({})
        self._connection = JobConnection(self, logbook, lease, has_effect)

    def get_connection(self) -> JobConnection:
        return self._connection

    def close(self) -> None:
        """Nothing is kept open."""


class JobConnection(base.Connection):  # type: ignore[misc]  # taskflow has no types
    """Buffers what the engine saves, and writes it at barriers."""

    def __init__(self, backend: JobBackend, logbook: Logbook, lease: Lease, has_effect: Callable[[str], bool]) -> None:
        self._backend = backend
        self._logbook = logbook
        self._lease = lease
        self._has_effect = has_effect
        self._flows: dict[str, _Flow] = {}
        self._flow_of: dict[str, _Flow] = {}
        self._secrets: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()
        # Held from the moment at which something is taken to be written until it is: what was taken first is written
        # first, or an older state would replace a newer one.
        self._writing = threading.Lock()
        #: Called when something is flushed only if somebody calls :meth:`flush_due`.
        self.on_lag: Callable[[], None] = lambda: None

    @property
    def backend(self) -> JobBackend:
        return self._backend

    def close(self) -> None:
        """Nothing is kept open."""

    def upgrade(self) -> None:
        """The schema is made by ``tether db upgrade`` alone."""

    def validate(self) -> None:
        """The database was checked when it was opened."""

    # -- what the engine calls -------------------------------------------------------------------------------

    def update_flow_details(self, flow_detail: models.FlowDetail) -> models.FlowDetail:
        with self._lock:
            flow = self._flows.get(flow_detail.uuid)
            if flow is None:
                flow = self._flows[flow_detail.uuid] = _Flow(
                    self._lease.job_id, flow_detail, self._logbook.clock.time()
                )
            flow.set(flow_detail.state, flow_detail.meta)
            for atom in flow_detail:
                self._flow_of[atom.uuid] = flow
                flow.put(atom, self._logbook.clock.time())
        return flow_detail

    def update_atom_details(self, atom_detail: models.AtomDetail) -> models.AtomDetail:
        flow = self._flow_of.get(atom_detail.uuid)
        if flow is None:
            raise exceptions.NotFound(f"no step {atom_detail.uuid} in job {self._lease.job_id}")
        state = atom_detail.state
        if state in (states.SUCCESS, states.REVERTED):
            check_storable(atom_detail)
        with self._lock:
            changed = flow.put(atom_detail, self._logbook.clock.time())
        if changed and self._has_effect(atom_detail.name):
            if state in INTENTS:
                self._barrier(f"{atom_detail.name.partition('/')[0]}.{INTENTS[state]}", atom_detail.name)
            elif flow.is_busy(self._has_effect):
                self.on_lag()
        return atom_detail

    # -- what the runner calls -------------------------------------------------------------------------------

    def note(self, **values: Any) -> None:
        """Write fields of the job with what is written next."""
        with self._lock:
            self._values |= job_columns(**values)

    def keep_secret(self, name: str, sealed: str) -> None:
        """Write a sealed secret of the job with the next barrier, before which nothing depends on it."""
        with self._lock:
            self._secrets[name] = sealed

    def write(self, values: Mapping[str, Any], *, what: str = "", intent: bool = False) -> None:
        """Write columns of the job's row, together with all that is dirty of its flows.

        Args:
            what: the name of the fault points around it; empty for none, where it is only sooner than it must be.

        Raises:
            LostLease: another runner has taken the job over.
            UncertainError: the database does not answer.
        """
        with self._writing:
            self._write(values, what, intent=intent)

    def _write(self, values: Mapping[str, Any], what: str, *, intent: bool) -> None:
        now = self._logbook.clock.time()
        with self._lock:
            dirty = [flow for flow in self._flows.values() if flow.dirty]
            rows, sealed, noted = [flow.take() for flow in dirty], dict(self._secrets), self._values
            self._values = {}
        secrets = [{"job_id": self._lease.job_id, "name": name, "sealed": text} for name, text in sealed.items()]
        try:
            if what:
                faults.point(f"commit.{what}.before")
            columns = {"updated_at": now, "expires_at": now + self._lease.ttl, **noted, **values}
            self._logbook.journal.write(Entry(self._lease, columns, rows, secrets, intent))
        except BaseException:
            with self._lock:
                self._values = noted | self._values
                for flow in dirty:
                    flow.dirty = True
            raise
        with self._lock:
            for name, text in sealed.items():
                if self._secrets.get(name) == text:
                    del self._secrets[name]
        if what:
            faults.point(f"commit.{what}.after")

    def _barrier(self, what: str, step: str) -> None:
        try:
            self.write({"step": step}, what=what, intent=True)
        except UncertainError as error:
            # Not an Exception: TaskFlow would make it a failed flow, although nothing is known to have failed.
            raise Interrupted(error.message) from error

    def flush_due(self) -> None:
        """Write what a finished step has left, if a sibling of it is still under way.

        No fault point: in no flow of today has a step with an effect a sibling.
        """
        with self._lock:
            due = any(flow.dirty for flow in self._flows.values())
        if due:
            self.write({})

    # -- what the engine does not use while it runs ----------------------------------------------------------

    def save_logbook(self, book: models.LogBook) -> None:
        for detail in book:
            self.update_flow_details(detail)

    def get_logbook(self, book_uuid: str, lazy: bool = False) -> models.LogBook:
        if book_uuid != self._lease.job_id:
            raise exceptions.NotFound(f"no logbook {book_uuid}: this backend holds job {self._lease.job_id}")
        book = models.LogBook("job", uuid=book_uuid)
        for detail in [] if lazy else self._logbook.flows(book_uuid):
            book.add(detail)
        return book

    def get_logbooks(self, lazy: bool = False) -> Iterator[models.LogBook]:
        yield self.get_logbook(self._lease.job_id, lazy)

    def destroy_logbook(self, book_uuid: str) -> None:
        raise exceptions.StorageFailure("a job's logbook is kept as long as the job: tether db prune")

    def clear_all(self) -> None:
        raise exceptions.StorageFailure("a job's logbook is kept as long as the job: tether db prune")

    def get_flows_for_book(self, book_uuid: str) -> Iterator[models.FlowDetail]:
        yield from self.get_logbook(book_uuid)

    def get_flow_details(self, fd_uuid: str, lazy: bool = False) -> models.FlowDetail:
        for row in self._logbook.rows(self._lease.job_id):
            if row["id"] == fd_uuid:
                return _flow_detail(row, lazy=lazy)
        raise exceptions.NotFound(f"no flow {fd_uuid} in job {self._lease.job_id}")

    def get_atoms_for_flow(self, fd_uuid: str) -> Iterator[models.AtomDetail]:
        yield from self.get_flow_details(fd_uuid)

    def get_atom_details(self, ad_uuid: str) -> models.AtomDetail:
        for detail in self._logbook.flows(self._lease.job_id):
            for atom in detail:
                if atom.uuid == ad_uuid:
                    return atom
        raise exceptions.NotFound(f"no step {ad_uuid} in job {self._lease.job_id}")


class _Flow:
    """One flow as it is to be written."""

    def __init__(self, job_id: str, detail: models.FlowDetail, now: float) -> None:
        self._row = {"id": detail.uuid, "job_id": job_id, "name": detail.name, "created_at": now}
        self._state, self._meta = "", "{}"
        self._atoms: dict[str, models.AtomDetail] = {}
        self._texts: dict[str, str] = {}
        self._history: dict[str, list[tuple[str, float]]] = {}
        self.dirty = True

    def set(self, state: str | None, meta: Any) -> None:
        """Note the flow's own state."""
        # What the engine goes through before it begins says nothing.
        begun = self._state not in ("", states.PENDING)
        if state is None or state not in (*ENDS, states.RUNNING) or (state == states.SUSPENDED and not begun):
            state = states.PENDING
        text = json.dumps(meta or {})
        self.dirty = self.dirty or (state, text) != (self._state, self._meta)
        self._state, self._meta = state, text

    def put(self, atom: models.AtomDetail, now: float) -> bool:
        """Note a step as it is now; return True if its state has changed."""
        self._atoms[atom.uuid] = atom
        self._texts.pop(atom.uuid, None)
        if is_untouched(atom):
            return False
        self.dirty = True
        history = self._history.setdefault(atom.uuid, list(getattr(atom, "history", [])))
        if history and history[-1][0] == atom.state:
            return False
        history.append((atom.state, round(now, 3)))
        return True

    def is_busy(self, has_effect: Callable[[str], bool]) -> bool:
        """Return True while a step with an effect is under way."""
        return any(atom.state in INTENTS and has_effect(atom.name) for atom in self._atoms.values())

    def take(self) -> dict[str, Any]:
        """Return the row to be written; what changes from here on makes the flow dirty again."""
        texts = []
        for key, atom in self._atoms.items():
            text = self._texts.get(key)
            if text is None:
                text = self._texts[key] = "" if is_untouched(atom) else encode_atom(atom, self._history[key])
            if text:
                texts.append(text)
        self.dirty = False
        return {**self._row, "state": self._state, "meta": self._meta, "steps": f"[{','.join(texts)}]"}


def _flow_detail(row: Mapping[Any, Any], *, lazy: bool = False) -> models.FlowDetail:
    with reading(f"flow {row['name']} of job {row['job_id']}"):
        intact(flows, row)
        if row["state"] not in STATES:
            raise ValueError(f"state is {row['state']!r}")
        detail = models.FlowDetail(row["name"], row["id"])
        detail.state = row["state"]
        detail.meta = parsed(row, "meta")
        for step in [] if lazy else loaded(row["steps"], "steps"):
            atom = decode_atom(step)
            atom.history = [(state, since) for state, since in step["history"]]
            moments({f"the time of {state}": since for state, since in atom.history}, LATEST)
            detail.add(atom)
        return detail
