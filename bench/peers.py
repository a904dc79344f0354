"""The peers: the same nine steps, each returning the same small result, under everything but tether.

Every one on SQLite gets WAL and ``synchronous=FULL``, as tether has them; on PostgreSQL they share one server.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import Any

import psycopg
import sqlalchemy as sa
from taskflow import engines, task
from taskflow.patterns import graph_flow
from taskflow.persistence import backends, models

from bench.measure import spread
from bench.output import SYNCHRONOUS, sqlite_facts

STEPS = 9
#: What each step of each peer returns.
RESULT = {"attachment_id": "5c2f8a1e-7d8b-4a52-9c1e-0f5d2f7f9a10"}
#: The raw commits of one flow: one that makes it, one before each step, one at the end.
RAW_COMMITS = STEPS + 2
#: Seconds that an SQLite connection waits for another writer.
BUSY = 30


class Link(task.Task):  # type: ignore[misc]  # taskflow has no types
    """One step of the chain, which needs the one before it."""

    def __init__(self, number: int) -> None:
        needs = [f"link{number - 1}"] if number > 1 else []
        super().__init__(f"link-{number}", provides=f"link{number}", requires=needs)

    def execute(self, **_: Any) -> dict[str, str]:
        return RESULT

    def revert(self, **_: Any) -> None:
        """Nothing was done."""


def chain() -> graph_flow.Flow:
    """Return a new flow of the nine steps."""
    return graph_flow.Flow("chain").add(*[Link(number) for number in range(1, STEPS + 1)])


def full_sync(engine: Any) -> None:
    """Give every SQLite connection of an engine (or of all: the class) tether's durability."""

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY * 1000}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    sa.event.listen(engine, "connect", on_connect)


def durability(engine: sa.Engine) -> dict[str, Any]:
    """Return what an SQLite engine's durability rests on, as it is read back; a server's is read elsewhere."""
    if engine.dialect.name != "sqlite":
        return {}
    with engine.connect() as connection:
        return sqlite_facts(connection)


class Commits:
    """Counts the transactions that an SQLAlchemy engine commits."""

    def __init__(self, engine: sa.Engine) -> None:
        self.count = 0
        sa.event.listen(engine, "commit", self._on_commit)

    def _on_commit(self, _connection: Any) -> None:
        self.count += 1


class Bare:
    """TaskFlow as shipped: a new flow and a serial engine each time, nothing kept."""

    def run_many(self, flows: int, threads: int) -> None:
        spread(flows, threads, self.run_one)

    def run_one(self) -> None:
        """Run one flow."""
        engines.load(chain(), engine="serial").run()

    def facts(self) -> dict[str, Any]:
        return {}

    def commits(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


class BareTuned(Bare):
    """TaskFlow with tether's engine options, and one flow object for all runs of a thread.

    Args:
        options: the options.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._own = threading.local()

    def run_one(self) -> None:
        # Two engines at a time on one flow object would share its tasks' listeners.
        if not hasattr(self._own, "flow"):
            self._own.flow = chain()
        engines.load(self._own.flow, **self._options).run()


class Stock(Bare):
    """TaskFlow's own SQLAlchemy backend.

    Args:
        url: an SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self._backend = backends.fetch({"connection": url})
        self._engine: sa.Engine = self._backend.engine
        if self._engine.dialect.name == "sqlite":
            full_sync(self._engine)
        self._commits = Commits(self._engine)
        with closing(self._backend.get_connection()) as connection:
            connection.upgrade()

    def run_one(self) -> None:
        book = models.LogBook("chain")
        with closing(self._backend.get_connection()) as connection:
            connection.save_logbook(book)
        engines.load(chain(), book=book, backend=self._backend, engine="serial").run()

    def facts(self) -> dict[str, Any]:
        return durability(self._engine)

    def commits(self) -> int | None:
        return self._commits.count

    def close(self) -> None:
        self._backend.close()


class Dbos:
    """DBOS: a workflow of nine steps, in the calling thread; its library as it comes, but for the pragmas.

    Args:
        url: an SQLAlchemy URL.
        shipped: leave SQLite as the library has it.
    """

    def __init__(self, url: str, *, shipped: bool = False) -> None:
        from dbos import DBOS

        if url.startswith("sqlite") and not shipped:
            full_sync(sa.Engine)  # it makes its engine inside, and connects at once
        step = DBOS.step(name="link")(_link)

        def work() -> Any:
            given = None
            for _ in range(STEPS):
                given = step(given)
            return given

        instance = DBOS(config={"name": "chain", "system_database_url": url, "log_level": "ERROR"})
        self._workflow = DBOS.workflow(name="chain")(work)
        DBOS.launch()
        self._dbos = DBOS
        self._engine: sa.Engine = instance._sys_db.engine  # noqa: SLF001  # no other way to read the pragmas back
        self._commits = Commits(self._engine)

    def run_many(self, flows: int, threads: int) -> None:
        spread(flows, threads, self._workflow)

    def facts(self) -> dict[str, Any]:
        return durability(self._engine)

    def commits(self) -> int | None:
        return self._commits.count

    def close(self) -> None:
        self._dbos.destroy()


def dbos_as_shipped(url: str) -> Dbos:
    """Return DBOS with SQLite as the library has it; on PostgreSQL there is no difference."""
    return Dbos(url, shipped=True)


def _link(_given: Any) -> dict[str, str]:
    return RESULT


class RawSqlite:
    """The floor: as many commits as a flow needs, of one small row each, and nothing else.

    One connection for all threads: with several, SQLite's writers sleep while they wait for each other, and the
    floor would lie above those that it is the floor of.

    Args:
        url: an SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        path = sa.make_url(url).database or ""
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")

    def run_many(self, flows: int, threads: int) -> None:
        spread(flows, threads, self.run_one)

    def run_one(self) -> None:
        """Commit what one flow would."""
        for _ in range(RAW_COMMITS):
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("INSERT INTO rows (text) VALUES (?)", ("x" * 300,))
                self._connection.execute("COMMIT")

    def facts(self) -> dict[str, Any]:
        mode = self._connection.execute("PRAGMA journal_mode").fetchone()[0]
        sync = self._connection.execute("PRAGMA synchronous").fetchone()[0]
        return {"journal_mode": mode, "synchronous": SYNCHRONOUS[sync]}

    def commits(self) -> int | None:
        return None

    def close(self) -> None:
        self._connection.close()


class RawPostgresql:
    """The same floor on PostgreSQL.

    Args:
        url: an SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self._where = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._own = threading.local()
        self._connection().execute("CREATE TABLE rows (id BIGSERIAL PRIMARY KEY, text TEXT)")
        self._connection().commit()

    def _connection(self) -> psycopg.Connection[Any]:
        if not hasattr(self._own, "connection"):
            self._own.connection = psycopg.connect(self._where)
        found: psycopg.Connection[Any] = self._own.connection
        return found

    def run_many(self, flows: int, threads: int) -> None:
        spread(flows, threads, self.run_one)

    def run_one(self) -> None:
        """Commit what one flow would."""
        connection = self._connection()
        for _ in range(RAW_COMMITS):
            connection.execute("INSERT INTO rows (text) VALUES (%s)", ("x" * 300,))
            connection.commit()

    def facts(self) -> dict[str, Any]:
        return {}

    def commits(self) -> int | None:
        return None

    def close(self) -> None:
        self._connection().close()
