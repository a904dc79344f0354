"""Tether's own tables, opened for a test on either database."""

from __future__ import annotations

import json
import os
import signal
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from tether.clock import SystemClock
from tether.persistence.database import Database
from tether.persistence.journal import Lease
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Ledger, MappingRow, Place
from tether.persistence.logbook import Logbook
from tether.persistence.migrations import upgrade
from tether.persistence.owner import Owner
from tether.persistence.params import Params

PLACE = Place("http://cinder.test", "p", "test:///default", "m", "iqn.test", "", "b")


def a_job(**changes: Any) -> Job:
    """Return a job that is not stored yet."""
    name = str(uuid.uuid4())
    job = Job(
        id=name,
        kind="attach",
        version=1,
        state="running",
        volume_id=str(uuid.uuid4()),
        volume_name="vol",
        server_id=str(uuid.uuid4()),
        server_name="guest",
        request_id=f"req-{name}",
        params=Params(),
        place=PLACE,
        attempts=1,
    )
    return replace(job, **changes)


def a_mapping(**changes: Any) -> MappingRow:
    """Return a mapping that is not stored yet."""
    row = MappingRow(
        id=str(uuid.uuid4()),
        job_id=str(uuid.uuid4()),
        volume_id=str(uuid.uuid4()),
        server_id=str(uuid.uuid4()),
        state="attaching",
        target="vdb",
        bus="virtio",
        address={"type": "pci", "slot": "0x05"},
        mode="rw",
        dialect="attachments",
        data_path="host",
        machine_id="m",
    )
    return replace(row, **changes)


@dataclass
class Books:
    """One database, as one process sees it."""

    url: str
    database: Database
    ledger: Ledger
    leases: Leases
    logbook: Logbook

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """Ask over a connection of its own: what another process would see."""
        engine = sa.create_engine(self.url)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(sa.text(statement), values)]
        finally:
            engine.dispose()

    def database_execute(self, statement: str, **values: Any) -> None:
        """Change something behind tether's back."""
        with self.database.write() as connection:
            connection.execute(sa.text(statement), values)

    def another(self, **who: Any) -> Leases:
        """Return the leases as another run sees them, or a process that differs in ``who``."""
        return Leases(self.database, SystemClock(), 30.0, replace(Owner.current(), **who))

    def held_job(self, leases: Leases | None = None, **changes: Any) -> tuple[Job, Lease]:
        """Store a job that is held from its start, by these leases' owner."""
        job = a_job(**changes)
        lease, columns = (leases or self.leases).first(job.id)
        return self.ledger.add_job(job, **columns), lease

    def steps(self) -> dict[str, str]:
        """Return the states of all steps as another process sees them, by name."""
        documents = [json.loads(text) for (text,) in self.rows("SELECT steps FROM tether_flows")]
        return {step["name"]: step["state"] for document in documents for step in document}


@contextmanager
def opened(url: str, *, ready: bool = True) -> Iterator[Books]:
    """Open a database, with its schema unless told otherwise."""
    database, clock = Database(url), SystemClock()
    leases = Leases(database, clock, 30.0, Owner.current())
    try:
        if ready:
            upgrade(database)
        yield Books(url, database, Ledger(database, clock), leases, Logbook(database, clock))
    finally:
        database.close()


@contextmanager
def other_process(work: Callable[[], None]) -> Iterator[int]:
    """Fork a process that does ``work`` and then waits; give its id once the work is done; kill it at the end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writer, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1", "the other process failed"
        yield pid
    finally:
        os.close(reader)
        kill(pid)


def forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a process of its own; its exit code is 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return pid


def kill(pid: int) -> None:
    """Kill a process of ours and reap it; once is enough."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
