"""Damages rows of an embedded world's database, as no API of tether's lets one do."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from tests.crash.judge import snapshot


def every_table(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of tether's, as stored."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as connection:
        connection.text_factory = bytes
        names = [row[0].decode() for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # Leases of servers come and go with a command; the mere name of one that is left would be seen here.
        return {name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in names}


def everything(world: Path) -> dict[str, Any]:
    """Return all that a command could have changed: every file but the database's, and every row of that."""
    files = {
        str(path.relative_to(world)): path.read_bytes()
        for path in sorted(world.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "tether.sqlite"))
    }
    return {"files": files, "rows": every_table(world / "tether.sqlite"), "books": _books(world)}


def _books(world: Path) -> Any:
    return {name: book for name, book in snapshot(world).items() if name != "ledger"}


def columns(database: Path, table: str) -> list[str]:
    """Return the names of a table's columns."""
    with sqlite3.connect(database) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def damage(database: Path, table: str, column: str, value: object, where: str = "1 = 1") -> None:
    """Put a value into a column of every row, whatever the schema says about it."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=10)
    try:
        # As a disk or a hand would: no constraint of the schema is in the way.
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table' AND name = ?", (table,)
        )
        connection.execute("PRAGMA writable_schema = RESET")
    finally:
        connection.close()
    with sqlite3.connect(database, timeout=10) as connection:
        stored = value if not isinstance(value, bytes) else sqlite3.Binary(value)
        changed = connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (stored,)).rowcount
    connection.close()
    assert changed, f"{table} has no row"
