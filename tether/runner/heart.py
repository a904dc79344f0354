"""Keeps the leases of a runner's jobs, hears what other commands ask, and makes durable what waits too long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tether.clock import Clock
from tether.errors import Interrupted, LostLease, UncertainError
from tether.persistence.journal import Lease
from tether.persistence.leases import Leases
from tether.persistence.logbook import MAX_LAG, JobConnection
from tether.tasks.run import Run, Toolbox

LOG = logging.getLogger(__name__)

#: Seconds between two looks at what other commands ask.
BEAT = 1.0


@dataclass(eq=False)
class Hold:
    """A job that is held: its lease, and its run."""

    run: Run
    leases: Leases
    lease: Lease
    connection: JobConnection
    renewed_at: float
    lagging: threading.Event = field(default_factory=threading.Event)

    def guarded(self, tools: Toolbox) -> Toolbox:
        """Return the tools as the run has them: each call of an adapter first makes sure that the job is still ours."""

        def check() -> None:
            self.check(tools.clock.time())

        return replace(
            tools,
            cinder=cast(Any, _Guarded(tools.cinder.for_job(self.run.job.request_id), check)),
            host=cast(Any, _Guarded(tools.host, check)),
            guest=cast(Any, _Guarded(tools.guest, check)),
            ledger=tools.ledger.fenced(self.lease),
            leases=self.leases,
        )

    def check(self, now: float) -> None:
        """Unwind unless the job is still ours; called before each call of an adapter.

        A process that was stopped past its lease wakes up in the middle of a step, whose next call must not be made.

        Raises:
            LostLease: another runner has taken the job over.
            Interrupted: the lease has lapsed, and the database does not say whose the job is.
        """
        if not self.run.lost and now >= self.renewed_at + self.lease.ttl:
            try:
                self.connection.write({}, what="job.renew")
                self.renewed_at = now
            except LostLease:
                self.run.lost = True
            except UncertainError as error:
                raise Interrupted(error.message) from error
        if self.run.lost:
            raise LostLease(f"job {self.lease.job_id} was taken over by another runner")


class _Guarded:
    """An adapter whose every call is preceded by a check."""

    def __init__(self, adapter: Any, check: Callable[[], None]) -> None:
        self._adapter = adapter
        self._check = check

    def __getattr__(self, name: str) -> Any:
        self._check()
        return getattr(self._adapter, name)


class Heart:
    """One thread for all jobs of a runner; it beats only while there are any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, hold: Hold) -> None:
        """Keep this job's lease until :meth:`end`."""
        with self._lock:
            self._holds[hold.lease.job_id] = hold
            hold.connection.on_lag = lambda: self._lags(hold)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
                self._thread.start()

    def end(self, hold: Hold) -> None:
        """Let the job go."""
        with self._lock:
            self._holds.pop(hold.lease.job_id, None)

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._holds.clear()
        self._wake.set()
        if thread is not None:
            thread.join()

    def _lags(self, hold: Hold) -> None:
        hold.lagging.set()
        self._wake.set()

    def _run(self) -> None:
        due = time.monotonic() + BEAT
        while self._thread is threading.current_thread():
            lagging = self._wake.wait(max(0.0, due - time.monotonic()))
            if lagging:
                self._wake.clear()
                time.sleep(MAX_LAG / 2)  # what follows at once takes it along
            with self._lock:
                holds = list(self._holds.values())
            try:
                for hold in holds:
                    if hold.lagging.is_set():
                        hold.lagging.clear()
                        hold.connection.flush_due()
                if holds and time.monotonic() >= due:
                    self._beat(holds)
            except (UncertainError, LostLease, Interrupted) as error:
                # Who needs the database next meets it there; who has lost the lease, too.
                LOG.warning("leases could not be looked after: %s", error)
            if time.monotonic() >= due:
                due = time.monotonic() + BEAT

    def _beat(self, holds: list[Hold]) -> None:
        now = self._clock.time()
        asked, lost = holds[0].leases.asked(hold.lease for hold in holds)
        for hold in holds:
            if hold.lease.job_id in lost:
                hold.run.lost = True
                hold.run.wake.set()
            elif hold.lease.job_id in asked:
                hold.run.stop()
        kept = [hold for hold in holds if not hold.run.lost and now >= hold.renewed_at + hold.lease.ttl / 3]
        if kept:
            kept[0].leases.renew([hold.lease for hold in kept])
            for hold in kept:
                hold.renewed_at = now
