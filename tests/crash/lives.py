"""Worker processes that carry jobs out, one life after the other, each ended by a SIGKILL at a random moment.

Mostly a life ends before the next begins; sometimes two overlap, and sometimes one is stopped past its leases, taken
over, and woken again, as a runner of another host would be.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash import effects
from tests.crash.effects import Effects, NoHost, Nothing, World, ask, connect
from tests.integration.books import a_job
from tether.errors import ConflictError, HeldError
from tether.persistence import owner
from tether.persistence.database import Database
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Ledger
from tether.persistence.logbook import Logbook
from tether.persistence.owner import Owner
from tether.persistence.params import Params
from tether.runner.engine import plan_of
from tether.runner.jobs import Runner
from tether.settings import Settings
from tether.tasks.run import Toolbox

#: Leases of a life that will be stopped lapse soon.
SHORT, LONG = 0.25, 30.0
PATIENCE = 20.0
SETTINGS = Settings(
    step_retry_time=0.004,
    retry_interval=0.001,
    wait=2.0,
    rpc_response_timeout=0.0,
    settle_margin=0.0,
    libvirt_settle=0.0,
    host_settle=0.0,
)


@dataclass(frozen=True)
class Kind:
    """What the workers of a run do.

    Args:
        shapes: kinds and versions of their jobs.
        threads: how many jobs each carries out at a time.
    """

    shapes: Sequence[tuple[str, int]]
    threads: int


SERIAL = Kind([("attach", 1), ("detach", 1)], 1)
PARALLEL = Kind([("attach", 2), ("detach", 2)], 3)


@dataclass
class Life:
    """One worker process."""

    number: int
    pid: int
    ready: int
    begun: bool = False

    def wait_ready(self, seconds: float) -> bool:
        """Wait until it has begun its first step; False if it has not by then."""
        if not self.begun and select.select([self.ready], [], [], seconds)[0]:
            self.begun = os.read(self.ready, 1) == b"r"
        return self.begun

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, if it is still there, and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> int:
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self.ready)
        return os.waitstatus_to_exitcode(status)


@dataclass
class Killing:
    """One run of kills on one database.

    Args:
        directory: of the journal.
        kills: how many.
        done: by job and step, from when on another process saw its success; ``undone`` likewise its undo.
    """

    directory: Path
    url: str
    kind: Kind
    kills: int
    seed: str
    lives: int = 0
    stops: int = 0
    done: dict[tuple[str, str], float] = field(default_factory=dict)
    undone: dict[tuple[str, str], float] = field(default_factory=dict)
    _alive: dict[int, Life] = field(default_factory=dict)

    def run(self) -> None:
        """Kill until the number is reached; then let one life finish everything, undisturbed."""
        for shape in self.kind.shapes:  # compiled before the forks, so that each life begins at once
            for part in effects.parts(*shape):
                plan_of(part, Params())
        try:
            self._kill_many(random.Random(self.seed))
            self._finish()
        finally:
            for life in list(self._alive.values()):
                life.end()
                del self._alive[life.pid]

    def _kill_many(self, chance: random.Random) -> None:
        killed = 0
        current = self._start()
        while killed < self.kills:
            way = chance.random()
            span = chance.random() * chance.choice([0.02, 0.06, 0.12])
            self._ready(current)
            time.sleep(span)
            if way < 0.12 and self.kills - killed >= 2:
                killed += self._stop(current, chance)
                current = self._start()
            elif way < 0.3:
                following = self._start()
                self._ready(following)
                time.sleep(chance.random() * 0.02)
                self._kill(current)
                killed += 1
                current = following
            else:
                self._kill(current)
                killed += 1
                current = self._start()

    def _ready(self, life: Life) -> None:
        assert life.wait_ready(PATIENCE), f"life {life.number} did nothing: {complaints(self.directory)}"

    def _stop(self, first: Life, chance: random.Random) -> int:
        """Stop a life past its leases, let another take its jobs over, and wake it; return how many were killed."""
        self._kill(first)
        self.stops += 1
        stopped = self._start(ttl=SHORT, elsewhere=chance.random() < 0.7)
        self._ready(stopped)
        time.sleep(chance.random() * 0.04)
        stopped.signal(signal.SIGSTOP)
        time.sleep(SHORT)
        following = self._start()
        # Not longer: it may wait for what the stopped one has locked in the database.
        following.wait_ready(0.3)
        time.sleep(chance.random() * 0.03)
        stopped.signal(signal.SIGCONT)
        time.sleep(chance.random() * 0.06)
        self._kill(stopped)
        self._kill(following)
        return 3

    def _kill(self, life: Life) -> None:
        del self._alive[life.pid]
        life.end()
        self._look()

    def _start(self, *, last: bool = False, ttl: float = LONG, elsewhere: bool = False) -> Life:
        self.lives += 1
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            found = World(self.directory, self.url, self.lives, ready=writer)
            try:
                os.close(reader)
                random.seed(f"{self.seed}/{self.lives}")
                if elsewhere:
                    machine = ("elsewhere", "elsewhere", "b", "pid:[1]")
                    owner._machine = lambda: machine  # type: ignore[assignment]
                Worker(found, self.kind, ttl).live(last=last)
                code = 0
            except BaseException:
                found.complain(traceback.format_exc())
                raise
            finally:
                os._exit(code)
        os.close(writer)
        life = self._alive[pid] = Life(self.lives, pid, reader)
        return life

    def _finish(self) -> None:
        for life in list(self._alive.values()):
            self._kill(life)
        last = self._start(last=True)
        deadline = time.monotonic() + 2 * PATIENCE
        while not last.has_ended():
            assert time.monotonic() < deadline, f"the last life does not end: {complaints(self.directory)}"
            time.sleep(0.01)
        del self._alive[last.pid]
        assert last.reap() == 0, complaints(self.directory)

    def _look(self) -> None:
        """See what others see of the steps of open jobs."""
        connection = connect(self.url)
        try:
            rows = ask(
                connection,
                "SELECT f.job_id, f.steps FROM tether_flows f JOIN tether_jobs j ON j.id = f.job_id"
                " WHERE j.open_volume IS NOT NULL",
            )
        finally:
            connection.close()
        now = time.time()
        for job_id, text in rows:
            for atom in json.loads(text):
                seen = {"SUCCESS": self.done, "REVERTED": self.undone}.get(atom["state"])
                if seen is not None:
                    seen.setdefault((job_id, atom["name"].partition("/")[0]), now)


def complaints(directory: Path) -> list[str]:
    """Return what the workers complained of."""
    return [path.read_text() for path in sorted(directory.glob("!*"))]


class Worker:
    """What one life does: takes up what is open, and makes new jobs."""

    def __init__(self, world: World, kind: Kind, ttl: float) -> None:
        effects.enter(world)
        logging.disable()  # what fails here fails on purpose, thousands of times
        self.world = world
        self.kind = kind
        database = Database(world.url)
        settings = SETTINGS.but(lease_ttl=ttl)
        self.ledger = Ledger(database, world.clock)
        leases = Leases(database, world.clock, ttl, Owner.current())
        cinder: Any = Effects()
        nothing: Any = Nothing()
        host: Any = NoHost()
        tools = Toolbox(cinder, host, nothing, nothing, self.ledger, leases, world.clock, settings)
        self.runner = Runner(tools, Logbook(database, world.clock), parts=effects.parts)
        self._mine: set[str] = set()
        self._lock = threading.Lock()

    def live(self, *, last: bool) -> None:
        """Work until killed; the last one until nothing is open."""
        threads = [threading.Thread(target=self._guarded, args=(last,)) for _ in range(self.kind.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.runner.close()

    def _guarded(self, last: bool) -> None:
        try:
            self._work(last=last)
        except BaseException:
            self.world.complain(traceback.format_exc())
            raise
        finally:
            if not last:
                os._exit(1)

    def _work(self, *, last: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            jobs = self.ledger.list_jobs(open_only=True, limit=1000)
            random.shuffle(jobs)
            taken = any(self._take_up(job) for job in jobs)
            if taken:
                continue
            if not last:
                self._new()
            elif not jobs:
                return
            elif time.monotonic() > deadline:
                raise TimeoutError(f"jobs are left: {[self._told(job) for job in jobs]}")
            else:
                time.sleep(0.01)

    def _told(self, job: Job) -> dict[str, Any]:
        """Return what there is to know of a job that does not end."""
        flows = self.runner.logbook.rows(job.id)
        return {
            "job": f"{job.id} {job.kind} {job.version} {job.state}, planned: {job.server_name}",
            "attempts": job.attempts,
            "error": job.error,
            "runner": job.runner and job.runner.dump(),
            "flows": [(flow["name"], flow["state"], flow["steps"]) for flow in flows],
        }

    def _take_up(self, job: Job) -> bool:
        """Resume a job, or abort it; False if somebody else has it."""
        live = self.runner.is_live(job)
        if live and random.random() > 0.05:
            return False
        abort = random.random() < 0.25
        if live and not abort and random.random() < 0.5:
            return False
        return self._hold(job.id, lambda: self._abort(job) if abort else self._resume(job))

    def _new(self) -> None:
        shape = random.choice(list(self.kind.shapes))
        fails = random.random() < 0.4
        step = f"{random.choice(effects.may_fail(shape))} {random.choice(['before', 'after'])}" if fails else "-"
        job = a_job(kind=shape[0], version=shape[1], server_name=step, place=self.runner.place())

        def run() -> bool:
            self._left(self.runner.run(self.runner.add(job)))
            return True

        self._hold(job.id, run)

    def _hold(self, job_id: str, work: Callable[[], bool]) -> bool:
        with self._lock:
            if job_id in self._mine:
                return False
            self._mine.add(job_id)
        try:
            return work()
        except HeldError:
            return False
        finally:
            with self._lock:
                self._mine.discard(job_id)

    def _resume(self, job: Job) -> bool:
        self._left(self.runner.resume(job, fenced=True))
        return True

    def _abort(self, job: Job) -> bool:
        try:
            self._left(self.runner.abort(job), aborted=True)
        except ConflictError:  # past its pivot
            return False
        return True

    def _left(self, job: Job, **more: Any) -> None:
        self.world.note(job, "left", state=job.state, **more)
