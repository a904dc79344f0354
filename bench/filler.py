"""Fills a database with finished jobs: copies of one that was really run, with ids, volumes and times of their own.

Ids are spread over the whole range of UUIDs, so that what a new job writes lies between them, and are written in
their order, which is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from bench.tether_side import Copied

#: Jobs in one transaction.
BATCH = 20_000
SERVERS = 1000
#: Each kind of id has its own digit, so that no two ids are one.
KINDS = ("job", "flow", "volume", "server", "request")


def fill(url: str, count: int, copied: Sequence[Copied], sample: Mapping[str, str]) -> None:
    """Add so many copies of a job.

    Args:
        copied: the tables that have rows of it.
        sample: its ids by their kind.
    """
    engine = sa.create_engine(url)
    lite = engine.dialect.name == "sqlite"
    try:
        for first in range(0, count, BATCH):
            with engine.begin() as connection:
                if lite:
                    connection.exec_driver_sql("PRAGMA cache_size=-200000")
                for table in copied:
                    statement = sa.text(_copy(connection, table, count, lite=lite))
                    given = {"first": first, "last": min(first + BATCH, count) - 1, "sample": sample[table.of]}
                    connection.execute(statement, given)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # What autovacuum would have done by the time that there are so many; SQLite's log is emptied.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)" if lite else "VACUUM (ANALYZE)")
    finally:
        engine.dispose()


def _copy(connection: sa.Connection, table: Copied, count: int, *, lite: bool) -> str:
    """Return the statement that copies one job's rows of one table for the jobs from ``:first`` to ``:last``."""
    columns = [str(column["name"]) for column in sa.inspect(connection).get_columns(table.table)]
    wanted = []
    for name in columns:
        if name in table.ids:
            wanted.append(_id(table.ids[name], count, lite=lite))
        elif name in table.times:
            wanted.append(f"s.{name} - 3600 - 0.5 * ({count} - n.i)")
        else:
            wanted.append(f"s.{name}")
    if lite:
        numbers = "WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
    else:
        numbers = "WITH n(i) AS (SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)))"
    into, values = ", ".join(columns), ", ".join(wanted)
    source = f"FROM n CROSS JOIN {table.table} s WHERE s.{table.column} = :sample"
    if lite:
        return f"INSERT INTO {table.table} ({into}) {numbers} SELECT {values} {source}"
    return f"{numbers} INSERT INTO {table.table} ({into}) SELECT {values} {source}"


def _id(kind: str, count: int, *, lite: bool) -> str:
    """Return the expression of a UUID for the job number ``n.i``."""
    if kind == "request":
        return f"'req-' || {_id('job', count, lite=lite)}"
    number = f"(n.i % {SERVERS})" if kind == "server" else "n.i"
    spread = f"({number} * 4294967296) / {SERVERS if kind == 'server' else count}"
    middle = f"-000{KINDS.index(kind)}-4000-8000-"
    if lite:
        # A colon before a name would be a parameter; there is none here.
        return f"printf('%08x{middle}%012x', {spread}, {number})"
    return f"lpad(to_hex({spread}), 8, '0') || '{middle}' || lpad(to_hex({number}), 12, '0')"
