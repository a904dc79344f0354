"""Runs, resumes and aborts jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from oslo_utils import uuidutils
from taskflow import states
from taskflow.persistence import models

from tether import faults
from tether.errors import (
    Blocked,
    HeldError,
    Interrupted,
    LostLease,
    OperatorNeeded,
    TetherError,
    UncertainError,
    UsageError,
)
from tether.flows.registry import Part, parts
from tether.persistence.journal import Lease
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Place, job_columns
from tether.persistence.logbook import JobConnection, Logbook, Rows, details
from tether.persistence.owner import Owner
from tether.runner.engine import StepEngine, plan_of
from tether.runner.heart import Heart, Hold
from tether.runner.turning import may_turn_back, turn_back
from tether.runner.watch import Watch, watcher
from tether.tasks.host import uses_elsewhere
from tether.tasks.run import Run, Toolbox, describe

LOG = logging.getLogger(__name__)

#: What a job that is done leaves the volume as.
DONE = {
    "attach": "attached",
    "attach-all": "attached",
    "detach": "detached",
    "adopt": "attached",
    "extend": "attached",
    "qos": "attached",
    "migrate-prepare": "prepared",
    "migrate-complete": "attached",
    "migrate-release": "released",
    "repair-connect": "attached",
    "repair-attach": "attached",
    "repair-define": "attached",
    "repair-complete": "attached",
    "repair-release": "detached",
    "repair-clean": "detached",
}
#: States of a step in which a call of it may have been cut off.
CUT_OFF = (states.RUNNING, states.REVERTING, states.FAILURE)
#: States of a step that say: it has begun.
BEGUN = (states.RUNNING, states.SUCCESS, states.FAILURE)
#: How many steps of all jobs may be under way in threads of their own.
POOL = 16
#: Of how many jobs that are to be resumed the flows are read at a time.
PREFETCH = 100


Parts = Callable[[str, int], Sequence[Part]]
#: The flows of a job as they were stored, by name.
Flows = dict[str, models.FlowDetail]
#: What is done with them before they are run again.
Prepare = Callable[[Run, JobConnection, Flows], None]


class Runner:
    """Runs jobs in this process, as many at a time as there are threads that call it.

    Args:
        tools: the adapters and the ledger.
        logbook: where flows are kept.
        watch: called at every change of a step.
        parts: the flows of a job, by its kind and version.
    """

    def __init__(self, tools: Toolbox, logbook: Logbook, watch: Watch | None = None, parts: Parts = parts) -> None:
        self.tools = tools
        self.logbook = logbook
        self.watch = watch
        self.parts = parts
        self.pool = ThreadPoolExecutor(POOL, thread_name_prefix="step")
        self.heart = Heart(tools.clock)
        self._new: dict[str, tuple[Leases, Lease]] = {}
        self._stopping = False
        #: What is under way.
        self.runs: list[Run] = []

    def close(self) -> None:
        """Wait for the threads and end them."""
        self.heart.close()
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
        """Return True while a runner works on the job."""
        return job.is_live(self.tools.clock.time())

    def add(self, job: Job) -> Job:
        """Store a new job as this runner's own, which :meth:`run` then carries out.

        Raises:
            HeldError: an open job has the volume.
            ConflictError: the idempotency key was used before.
        """
        self._unlock()
        leases = self._leases()
        lease, columns = leases.first(job.id)
        faults.point("commit.job.begin.before")
        stored = self.tools.ledger.add_job(job, **columns)
        faults.point("commit.job.begin.after")
        self._new[job.id] = leases, lease
        return stored

    def run(self, job: Job, *, prepare: Prepare = lambda *_: None) -> Job:
        """Run a job that was just added to its end; return it as it ended.

        Args:
            prepare: called before any step runs.
        """
        leases, lease = self._new.pop(job.id)
        return self._held_run(leases, lease, job, prepare=prepare)

    def resume(
        self, job: Job, *, fenced: bool = False, stored: Rows | None = None, prepare: Prepare = lambda *_: None
    ) -> Job:
        """Take an interrupted or blocked job up again, in the direction in which it was going.

        Args:
            fenced: the host of the runner that had it is known to be down for good.
            stored: its flows, if they were read after the job was; it is only taken as it was read.
            prepare: called once its lease is held, before any step runs.

        Raises:
            UsageError: this is not the place where the job was made.
            ConflictError: this release does not know the job's version.
            HeldError: a runner works on it.
        """
        if not job.open:
            return job
        self.same_place(job)
        self._unlock()
        return self._take_up(job, prepare, fenced=fenced, stored=stored)

    def resume_all(
        self,
        jobs: Sequence[Job],
        parallel: int,
        *,
        fenced: bool = False,
        begin: Callable[[Job], None] = lambda _job: None,
    ) -> list[Job | TetherError]:
        """Resume several jobs, so many at a time; return how each ended, in their order.

        Args:
            begin: called in the thread of each job before it is taken up.
        """

        def one(job: Job, stored: Rows) -> Job | TetherError:
            begin(job)
            try:
                return self.resume(job, fenced=fenced, stored=stored)
            except TetherError as error:
                return error

        ended: list[futures.Future[Job | TetherError]] = []
        with ThreadPoolExecutor(parallel, thread_name_prefix="job") as pool:
            for first in range(0, len(jobs), PREFETCH):
                part = jobs[first : first + PREFETCH]
                rows = self.logbook.rows_of([job.id for job in part])
                ended += [pool.submit(one, job, rows[job.id]) for job in part]
        return [future.result() for future in ended]

    def abort(self, job: Job, *, fenced: bool = False) -> Job:
        """Roll an interrupted, running or blocked job back; a running one's runner is asked to stop first.

        Args:
            fenced: the host of the runner that had it is known to be down for good.

        Raises:
            ConflictError: the job has ended, or is past the point from which it only goes forward.
            UsageError: this is not the place where the job was made.
            HeldError: its runner does not stop.
        """
        job = self.tools.ledger.job(job.id)
        if job.state == "rolled-back":
            return job
        self.same_place(job)
        self._unlock()
        self._may_turn_back(job)
        if self.is_live(job):
            self.tools.ledger.ask(job.id, "stop")
            job = self.wait_for(job, seconds=self.tools.settings.wait)
            if job.state == "rolled-back":
                return job
        return self._take_up(job, self._turn_back, backward=True, fenced=fenced)

    def settle(self, job: Job, *, attachment_id: str, **values: Any) -> Job:
        """End a job that nobody works on by an operator's word; the ledger's mapping and device follow it.

        Args:
            attachment_id: of the mapping that stays; empty if none stays.
            values: how the job ends.

        Raises:
            HeldError: somebody was quicker to take it up.
        """
        leases = self._leases()
        lease = leases.take(job, {})
        if lease is None:
            raise HeldError(
                f"job {job.id} was just taken up", resource=f"job {job.id}", hint="look again: tether job show"
            )
        ledger = self.tools.ledger.fenced(lease)
        if attachment_id:
            ledger.update_mapping(job.volume_id, job.server_id, state="attached", attachment_id=attachment_id)
        else:
            machine_id = self.place().machine_id
            if not uses_elsewhere(ledger, job.volume_id, job.server_id, machine_id, data_path="host"):
                ledger.delete_connection(machine_id, job.volume_id)
            ledger.delete_mapping(job.volume_id, job.server_id)
        return self._end(job, self.logbook.backend(lease).get_connection(), step="", **values)

    def wait_for(self, job: Job, *, seconds: float | None = None) -> Job:
        """Wait until the job ends, or until nobody works on it any more, or for ``seconds``."""
        deadline = None if seconds is None else self.tools.clock.time() + seconds
        while True:
            job = self.tools.ledger.job(job.id)
            if not self.is_live(job) or (deadline is not None and self.tools.clock.time() >= deadline):
                return job
            self.tools.clock.wait(0.1)

    def cancel(self) -> None:
        """Let the jobs that run here roll back, unless they are past their pivot."""
        for run in self.runs:
            run.cancel()

    def stop(self) -> None:
        """Leave the jobs that run here as they are, resumable, and take no further ones up."""
        self._stopping = True
        for run in self.runs:
            run.stop()

    # -- one run ---------------------------------------------------------------------------------------------

    def _leases(self) -> Leases:
        """Return the leases as one run sees them: with an owner's token of its own."""
        settings, book = self.tools.settings, self.logbook
        return Leases(book.database, self.tools.clock, settings.lease_ttl, Owner.current(), book.journal)

    def _unlock(self) -> None:
        """Make sure of the key that secrets are sealed with, before a job depends on it."""
        if self.tools.vault is not None:
            self.tools.vault.ready()

    def same_place(self, job: Job) -> None:
        """Refuse to take a job up anywhere but where it was made.

        Raises:
            UsageError: this is another place.
            OperatorNeeded: Cinder, libvirt or the host do not say where this is.
        """
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

    def _take_up(
        self,
        job: Job,
        prepare: Prepare,
        *,
        backward: bool = False,
        fenced: bool = False,
        stored: Rows | None = None,
    ) -> Job:
        """Take an open job's lease and run it; return it as it ended, or had ended before."""
        self.parts(job.kind, job.version)  # a job that this release does not know is left as it is
        leases = self._leases()
        while True:
            if backward:
                self._may_turn_back(job)
            if not job.open or self._stopping:
                return job
            # What blocked it last time is no longer its error.
            error = (job.error or {}).get("reason") if job.state == "blocked" else job.error
            values: dict[str, Any] = {
                "state": "running",
                "attempts": job.attempts + 1,
                "error": error,
                "exit_code": None,
            }
            # Before the lease: a job whose steps cannot be read is left as it is. The lease is had only if the job's
            # row has not changed since it was read, and its flows change only with it.
            flows = details(self.logbook.rows(job.id) if stored is None else stored)
            lease = leases.take(job, job_columns(**values), fenced=fenced)
            if lease is not None:
                held = replace(job, **values, generation=lease.generation, runner=leases.me)
                return self._held_run(leases, lease, held, before=job, prepare=prepare, stored=flows, fenced=fenced)
            job, stored = self.tools.ledger.job(job.id), None  # somebody was quicker

    def _held_run(
        self,
        leases: Leases,
        lease: Lease,
        job: Job,
        *,
        before: Job | None = None,
        prepare: Prepare = lambda *_: None,
        stored: Sequence[models.FlowDetail] = (),
        fenced: bool = False,
    ) -> Job:
        """Run a job whose lease is held.

        Args:
            before: the job as it was before it was taken up; None for a new one.
            fenced: as for :meth:`resume`; of its parts, too.
            stored: its flows as they were then.
        """
        effects = self._effects(job)
        connection = self.logbook.backend(lease, effects.__contains__).get_connection()
        run = Run(tools=self.tools, job=job, note=connection.note, keep=connection.keep_secret)
        if before is not None:
            now = self.tools.clock.time()
            run.ended_at = min(before.updated_at if before.runner is None else before.expires_at or now, now)
            # A blocked job stopped by itself: only an answer that never came can still be carried out.
            run.orderly = before.state == "blocked" and (before.error or {}).get("code") != UncertainError.code
        hold = Hold(run, leases, lease, connection, self.tools.clock.time())
        run.tools = hold.guarded(self.tools)
        if job.params.volumes:
            from tether.runner.whole import Parts  # which makes jobs, for this to run

            run.whole = Parts(self, run, fenced=fenced)
        self.runs.append(run)
        self.heart.begin(hold)
        try:
            return self._carry_out(run, connection, prepare, stored)
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
            run.let_targets_go()
            self.heart.end(hold)
            self.runs.remove(run)

    def _effects(self, job: Job) -> frozenset[str]:
        plans = [plan_of(part, job.params) for part in self.parts(job.kind, job.version)]
        return frozenset().union(*(plan.effects for plan in plans))

    def _carry_out(
        self, run: Run, connection: JobConnection, prepare: Prepare, stored: Sequence[models.FlowDetail]
    ) -> Job:
        job = run.job
        try:
            flows = {detail.name: detail for detail in stored}
            atoms = [atom for detail in stored for atom in detail]
            run.in_flight = frozenset(atom.name for atom in atoms if atom.state in CUT_OFF)
            run.begun = {atom.name for atom in atoms if any(state in BEGUN for state, _since in atom.history)}
            run.undone = {atom.name for atom in atoms if atom.state == states.REVERTED}
            if not run.orderly:
                run.undoing = {atom.name for atom in atoms if atom.state == states.REVERTING}
            prepare(run, connection, flows)
            reverted = False
            for part in self.parts(job.kind, job.version):
                reverted = self._run_part(run, part, connection, flows.get(part.name))
                if reverted:
                    break
            run.let_end()
        except Blocked as blocked:
            self._settle_down(run)
            reason = self._with_reason(run, blocked)
            return self._end(job, connection, state="blocked", exit_code=4, step=blocked.step, error=reason)
        except Interrupted as interrupted:
            LOG.info("job %s is left as it is: %s", job.id, interrupted.message)
            self._settle_down(run)
            return self._end(job, connection, exit_code=None)
        except LostLease:
            run.lost = True
            self._settle_down(run)
            raise
        if not reverted:
            return self._end(job, connection, state=DONE[job.kind], exit_code=0, step="", error=None)
        error = run.error and run.error.get("reason", run.error)
        held = error is not None and error.get("code") == HeldError.code
        return self._end(
            job, connection, state="rolled-back", exit_code=HeldError.exit_code if held else 3, step="", error=error
        )

    def _end(self, job: Job, connection: JobConnection, **values: Any) -> Job:
        """Write how a run ended, with what is left to be written of its flows; the lease goes with it."""
        columns = job_columns(**values) | {"runner": None, "asked": None}
        if "state" in values and values["state"] != "blocked":
            columns["finished_at"] = self.tools.clock.time()
        connection.write(columns, what="job.end" if "state" in values else "job.leave")
        if "finished_at" not in columns:
            return self.tools.ledger.job(job.id)
        return replace(job, runner=None, asked=None, finished_at=columns["finished_at"], **values)

    def _with_reason(self, run: Run, blocked: Blocked) -> dict[str, Any]:
        """Return why the job is blocked; for an undo with the reason of the roll-back, which outlives it."""
        error: dict[str, Any] = dict(describe(blocked.step, blocked.cause))
        if blocked.undoing and run.error:
            error["reason"] = run.error.get("reason", run.error)
        return error

    def _run_part(self, run: Run, part: Part, connection: JobConnection, detail: models.FlowDetail | None) -> bool:
        """Run one flow of the job; return True if it is, or was, rolled back."""
        if detail is not None and detail.state in {states.SUCCESS, states.REVERTED}:
            # TaskFlow would run a reverted flow again from its start.
            return bool(detail.state == states.REVERTED)
        if detail is None:
            detail = models.FlowDetail(part.name, uuidutils.generate_uuid())
            connection.update_flow_details(detail)
        plan = plan_of(part, run.job.params)
        unknown = sorted(atom.name for atom in detail if atom.name not in plan.steps)
        if unknown:
            # TaskFlow would leave them as they are, and their effects for ever.
            error = OperatorNeeded(
                f"job {run.job.id} has steps that this release does not know: {', '.join(unknown)}",
                resource=f"job {run.job.id}",
                hint="resume it with the release that made it",
            )
            raise Blocked(unknown[0], error, undoing=False)
        engine = StepEngine(plan, run, detail, connection.backend, self.pool)
        if self.watch is not None:
            engine.atom_notifier.register("*", watcher(run.job.id, self.watch))
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
        flows = {detail.name: detail for detail in self.logbook.flows(job.id)}
        may_turn_back(job, self.parts(job.kind, job.version), flows)

    def _turn_back(self, run: Run, connection: JobConnection, flows: Flows) -> None:
        turn_back(run, self.parts(run.job.kind, run.job.version), connection, flows)
