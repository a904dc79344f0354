"""What a run of ``bin/test`` reports: a table by tier, and with ``--json`` one line of figures.

A tier is a folder of ``tests/``. The tests run in random order inside their tier, the tiers in the order of
:data:`TIERS`, cheap ones first. Side by side (``bin/test``), those that share what there is once, as the live world,
are one group and one process's; the groups begin first, since they take longest.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tether.matrix.figures import bar, machine

MATRIX = "tests/crash/test_matrix.py::test_nothing_is_left_half_done"
TIERS = ("unit", "contract", "integration", "crash", "live", "lab", "packaging")
#: What shares a world, a build or a report.
GROUPS = {"tests/live/": "live", "tests/lab/": "lab", "tests/packaging/": "packaging", MATRIX: "matrix"}
#: Random kills and power cuts in the lab: after four of them the next four may be another process's, with its own lab.
MANY = re.compile(r"tests/lab/test_(random_kills|power_cuts)\.py::\w+\[(?P<number>\d+)-")
BLOCK = 4


@dataclass(frozen=True)
class Check:
    """One check that ran before the tests, such as mypy."""

    name: str
    passed: bool
    seconds: float


@dataclass
class Tally:
    """What happened in one tier. Seconds are the sum of its tests' own."""

    tests: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def counted(small: int, full: int) -> int:
    """Return the count for this run: ``small`` in CI, ``full`` under ``bin/test full``."""
    return full if os.environ.get("TETHER_TEST_FULL") == "1" else small


def read_checks(path: str | None) -> list[Check]:
    """Read the lines ``name TAB outcome TAB seconds`` that ``bin/test`` writes."""
    lines = Path(path).read_text().splitlines() if path else []
    return [
        Check(name, outcome == "ok", float(seconds)) for name, outcome, seconds in (line.split("\t") for line in lines)
    ]


def figures(checks: list[Check], tallies: dict[str, Tally], bars: list[dict[str, Any]]) -> str:
    """Return the line that ``bin/test --json`` ends with."""
    own = [bar(f"check {check.name}", float(not check.passed), "failures", 0, holds=check.passed) for check in checks]
    own += [
        bar(f"tier {tier}", tally.failed, "failed tests", 0, holds=tally.failed == 0) | {"tests": tally.tests}
        for tier, tally in tallies.items()
    ]
    return json.dumps({"bars": own + bars, "machine": machine()})


class Groups(LoadScopeScheduling):
    """Gives each test to the next free process, and a group as a whole to one."""

    def _split_scope(self, nodeid: str) -> str:
        many = MANY.match(nodeid)
        if many and int(many["number"]) // BLOCK % 2:
            return "lab, the second"
        return next((group for place, group in GROUPS.items() if nodeid.startswith(place)), nodeid)


class TierReport:
    """The pytest plugin: orders the tiers, counts them, prints the table, writes the figures."""

    def __init__(self, checks: list[Check], report: str | None) -> None:
        self.checks = checks
        self.report = report
        self.tallies: dict[str, Tally] = {}
        self.bars: list[dict[str, Any]] = []

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Groups:
        return Groups(config, log)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._rank(_tier(item.nodeid)))

    @staticmethod
    def _rank(tier: str) -> int:
        return TIERS.index(tier) if tier in TIERS else len(TIERS)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tally = self.tallies.setdefault(_tier(report.nodeid), Tally())
        tally.seconds += report.duration
        # A test counts once, by its call; by its set-up or tear-down only where that did not pass.
        if report.when == "call":
            tally.tests += 1
            self.bars += [value for key, value in report.user_properties if key == "bar"]
        elif report.when == "setup" and not report.passed:
            tally.tests += 1
        tally.failed += report.failed
        tally.skipped += report.skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tallies.setdefault(_tier(report.nodeid), Tally()).failed += 1

    def rows(self) -> Iterator[str]:
        if self.checks:
            bad = [check.name for check in self.checks if not check.passed]
            seconds = sum(check.seconds for check in self.checks)
            names = f" ({', '.join(bad)})" if bad else ""
            yield f"checks: {len(self.checks)} checks, {len(bad)} failed{names}, {seconds:.1f} s"
        for tier, tally in sorted(self.tallies.items(), key=lambda pair: self._rank(pair[0])):
            skipped = f", {tally.skipped} skipped" if tally.skipped else ""
            yield f"{tier}: {tally.tests} tests, {tally.failed} failed{skipped}, {tally.seconds:.1f} s"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.ensure_newline()
        terminalreporter.section("tiers")
        for row in self.rows():
            terminalreporter.write_line(row)
        if self.report:
            Path(self.report).write_text(figures(self.checks, self.tallies, self.bars) + "\n")


def _tier(nodeid: str) -> str:
    """Return the folder of ``tests/`` that a test is in: ``unit`` for ``tests/unit/test_x.py::test_y``."""
    parts = Path(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 1 else "tests"


if __name__ == "__main__":
    print(figures(read_checks(sys.argv[1]), {}, []))
