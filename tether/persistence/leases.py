"""Leases: one runner at a time for a job and for a server, with a generation that fences the one before."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

from tether.clock import Clock
from tether.errors import HeldError, LostLease
from tether.persistence.database import Database, IntegrityError
from tether.persistence.schema import leases


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, so exactly named that it cannot be mistaken for a later one.

    Args:
        machine_id: ``/etc/machine-id`` of its host.
        boot_id: the host's boot; a process of another boot is dead.
        start_time: the process's start in clock ticks since boot (``/proc/PID/stat``, field 22).
        token: random; what the database compares.
    """

    machine_id: str
    host: str
    boot_id: str
    pid: int
    start_time: int
    token: str

    @classmethod
    def current(cls) -> Owner:
        """Return this process; a new token each time, so that two runs of one process exclude each other too."""
        pid, host = os.getpid(), os.uname().nodename
        machine_id, boot_id = _text("/etc/machine-id") or host, _text("/proc/sys/kernel/random/boot_id")
        return cls(machine_id, host, boot_id, pid, _start_time(pid) or 0, str(uuid.uuid4()))

    def is_dead(self, machine_id: str, boot_id: str) -> bool:
        """Return True if it provably runs no more: of this machine, and another boot or no such process."""
        if self.machine_id != machine_id:
            return False
        return self.boot_id != boot_id or _start_time(self.pid) != self.start_time

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """Return a living process's start time; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as the database holds it."""

    name: str
    owner: Owner
    generation: int
    expires_at: float


class Leases:
    """The leases of one database, as one process sees them.

    Args:
        ttl: seconds until a lease that is not renewed lapses.
    """

    def __init__(self, database: Database, clock: Clock, ttl: float, me: Owner) -> None:
        self._database = database
        self._clock = clock
        self._ttl = ttl
        self.me = me

    def get(self, name: str) -> Lease | None:
        """Return the lease, or None if nobody holds it."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(leases).where(leases.c.name == name)).mappings().first()
        if row is None:
            return None
        return Lease(name, Owner(**json.loads(row["owner"])), row["generation"], row["expires_at"])

    def is_live(self, name: str) -> bool:
        """Return True if somebody holds the lease who is not provably dead."""
        lease = self.get(name)
        return lease is not None and not self._dead(lease)

    def _dead(self, lease: Lease) -> bool:
        return lease.owner.is_dead(self.me.machine_id, self.me.boot_id)

    def take(self, name: str, *, job: str = "") -> Lease:
        """Take the lease: a free one, one's own, or that of a process that is provably dead.

        Args:
            job: the job it is taken for, for the error's hint.

        Raises:
            HeldError: somebody else holds it.
        """
        now = self._clock.time()
        values = {"owner": json.dumps(asdict(self.me)), "token": self.me.token, "expires_at": now + self._ttl}
        try:
            with self._database.write() as connection:
                row = connection.execute(sa.select(leases).where(leases.c.name == name)).mappings().first()
                if row is None:
                    connection.execute(sa.insert(leases).values(name=name, generation=1, **values))
                    return Lease(name, self.me, 1, now + self._ttl)
                held = Lease(name, Owner(**json.loads(row["owner"])), row["generation"], row["expires_at"])
                if held.owner.token != self.me.token and not self._dead(held):
                    raise _held(name, str(held.owner), job)
                generation = held.generation + (held.owner.token != self.me.token)
                # PostgreSQL lets several read the dead owner's row at a time: only one of them replaces it.
                taken = connection.execute(
                    sa.update(leases)
                    .where(leases.c.name == name, leases.c.token == held.owner.token)
                    .values(generation=generation, **values)
                )
                if taken.rowcount != 1:
                    raise _held(name, "another runner", job)
                return Lease(name, self.me, generation, now + self._ttl)
        except IntegrityError as error:  # somebody else was quicker to take the free one
            raise _held(name, "another runner", job) from error

    def fence(self, connection: sa.Connection, lease: Lease) -> None:
        """Renew the lease inside the caller's transaction, which fails if somebody has taken it over.

        Raises:
            LostLease: it is another's now; nothing of the transaction is kept.
        """
        renewed = connection.execute(
            sa.update(leases)
            .where(
                leases.c.name == lease.name,
                leases.c.token == lease.owner.token,
                leases.c.generation == lease.generation,
            )
            .values(expires_at=self._clock.time() + self._ttl)
        )
        if renewed.rowcount != 1:
            raise LostLease(f"{lease.name.replace(':', ' ')} was taken over by another runner")

    def renew(self, lease: Lease) -> None:
        """Renew the lease in a transaction of its own."""
        with self._database.write() as connection:
            self.fence(connection, lease)

    def release(self, lease: Lease) -> None:
        """Give the lease up, if it is still ours. A later holder has another token, which fences this one."""
        with self._database.write() as connection:
            connection.execute(
                sa.delete(leases).where(leases.c.name == lease.name, leases.c.token == lease.owner.token)
            )

    @contextmanager
    def held(self, name: str, *, wait: float, job: str = "") -> Iterator[Lease]:
        """Hold the lease for the block; wait up to ``wait`` seconds for another holder.

        Raises:
            HeldError: another still holds it after that.
        """
        deadline = self._clock.time() + wait
        while True:
            try:
                lease = self.take(name, job=job)
                break
            except HeldError:
                if self._clock.time() >= deadline:
                    raise
                self._clock.wait(0.1)
        try:
            yield lease
        finally:
            self.release(lease)


def _held(name: str, by: str, job: str) -> HeldError:
    what = name.replace(":", " ")
    return HeldError(
        f"{what} is held by {by}", resource=what, hint=f"wait for it, or see: tether job show {job or '--last'}"
    )
