"""Runs, resumes and aborts a job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from oslo_utils import uuidutils
from taskflow import engines, states
from taskflow.persistence import models
from taskflow.types.failure import Failure

from tether import faults
from tether.errors import (
    Blocked,
    ConflictError,
    FinalError,
    HeldError,
    Interrupted,
    LostLease,
    OperatorNeeded,
    TetherError,
    UncertainError,
    UsageError,
)
from tether.flows.registry import Part, parts
from tether.persistence.leases import Lease, Leases, Owner
from tether.persistence.ledger import Job, Place
from tether.persistence.logbook import JobBackend, Logbook
from tether.runner.pool import StepPool
from tether.tasks.run import Run, Toolbox, describe

LOG = logging.getLogger(__name__)

DONE = {"attach": "attached", "detach": "detached"}
#: Seconds within which the runner that made a job has begun it; a job that is queued for longer has lost its runner.
QUEUED_TIME = 10.0
#: States of a step in which a call of it may have been cut off.
CUT_OFF = (states.RUNNING, states.REVERTING, states.FAILURE)


@dataclass(frozen=True)
class Event:
    """One change of one step, for whoever watches.

    Args:
        step: the step's name with its version.
        state: TaskFlow's state: RUNNING, SUCCESS, FAILURE, REVERTING or REVERTED.
        seconds: since the step's last change.
    """

    job_id: str
    step: str
    state: str
    seconds: float


Watch = Callable[[Event], None]


class Runner:
    """Runs jobs in this process.

    Args:
        tools: the adapters and the ledger.
        logbook: where flows are kept.
        watch: called at every change of a step.
    """

    def __init__(self, tools: Toolbox, logbook: Logbook, watch: Watch | None = None) -> None:
        self.tools = tools
        self.logbook = logbook
        self.watch = watch
        self.pool = StepPool()
        self.current: Run | None = None

    def close(self) -> None:
        """Wait for the threads and end them."""
        self.pool.shutdown()

    # -- what a command calls --------------------------------------------------------------------------------

    def place(self) -> Place:
        """Return where this process works: what a job keeps and a resume compares."""
        cloud, guest, machine = self.tools.cinder.identity(), self.tools.guest.identity(), self.tools.host.identity()
        return Place(
            endpoint=cloud.endpoint,
            project_id=cloud.project_id,
            libvirt_uri=guest.uri,
            machine_id=machine.machine_id,
            initiator=machine.initiator,
            nqn=machine.nqn,
            boot_id=machine.boot_id,
        )

    def is_live(self, job: Job) -> bool:
        """Return True while a runner works on the job, or is just about to."""
        if job.state == "queued":
            return self.tools.clock.time() < job.created_at + QUEUED_TIME or self.tools.leases.is_live(job.lease)
        return job.state == "running" and self.tools.leases.is_live(job.lease)

    def run(self, job: Job) -> Job:
        """Run a new job to its end; return it as it ended."""
        return self._run(job, lambda _run, _backend: None)

    def resume(self, job: Job) -> Job:
        """Take an interrupted or blocked job up again, in the direction in which it was going.

        Raises:
            UsageError: this is not the place where the job was made.
            HeldError: a runner works on it.
        """
        if not job.open:
            return job
        self._same_place(job)
        return self._run(job, lambda _run, _backend: None)

    def abort(self, job: Job) -> Job:
        """Roll an interrupted or blocked job back.

        Raises:
            ConflictError: the job has ended, or is past the point from which it only goes forward.
            UsageError: this is not the place where the job was made.
            HeldError: a runner works on it.
        """
        if job.state == "rolled-back":
            return job
        if not job.open:
            raise ConflictError(
                f"job {job.id} has ended: {job.state}", resource=f"job {job.id}", hint="undo it with its opposite"
            )
        self._same_place(job)
        return self._run(job, self._turn_back, backward=True)

    def wait_for(self, job: Job, *, seconds: float | None = None) -> Job:
        """Wait until the job ends, or until nobody works on it any more, or for ``seconds``."""
        deadline = None if seconds is None else self.tools.clock.time() + seconds
        while True:
            job = self.tools.ledger.job(job.id)
            if not self.is_live(job):
                # Its runner may have ended it, and given the lease up, since the row was read.
                again = self.tools.ledger.job(job.id)
                if again == job:
                    return job
                continue
            if deadline is not None and self.tools.clock.time() >= deadline:
                return job
            self.tools.clock.wait(0.1)

    # -- one run ---------------------------------------------------------------------------------------------

    def _same_place(self, job: Job) -> None:
        try:
            here = replace(self.place(), boot_id=job.place.boot_id)
        except UncertainError as error:
            # Its own exit code would say that nothing is left.
            raise OperatorNeeded(
                f"job {job.id} cannot be taken up: {error.message}",
                resource=f"job {job.id}",
                hint=f"{error.hint}; then: tether job resume {job.id}",
            ) from error
        for name in Place.__slots__:
            was, now = getattr(job.place, name), getattr(here, name)
            if was != now:
                raise UsageError(
                    f"job {job.id} was made where {name} is {was or 'unset'}; here it is {now or 'unset'}",
                    resource=f"job {job.id}",
                    hint="run this on the job's host, with the job's cloud and libvirt connection",
                )

    def _run(self, job: Job, prepare: Callable[[Run, JobBackend], None], *, backward: bool = False) -> Job:
        leases = Leases(self.logbook.database, self.tools.clock, self.tools.settings.lease_ttl, Owner.current())
        before = leases.get(job.lease)
        lease = leases.take(job.lease, job=job.id)
        run = None
        try:
            job = self.tools.ledger.job(job.id)
            if backward and job.open:
                self._may_turn_back(job)  # only now does nobody move it any further
            if job.open:
                run = self._begin(job, leases, before)
                with self._heartbeat(run, leases, lease):
                    self._carry_out(run, lease, prepare)
            if run is None or not run.lost:
                leases.release(lease)
            return self.tools.ledger.job(job.id)
        except ConflictError:
            leases.release(lease)
            raise
        except LostLease as lost:
            raise HeldError(lost.message, resource=f"job {job.id}", hint=f"see: tether job show {job.id}") from lost
        except UncertainError as error:
            # The steps' own errors end inside the engine: this is the database, at a write of the runner itself.
            raise TetherError(
                f"job {job.id} is left as it is: {error.message}",
                resource=f"job {job.id}",
                hint=f"once the database answers: tether job resume {job.id}",
            ) from error
        finally:
            self.current = None

    def _begin(self, job: Job, leases: Leases, before: Lease | None) -> Run:
        """Note that the job runs again; what blocked it last time is no longer its error."""
        ended = job.updated_at if before is None else min(before.expires_at, self.tools.clock.time())
        error = (job.error or {}).get("reason") if job.state == "blocked" else job.error
        self.tools.ledger.update_job(job.id, state="running", attempts=job.attempts + 1, error=error, exit_code=None)
        run = Run(tools=replace(self.tools, leases=leases), job=self.tools.ledger.job(job.id), ended_at=ended)
        # A blocked job stopped by itself: only an answer that never came can still be carried out.
        run.orderly = job.state == "blocked" and (job.error or {}).get("code") != UncertainError.code
        self.current = run
        return run

    def _carry_out(self, run: Run, lease: Lease, prepare: Callable[[Run, JobBackend], None]) -> None:
        job = run.job
        backend = self.logbook.backend(job.id, lease)
        try:
            atoms = [atom for detail in self.logbook.flows(job.id) for atom in detail]
            run.in_flight = frozenset(atom.name for atom in atoms if atom.state in CUT_OFF)
            run.undone = {atom.name for atom in atoms if atom.state == states.REVERTED}
            if not run.orderly:
                run.undoing = {atom.name for atom in atoms if atom.state == states.REVERTING}
            prepare(run, backend)
            reverted = False
            for part in parts(job.kind, job.version):
                reverted = self._run_part(run, part, backend)
                if reverted:
                    break
        except Blocked as blocked:
            self._settle_down(run)
            error = self._with_reason(job.id, blocked)
            self.tools.ledger.update_job(job.id, state="blocked", exit_code=4, step=blocked.step, error=error)
        except Interrupted as interrupted:
            LOG.warning("job %s is left as it is: %s", job.id, interrupted.message)
            self._settle_down(run)
            self.tools.ledger.update_job(job.id, exit_code=None)
        except LostLease:
            run.lost = True
            self._settle_down(run)
            raise
        else:
            self._finish(run, reverted=reverted)

    def _with_reason(self, job_id: str, blocked: Blocked) -> dict[str, Any]:
        """Return why the job is blocked; for an undo with the reason of the roll-back, which outlives it."""
        error: dict[str, Any] = dict(describe(blocked.step, blocked.cause))
        before = self.tools.ledger.job(job_id).error
        if blocked.undoing and before:
            error["reason"] = before.get("reason", before)
        return error

    def _finish(self, run: Run, *, reverted: bool) -> None:
        if not reverted:
            state, code, error = DONE[run.job.kind], 0, None
        else:
            error = self.tools.ledger.job(run.job.id).error
            error = error and error.get("reason", error)
            state, code = "rolled-back", HeldError.exit_code if error and error["code"] == HeldError.code else 3
        faults.point("commit.job.end.before")
        self.tools.ledger.update_job(run.job.id, state=state, exit_code=code, step="", error=error)
        faults.point("commit.job.end.after")

    def _run_part(self, run: Run, part: Part, backend: JobBackend) -> bool:
        """Run one flow of the job; return True if it is, or was, rolled back."""
        detail = self.logbook.flow(run.job.id, part.name)
        if detail is not None and detail.state in {states.SUCCESS, states.REVERTED}:
            # TaskFlow would run a reverted flow again from its start.
            return bool(detail.state == states.REVERTED)
        if detail is None:
            detail = models.FlowDetail(part.name, uuidutils.generate_uuid())
            backend.get_connection().update_flow_details(detail)
        engine = engines.load(
            part.build(run), flow_detail=detail, backend=backend, engine="parallel", executor=self.pool
        )
        if self.watch is not None:
            engine.atom_notifier.register("*", self._watcher(run))
        try:
            engine.run()
        except Exception as error:  # the border around TaskFlow: what it raises is the failed step's
            if engine.storage.get_flow_state() != states.REVERTED:
                raise Blocked(part.name, error, undoing=False) from error
            LOG.info("job %s rolled back: %s", run.job.id, error)
        return bool(engine.storage.get_flow_state() == states.REVERTED)

    def _settle_down(self, run: Run) -> None:
        """Wait for siblings that are still in flight: the lease may not be given up before."""
        run.stop()
        futures.wait(run.futures)

    def _may_turn_back(self, job: Job) -> None:
        for part in parts(job.kind, job.version):
            if not part.revertible:
                raise ConflictError(
                    f"job {job.id} is past its pivot: it only goes forward",
                    resource=f"job {job.id}",
                    hint=f"finish it with: tether job resume {job.id}",
                )
            detail = self.logbook.flow(job.id, part.name)
            if detail is None or detail.state != states.SUCCESS:
                return

    def _turn_back(self, run: Run, backend: JobBackend) -> None:
        """Make the stored flow go backward at its next run."""
        job = run.job
        connection = backend.get_connection()
        run.failed("", FinalError("aborted by an operator"))
        for part in parts(job.kind, job.version):
            detail = self.logbook.flow(job.id, part.name)
            if detail is None:
                detail = models.FlowDetail(part.name, uuidutils.generate_uuid())
                detail.state = states.REVERTED
                connection.update_flow_details(detail)
                return
            if detail.state == states.SUCCESS:
                continue
            for atom in detail:
                if atom.state == states.RUNNING:
                    atom.put(states.FAILURE, Failure.from_exception(FinalError("aborted by an operator")))
                elif atom.state == states.SUCCESS:
                    atom.intention = states.REVERT
            connection.turn_back(detail)
            return

    def _watcher(self, run: Run) -> Callable[[str, dict[str, Any]], None]:
        since: dict[str, float] = {}

        def on_change(state: str, details: dict[str, Any]) -> None:
            if self.watch is None or not details.get("task_name"):
                return
            now, step = time.monotonic(), details["task_name"]
            self.watch(Event(run.job.id, step, state, now - since.get(step, now)))
            since[step] = now

        return on_change

    @contextmanager
    def _heartbeat(self, run: Run, leases: Leases, lease: Lease) -> Any:
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.tools.settings.lease_ttl / 3):
                try:
                    leases.renew(lease)
                except LostLease:
                    run.lost = True
                    return
                except UncertainError as error:
                    LOG.warning("the lease of job %s could not be renewed: %s", run.job.id, error)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
