"""Drift of jobs: those that nobody works on. What they have left is reported under them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

from tether.audit.drift import Drift, Kind, Owner
from tether.audit.kinds.words import age, drift
from tether.audit.survey import Survey


def left(survey: Survey) -> Iterator[Drift]:
    """Yield blocked and interrupted jobs, of every host."""
    open_jobs = survey.ledger.open_jobs if survey.ledger else ()
    open_ids = {job.id for job in open_jobs}
    for job in open_jobs:
        # A part is taken up with its whole.
        taken_up = job.params.whole if job.params.whole in open_ids else job.id
        if survey.is_busy(job.volume_id):
            continue
        blocked = job.state == "blocked"
        error = job.error or {}
        step = job.step.partition("/")[0]
        at = f" at {step}" if step else ""
        text = (
            f"{job.kind} is blocked{at}: {error.get('message', 'no reason given')}"
            if blocked
            else f"{job.kind} was left{at}; nobody works on it"
        )
        elsewhere = not survey.is_here(job.place.machine_id)
        yield drift(
            survey,
            Kind.BLOCKED_JOB if blocked else Kind.INTERRUPTED_JOB,
            text + (f" (it is host {job.place.machine_id}'s)" if elsewhere else ""),
            owner=Owner.OURS,
            volume_id=job.volume_id,
            server_id=job.server_id,
            host=job.place.machine_id,
            about=taken_up,
            evidence={"job": f"{job.state}{at}", **({"first": error["hint"]} if error.get("hint") else {})},
            since=age(survey, job.updated_at),
            safe=f"tether job resume {taken_up}",
        )
