"""Records jobs that were stopped at every step, so that later releases can be shown to resume them.

``python -m tests.crash.recorded`` writes ``tests/data/SCHEMA-attach-V-detach-V.tar.xz`` for the present schema and flow
versions. A file that is there already is never changed: it is what that release has written.
"""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.crash.world import DONE, KILLED, SimWorld
from tests.tree import ROOT
from tether.flows import attach, detach
from tether.flows.registry import CURRENT
from tether.persistence import schema
from tether.persistence.ledger import Params
from tether.tasks.step import Step

DATA = ROOT / "tests/data"
#: Recorded worlds hold paths, so that each lies where it was recorded.
PLACE = Path("/tmp/tether-recorded")
VOLUME, SERVER = "vol1", "guest1"
FRESH = "fresh"


def archive() -> Path:
    """Return the file of the present schema and flow versions."""
    return DATA / f"{schema.HEAD}-attach-{CURRENT['attach']}-detach-{CURRENT['detach']}.tar.xz"


@contextmanager
def place() -> Iterator[Path]:
    """Have the place to oneself, empty; it is gone afterwards."""
    with PLACE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir()
        try:
            yield PLACE
        finally:
            shutil.rmtree(PLACE)


def stops() -> Iterator[tuple[str, str, str]]:
    """Yield kind, dialect and step of everything that is recorded: every step that has an effect."""
    for dialect in ("attachments", "legacy"):
        params = Params(dialect=dialect)
        kinds: dict[str, list[type[Step]]] = {
            "attach": attach.steps(params)[1],
            "detach": [*detach.guest_steps(), *detach.release_steps(params)],
        }
        for kind, steps in kinds.items():
            yield from ((kind, dialect, step.code.partition("/")[0]) for step in steps if step.book)


def own(sim: SimWorld, machine_id: str, boot_id: str) -> None:
    """Make the runner that died one of this machine and boot."""
    with closing(sqlite3.connect(sim.directory / "tether.sqlite", isolation_level=None)) as connection:
        connection.execute(
            "UPDATE tether_jobs SET runner = json_set(runner, '$.machine_id', ?, '$.boot_id', ?, '$.host', 'host')"
            " WHERE runner IS NOT NULL",
            (machine_id, boot_id),
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def record(file: Path) -> int:
    """Record everything into a file; return how many jobs there are in it."""
    count = 0
    with tarfile.open(file, "w:xz") as out:
        for kind, dialect, step in [(FRESH, "", ""), *stops()]:
            with place() as directory:
                sim = SimWorld(directory / "world")
                assert sim.tether("job", "list").code == DONE
                if kind == "detach":
                    assert sim.tether("attach", VOLUME, SERVER, "--dialect", dialect).code == DONE
                if kind != FRESH:
                    words = (kind, VOLUME, SERVER, *(("--dialect", dialect) if kind == "attach" else ()))
                    done = sim.tether("--fault", f"{step}.act.before=kill", *words)
                    assert done.code == KILLED, done.err
                    own(sim, "recorded", "recorded")
                out.add(directory, arcname="-".join(filter(None, (kind, dialect, step))))
            count += kind != FRESH
    return count


if __name__ == "__main__":
    if archive().exists():
        sys.exit(f"{archive().name} is there already")
    unfinished = archive().with_suffix(".new")
    count = record(unfinished)
    unfinished.rename(archive())
    print(f"{archive().name}: {count} jobs")
