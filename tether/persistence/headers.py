"""What the ledger remembers of a volume's content: whether it may hold something that a format would destroy."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from tether.persistence.ledger import Job, Ledger
from tether.persistence.schema import jobs


def noted(ledger: Ledger, job: Job) -> str:
    """Return how far a job has come with its volume's content, an earlier run of it included."""
    return ledger.params(job.id).header


def note(ledger: Ledger, job: Job, header: str) -> None:
    """Make durable how far a job has come with its volume's content: ``format`` or ``open``, before it does so."""
    ledger.set_params(job.id, replace(ledger.params(job.id), header=header))


def first_use(ledger: Ledger, job: Job) -> Job | None:
    """Return another job after which this one's volume may hold something; None if there is none."""
    others = ledger.jobs_where((jobs.c.volume_id == job.volume_id) & (jobs.c.id != job.id))
    return next((other for other in others if _may_have_written(other)), None)


def was_formatting(ledger: Ledger, job: Job) -> bool:
    """Return True if another job had decided to format this one's volume, and did not come to opening it."""
    others = ledger.jobs_where((jobs.c.volume_id == job.volume_id) & (jobs.c.id != job.id))
    return any(other.params.header == "format" for other in others)


def remembers(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition of a job of an encrypted volume that :func:`first_use` may name."""
    unopened = sa.or_(*(table.c.params.contains(f'"header": "{header}"') for header in ("none", "format")))
    return table.c.params.contains('"encrypted": true') & ~unopened


def _may_have_written(job: Job) -> bool:
    """Return False for a job that provably never let anybody write to its volume."""
    if job.params.header:
        return job.params.header == "open"
    return job.params.encrypted or job.state != "rolled-back"
