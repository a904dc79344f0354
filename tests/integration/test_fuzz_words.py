"""Words of every kind on the command line, and names of every kind in the cloud."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from pathlib import Path

import pytest

from tests.crash.world import SimWorld
from tests.integration.commands import run
from tests.integration.damage import everything
from tests.report import counted
from tether.sim.store import Store

NAMES = [
    "a b",
    "'\"`$(id)",
    "<&>]]>",
    "Größe 💾 文字",
    "[bold]x[/bold] [/] [red",
    "%s %(x)s %n {0} {x}",
    "one\ntwo\n| fake | row |",
    "tab\there",
    "\x1b[31mred\x1b[0m\x07\x9b2J",
    "\u202egnp.exe\u2066\u200f\u2028x",
    "../../etc/passwd",
    "a" * 10_000,
    "zero\u200bwidth",
    "null",
    "*",
    "'; DROP TABLE tether_jobs; --",
]
#: What turns a terminal's text around or away.
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u061c\u200e\u200f]")
SEED = counted(1, random.SystemRandom().randrange(10**6))


def words() -> list[tuple[str, ...]]:
    """Return command lines with a name in every place that takes a word; a seeded part of them in CI."""
    names = [*NAMES, "", "-x", "--", "--bus", "\udcff\udc80", "9" * 5000, "-1", "nan", "1e999", "0x10"]
    every = [
        line
        for name in names
        for line in (
            ("attach", name, "guest1"),
            ("attach", "vol1", name),
            ("attach", "vol1", "guest1", "--device", name),
            ("attach", "vol1", "guest1", "--request-id", name),
            ("attach", "vol1", "guest1", "--bus", name),
            ("detach", name, name),
            ("mapping", "show", name, name),
            ("mapping", "list", "--server", name),
            ("plan", "attach", name, "guest1"),
            ("job", "show", name),
            ("job", "resume", name),
            ("job", "list", "--limit", name),
            ("job", "list", "-c", name),
            ("job", "list", "--sort-column", name),
            ("job", "settle", name, "--as", "clean", "--reason", name),
            ("db", "prune", "--older-than", name),
            ("db", "prune", "--older-than", f"{name}d"),
            ("sim", "script", name, "cinder.attach", name),
            (name,),
            (name, name),
        )
    ]
    return random.Random(SEED).sample(every, counted(60, len(every)))


@pytest.mark.timeout(3600)
def test_no_word_is_a_crash_or_changes_anything(sim: SimWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a word may be a directory's name, in which `sim script` makes a world
    before = everything(sim.directory)
    wrong = []
    for line in words():
        done = run(sim, *line)
        told = f"seed {SEED}: {line!r:.200}: {done.code}: {done.err[-300:]}"
        if done.code not in (0, 2, 3, 6) or "Traceback" in done.err or STEERS.search(done.err):
            wrong.append(told)
        elif done.code and everything(sim.directory) != before:
            wrong.append(f"changed: {told}")
        elif done.code == 0 and everything(sim.directory) != before:
            # An attach whose word was a mere request id: put back what it was.
            assert line[0] == "attach", told
            assert run(sim, "detach", "vol1", "guest1").code == 0
            before = everything(sim.directory)
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def named(sim: SimWorld) -> dict[str, str]:
    """Give the volumes of the world names of every kind; return volume id -> name."""
    with Store(sim.directory).change("cinder") as book:
        volumes = [item for item in book["volumes"].values() if item["status"] == "available"]
        found = {}
        for number, name in enumerate(name for name in NAMES if len(name) <= 255):
            row = volumes[0] | {"id": f"5b7e2d1c-0000-4000-8000-{number:012d}", "name": name}
            book["volumes"][row["id"]] = row
            found[row["id"]] = name
    return found


def test_every_name_is_one_row_and_steers_no_terminal(sim: SimWorld, named: dict[str, str]) -> None:
    for volume, name in list(named.items())[:: counted(3, 1)]:
        done = run(sim, "attach", volume, "guest1")
        assert (done.code, "Traceback" in done.err) in {(0, False), (3, False)}, (name, done.err)
        assert run(sim, "detach", volume, "guest1").code in (0, 6)
    with sqlite3.connect(sim.directory / "tether.sqlite") as connection:
        count, *_ = connection.execute("SELECT count(*) FROM tether_jobs").fetchone()
    connection.close()
    rows = json.loads(run(sim, "job", "list", "-f", "json").out)
    assert len(rows) == count
    assert {row["volume"] for row in rows} <= set(named.values())  # for programs: the very name
    table = run(sim, "job", "list").out
    assert len(table.splitlines()) == count + 4  # the heading, and three rules
    assert not STEERS.search(table)
    for row in rows:
        shown = run(sim, "job", "show", row["job"]).out
        assert not STEERS.search(shown)
        assert all(line.startswith(("|", "+")) for line in shown.splitlines())
        assert not any(line.startswith("| fake") for line in shown.splitlines())


@pytest.mark.parametrize(
    "line",
    [
        ("job", "show", "\udcff"),
        ("attach", "vol\udc80", "guest1"),
        ("job", "list", "--limit", "9" * 20),
        ("db", "prune", "--older-than", "9" * 400 + "d"),
        ("--database", "postgresql://u:p@h:port/x", "job", "list"),
        ("--database", "sqlite:////" + "x" * 5000, "job", "list"),
    ],
)
def test_a_word_that_nothing_can_hold_is_a_usage_error(sim: SimWorld, line: tuple[str, ...]) -> None:
    before = everything(sim.directory)
    done = run(sim, *line)
    assert (done.code, "Traceback" in done.err) == (2, False), done.err
    assert everything(sim.directory) == before
