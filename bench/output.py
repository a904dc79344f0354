"""How a bench is called and how it ends: options, tables, bars, and the last line for bench/report."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tests.tree import ROOT
from tether.matrix.figures import bar, machine

if TYPE_CHECKING:
    from tests.postgresql import Server

LIBRARIES = ("taskflow", "SQLAlchemy", "psycopg", "dbos")
#: What PostgreSQL's durability rests on.
SERVER_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
#: What ``PRAGMA synchronous`` answers.
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
#: Filesystems on which a sync costs nothing, and so proves nothing.
NO_DISK = ("tmpfs", "ramfs")

__all__ = [
    "SYNCHRONOUS",
    "Findings",
    "Place",
    "Table",
    "at_least",
    "at_most",
    "options",
    "postgresql_facts",
    "scratch",
    "sqlite_facts",
]


def options(description: str, *, rounds: int, flows: int | None = None) -> argparse.ArgumentParser:
    """Return the parser with the options that every bench has.

    Args:
        flows: how many in one measurement; None for a bench that has no choice of flows and peers.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help="interleaved rounds; default: %(default)s"
    )
    if flows is not None:
        parser.add_argument(
            "--flows",
            type=int,
            default=flows,
            metavar="N",
            help="flows (jobs) in one measurement; default: %(default)s",
        )
        parser.add_argument(
            "--only",
            action="append",
            metavar="NAME",
            help="measure this alone; may be repeated (see the tables' names)",
        )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that the bench runs, measures nothing")
    parser.add_argument(
        "--directory", metavar="DIR", help="where the databases are made; default: the one for temporary files"
    )
    return parser


def at_most(name: str, value: float, unit: str, limit: float) -> dict[str, Any]:
    """Return a bar that a figure must not pass."""
    return bar(name, round(value, 4), unit, limit, holds=value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> dict[str, Any]:
    """Return a bar that a figure must reach."""
    return bar(name, round(value, 4), unit, limit, holds=value >= limit) | {"at_least": True}


@dataclass
class Table:
    """One table of figures.

    Args:
        note: what one must know to read it.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""

    def lines(self) -> Iterator[str]:
        """Yield it as plain text."""
        cells = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        yield self.title
        for row in cells:
            first, *others = [
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  " + "  ".join([first, *others])
        if self.note:
            yield f"  {self.note}"


def shown(cell: Any) -> str:
    """Return a cell's text: three digits of a figure are more than the noise lets one see."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.{max(0, 3 - len(str(int(abs(cell)))))}f}"
    return str(cell)


@dataclass
class Findings:
    """What a bench has found.

    Args:
        bench: the script's name.
        question: what it answers, in one sentence.
        quick: the counts were tiny, the figures mean nothing.
        libraries: those whose versions matter; one that is not installed is left out.
    """

    bench: str
    question: str
    quick: bool
    tables: list[Table] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)
    durability: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    libraries: Sequence[str] = LIBRARIES

    def show(self, *, as_json: bool) -> None:
        """Print everything; last, where asked for, the line of JSON."""
        for table in self.tables:
            print("\n".join(table.lines()), end="\n\n")
        for name, found in ((name, found) for name, found in self.durability.items() if found):
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
        for item in self.bars:
            limit = f"{'at least' if item.get('at_least') else 'at most'} {item['limit']}"
            print(f"{'holds' if item['holds'] else 'BROKEN'}  {item['name']}: {item['value']} {item['unit']}, {limit}")
        if self.quick:
            print("tiny counts (--quick): the figures mean nothing")
        if as_json:
            print(json.dumps(self.figures()))

    def figures(self) -> dict[str, Any]:
        """Return it all as plain data; nothing in it names the machine, its user or a path."""
        return {
            "bars": self.bars,
            "machine": machine() | {"sqlite": sqlite3.sqlite_version} | self.versions,
            "bench": self.bench,
            "question": self.question,
            "quick": self.quick,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "commit": _commit(),
            "libraries": {name: version for name in self.libraries if (version := _version(name))},
            "settings": self.settings,
            "durability": self.durability,
            "tables": [asdict(table) for table in self.tables],
        }


def _git(*words: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the commit that was measured, and whether the checkout differed from it.

    Where there is no git, whoever starts the bench says it.
    """
    if told := os.environ.get("BENCH_COMMIT"):
        return told
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit or "unknown"


@dataclass
class Place:
    """Where a bench makes its databases."""

    folder: Path
    server: Server | None

    def sqlite(self, name: str) -> str:
        """Return the URL of a new SQLite file."""
        return f"sqlite:///{self.folder / name}.sqlite"

    @contextmanager
    def database(self, kind: str, name: str) -> Iterator[str]:
        """Make a new database of either kind; a name is used once."""
        if kind == "sqlite":
            yield self.sqlite(name)
        elif self.server is None:
            raise RuntimeError("this bench was started without a PostgreSQL server")
        else:
            with self.server.database() as url:
                yield url


@contextmanager
def scratch(directory: str | None, findings: Findings, *, postgresql: bool) -> Iterator[Place]:
    """Make a folder and, where wanted, a PostgreSQL server; note the versions; remove both at the end."""
    if directory:
        tempfile.tempdir = str(Path(directory).resolve())  # PostgreSQL's data must be on the same disk
    with tempfile.TemporaryDirectory(prefix="tether-bench-") as folder:
        command = ["findmnt", "-no", "FSTYPE", "-T", folder]
        kind = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        findings.versions["filesystem"] = kind
        if kind in NO_DISK:
            print(f"the databases are on {kind}, where a commit costs nothing: give --directory one on a disk")
        if not postgresql:
            yield Place(Path(folder), None)
            return
        from tests.postgresql import Server  # a lab has no driver for it

        with Server() as server, server.database() as url:
            facts = postgresql_facts(url)
            findings.versions["postgresql"] = facts.pop("server_version")
            findings.durability["PostgreSQL server"] = facts
            yield Place(Path(folder), server)


def postgresql_facts(url: str) -> dict[str, str]:
    """Read back what a server's durability rests on."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in SERVER_SETTINGS}
    finally:
        engine.dispose()


def sqlite_facts(connection: sa.Connection) -> dict[str, str]:
    """Read back the pragmas of a connection as the peer itself has it."""
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    sync = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    return {"journal_mode": str(mode), "synchronous": SYNCHRONOUS[int(sync or 0)]}
