"""Makes a detach that is stuck on a dead device a forced one, when an operator consents to it."""

from __future__ import annotations

from dataclasses import replace

from tether import faults
from tether.errors import ConflictError
from tether.persistence.ledger import Job
from tether.persistence.logbook import JobConnection
from tether.runner.jobs import Flows, Runner
from tether.tasks.run import Run


def resume_forced(runner: Runner, job: Job, *, fenced: bool = False) -> Job:
    """Take a detach up again, which from now on, in this run and later ones, passes over what cannot be flushed.

    Args:
        fenced: as for :meth:`Runner.resume`.

    Raises:
        ConflictError: it is no detach; and what :meth:`Runner.resume` raises.
    """
    if job.kind != "detach":
        raise ConflictError(
            f"job {job.id} is of kind {job.kind}: only a detach can be forced",
            resource=f"job {job.id}",
            hint=f"resume it as it is: tether job resume {job.id}",
        )
    return runner.resume(job, fenced=fenced, prepare=_force)


def _force(run: Run, _connection: JobConnection, _flows: Flows) -> None:
    """Make the consent durable before any step runs by it."""
    if run.job.params.force:
        return
    params = replace(run.job.params, force="resume")
    faults.point("commit.job.force.before")
    run.tools.ledger.set_params(run.job.id, params)
    faults.point("commit.job.force.after")
    run.job = replace(run.job, params=params)
