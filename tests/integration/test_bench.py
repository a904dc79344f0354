"""The benches run, and say what they are there to say. What they measure is no matter of a test: see ``bench/``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from bench.attach import critical_path
from tests.tree import ROOT

BARS = {
    "overhead": {
        "wall_vs_bare",
        "cpu_vs_stock",
        "rate_vs_dbos_sqlite",
        "rate_vs_dbos_postgresql",
        "commits_per_flow",
    },
    "growth": {
        f"{name}_{database}"
        for name in ("growth", "interrupted_found", "scans")
        for database in ("sqlite", "postgresql")
    },
    "recovery": {"recovery_vs_plain"},
    "memory": set(),
}


def run(bench: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a bench's module: its script would first set up the venv that this test runs in."""
    command = [sys.executable, "-P", "-m", f"bench.{bench}", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def findings(bench: str, *words: str) -> dict[str, Any]:
    done = run(bench, *words, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.postgresql
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bench", sorted(BARS))
def test_a_bench_ends_with_every_bar_and_with_nothing_that_names_the_machine(bench: str) -> None:
    found = findings(bench)
    assert {item["name"] for item in found["bars"]} == BARS[bench]
    for item in found["bars"]:
        assert {"value", "unit", "limit", "holds"} <= item.keys()
        assert isinstance(item["value"], int | float)
    assert {"cpu", "cores", "kernel", "sqlite"} <= found["machine"].keys()
    assert all(table["rows"] for table in found["tables"] if "plans" not in table["title"])
    assert str(ROOT) not in json.dumps(found)
    modes = [facts for name, facts in found["durability"].items() if "SQLite" in name and "shipped" not in name]
    assert all(facts == {"journal_mode": "wal", "synchronous": "FULL"} for facts in modes)


#: What tether knows already when it asks again, or reads in the connection info.
REMEMBERED = {"cinder.identity", "host.identity", "host.expected_identity", "host.expected_paths"}


@pytest.mark.timeout(120)
def test_the_script_makes_the_calls_of_an_attach() -> None:
    found = findings("attach", "--world", "sim")
    tables = {table["title"]: table["rows"] for table in found["tables"]}
    calls = {name: (tether, script) for name, tether, _, script, _ in tables["The calls of one attach"]}
    assert {"cinder.update_attachment", "host.connect", "host.find", "guest.plug"} <= calls.keys()
    assert {name: each for name, each in calls.items() if each[0] != each[1] and name not in REMEMBERED} == {}
    assert [row[0] for row in tables["One attach, imports done"]] == ["tether", "script", "bare effects"]
    assert [row[0] for row in tables["The command"]] == ["tether --version", "tether attach"]
    assert found["bars"] == [], "figures of an embedded world are no measure"
    assert found["quick"]
    assert str(ROOT) not in json.dumps(found)


def test_an_attach_is_measured_in_a_world_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_LIVE_DIR", str(tmp_path))
    done = run("attach", "--world", "live")
    assert done.returncode == 1
    assert done.stderr.endswith("no live world runs here: start one with bin/live up\n")


def test_the_critical_path_is_the_longest_in_seconds() -> None:
    flow = nx.DiGraph([("a", "c"), ("b", "c"), ("c", "d"), ("e", "d")])
    assert critical_path(flow, {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.1, "e": 2.5}) == ["b", "c", "d"]
    assert critical_path(flow, {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.1, "e": 3.5}) == ["e", "d"]


def test_the_page_is_written_from_what_was_saved_and_from_no_quick_run(tmp_path: Path) -> None:
    saved, page = tmp_path / "overhead.json", tmp_path / "page.md"
    found = {
        "bars": [{"name": "a_bar", "value": 0.123456, "unit": "times", "limit": 1.0, "holds": True}],
        "machine": {"cpu": "some CPU", "cores": 2},
        "bench": "overhead",
        "question": "What?",
        "quick": False,
        "date": "2026-11-24",
        "commit": "abc",
        "libraries": {"taskflow": "6.5.0"},
        "settings": {"rounds": 5},
        "durability": {"SQLite": {"synchronous": "FULL"}},
        "tables": [{"title": "one", "columns": ["", "ms"], "rows": [["x|y", 12.345]], "note": "medians"}],
    }
    saved.write_text("text before\n" + json.dumps(found) + "\n")
    done = run("report", str(saved), "--to", str(page))
    assert done.returncode == 0, done.stderr
    for line in (
        "| `a_bar` | 0.12 times | at most 1.0 | yes | `bench/overhead` |",
        "| x\\|y | 12.3 |",
        "Measured 2026-11-24 at commit abc. Settings: rounds 5.",
    ):
        assert line in page.read_text(), line
    saved.write_text(json.dumps(found | {"quick": True}))
    assert run("report", str(saved), "--to", str(page)).returncode == 1
