"""The ledger: jobs, mappings and the devices of this host, over the tables of :mod:`.schema`."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from tether.clock import Clock
from tether.errors import ConflictError, HeldError, LostLease, NotFound, UsageError
from tether.persistence.database import Database, IntegrityError
from tether.persistence.handovers import Handovers
from tether.persistence.intact import PARAMS, Damaged, check_job, check_mapping, intact, legible, parsed, reading, typed
from tether.persistence.journal import Lease, fence
from tether.persistence.owner import Owner
from tether.persistence.params import Params
from tether.persistence.schema import connections, jobs, mappings, secrets

#: Job states in which the job is not finished: it holds its volume.
OPEN = ("running", "blocked")
#: Attachments carry, as their instance, a UUID of this namespace and the job: tether's owner mark.
OWNER_NAMESPACE = uuid.UUID("5d0e7f0a-6f0c-5b57-9a39-6d3f5c0b8e11")

#: Made once: every job is asked for by them.
_BY_ID = sa.select(jobs).where(jobs.c.id == sa.bindparam("id"))
_BY_OPEN_VOLUME = sa.select(jobs).where(jobs.c.open_volume == sa.bindparam("volume"))
_BY_PAIR = sa.select(mappings).where(
    mappings.c.volume_id == sa.bindparam("volume"), mappings.c.server_id == sa.bindparam("server")
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job was made; it is only resumed at the same place.

    Args:
        machine_id: this host; ``boot_id`` may differ at resume, the rest may not.
    """

    endpoint: str
    project_id: str
    libvirt_uri: str
    machine_id: str
    initiator: str
    nqn: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """A durable request with its flow.

    Args:
        quiet_at: by book, when no call of an earlier run can be carried out any more; seconds since the epoch.
        runner: the process that holds the job's lease, dead or alive; None if nobody does.
        generation: of the lease.
        expires_at: when the lease lapses; seconds since the epoch.
        asked: what another command asks of the runner, or None.
        settled: who has settled the job by hand, as what, and why; None for nearly all.
    """

    id: str
    kind: str
    version: int
    state: str
    volume_id: str
    volume_name: str
    server_id: str
    server_name: str
    request_id: str
    params: Params
    place: Place
    idempotency_key: str | None = None
    step: str = ""
    error: Mapping[str, Any] | None = None
    exit_code: int | None = None
    attempts: int = 0
    quiet_at: Mapping[str, float] = field(default_factory=dict)
    runner: Owner | None = None
    generation: int = 0
    expires_at: float | None = None
    asked: str | None = None
    settled: Mapping[str, Any] | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None

    @property
    def open(self) -> bool:
        """True until the job has ended for good."""
        return self.state in OPEN

    @property
    def owner(self) -> str:
        """The owner mark of this job's attachment."""
        return owner_of(self.id)

    @property
    def called(self) -> str:
        """What people call it: its kind, and whether it is forced."""
        return f"forced {self.kind}" if self.params.force else self.kind

    def is_live(self, now: float) -> bool:
        """Return True while a runner works on it: the lease has not lapsed, and its owner is not provably dead."""
        return self.runner is not None and now < (self.expires_at or 0.0) and not self.runner.is_dead


@dataclass(frozen=True, slots=True)
class MappingRow:
    """A mapping: this volume is, or is becoming, this disk of this server."""

    id: str
    job_id: str
    volume_id: str
    server_id: str
    state: str
    target: str
    bus: str
    address: Mapping[str, str]
    mode: str
    dialect: str
    data_path: str
    machine_id: str
    owner_mark: str = ""
    attachment_id: str = ""
    encrypted: bool = False
    pending_unplug: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A volume's device on a host."""

    machine_id: str
    volume_id: str
    identity: str | None
    path: str
    created_at: float = field(default=0.0)


def owner_of(job_id: str) -> str:
    """Return the owner mark of a job's attachment."""
    return str(uuid.uuid5(OWNER_NAMESPACE, job_id))


class Ledger:
    """Jobs, mappings and connections of one database.

    Args:
        lease: of the job that writes; without one, nothing of a running job may be written.
    """

    def __init__(self, database: Database, clock: Clock, lease: Lease | None = None) -> None:
        self._database = database
        self._clock = clock
        self._lease = lease

    def fenced(self, lease: Lease) -> Ledger:
        """Return the ledger as a running job writes it: not at all, once another runner has the job."""
        return Ledger(self._database, self._clock, lease)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction; raise LostLease if the job that writes is another runner's by now."""
        with self._database.write() as connection:
            if self._lease is not None and not fence(connection, self._lease, {"updated_at": self._clock.time()}):
                raise LostLease(f"job {self._lease.job_id} was taken over by another runner")
            yield connection

    @property
    def handovers(self) -> Handovers:
        """The mappings that are being handed over from one host to another."""
        return Handovers(self._database, self._clock, self._write)

    # -- jobs -----------------------------------------------------------------------------------------------

    def add_job(self, job: Job, **columns: Any) -> Job:
        """Store a new job; it takes hold of its volume.

        Args:
            columns: of the row, as its first owner's lease gives them.

        Raises:
            HeldError: an open job has the volume.
            ConflictError: the idempotency key was used before.
        """
        now = self._clock.time()
        values = {name: getattr(job, name) for name in Job.__slots__ if name not in _JSON} | {
            "open_volume": job.volume_id,
            "params": json.dumps(asdict(job.params)),
            "place": json.dumps(asdict(job.place)),
            "created_at": now,
            "updated_at": now,
            **columns,
        }
        try:
            with self._database.write() as connection:
                connection.execute(sa.insert(jobs), values)
        except IntegrityError as error:
            holder = self.open_job(job.volume_id)
            if holder is not None:
                raise HeldError(
                    f"volume {job.volume_name} is held by job {holder.id} ({holder.kind} to {holder.server_name})",
                    resource=f"volume {job.volume_id}",
                    hint=f"see: tether job show {holder.id}",
                ) from error
            raise ConflictError(
                f"the request id {job.idempotency_key!r} was used by another job",
                hint="use a new --request-id for a new request",
            ) from error
        return _job(dict.fromkeys(Job.__slots__) | values)

    def job(self, job_id: str) -> Job:
        """Return a job by its id or an unambiguous beginning of it.

        Raises:
            NotFound: there is none.
            UsageError: several jobs begin like that.
        """
        found = self._one(_BY_ID, id=job_id)
        if found is not None:
            return found
        # As a range, which an index serves in every collation: hexadecimal digits and "-" come before "g".
        begins = sa.and_(jobs.c.id > job_id, jobs.c.id < f"{job_id}g")
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(begins).limit(2)).mappings().all()
        if not rows or not re.fullmatch(r"[0-9a-f-]+", job_id):
            raise NotFound(f"there is no job {job_id!r}", resource=f"job {job_id}", hint="see: tether job list")
        if len(rows) > 1:
            raise UsageError(f"several jobs begin with {job_id!r}", hint="give more of the id: tether job list")
        return _job(rows[0])

    def job_of(self, row: MappingRow) -> Job:
        """Return the job that made a mapping.

        Raises:
            OperatorNeeded: it is gone: the ledger contradicts itself.
        """
        found = self._one(_BY_ID, id=row.job_id)
        if found is None:
            with reading(f"mapping of volume {row.volume_id} on server {row.server_id}"):
                raise ValueError(f"there is no job {row.job_id!r}, which made it")
        return found

    def last_job(self) -> Job:
        """Return the newest job; NotFound if there is none at all."""
        found = self.list_jobs(limit=1)
        if not found:
            raise NotFound("there is no job yet", hint="make one with: tether attach VOLUME SERVER")
        return found[0]

    def list_jobs(
        self, *, open_only: bool = False, limit: int | None = 100, damaged: Damaged | None = None
    ) -> list[Job]:
        """Return the newest jobs, newest first; all of them without a limit.

        Args:
            damaged: is told of each row that is, which is left out; without it the first one is raised.
        """
        query = sa.select(jobs)
        if open_only:
            # Sorted here: SQLite would rather walk through all jobs by their creation than sort the few open ones.
            query = query.where(jobs.c.open_volume.is_not(None))
        else:
            query = query.order_by(jobs.c.created_at.desc()).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        found = legible(_job, rows, damaged)
        return sorted(found, key=lambda job: job.created_at, reverse=True)[:limit]

    def open_job(self, volume_id: str) -> Job | None:
        """Return the job that holds the volume, if any."""
        return self._one(_BY_OPEN_VOLUME, volume=volume_id)

    def job_of_key(self, key: str) -> Job | None:
        """Return the job that was made with this idempotency key, if any."""
        return self._one(sa.select(jobs).where(jobs.c.idempotency_key == key))

    def last_job_of(self, volume_id: str, server_id: str) -> Job | None:
        """Return the newest job about a volume and a server, if any."""
        return self._one(
            sa.select(jobs)
            .where(jobs.c.volume_id == volume_id, jobs.c.server_id == server_id)
            .order_by(jobs.c.created_at.desc())
            .limit(1)
        )

    def jobs_where(self, condition: sa.ColumnElement[bool]) -> list[Job]:
        """Return the jobs of whose rows a condition holds."""
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(sa.select(jobs).where(condition)).mappings()]

    def _one(self, query: sa.Select[Any], **given: Any) -> Job | None:
        with self._database.read() as connection:
            row = connection.execute(query, given).mappings().first()
        return None if row is None else _job(row)

    def params(self, job_id: str) -> Params:
        """Return what a job has noted of its case by now, whatever its lease says while it is taken up again."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(jobs.c.params).where(jobs.c.id == job_id)).mappings().one()
        with reading(f"job {job_id}"):
            return typed(Params, parsed(row, "params"), PARAMS)

    def set_params(self, job_id: str, params: Params) -> None:
        """Replace what a job has noted of its case."""
        with self._write() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(params=json.dumps(asdict(params))))

    def ask(self, job_id: str, what: str) -> None:
        """Ask the runner of a job for something: it looks for it once a second, and before each step."""
        with self._database.write() as connection:
            held = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.runner.is_not(None))
            connection.execute(held.values(asked=what))

    # -- mappings -------------------------------------------------------------------------------------------

    def add_mapping(self, row: MappingRow) -> None:
        """Store a mapping.

        Raises:
            ConflictError: the pair, the target name or the address is taken.
        """
        now = self._clock.time()
        address = json.dumps(dict(row.address), sort_keys=True)
        values = asdict(row) | {"address": address, "created_at": now, "updated_at": now}
        try:
            with self._write() as connection:
                connection.execute(sa.insert(mappings).values(**values))
        except IntegrityError as error:
            raise ConflictError(
                f"the ledger already has {row.target} or its address on server {row.server_id}",
                resource=f"server {row.server_id}",
                hint="see: tether mapping list",
            ) from error

    def mapping_of_job(self, job_id: str) -> MappingRow | None:
        """Return the mapping that a job made, if it is there."""
        return self._mapping(sa.select(mappings).where(mappings.c.job_id == job_id))

    def mapping(self, volume_id: str, server_id: str) -> MappingRow | None:
        """Return the mapping of a volume and a server, if it is there."""
        return self._mapping(_BY_PAIR, volume=volume_id, server=server_id)

    def _mapping(self, query: sa.Select[Any], **given: Any) -> MappingRow | None:
        with self._database.read() as connection:
            row = connection.execute(query, given).mappings().first()
        return None if row is None else _mapping(row)

    def list_mappings(
        self, *, server_id: str = "", volume_id: str = "", damaged: Damaged | None = None
    ) -> list[MappingRow]:
        """Return mappings, oldest first; ``damaged`` as for :meth:`list_jobs`."""
        query = sa.select(mappings).order_by(mappings.c.created_at, mappings.c.id)
        for column, value in ((mappings.c.server_id, server_id), (mappings.c.volume_id, volume_id)):
            query = query.where(column == value) if value else query
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return legible(_mapping, rows, damaged)

    def update_mapping(self, volume_id: str, server_id: str, **values: Any) -> None:
        """Change some of a mapping's columns."""
        with self._write() as connection:
            changed = sa.update(mappings).where(*_pair(volume_id, server_id))
            connection.execute(changed.values(updated_at=self._clock.time(), **values))

    def delete_mapping(self, volume_id: str, server_id: str) -> None:
        """Forget a mapping and the secrets of its job. Repeatable."""
        pair = _pair(volume_id, server_id)
        with self._write() as connection:
            job = sa.select(mappings.c.job_id).where(*pair)
            connection.execute(sa.delete(secrets).where(secrets.c.job_id.in_(job)))
            connection.execute(sa.delete(mappings).where(*pair))

    def drop_stale_secrets(self, volume_id: str, server_id: str) -> None:
        """Forget what jobs about a volume and a server have sealed, but for the mapping's own. Repeatable."""
        about = sa.select(jobs.c.id).where(jobs.c.volume_id == volume_id, jobs.c.server_id == server_id)
        kept = sa.select(mappings.c.job_id).where(*_pair(volume_id, server_id)).scalar_subquery()
        with self._write() as connection:
            connection.execute(sa.delete(secrets).where(secrets.c.job_id.in_(about), secrets.c.job_id != kept))

    def secret(self, job_id: str, name: str) -> str | None:
        """Return a secret of a mapping's job, sealed, if there is one."""
        query = sa.select(secrets.c.sealed).where(secrets.c.job_id == job_id, secrets.c.name == name)
        with self._database.read() as connection:
            return connection.execute(query).scalar()

    def secrets_named(self, name: str) -> dict[str, str]:
        """Return the sealed secrets of this name, by their job."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(secrets.c.job_id, secrets.c.sealed).where(secrets.c.name == name))
            return {row.job_id: row.sealed for row in rows}

    # -- devices --------------------------------------------------------------------------------------------

    def record_connection(self, row: ConnectionRow) -> None:
        """Store or replace which device of a host is the volume.

        Raises:
            ConflictError: another volume of this host has the same identity.
        """
        values = asdict(row) | {"identity": row.identity or None, "created_at": self._clock.time()}
        try:
            with self._write() as connection:
                connection.execute(sa.delete(connections).where(*_device(row.machine_id, row.volume_id)))
                connection.execute(sa.insert(connections).values(**values))
        except IntegrityError as error:
            raise ConflictError(
                f"the device {row.path} with identity {row.identity} already belongs to another volume of this host",
                resource=f"volume {row.volume_id}",
                hint="two volumes with one device: check the backend's exports before anything else",
            ) from error

    def delete_connection(self, machine_id: str, volume_id: str) -> None:
        """Forget a volume's device. Repeatable."""
        with self._write() as connection:
            connection.execute(sa.delete(connections).where(*_device(machine_id, volume_id)))

    def list_connections(self, machine_id: str) -> list[ConnectionRow]:
        """Return the device ledger of a host."""
        query = sa.select(connections).where(connections.c.machine_id == machine_id).order_by(connections.c.volume_id)
        with self._database.read() as connection:
            return [_connection(row) for row in connection.execute(query).mappings()]


def _pair(volume_id: str, server_id: str) -> tuple[Any, ...]:
    return mappings.c.volume_id == volume_id, mappings.c.server_id == server_id


def _device(machine_id: str, volume_id: str) -> tuple[Any, ...]:
    return connections.c.machine_id == machine_id, connections.c.volume_id == volume_id


#: Fields of a job whose columns are JSON; with ``open_volume`` they are what differs between the two.
_JSON = ("params", "place", "error", "quiet_at", "runner", "settled")


def job_columns(**values: Any) -> dict[str, Any]:
    """Return what changes of a job as the columns of its row. A finished state lets the volume and the lease go.

    ``error``, ``quiet_at`` and ``settled`` are mappings or None.
    """
    for name in {"error", "quiet_at", "settled"} & values.keys():
        values[name] = None if values[name] is None else json.dumps(values[name])
    if "state" in values and values["state"] not in OPEN:
        values |= {"open_volume": None, "runner": None, "asked": None}
    return values


def _job(row: Mapping[Any, Any]) -> Job:
    with reading(f"job {row['id']}"):
        told = check_job(row, is_open=row["state"] in OPEN)
        return Job(
            **{name: row[name] for name in Job.__slots__ if name not in _JSON},
            **told,
            params=typed(Params, parsed(row, "params"), PARAMS),
            place=typed(Place, parsed(row, "place")),
            runner=Owner.load(row["runner"]) if row["runner"] else None,
        )


def _mapping(row: Mapping[Any, Any]) -> MappingRow:
    with reading(f"mapping {row['id']} of volume {row['volume_id']} on server {row['server_id']}"):
        return MappingRow(**(dict(row) | {"address": check_mapping(row)}))


def _connection(row: Mapping[Any, Any]) -> ConnectionRow:
    with reading(f"device of volume {row['volume_id']} on host {row['machine_id']}"):
        return ConnectionRow(**intact(connections, row))
