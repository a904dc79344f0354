"""Tether as a peer: its Runner with job rows, leases, fence and logbook, over a chain of nine steps without effect.

All that the benches know of tether's inside is here. The chain is one more version of an attach, so that
everything that an attach passes through is passed through: the request, the job's row, its lease, the runner.
Only Cinder, libvirt and the host are missing, and with them what they cost.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import sqlalchemy as sa

from bench.measure import spread
from bench.output import sqlite_facts
from bench.peers import RESULT, STEPS
from tether.adapters.cinder.model import CinderIdentity, Volume
from tether.adapters.guest.model import GuestIdentity, Power, Server
from tether.adapters.host.model import HostIdentity
from tether.clock import SystemClock
from tether.flows import attach, registry
from tether.persistence.database import Database
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Ledger
from tether.persistence.logbook import Logbook
from tether.persistence.migrations import upgrade
from tether.persistence.owner import Owner
from tether.persistence.params import Params
from tether.runner.jobs import Runner
from tether.runner.requests import Request, submit
from tether.settings import Settings
from tether.tasks.run import Toolbox
from tether.tasks.step import Step

#: The engine's options in the runner, for the peer that is TaskFlow with the same ones.
ENGINE = {"engine": "serial", "gather_statistics": False}
#: The chain's version; of VERSION + N the first step is number N + 1.
VERSION = 1000
#: Jobs that are started at a time before they stop in a step, and the seconds after which one is lost.
STARTING = 16
ARRIVAL_TIME = 60
#: What a job's row says once the chain is done.
DONE = "attached"


# -- the chain -----------------------------------------------------------------------------------------------


@dataclass
class Effects:
    """What the steps of this process do instead of an effect.

    Args:
        seconds: how long each takes.
        parked: by job, the number of the step in which it stops for good, until this process is killed.
    """

    seconds: float = 0.0
    parked: dict[str, int] = field(default_factory=dict)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    never: threading.Event = field(default_factory=threading.Event)

    def happen(self, job_id: str, number: int) -> None:
        """Be the effect of one step."""
        if self.parked.get(job_id) == number:
            self.arrived.release()
            self.never.wait()
        if self.seconds:
            time.sleep(self.seconds)


EFFECTS = Effects()


def _link(number: int, *, first: bool) -> type[Step]:
    """Return a step of the chain; it needs the result of the one before, unless it is the first."""

    def act(self: Step, **_given: Any) -> dict[str, str]:
        EFFECTS.happen(self.job.id, number)
        return RESULT

    # A step's parameters are its edges: these are made, not written nine times.
    given = {} if first else {f"link{number - 1}": dict[str, str]}
    act.__annotations__ = {**given, "return": dict[str, str]}
    members = {"code": f"link-{number}/1", "gives": f"link{number}", "book": "cinder", "act": act}
    return type(f"Link{number}", (Step,), members)


def _part(skipped: int) -> registry.Part:
    links = [_link(number, first=number == skipped + 1) for number in range(skipped + 1, STEPS + 1)]

    def build(_params: Params) -> Any:
        return attach.link("chain", [], [link() for link in links])

    return registry.Part("chain", build)


CHAINS = [_part(skipped) for skipped in range(STEPS)]


def _parts(_kind: str, version: int) -> Sequence[registry.Part]:
    return (CHAINS[version - VERSION],)


# -- the world -----------------------------------------------------------------------------------------------


class _Cinder:
    """As much of Cinder as a request asks."""

    def for_job(self, _request_id: str) -> _Cinder:
        return self

    def identity(self) -> CinderIdentity:
        return CinderIdentity("http://cinder.invalid", "bench", "3.71", service_token=False)

    def find_volume(self, name: str) -> Volume:
        return Volume(name, "volume", "available", 1)


class _Guest:
    """As much of libvirt as a request asks."""

    def identity(self) -> GuestIdentity:
        return GuestIdentity("test:///default", "bench")

    def find_server(self, name: str) -> Server:
        return Server(name, "guest", Power.RUNNING, None, None)


class _Host:
    """As much of the host as a request asks."""

    def identity(self) -> HostIdentity:
        return HostIdentity("host", "bench", "bench", "iqn.2026-01.org.example:bench")


class World:
    """Tether over one database, in this process.

    Args:
        url: an SQLAlchemy URL; the schema is made if there is none.
        effect: seconds that each step takes.
    """

    def __init__(self, url: str, *, effect: float = 0.0) -> None:
        EFFECTS.seconds = effect
        self.database = Database(url)
        if self.database.version() is None:
            upgrade(self.database)
        clock = SystemClock()
        settings = Settings(database=url)
        leases = Leases(self.database, clock, settings.lease_ttl, Owner.current())
        ledger = Ledger(self.database, clock)
        fakes = cast(Any, _Cinder()), cast(Any, _Host()), cast(Any, _Guest()), cast(Any, None)
        tools = Toolbox(*fakes, ledger, leases, clock, settings)
        self.runner = Runner(tools, Logbook(self.database, clock), parts=_parts)
        self.ledger = ledger
        self.seen = Seen(self.database.engine, self.database.reader)

    # -- what every peer can ---------------------------------------------------------------------------------

    def submit(self, skipped: int = 0) -> Job:
        """Make a job, as the command ``attach`` does."""
        registry.CURRENT["attach"] = VERSION + skipped
        request = Request(str(uuid.uuid4()), str(uuid.uuid4()))
        return submit(self.runner, "attach", request, str(uuid.uuid4())).job

    def run_one(self) -> None:
        """Make a job and run it to its end."""
        job = self.runner.run(self.submit())
        if job.state != DONE:
            raise RuntimeError(f"job {job.id} is {job.state}: {job.error}")

    def run_many(self, flows: int, threads: int) -> None:
        spread(flows, threads, self.run_one)

    def facts(self) -> dict[str, Any]:
        if self.database.engine.dialect.name != "sqlite":
            return {}
        with self.database.engine.connect() as connection:
            return sqlite_facts(connection)

    def commits(self) -> int | None:
        return self.seen.commits

    def close(self) -> None:
        self.runner.close()
        self.database.close()

    # -- what is asked of tether alone -----------------------------------------------------------------------

    def count_commits(self) -> dict[str, int]:
        """Run one job; return its commits by phase: submit, lease, flow (first intent to the end), release."""
        self.seen.log = []
        job = self.submit()
        submitted = len(self.seen.log)
        self.runner.run(job)
        log, self.seen.log = self.seen.log, None
        intent = next(place for place, commit in enumerate(log) if "tether_flows" in commit.tables)
        end = max(place for place, commit in enumerate(log) if commit.ends)
        return {
            "submit": submitted,
            "lease": intent - submitted,
            "flow": end - intent + 1,
            "release": len(log) - end - 1,
        }

    def statements(self) -> int:
        """Return how many statements were sent so far."""
        return self.seen.statements

    def server_cpu(self) -> float:
        """Return the CPU seconds that PostgreSQL's processes have spent for this process's connections so far."""
        if self.database.engine.dialect.name == "sqlite":
            return 0.0
        asked = sa.text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        with self.database.read() as connection:
            pids = connection.execute(asked).scalars().all()
        return sum(_cpu(pid) for pid in pids)

    def list_jobs(self) -> int:
        """Read what ``job list`` shows."""
        jobs = self.ledger.list_jobs(limit=50)
        return sum(self.runner.is_live(job) for job in jobs)

    def interrupted(self) -> list[Job]:
        """Find the jobs whose runner is gone."""
        jobs = self.ledger.list_jobs(open_only=True, limit=None)
        return [job for job in jobs if not self.runner.is_live(job)]

    def count_interrupted(self) -> int:
        """Return how many there are."""
        return len(self.interrupted())

    def run_prepared(self, plan: Sequence[int], threads: int) -> float:
        """Make jobs that lack as many of the first steps as their number says; return the seconds to run them."""
        jobs = [self.submit(skipped) for skipped in plan]
        started = time.perf_counter()
        _each(jobs, threads, self.runner.run)
        return time.perf_counter() - started

    def park(self, plan: Sequence[int]) -> None:
        """Start jobs that each stop for good inside a step, and return when all of them are there.

        Args:
            plan: for each job, how many steps it finishes before.
        """
        started = arrived = 0
        while arrived < len(plan):
            # Few at a time on their way, so that none of them waits too long for the database.
            while started < len(plan) and started - arrived < STARTING:
                job = self.submit()
                EFFECTS.parked[job.id] = plan[started] + 1
                threading.Thread(target=self.runner.run, args=(job,), daemon=True).start()
                started += 1
            if not EFFECTS.arrived.acquire(timeout=ARRIVAL_TIME):
                raise RuntimeError(f"{started - arrived} jobs do not come to their step")
            arrived += 1

    def resume_all(self, threads: int) -> float:
        """Resume every interrupted job, as ``job resume --all``; return the seconds."""
        started = time.perf_counter()
        ended = self.runner.resume_all(self.interrupted(), threads)
        seconds = time.perf_counter() - started
        for job in ended:
            if isinstance(job, Exception) or job.state != DONE:
                raise RuntimeError(f"a resumed job ended otherwise: {job}")
        return seconds

    def states(self) -> dict[str, int]:
        """Count the jobs by their state."""
        with self.database.read() as connection:
            rows = connection.execute(sa.text("SELECT state, count(*) FROM tether_jobs GROUP BY state"))
            return {str(state): int(count) for state, count in rows}

    def plans(self) -> list[tuple[str, str]]:
        """Run a job, list jobs and find interrupted ones; return each statement with what is wrong with its plan."""
        self.seen.texts = {}
        self.run_one()
        self.list_jobs()
        self.interrupted()
        texts, self.seen.texts = self.seen.texts, None
        judge = _sqlite_scans if self.database.engine.dialect.name == "sqlite" else _postgresql_scans
        with self.database.read() as connection:
            return [(text, judge(connection, text, given)) for text, given in texts.items()]


def make_world(url: str, *, effect: float = 0.0) -> World:
    """Return tether over a database."""
    return World(url, effect=effect)


def _each(jobs: Sequence[Job], threads: int, work: Callable[[Job], Job]) -> None:
    left = list(jobs)

    def one() -> None:
        job = work(left.pop())
        if job.state != DONE:
            raise RuntimeError(f"job {job.id} is {job.state}: {job.error}")

    spread(len(jobs), threads, one)


def _cpu(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as stat:  # noqa: PTH123  # one short read
            return int(stat.read().split()[0]) / 1e9
    except FileNotFoundError:
        return 0.0


# -- what goes to the database -------------------------------------------------------------------------------


@dataclass
class Commit:
    """One transaction: the tables that it wrote, and whether it stored a job's end."""

    tables: set[str] = field(default_factory=set)
    ends: bool = False


class Seen:
    """Counts what a database's engines send, and keeps what is asked for.

    Args:
        transactions: of statements that are committed together.
        at_once: of reads, and of statements that are transactions of their own.
    """

    def __init__(self, transactions: sa.Engine, at_once: sa.Engine) -> None:
        self.statements = 0
        self.commits = 0
        self.log: list[Commit] | None = None
        self.texts: dict[str, Any] | None = None
        self._now = threading.local()
        sa.event.listen(transactions, "before_cursor_execute", self._on_statement)
        sa.event.listen(transactions, "commit", self._on_commit)
        sa.event.listen(at_once, "before_cursor_execute", self._on_statement_at_once)

    def _on_statement_at_once(self, connection: Any, _cursor: Any, text: str, given: Any, *_: Any) -> None:
        self._on_statement(connection, _cursor, text, given)
        if not text.startswith("SELECT"):
            self._on_commit(connection)

    def _on_statement(self, _connection: Any, _cursor: Any, text: str, given: Any, *_: Any) -> None:
        self.statements += 1
        if self.texts is not None and "tether_" in text:
            self.texts.setdefault(text, given)
        if self.log is not None and not text.startswith("SELECT"):
            commit = self._now.__dict__.setdefault("commit", Commit())
            commit.tables |= {word.strip("(,") for word in text.split() if word.startswith("tether_")}
            values = given.values() if isinstance(given, dict) else given
            commit.ends |= DONE in [value for value in values if isinstance(value, str)]

    def _on_commit(self, _connection: Any) -> None:
        self.commits += 1
        if self.log is not None:
            self.log.append(self._now.__dict__.pop("commit", Commit()))


def _sqlite_scans(connection: sa.Connection, text: str, given: Any) -> str:
    """Return the plan's scans; walking an index from its end is none if nothing but a limit ends it."""
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", given).all()
    bounded = "LIMIT" in text and "WHERE" not in text
    return "; ".join(row[3] for row in rows if row[3].startswith("SCAN") and not (bounded and "USING" in row[3]))


#: PostgreSQL reads a table of fewer rows than this whole, and is right.
FEW_ROWS = 1000


def _postgresql_scans(connection: sa.Connection, text: str, given: Any) -> str:
    """Return the plan's scans of a table that is not small."""
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", given).scalar()
    found, left = [], [(json.loads(plan) if isinstance(plan, str) else cast(Any, plan))[0]["Plan"]]
    while left:
        node = left.pop()
        left += node.get("Plans", [])
        kind, table = node["Node Type"], node.get("Relation Name", "")
        whole = kind == "Seq Scan" or ("Filter" in node and "Index" in kind and "Index Cond" not in node)
        if table and whole and _rows(connection, table) >= FEW_ROWS:
            found.append(f"{kind} of {table}")
    return "; ".join(found)


def _rows(connection: sa.Connection, table: str) -> float:
    asked = sa.text("SELECT reltuples FROM pg_class WHERE relname = :name")
    return float(connection.execute(asked, {"name": table}).scalar() or 0)


# -- filler --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copied:
    """How the rows that one finished job has in a table are copied.

    Args:
        column: the column by which the rows are the sample's; ``of`` says which id is in it.
        ids: the columns that get another id for each copy, and which one.
        times: the columns that get an earlier time for each copy.
    """

    table: str
    column: str
    of: str
    ids: dict[str, str]
    times: tuple[str, ...]


COPIED = (
    Copied(
        "tether_jobs",
        "id",
        "job",
        {"id": "job", "volume_id": "volume", "server_id": "server", "request_id": "request"},
        ("created_at", "updated_at", "finished_at"),
    ),
    Copied("tether_flows", "job_id", "job", {"id": "flow", "job_id": "job"}, ("created_at",)),
)


def sample(world: World) -> dict[str, str]:
    """Run one job to be copied; return its ids."""
    job = world.runner.run(world.submit())
    with world.database.read() as connection:
        flow = connection.execute(sa.text("SELECT id FROM tether_flows WHERE job_id = :id"), {"id": job.id}).scalar()
    return {"job": job.id, "flow": str(flow)}
