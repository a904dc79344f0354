"""SIGKILL at random moments, on both databases, one job at a time and several with parallel steps.

``bin/test crash --kills N --seed S`` says how many, and repeats a run's decisions (not the machine's timing).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.lives import PARALLEL, SERIAL, Killing
from tests.crash.oracle import judge
from tests.report import counted
from tether.persistence.database import Database
from tether.persistence.migrations import upgrade

KINDS = {"serial": SERIAL, "parallel": PARALLEL}
CASES = [(database, kind) for database in ("sqlite", "postgresql") for kind in KINDS]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder in memory: what is killed here are processes, never the machine."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tether-test-") as found:
        yield Path(found)


@pytest.fixture
def url(request: pytest.FixtureRequest, directory: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{directory / 'tether.sqlite'}"
    found: str = request.getfixturevalue("postgresql")
    return found


def share(total: int, place: int) -> int:
    """Return how many of all kills one of the cases gets."""
    return total * (place + 1) // len(CASES) - total * place // len(CASES)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("url", "kind", "place"),
    [
        pytest.param(database, kind, place, id=f"{database}-{kind}", marks=marks)
        for place, (database, kind) in enumerate(CASES)
        for marks in [[pytest.mark.postgresql] if database == "postgresql" else []]
    ],
    indirect=["url"],
)
def test_jobs_killed_at_random_moments(  # noqa: PLR0917 - the case, and what it is measured by
    url: str,
    kind: str,
    place: int,
    directory: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    kill_seed: int,
) -> None:
    total = request.config.getoption("--kills")
    kills = share(counted(60, 1000) if total is None else total, place)
    journal = directory / "journal"
    journal.mkdir()
    database = Database(url)
    upgrade(database)
    database.close()
    killing = Killing(journal, url, KINDS[kind], kills, f"{kill_seed}/{place}")
    begun = time.monotonic()
    killing.run()
    seconds = time.monotonic() - begun
    found = judge(killing)
    record_property(
        "kills",
        {
            "case": request.node.callspec.id,
            "kills": kills,
            "stops": killing.stops,
            "jobs": dict(found.jobs),
            "flows": sum(found.flows.values()),
            "duplicates": found.duplicates,
            "violations": len(found.violations),
            "seconds": round(seconds, 1),
            "seed": kill_seed,
        },
    )
    if found.violations:
        kept = Path(tempfile.mkdtemp(prefix="tether-kills-"))
        shutil.copytree(directory, kept, dirs_exist_ok=True)
        shown = "\n".join(found.violations[:20])
        pytest.fail(f"{len(found.violations)} violations, seed {kill_seed}; the journal is kept in {kept}:\n{shown}")
