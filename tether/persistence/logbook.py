"""The logbook: TaskFlow's persistence backend over our own tables.

TaskFlow's engine never reads back while it runs, so what it saves may be buffered. A *barrier* writes all that
is dirty in one transaction, and comes where something must be durable before what follows: when a step is about
to execute or revert (TaskFlow submits it only after that save returned), and when a flow ends. Every barrier
renews the job's lease, and so fails if another runner has taken the job over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from taskflow import exceptions, states
from taskflow.persistence import base, models

from tether import faults
from tether.clock import Clock
from tether.errors import Interrupted, UncertainError
from tether.persistence.database import Database
from tether.persistence.leases import Lease, Leases
from tether.persistence.schema import flows, jobs, steps

#: States of a step that say: its effect, or its undo, may be happening.
INTENTS = {states.RUNNING: "act", states.REVERTING: "undo"}
ENDS = (states.SUCCESS, states.REVERTED, states.FAILURE, states.SUSPENDED)


class Logbook:
    """Reads the flows of any job; hands out the backend that writes one job's."""

    def __init__(self, database: Database, clock: Clock, leases: Leases) -> None:
        self.database = database
        self.clock = clock
        self.leases = leases

    def flow(self, job_id: str, name: str) -> models.FlowDetail | None:
        """Return a job's flow as it was last written, or None if it has not begun."""
        with self.database.read() as connection:
            row = (
                connection.execute(sa.select(flows).where(flows.c.job_id == job_id, flows.c.name == name))
                .mappings()
                .first()
            )
            if row is None:
                return None
            rows = connection.execute(sa.select(steps).where(steps.c.flow_id == row["id"])).mappings().all()
        return _flow_detail(row, rows)

    def flows(self, job_id: str) -> list[models.FlowDetail]:
        """Return all flows of a job, in the order in which they began."""
        with self.database.read() as connection:
            names = (
                connection.execute(sa.select(flows.c.name).where(flows.c.job_id == job_id).order_by(flows.c.updated_at))
                .scalars()
                .all()
            )
        return [detail for name in names if (detail := self.flow(job_id, name)) is not None]

    def backend(self, job_id: str, lease: Lease) -> JobBackend:
        """Return the backend for one run of one job."""
        return JobBackend(self, job_id, lease)


class JobBackend(base.Backend):  # type: ignore[misc]  # taskflow has no types
    """TaskFlow's backend for one job, fenced by the job's lease."""

    def __init__(self, logbook: Logbook, job_id: str, lease: Lease) -> None:
        super().__init__({})
        self._connection = JobConnection(self, logbook, job_id, lease)

    def get_connection(self) -> JobConnection:
        return self._connection

    def close(self) -> None:
        """Nothing is kept open."""


class JobConnection(base.Connection):  # type: ignore[misc]  # taskflow has no types
    """Buffers what the engine saves, and writes it at barriers."""

    def __init__(self, backend: JobBackend, logbook: Logbook, job_id: str, lease: Lease) -> None:
        self._backend = backend
        self._logbook = logbook
        self._job_id = job_id
        self._lease = lease
        self._flow_of: dict[str, models.FlowDetail] = {}
        self._flows: dict[str, models.FlowDetail] = {}
        self._dirty: dict[str, models.AtomDetail] = {}
        self._seen: dict[str, str | None] = {}

    @property
    def backend(self) -> JobBackend:
        return self._backend

    def close(self) -> None:
        """Nothing is kept open."""

    def upgrade(self) -> None:
        """The schema is made by ``tether db upgrade`` alone."""

    def validate(self) -> None:
        """The database was checked when it was opened."""

    def update_flow_details(self, flow_detail: models.FlowDetail) -> models.FlowDetail:
        self._flows[flow_detail.uuid] = flow_detail
        for atom in flow_detail:
            self._flow_of[atom.uuid] = flow_detail
        if flow_detail.state in ENDS:
            self._barrier(f"{flow_detail.name}.end", step=None)
        return flow_detail

    def update_atom_details(self, atom_detail: models.AtomDetail) -> models.AtomDetail:
        self._dirty[atom_detail.uuid] = atom_detail
        intent = INTENTS.get(atom_detail.state)
        # TaskFlow saves an atom again for its progress; only the change of state is an intent.
        changed = self._seen.get(atom_detail.uuid) != atom_detail.state
        self._seen[atom_detail.uuid] = atom_detail.state
        if intent is not None and changed:
            self._barrier(f"{atom_detail.name.partition('/')[0]}.{intent}", step=atom_detail.name)
        return atom_detail

    def turn_back(self, flow_detail: models.FlowDetail) -> None:
        """Store a flow whose steps were edited so that it goes backward, in one transaction.

        The engine is loaded from the database: an edit that is only buffered here would be lost on it.
        """
        self.update_flow_details(flow_detail)
        for atom in flow_detail:
            self._dirty[atom.uuid] = atom
        self._barrier(f"{flow_detail.name}.turn-back", step=None)

    def _barrier(self, what: str, step: str | None) -> None:
        try:
            faults.point(f"commit.{what}.before")
            self._write(step)
            faults.point(f"commit.{what}.after")
        except UncertainError as error:
            # Not an Exception: TaskFlow would make it a failed flow, although nothing is known to have failed.
            raise Interrupted(error.message) from error

    def _write(self, step: str | None) -> None:
        now = self._logbook.clock.time()
        with self._logbook.database.write() as connection:
            self._logbook.leases.fence(connection, self._lease)
            if step is not None:
                connection.execute(sa.update(jobs).where(jobs.c.id == self._job_id).values(step=step, updated_at=now))
            for detail in self._flows.values():
                changed = connection.execute(
                    sa.update(flows)
                    .where(flows.c.id == detail.uuid)
                    .values(state=detail.state, meta=json.dumps(detail.meta))
                )
                if not changed.rowcount:
                    connection.execute(
                        sa.insert(flows).values(
                            id=detail.uuid,
                            job_id=self._job_id,
                            name=detail.name,
                            state=detail.state,
                            meta=json.dumps(detail.meta),
                            updated_at=now,
                        )
                    )
            for atom in self._dirty.values():
                self._write_atom(connection, atom, now)
        self._flows.clear()
        self._dirty.clear()

    def _write_atom(self, connection: sa.Connection, atom: models.AtomDetail, now: float) -> None:
        key = {"flow_id": self._flow_of[atom.uuid].uuid, "name": atom.name}
        values = {
            "kind": models.atom_detail_type(atom),
            "state": atom.state,
            # An exception's arguments may be anything; a failure must never make a flow unsavable.
            "detail": json.dumps(atom.to_dict(), default=repr),
            "updated_at": now,
        }
        changed = connection.execute(sa.update(steps).filter_by(**key).values(**values))
        if not changed.rowcount:
            connection.execute(sa.insert(steps).values(**key, **values))

    # -- what the engine does not use while it runs ----------------------------------------------------------

    def save_logbook(self, book: models.LogBook) -> None:
        for detail in book:
            self.update_flow_details(detail)

    def get_logbook(self, book_uuid: str, lazy: bool = False) -> models.LogBook:
        if book_uuid != self._job_id:
            raise exceptions.NotFound(f"no logbook {book_uuid}: this backend holds job {self._job_id}")
        book = models.LogBook("job", uuid=self._job_id)
        for detail in self._logbook.flows(self._job_id):
            book.add(detail)
        return book

    def get_logbooks(self, lazy: bool = False) -> Iterator[models.LogBook]:
        yield self.get_logbook(self._job_id)

    def destroy_logbook(self, book_uuid: str) -> None:
        raise exceptions.StorageFailure("a job's logbook is kept as long as the job")

    def clear_all(self) -> None:
        raise exceptions.StorageFailure("a job's logbook is kept as long as the job")

    def get_flows_for_book(self, book_uuid: str) -> Iterator[models.FlowDetail]:
        yield from self.get_logbook(book_uuid)

    def get_flow_details(self, fd_uuid: str, lazy: bool = False) -> models.FlowDetail:
        for detail in self.get_logbook(self._job_id):
            if detail.uuid == fd_uuid:
                return detail
        raise exceptions.NotFound(f"no flow {fd_uuid} in job {self._job_id}")

    def get_atoms_for_flow(self, fd_uuid: str) -> Iterator[models.AtomDetail]:
        yield from self.get_flow_details(fd_uuid)

    def get_atom_details(self, ad_uuid: str) -> models.AtomDetail:
        for detail in self.get_logbook(self._job_id):
            for atom in detail:
                if atom.uuid == ad_uuid:
                    return atom
        raise exceptions.NotFound(f"no step {ad_uuid} in job {self._job_id}")


def _flow_detail(row: Any, rows: Any) -> models.FlowDetail:
    detail = models.FlowDetail(row["name"], row["id"])
    detail.state = row["state"]
    detail.meta = json.loads(row["meta"] or "null") or {}
    for step in rows:
        detail.add(models.atom_detail_class(step["kind"]).from_dict(json.loads(step["detail"])))
    return detail
