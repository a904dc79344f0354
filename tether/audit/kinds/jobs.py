"""Drift of what was begun: jobs that nobody works on, and servers that are on their way to another host.

What a job has left is reported under it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from tether.audit.drift import Drift, Kind, Owner
from tether.audit.kinds.words import age, drift
from tether.audit.survey import Survey
from tether.persistence.handovers import End


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


def unfinished_migration(survey: Survey) -> Iterator[Drift]:
    """Yield volumes that have two ends: their server is to move to another host, or has moved."""
    for row in survey.ledger.handovers if survey.ledger else ():
        if survey.is_explained(row.volume_id):
            continue
        server = survey.server_name(row.server_id)
        end = f"attachment {row.attachment_id} and its connection"
        text = f"host {row.host} is prepared for server {server}: {end} there wait for it"
        if row.state is End.OUTGOING:
            text = f"server {server} has moved to host {row.host}; where it came from, {end} are left"
        yield drift(
            survey,
            Kind.UNFINISHED_MIGRATION,
            text,
            owner=Owner.OURS,
            volume_id=row.volume_id,
            server_id=row.server_id,
            host=row.machine_id,
            about=row.attachment_id,
            evidence={"hand-over": row.state},
            since=age(survey, row.updated_at),
            safe=f"tether migrate complete {server} --to {row.host}",
        )
