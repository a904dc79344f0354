"""Whether a flow costs the same with no finished job in the database and with a million."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench import tether_side
from bench.filler import fill
from bench.measure import Child, median, note
from bench.output import Findings, Place, Table, at_most, options, scratch

QUESTION = "Does a flow, a list of jobs or the search for interrupted ones cost more once a million jobs are kept?"
DATABASES = ("sqlite", "postgresql")
#: Jobs that are interrupted in each database while it is measured.
INTERRUPTED = 10
#: Repeats of the two queries in one round: one alone is too short to be measured.
REPEATS = 20


class Grown(tether_side.World):
    """Tether over a database that is full of finished jobs."""

    def sample(self) -> dict[str, str]:
        """Run a job that is to be copied."""
        return tether_side.sample(self)

    def round(self, flows: int) -> dict[str, float]:
        """Measure once; CPU is this process's and the server's for it."""
        server, statements = self.server_cpu(), self.statements()
        own, wall = time.process_time(), time.perf_counter()
        self.run_many(flows, 1)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        statements = self.statements() - statements
        found = {
            "wall": wall / flows * 1000,
            "cpu": (own + self.server_cpu() - server) / flows * 1000,
            "statements": statements / flows,
        }
        for name, ask in (("list", self.list_jobs), ("interrupted", self.count_interrupted)):
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                ask()
                times.append((time.perf_counter() - started) * 1000)
            found[name] = median(times)
        return found


@dataclass
class Filled:
    """One database of one size, and what was measured there."""

    child: Child
    size: int
    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median over the rounds."""
        return median([found[name] for found in self.rounds])


def _open(stack: ExitStack, place: Place, database: str, size: int) -> Filled:
    """Make a database with so many finished jobs and a few interrupted ones."""
    started = time.monotonic()
    url = stack.enter_context(place.database(database, f"tether-{size}"))
    with Child(Grown, url) as child:
        sample = child.call("sample")
    fill(url, size, tether_side.COPIED, sample)
    broken = Child(tether_side.make_world, url)
    broken.call("park", [4] * INTERRUPTED)
    broken.kill()
    child = stack.enter_context(Child(Grown, url))
    child.call("round", 2)
    note(f"{database} with {size} finished jobs is ready after {time.monotonic() - started:.0f} s")
    return Filled(child, size)


def _measure(filled: list[Filled], rounds: int, flows: int) -> None:
    for number in range(1, rounds + 1):
        for one in filled:
            one.rounds.append(one.child.call("round", flows))
        note(f"round {number} of {rounds}")


def _growth(filled: list[Filled], name: str) -> float:
    """Return the median, over the rounds, of the fullest database's figure by the emptiest's."""
    return median([full[name] / empty[name] for empty, full in zip(filled[0].rounds, filled[-1].rounds, strict=True)])


def _table(database: str, filled: list[Filled]) -> Table:
    table = Table(
        f"{database}: by the number of finished jobs",
        ["finished jobs", "CPU ms/flow", "wall ms/flow", "statements/flow", "job list ms", "find interrupted ms"],
        note=f"medians of {len(filled[0].rounds)} interleaved rounds, a database a row; CPU is tether's and, with"
        f" PostgreSQL, its server processes'; {INTERRUPTED} interrupted jobs to find",
    )
    for one in filled:
        names = ("cpu", "wall", "statements", "list", "interrupted")
        table.rows.append([f"{one.size:,}", *(one.median(name) for name in names)])
    return table


def _bars(database: str, filled: list[Filled], scans: int) -> list[dict[str, Any]]:
    worst = max(_growth(filled, "cpu"), _growth(filled, "statements"))
    return [
        at_most(f"growth_{database}", worst, "times", 1.1),
        at_most(f"interrupted_found_{database}", filled[-1].median("interrupted"), "ms", 5.0),
        at_most(f"scans_{database}", scans, "queries", 0),
    ]


def _plans(database: str, filled: Filled) -> tuple[int, Table]:
    """Ask the fullest database for the plan of every query."""
    plans = filled.child.call("plans")
    table = Table(
        f"{database}: query plans with {filled.size:,} finished jobs",
        ["query", "scans"],
        note=f"{len(plans)} different statements of a flow, of job list and of the search for interrupted jobs",
    )
    table.rows += [[_short(text), scan] for text, scan in plans if scan]
    return len(table.rows), table


def _short(text: str) -> str:
    """Return a statement without its list of columns."""
    return re.sub(r"^SELECT .*? FROM", "SELECT … FROM", " ".join(text.split()))


def main() -> None:
    """Measure, and print."""
    parser = options(__doc__ or "", rounds=5, flows=40)
    parser.add_argument(
        "--sizes", default="0,100000,1000000", metavar="N,N", help="finished jobs, ascending; default: %(default)s"
    )
    words = parser.parse_args()
    if set(words.only or ()) - set(DATABASES):
        parser.error(f"--only takes one of: {', '.join(DATABASES)}")
    chosen = words.only or DATABASES
    sizes = [0, 200] if words.quick else [int(size) for size in words.sizes.split(",")]
    rounds, flows = (1, 2) if words.quick else (words.rounds, words.flows)
    findings = Findings(
        "growth", QUESTION, words.quick, settings={"rounds": rounds, "flows": flows, "sizes": ",".join(map(str, sizes))}
    )
    with scratch(words.directory, findings, postgresql="postgresql" in chosen) as place:
        for database in chosen:
            with ExitStack() as stack:  # one kind of database at a time: they are gigabytes
                filled = [_open(stack, place, database, size) for size in sizes]
                _measure(filled, rounds, flows)
                scans, plans = _plans(database, filled[-1])
                findings.durability |= {f"tether, {database}": filled[-1].child.call("facts")}
            findings.tables += [_table(database, filled), plans]
            findings.bars += _bars(database, filled, scans)
    findings.show(as_json=words.json)


if __name__ == "__main__":
    main()
