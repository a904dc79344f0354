"""Leases: one runner at a time for a job, and one for a server while its disks change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from tether.clock import Clock
from tether.errors import HeldError, LostLease
from tether.persistence.database import Database, IntegrityError
from tether.persistence.intact import reading
from tether.persistence.journal import Entry, Journal, Lease, fence
from tether.persistence.ledger import Job
from tether.persistence.owner import Owner
from tether.persistence.schema import jobs, leases

#: Seconds that an old owner, ended by the one who takes over, has to be gone.
END_TIME = 10.0


class Leases:
    """The leases of one database, as one runner sees them.

    Args:
        ttl: seconds until a job's lease that is not renewed lapses; then its owner is ended by who takes the job over.
        journal: the process's own, so that many jobs that are taken at a time share their commits.
    """

    def __init__(self, database: Database, clock: Clock, ttl: float, me: Owner, journal: Journal | None = None) -> None:
        self._database = database
        self._journal = journal or Journal(database)
        self._clock = clock
        self.ttl = ttl
        self.me = me

    # -- jobs ------------------------------------------------------------------------------------------------

    def first(self, job_id: str) -> tuple[Lease, dict[str, Any]]:
        """Return the lease of a job that is about to be added, and the columns that say so in its row."""
        return Lease(job_id, 1, self.ttl), {"runner": self.me.dump(), "generation": 1, **self.renewal}

    def take(self, job: Job, values: dict[str, Any], *, fenced: bool = False) -> Lease | None:
        """Take a job: a free one, or that of an owner who is provably dead or is ended here.

        The owner of a lapsed lease is ended first, with its children, so that nothing of it is still under way.

        Args:
            job: as it was read; None is returned if somebody was quicker to take it since, or its owner went on.
            values: columns of the job's row that change with it.
            fenced: the owner's host or container is known to be down for good, which nothing here can show.

        Raises:
            HeldError: somebody else holds it.
        """
        if job.runner is not None and not self._end(job.runner, job.expires_at or 0.0, fenced=fenced):
            raise held(f"job {job.id}", str(job.runner), job.id)
        if job.runner is not None:  # first: once the job is ours, nobody knows any more whose they were
            self._free_servers(job.runner.token)
        now = self._clock.time()
        changes = {"runner": self.me.dump(), "generation": job.generation + 1, "asked": None, "updated_at": now}
        # As it was read: an owner that died since may have gone on, past its pivot or to the job's end, before it did.
        entry = Entry(Lease(job.id, job.generation, self.ttl), values | self.renewal | changes, seen=job.updated_at)
        try:
            self._journal.write(entry)
        except LostLease:
            return None
        return Lease(job.id, job.generation + 1, self.ttl)

    @property
    def renewal(self) -> dict[str, Any]:
        """The columns of a job's row that renew its lease; every write of its runner has them."""
        return {"expires_at": self._clock.time() + self.ttl}

    def _end(self, owner: Owner, expires_at: float, *, fenced: bool) -> bool:
        """Return True once nothing of this owner is under way any more."""
        if owner.is_dead:
            return True
        if self._clock.time() < expires_at:
            return False
        return owner.end(END_TIME) if owner.is_visible else fenced

    def asked(self, held: Iterable[Lease]) -> tuple[set[str], set[str]]:
        """Return which of these jobs somebody asks to stop, and which are another runner's by now."""
        mine = {lease.job_id: lease.generation for lease in held}
        query = sa.select(jobs.c.id, jobs.c.generation, jobs.c.asked).where(jobs.c.id.in_(mine))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return (
            {row.id for row in rows if row.asked is not None},
            {row.id for row in rows if row.generation != mine[row.id]},
        )

    def renew(self, held: Iterable[Lease]) -> None:
        """Renew the leases of these jobs, all in one transaction; a lost one is left as it is."""
        values = self.renewal
        with self._database.write() as connection:
            for lease in held:
                fence(connection, lease, values)

    # -- servers ---------------------------------------------------------------------------------------------

    def holder(self, name: str) -> Owner | None:
        """Return who holds a server, dead or alive; None if nobody."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(leases.c.owner).where(leases.c.name == name)).first()
        return None if row is None else _owner(name, row.owner)

    def _take_server(self, name: str, job: str) -> None:
        """Take a server: a free one, or that of a process that is provably dead.

        A living one's is never taken: it may be inside a plug. Who takes its job over ends it first.
        """
        values = {"owner": self.me.dump(), "token": self.me.token, "expires_at": self._clock.time() + self.ttl}
        try:
            with self._database.write() as connection:
                row = connection.execute(sa.select(leases).where(leases.c.name == name)).first()
                if row is None:
                    connection.execute(sa.insert(leases).values(name=name, **values))
                    return
                owner = _owner(name, row.owner)
                if owner.token != self.me.token and not owner.is_dead:
                    raise held(name.replace(":", " "), str(owner), job)
                # PostgreSQL lets several read the dead owner's row at a time: only one of them replaces it.
                taken = connection.execute(
                    sa.update(leases).where(leases.c.name == name, leases.c.token == owner.token).values(**values)
                )
                if taken.rowcount != 1:
                    raise held(name.replace(":", " "), "another runner", job)
        except IntegrityError as error:  # somebody else was quicker to take the free one
            raise held(name.replace(":", " "), "another runner", job) from error

    def _free_servers(self, token: str) -> None:
        """Let go of what a runner held that is no more."""
        mine = leases.c.token == token
        with self._database.read() as connection:
            if connection.execute(sa.select(leases.c.name).where(mine)).first() is None:
                return
        with self._database.write() as connection:
            connection.execute(sa.delete(leases).where(mine))

    @contextmanager
    def held(self, name: str, *, wait: float, job: str = "") -> Iterator[None]:
        """Hold a server for the block; wait up to ``wait`` seconds for another holder.

        Args:
            job: the job it is held for, for the error's hint.

        Raises:
            HeldError: another still holds it after that.
        """
        deadline = self._clock.time() + wait
        while True:
            try:
                self._take_server(name, job)
                break
            except HeldError:
                if self._clock.time() >= deadline:
                    raise
                self._clock.wait(0.1)
        try:
            yield
        finally:
            with self._database.write() as connection:
                connection.execute(sa.delete(leases).where(leases.c.name == name, leases.c.token == self.me.token))


def _owner(name: str, text: str) -> Owner:
    with reading(f"lease {name}"):
        return Owner.load(text)


def held(what: str, by: str, job: str) -> HeldError:
    """Return the refusal of what another runner holds."""
    return HeldError(
        f"{what} is held by {by}", resource=what, hint=f"wait for it, or see: tether job show {job or '--last'}"
    )
