"""Reads many jobs of the ledger at once, for whoever compares all books."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from tether.persistence.ledger import Job, Ledger
from tether.persistence.schema import jobs

#: How many values go into one query.
MANY = 500


def jobs_of(ledger: Ledger, job_ids: Collection[str]) -> dict[str, Job]:
    """Return those of these jobs that are there, by their ids."""
    return {job.id: job for job in _where(ledger, jobs.c.id, job_ids)}


def jobs_about(ledger: Ledger, volume_ids: Collection[str]) -> list[Job]:
    """Return every job about one of these volumes, oldest first."""
    return sorted(_where(ledger, jobs.c.volume_id, volume_ids), key=lambda job: job.created_at)


def jobs_since(ledger: Ledger, moment: float) -> list[Job]:
    """Return the jobs that were made at or after a moment; seconds since the epoch."""
    return ledger.jobs_where(jobs.c.created_at >= moment)


def _where(ledger: Ledger, column: sa.Column[str], values: Collection[str]) -> list[Job]:
    wanted = sorted(values)
    parts = [wanted[first : first + MANY] for first in range(0, len(wanted), MANY)]
    return [job for part in parts for job in ledger.jobs_where(column.in_(part))]
