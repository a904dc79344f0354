"""The second end of a mapping while its server moves to another host; see :data:`.schema.handovers`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from tether.clock import Clock
from tether.errors import HeldError
from tether.persistence.database import Database, IntegrityError
from tether.persistence.intact import intact, reading
from tether.persistence.schema import handovers, mappings, secrets


class End(StrEnum):
    """Which end of the hand-over a row is; the mapping's own columns are the other one."""

    PREPARING = "preparing"
    INCOMING = "incoming"
    OUTGOING = "outgoing"


@dataclass(frozen=True, slots=True)
class Handover:
    """The end of a hand-over that the mapping does not name.

    Args:
        job_id: of the job whose sealed secrets are this end's.
        host: the name of the host that the server moves to.
        machine_id: of the host that this end is on.
        attachment_id: this end's attachment in Cinder; empty while there is none yet.
    """

    volume_id: str
    server_id: str
    job_id: str
    state: End
    host: str
    machine_id: str
    attachment_id: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0


class Handovers:
    """The hand-overs of a ledger.

    Args:
        write: opens a transaction, fenced where a running job writes.
    """

    def __init__(self, database: Database, clock: Clock, write: Callable[[], AbstractContextManager[Any]]) -> None:
        self._database = database
        self._clock = clock
        self._write = write

    def find(self, volume_id: str, server_id: str) -> Handover | None:
        """Return the hand-over of a volume and its server, if one is under way."""
        with self._database.read() as connection:
            query = sa.select(handovers).where(*_pair(volume_id, server_id))
            row = connection.execute(query).mappings().first()
        return None if row is None else _handover(row)

    def list(self, *, volume_id: str = "", server_id: str = "") -> list[Handover]:
        """Return hand-overs, oldest first."""
        query = sa.select(handovers).order_by(handovers.c.created_at, handovers.c.volume_id)
        for column, value in ((handovers.c.volume_id, volume_id), (handovers.c.server_id, server_id)):
            query = query.where(column == value) if value else query
        with self._database.read() as connection:
            return [_handover(row) for row in connection.execute(query).mappings()]

    def begin(self, row: Handover) -> None:
        """Store a new hand-over.

        Raises:
            HeldError: there is one already.
        """
        now = self._clock.time()
        try:
            with self._write() as connection:
                values = asdict(row) | {"created_at": now, "updated_at": now}
                connection.execute(sa.insert(handovers).values(**values))
        except IntegrityError as error:
            raise HeldError(
                f"volume {row.volume_id} is being handed over already",
                resource=f"volume {row.volume_id}",
                hint="see: tether mapping list",
            ) from error

    def prepared(self, volume_id: str, server_id: str, attachment_id: str) -> None:
        """Make it *incoming*: the destination has all that the server needs. Repeatable."""
        with self._write() as connection:
            changed = sa.update(handovers).where(*_pair(volume_id, server_id))
            connection.execute(
                changed.values(state=End.INCOMING, attachment_id=attachment_id, updated_at=self._clock.time())
            )

    def swap(self, volume_id: str, server_id: str) -> None:
        """Let the ends change places: the mapping is the destination's now, and the rest is *outgoing*. Repeatable."""
        pair, now = _pair(volume_id, server_id), self._clock.time()
        its = (mappings.c.volume_id == volume_id, mappings.c.server_id == server_id)
        with self._write() as connection:
            there = connection.execute(sa.select(handovers).where(*pair, handovers.c.state == End.INCOMING)).first()
            here = connection.execute(sa.select(mappings).where(*its)).first()
            if there is None or here is None:
                return
            ends = ((here.job_id, "swap"), (there.job_id, here.job_id), ("swap", there.job_id))
            for old, new in ends:
                connection.execute(sa.update(secrets).where(secrets.c.job_id == old).values(job_id=new))
            new_end = {"machine_id": there.machine_id, "attachment_id": there.attachment_id, "updated_at": now}
            old_end = {"machine_id": here.machine_id, "attachment_id": here.attachment_id, "updated_at": now}
            connection.execute(sa.update(mappings).where(*its).values(**new_end))
            connection.execute(sa.update(handovers).where(*pair).values(state=End.OUTGOING, **old_end))

    def forget(self, volume_id: str, server_id: str) -> None:
        """Delete the row and the secrets of its end. Repeatable."""
        pair = _pair(volume_id, server_id)
        with self._write() as connection:
            job = sa.select(handovers.c.job_id).where(*pair)
            connection.execute(sa.delete(secrets).where(secrets.c.job_id.in_(job)))
            connection.execute(sa.delete(handovers).where(*pair))


def _pair(volume_id: str, server_id: str) -> tuple[Any, ...]:
    return handovers.c.volume_id == volume_id, handovers.c.server_id == server_id


def _handover(row: Any) -> Handover:
    with reading(f"the hand-over of volume {row['volume_id']}"):
        intact(handovers, row)
        return Handover(**dict(row) | {"state": End(row["state"])})
