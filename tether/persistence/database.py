"""The database: an engine with the durability that the guarantee needs, and one border for its errors."""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError, NoSuchModuleError

from tether import faults
from tether.errors import ConfigError, UncertainError
from tether.persistence import schema

BUSY_TIMEOUT = 30.0
"""Seconds that SQLite waits for another process's write."""
UNUSABLE = {
    "file is not a database": "this file is something else: give --database another one",
    "unable to open database file": "it must be a file that this user may read and write, in a directory likewise",
    "attempt to write a readonly database": "let this user write the file and its directory, or use another user",
    "database disk image is malformed": "restore it from a backup",
    "Could not decode to UTF-8": "a text in it is damaged: correct it, or restore the database from a backup",
    "no such table": "restore it from a backup",
    "no such column": "restore it from a backup",
}
"""What SQLite says of a file that will never answer, and what to do about it."""
POOL = 16
"""Connections to a server that are kept: as many jobs as are usually under way in a process."""
IDLE_TIME = 1.0
"""Seconds after which a server may have dropped the kept connection."""


class Database:
    """One database, SQLite or PostgreSQL.

    Args:
        url: an SQLAlchemy URL. SQLite gets WAL and ``synchronous=FULL``: an intent must outlive a power loss.

    Raises:
        ConfigError: the URL cannot be used, or the driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url: URL = make_url(url)
            self.engine = _engine(self.url)
            self.reader = _engine(self.url, isolation_level="AUTOCOMMIT")
            self._lock = threading.Lock()
            self._writer: Connection | None = None
            self._used = 0.0
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigError(
                f"the database URL {_shown(url)} cannot be used: {error}",
                hint="use sqlite:////path/to/file or postgresql+psycopg://… (pip install 'tether[postgresql]')",
            ) from error
        except (OSError, ValueError):
            # Not chained, and not told: of a URL that is cut in the wrong place it may show the password.
            raise ConfigError(
                "the database URL cannot be used: its path is too long, or its port or an option is no number",
                hint="use sqlite:////path/to/file or postgresql+psycopg://…; in a password write %40 for @, %2F for /",
            ) from None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, committed at the end.

        One thread at a time, on a connection that is kept: SQLite has one writer anyway and would have the others
        sleep, and what many threads of a runner write goes through the journal, which lets them share a commit.

        Raises:
            UncertainError: the database does not answer; the transaction may or may not be there.
        """
        with self._translated(), self._lock:
            connection = self._kept() or self.engine.connect()
            self._writer = None  # kept only if it is known to be good
            try:
                with connection.begin():
                    yield connection
                    _may_break("database.write")
            except DBAPIError as error:
                if not isinstance(error, IntegrityError):
                    connection.invalidate()
                    connection.close()
                    raise
                self._writer = connection
                raise
            except BaseException:
                self._writer = connection
                raise
            self._writer, self._used = connection, time.monotonic()

    def _kept(self) -> Connection | None:
        """Return the kept connection, unless the server has dropped it while it was idle."""
        connection = self._writer
        if connection is None or connection.dialect.name == "sqlite" or time.monotonic() < self._used + IDLE_TIME:
            return connection
        try:
            connection.exec_driver_sql("SELECT 1")
            connection.rollback()
        except DBAPIError:
            connection.invalidate()
            connection.close()
            return None
        return connection

    @contextmanager
    def at_once(self) -> Iterator[Connection]:
        """Yield a connection on which each statement is a transaction of its own.

        Raises:
            UncertainError: the database does not answer; a statement may or may not have been carried out.
        """
        with self._translated(), self.reader.connect() as connection:
            _may_break("database.read")
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection for reading, without a transaction of its own."""
        with self.at_once() as connection:
            yield connection

    def check(self) -> None:
        """Refuse a schema that this code does not know.

        Raises:
            ConfigError: there is no schema, an older or a newer one.
        """
        version = self.version()
        if version == schema.HEAD:
            return
        if version is None:
            raise ConfigError(
                f"the database {self.shown} has no tether schema", hint="create it with: tether db upgrade"
            )
        if version < schema.HEAD:
            raise ConfigError(
                f"the database {self.shown} has schema {version}, this tether needs {schema.HEAD}",
                hint="bring it up to date with: tether db upgrade",
            )
        raise ConfigError(
            f"the database {self.shown} has schema {version}, which is newer than this tether's {schema.HEAD}",
            hint="use the tether release that wrote it; never downgrade a ledger that has open jobs",
        )

    def version(self) -> str | None:
        """Return the schema's version, or None where there is none."""
        if self.url.get_backend_name() == "sqlite" and not self._has_file():
            return None
        with self.read() as connection:
            if not sa.inspect(connection).has_table(schema.VERSION_TABLE):
                return None
            row = connection.execute(sa.text(f"SELECT version_num FROM {schema.VERSION_TABLE}")).first()  # noqa: S608
        return None if row is None else str(row[0])

    def _has_file(self) -> bool:
        try:
            return Path(self.url.database or "").exists()
        except OSError as error:
            raise ConfigError(
                f"the database {self.shown} cannot be used: {error.strerror}", hint="give --database another file"
            ) from error

    @property
    def dialect(self) -> sa.Dialect:
        """What the database speaks."""
        return self.engine.dialect

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self.engine.dispose()
        self.reader.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            said = str(error.orig).splitlines()[0]
            for words, hint in UNUSABLE.items():
                if words in said:
                    raise ConfigError(f"the database {self.shown} cannot be used: {said}", hint=hint) from error
            raise UncertainError(
                f"the database {self.shown} does not answer: {said}",
                hint="see that it runs and that its disk is not full, then: tether job list",
            ) from error


class Prepared:
    """A statement that is compiled once: what a barrier sends must not cost more than its commit.

    Args:
        statement: with a ``bindparam`` for every value.
    """

    def __init__(self, statement: sa.UpdateBase, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._text = str(compiled)
        self._order: list[str] | None = getattr(compiled, "positiontup", None)

    def run(self, connection: Connection, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
        """Execute it on a connection with these values."""
        given = tuple(values[name] for name in self._order) if self._order is not None else values
        return connection.exec_driver_sql(self._text, given)


def _may_break(point: str) -> None:
    """Let an injected fault come as the driver's own errors do."""
    try:
        faults.point(point)
    except sqlite3.Error as error:
        raise DBAPIError(point, None, error) from error


def _shown(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "given"


def _engine(url: URL, **options: Any) -> Engine:
    """Return an engine; one for reading has the isolation level AUTOCOMMIT, so that nothing is begun or rolled back."""
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(url, pool_size=POOL, **options)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", functools.partial(_ping_idle, engine))
        return engine
    if url.database in {None, "", ":memory:"}:
        raise ConfigError(
            "a database in memory is gone with the command that made it",
            hint="give --database a file: sqlite:////path/to/file",
        )
    if not Path(url.database or "").parent.is_dir():
        raise ConfigError(
            f"there is no directory {Path(url.database).parent} for the database",
            hint="create it, or give --database another URL",
        )
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False}, **options)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is deferred: two writers would each read first and then fail to upgrade.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    if not options:

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            cursor = connection.connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise DBAPIError("BEGIN IMMEDIATE", None, error) from error
            finally:
                cursor.close()

    return engine


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ping_idle(engine: Engine, connection: Any, record: Any, _proxy: Any) -> None:
    """Let the pool make a new connection in the place of one that the server has dropped while it was idle."""
    if time.monotonic() < record.info.get("used", time.monotonic()) + IDLE_TIME:
        return
    try:
        engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error as error:
        raise DisconnectionError from error


__all__ = ["Database", "IntegrityError", "Prepared"]
