"""The vault: secrets in the database, sealed with keys that are not in it.

What is sealed is kept in ``tether_secrets``. One row of it is nobody's secret: the *canary*, sealed like the rest when
the first key was made. Who cannot open it has the wrong key for this database, and finds out before a job begins.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tether import faults
from tether.errors import ConfigError, UsageError
from tether.persistence.database import Database
from tether.persistence.keys import KeyFile, KeyRing, fingerprint, new_key
from tether.persistence.schema import secrets
from tether.sealed import Sealed

LOG = logging.getLogger(__name__)

#: The canary's key in ``tether_secrets``: no job has this id.
CANARY = ("", "canary")
#: What the canary says: that all is sealed with the newest key, or that a rotation is under way.
SETTLED, ROTATING = b"settled", b"rotating"
#: Rows that one transaction seals anew, so that no runner waits long for it.
BATCH = 100
#: Keys that a rotation leaves: the new one, and the one before, with which a runner may just have sealed something.
KEPT = 2


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did.

    Args:
        resumed: it finished one that had been interrupted, and made no new key.
        renewed: rows that were sealed anew.
        unreadable: rows that no key opens; they were left as they are.
    """

    resumed: bool
    renewed: int
    unreadable: int


class Vault:
    """Seals and opens the secrets of one database."""

    def __init__(self, database: Database, ring: KeyRing) -> None:
        self._database = database
        self.ring = ring
        self._fits = False

    # -- what a runner does ----------------------------------------------------------------------------------

    def ready(self) -> None:
        """Make sure that the key fits the database, before anything depends on it; on first use, make one.

        Raises:
            ConfigError: there is a canary, and no key that opens it.
        """
        if self._fits:
            return
        if self._canary() is None:
            # In this order: a key without a canary is used by the next one who comes; a canary without its key
            # would lock everybody out.
            self.ring.create()
            self._add_canary()
        self._open_canary()
        self._fits = True

    def seal(self, secret: Sealed[str]) -> str:
        """Return a secret as it may be stored."""
        return self.ring.seal(secret.open().encode()).decode()

    def open(self, text: str) -> Sealed[str]:
        """Return a secret that was stored.

        Raises:
            ConfigError: no key opens it.
        """
        found = self.ring.open(text.encode())
        if found is None:
            raise ConfigError(
                f"{self.ring.source.where} holds no key for what is sealed in {self._database.shown}",
                hint=self.ring.source.restore(),
            )
        return Sealed(found.decode())

    # -- what an operator does -------------------------------------------------------------------------------

    def rotate(self) -> Rotation:
        """Seal everything with a new key, and drop the keys before the last one. Repeatable after an interruption.

        Other processes go on meanwhile: they read the new key as soon as the file has it, and what they seal with the
        one before stays readable.

        Raises:
            ConfigError: the key does not fit the database, or cannot be written.
            UsageError: the keys are a key manager's, and no new one is named.
        """
        self.ready()
        file = self.ring.source if isinstance(self.ring.source, KeyFile) else None
        with file.locked() if file is not None else contextlib.nullcontext():
            keys = self.ring.keys(again=True)
            state, newest = self._open_canary()
            resumed = state == ROTATING or (file is not None and (not newest or len(keys) > KEPT))
            if file is not None and not resumed:
                self._replace(file, (new_key(), *keys), "add")
            elif newest and not resumed:
                raise UsageError(
                    f"everything is sealed with key {fingerprint(keys[0])} already",
                    hint="put the id of a new key in front in [secrets] castellan_key_id, then run this again",
                )
            # The first to be sealed anew: a host without the new key learns it from the canary, before a job begins.
            self._set_canary(ROTATING, "rotate.begin")
            renewed = unreadable = 0
            while True:  # what runners have sealed meanwhile with the key before, too
                changed, unreadable = self._renew_all()
                renewed += changed
                if not changed:
                    break
            self._set_canary(SETTLED, "rotate.end")
            if file is not None and len(self.ring.keys()) > KEPT:
                self._replace(file, self.ring.keys()[:KEPT], "drop")
        return Rotation(resumed, renewed, unreadable)

    def forget(self) -> int:
        """Delete what no key opens, after a key was lost, and begin anew; return how many secrets are gone.

        Repeatable: the canary comes last.
        """
        self.ring.create()
        lost = 0
        for rows in self._batches():
            unreadable = [row for row in rows if self.ring.open(row.sealed.encode()) is None]
            with self._database.write() as connection:
                for row in unreadable:
                    lost += connection.execute(sa.delete(secrets).where(_same(row))).rowcount
            faults.point("key.forget.rows.after")
        canary = self._canary()
        if canary is not None and self.ring.open(canary.encode()) is None:
            self._set_canary(SETTLED, "forget.end")
        return lost

    def fits(self) -> bool | None:
        """Return True if the keys fit the database; None if nothing was sealed in it yet. Nothing is made."""
        canary = self._canary()
        if canary is None:
            return None
        return self.ring.source.load() is not None and self.ring.open(canary.encode()) is not None

    def count(self) -> int:
        """Return how many secrets the database holds."""
        query = sa.select(sa.func.count()).select_from(secrets).where(secrets.c.job_id != CANARY[0])
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    # -- the canary ------------------------------------------------------------------------------------------

    def _canary(self) -> str | None:
        query = sa.select(secrets.c.sealed).where(secrets.c.job_id == CANARY[0], secrets.c.name == CANARY[1])
        with self._database.read() as connection:
            text: str | None = connection.execute(query).scalar()
        return text

    def _open_canary(self) -> tuple[bytes, bool]:
        """Return what the canary says, and whether it is sealed with the newest key."""
        canary = self._canary()
        if canary is None:
            raise ConfigError(
                f"the database {self._database.shown} has lost its canary",
                hint="run the command again: it is made anew",
            )
        token = canary.encode()
        where, restore = self.ring.source.where, self.ring.source.restore()
        lost = f"{restore}; if it is lost for good: tether key forget"
        try:
            state = self.ring.open(token)
        except ConfigError as error:
            if self.ring.source.load() is not None:
                raise
            raise ConfigError(
                f"{where} is missing, and the connection info in {self._database.shown} is sealed with it", hint=lost
            ) from error
        if state is None:
            raise ConfigError(
                f"no key in {where} opens the connection info that is sealed in {self._database.shown}", hint=lost
            )
        return state, self.ring.renew(token) == token

    def _add_canary(self) -> None:
        row = {"job_id": CANARY[0], "name": CANARY[1], "sealed": self.ring.seal(SETTLED).decode()}
        faults.point("key.canary.before")
        with self._database.write() as connection:
            insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(secrets)
            connection.execute(insert.on_conflict_do_nothing(), row)
        faults.point("key.canary.after")

    def _set_canary(self, state: bytes, what: str) -> None:
        faults.point(f"key.{what}.before")
        with self._database.write() as connection:
            connection.execute(
                sa.update(secrets)
                .where(secrets.c.job_id == CANARY[0], secrets.c.name == CANARY[1])
                .values(sealed=self.ring.seal(state).decode())
            )
        faults.point(f"key.{what}.after")

    # -- rows ------------------------------------------------------------------------------------------------

    def _renew_all(self) -> tuple[int, int]:
        """Seal every row with the newest key; return how many were not, and how many no key opens."""
        renewed = unreadable = 0
        for rows in self._batches():
            changes = []
            for row in rows:
                token = row.sealed.encode()
                new = self.ring.renew(token)
                if new is None:
                    unreadable += 1
                    LOG.warning("no key opens the secret %s of job %s", row.name, row.job_id)
                elif new != token:
                    changes.append((row, new.decode()))
            if not changes:
                continue
            faults.point("key.rotate.rows.before")
            with self._database.write() as connection:
                for row, text in changes:
                    # Only what was read: the job's runner may have put another in its place.
                    renewed += connection.execute(sa.update(secrets).where(_same(row)).values(sealed=text)).rowcount
            faults.point("key.rotate.rows.after")
        return renewed, unreadable

    def _batches(self) -> Iterator[list[sa.Row[Any, Any, Any]]]:
        """Yield all rows but the canary, a batch at a time, in the order of their key."""
        key = sa.tuple_(secrets.c.job_id, secrets.c.name)
        query = sa.select(secrets.c.job_id, secrets.c.name, secrets.c.sealed).order_by(*key.clauses).limit(BATCH)
        last = CANARY
        while True:
            with self._database.read() as connection:
                rows = list(connection.execute(query.where(key > sa.tuple_(*last))))
            if not rows:
                return
            yield rows
            last = (rows[-1].job_id, rows[-1].name)

    def _replace(self, file: KeyFile, keys: tuple[bytes, ...], what: str) -> None:
        faults.point(f"key.rotate.{what}.before")
        file.replace(keys)
        self.ring.keys(again=True)
        faults.point(f"key.rotate.{what}.after")


def _same(row: sa.Row[Any, Any, Any]) -> sa.ColumnElement[bool]:
    return sa.and_(secrets.c.job_id == row.job_id, secrets.c.name == row.name, secrets.c.sealed == row.sealed)
