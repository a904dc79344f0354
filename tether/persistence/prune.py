"""Forgets jobs that ended long ago, so that the database does not grow for ever."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from tether import faults
from tether.persistence.database import Database
from tether.persistence.headers import remembers
from tether.persistence.schema import flows, handovers, jobs, mappings, secrets

#: Jobs that are forgotten in one transaction: few enough that a runner which writes meanwhile hardly waits.
BATCH = 200


def prune(database: Database, before: float, batch: int = BATCH) -> Iterator[int]:
    """Delete what ended before a moment, in bounded transactions; yield how many jobs each has deleted.

    The attach job of a mapping stays for as long as the volume is attached: its mapping and a repeated attach name it.
    So does the job that prepares a hand-over, until that is over.
    Of an encrypted volume the last job stays that may have had it opened: a volume that was open once is never taken
    for a new one, which may be formatted.
    May be interrupted and repeated at any point.

    Args:
        before: seconds since the epoch.
    """
    later = jobs.alias()
    kept = remembers(jobs) & ~sa.exists().where(
        later.c.volume_id == jobs.c.volume_id, later.c.created_at > jobs.c.created_at, remembers(later)
    )
    mapped = sa.exists().where(mappings.c.job_id == jobs.c.id) | sa.exists().where(handovers.c.job_id == jobs.c.id)
    last = (0.0, "")
    while True:
        found = (
            sa.select(jobs.c.created_at, jobs.c.id)
            # A job ends after it was made, so that the index by creation serves; none is looked at twice.
            .where(sa.tuple_(jobs.c.created_at, jobs.c.id) > last, jobs.c.created_at < before)
            .where(jobs.c.finished_at < before, ~mapped, ~kept)
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(batch)
        )
        with database.read() as connection:
            rows = connection.execute(found).all()
        if not rows:
            return
        last = (rows[-1].created_at, rows[-1].id)
        gone = [row.id for row in rows]
        faults.point("commit.prune.before")
        with database.write() as connection:
            for table, column in ((flows, flows.c.job_id), (secrets, secrets.c.job_id), (jobs, jobs.c.id)):
                connection.execute(sa.delete(table).where(column.in_(gone)))
        faults.point("commit.prune.after")
        yield len(gone)
