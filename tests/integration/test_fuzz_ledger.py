"""A ledger with damaged rows: whatever a column holds, a command says so, does right, or changes nothing."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.world import SimWorld
from tests.integration.commands import run
from tests.integration.damage import damage, everything
from tests.report import counted
from tether.persistence.schema import metadata

#: What a disk, a restore or a hand may leave in a column.
GARBAGE = [
    None,
    "",
    "garbage",
    "[]",
    "{}",
    '{"a": 1}',
    "null",
    -1,
    -1.5,
    7,
    2**62,
    1e300,
    b"\xff\x00",
    "x" * 3000,
    "\0",
]
GARBAGE += ["[[[" * 9000, '{"step": "s", "message": NaN}', "[{}]", '{"pid": 1}']
#: Codes of docs/exit-codes.md that say that nothing was changed, or that the job's own row alone was.
REFUSED = (2, 5, 6)
SEED = counted(1, random.SystemRandom().randrange(10**6))


@pytest.fixture(scope="module")
def used(template: Path) -> Iterator[SimWorld]:
    """A world with an attached volume, and a job that was killed in its middle."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tether-test-") as scratch:
        directory = Path(scratch) / "world"
        shutil.copytree(template, directory)
        world = SimWorld(directory)
        assert world.tether("attach", "vol1", "guest1").code == 0
        assert world.tether("--fault", "plug-live.act.before=kill", "attach", "vol2", "guest2").code == 137
        yield world


def copied(used: SimWorld, scratch: Path) -> SimWorld:
    directory = scratch / "world"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(used.directory, directory)
    return SimWorld(directory)


def jobs(world: SimWorld) -> list[str]:
    with sqlite3.connect(world.directory / "tether.sqlite") as connection:
        return [row[0] for row in connection.execute("SELECT id FROM tether_jobs ORDER BY created_at DESC")]


def cells() -> list[tuple[str, str, object]]:
    every = [(t.name, c.name, value) for t in metadata.sorted_tables for c in t.columns for value in GARBAGE]
    return random.Random(SEED).sample(every, min(counted(6, len(every)), len(every)))


COMMANDS = [
    ("job", "list"),
    ("job", "show", "JOB"),
    ("mapping", "list"),
    ("mapping", "show", "vol1", "guest1"),
    ("key", "show"),
    ("job", "resume", "JOB"),
    ("detach", "vol1", "guest1"),
    ("attach", "vol3", "guest1"),
]


@pytest.mark.timeout(3600)
def test_no_value_of_any_column_is_a_crash_or_a_hang(used: SimWorld, tmp_path: Path) -> None:
    wrong = []
    for table, column, value in cells():
        world = copied(used, tmp_path)
        job = jobs(world)[0]
        try:
            damage(world.directory / "tether.sqlite", table, column, value)
        except sqlite3.IntegrityError:
            continue  # a key that would be there twice
        except AssertionError:
            continue  # an empty table
        for words in COMMANDS:
            before = everything(world.directory)
            begun = time.monotonic()
            done = world.tether(*(job if word == "JOB" else word for word in words))
            where = f"seed {SEED}: {table}.{column} = {str(value)[:40]!r}"
            told = f"{where}, {' '.join(words)}: {done.code}: {done.err[-300:]}"
            if done.code in (1, 70) or "Traceback" in done.err or (done.code and "next: " not in done.err):
                wrong.append(told)
            elif time.monotonic() - begun > 30:
                wrong.append(f"slow: {told}")
            elif done.code in REFUSED and everything(world.directory) != before:
                wrong.append(f"changed: {told}")
    assert not wrong, "\n".join(wrong)


def test_a_damaged_job_hides_no_other(used: SimWorld, tmp_path: Path) -> None:
    world = copied(used, tmp_path)
    interrupted, attached = jobs(world)
    damage(world.directory / "tether.sqlite", "tether_jobs", "params", '{"mode": "wo"}', f"id = '{interrupted}'")
    before = everything(world.directory)

    listed = world.tether("job", "list", "-f", "json")
    assert (listed.code, [row["job"] for row in json.loads(listed.out)]) == (4, [attached])
    assert f"the ledger's row of job {interrupted} is damaged: mode is 'wo'" in listed.err
    assert "next: correct the row" in listed.err
    for words in (("resume", interrupted), ("resume", "--all"), ("abort", interrupted), ("show", interrupted)):
        assert world.tether("job", *words).code == 4
    assert everything(world.directory) == before


def test_a_mapping_without_its_job_is_listed_and_nothing_is_done_with_it(used: SimWorld, tmp_path: Path) -> None:
    world = copied(used, tmp_path)
    attached = jobs(world)[1]
    with sqlite3.connect(world.directory / "tether.sqlite") as connection:
        connection.execute("DELETE FROM tether_jobs WHERE id = ?", (attached,))
    connection.close()
    before = everything(world.directory)
    listed = world.tether("mapping", "list", "-f", "json")
    assert (listed.code, len(json.loads(listed.out))) == (4, 2)
    assert f"there is no job '{attached}', which made it" in listed.err
    again = world.tether("attach", "vol1", "guest1")
    assert (again.code, "is damaged" in again.err) == (4, True)
    assert everything(world.directory) == before


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("open_volume", None, "its state is running, and open_volume is absent"),
        ("state", "attached", "its state is attached, and open_volume is"),
        ("quiet_at", '{"cinder": 1e12}', "cinder is 1000000000000.0, for which nobody can wait"),
        ("expires_at", 1e11, "expires_at is 100000000000.0, for which nobody can wait"),
        ("generation", 2**62, "generation is"),
        ("created_at", -1.0, "created_at is -1.0"),
        ("runner", '{"pid": "1"}', "machine_id is absent"),
        ("error", "[1]", "error is '[1]'"),
        ("place", "{}", "endpoint is absent"),
    ],
)
def test_a_job_that_cannot_be_is_not_taken_up(
    used: SimWorld, tmp_path: Path, column: str, value: object, said: str
) -> None:
    world = copied(used, tmp_path)
    job = jobs(world)[0]
    damage(world.directory / "tether.sqlite", "tether_jobs", column, value, f"id = '{job}'")
    before = everything(world.directory)
    for verb in ("resume", "abort", "show"):
        done = world.tether("job", verb, job)
        assert (done.code, said in done.err, "Traceback" in done.err) == (4, True, False), done.err
    assert everything(world.directory) == before


@pytest.mark.parametrize("steps", ["{", "[[]]", '[{"name": "export-volume/1"}]', '[{"state": "x"}]', "7"])
def test_damaged_steps_are_not_run(used: SimWorld, tmp_path: Path, steps: str) -> None:
    world = copied(used, tmp_path)
    job = jobs(world)[0]
    damage(world.directory / "tether.sqlite", "tether_flows", "steps", steps, f"job_id = '{job}'")
    before = everything(world.directory)
    done = world.tether("job", "resume", job)
    assert (done.code, f"of job {job} is damaged" in done.err) == (4, True), done.err
    assert everything(world.directory) == before


def test_a_damaged_lease_of_a_server_blocks_and_names_it(used: SimWorld, tmp_path: Path) -> None:
    world = copied(used, tmp_path)
    guest1 = "9e570000-0000-4000-8000-000000000001"
    with sqlite3.connect(world.directory / "tether.sqlite") as connection:
        connection.execute("INSERT INTO tether_leases VALUES (?, '{', 't', 1.0)", (f"server:{guest1}",))
    connection.close()
    files = everything(world.directory)["files"]
    done = run(world, "attach", "vol3", "guest1")
    assert (done.code, f"lease server:{guest1} is damaged" in done.err) == (4, True), done.err
    assert everything(world.directory)["files"] == files
