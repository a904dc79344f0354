"""The integration tier's fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.world import DONE, SimWorld, sim, template
from tests.integration.books import Books, opened
from tests.integration.commands import run

__all__ = ["sim", "template"]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tether.sqlite'}"
    found: str = request.getfixturevalue("postgresql")
    return found


@pytest.fixture
def books(url: str) -> Iterator[Books]:
    """A database with tether's schema."""
    with opened(url) as found:
        yield found


@pytest.fixture
def attached(sim: SimWorld) -> SimWorld:
    """A world in which vol1 is attached to guest1."""
    done = run(sim, "attach", "vol1", "guest1")
    assert done.code == DONE, done.err
    return sim


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many of TaskFlow's own persistence tests ran on the logbook."""
    ran = [
        report.nodeid
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if "test_taskflow_suite.py::test_taskflows_own[" in report.nodeid and report.when == "call"
    ]
    if ran:
        from tests.integration.test_taskflow_suite import KNOWN, NOT_OURS

        terminalreporter.section("TaskFlow's own persistence tests")
        for database in ("sqlite", "postgresql"):
            count = sum(database in name for name in ran)
            terminalreporter.write_line(f"{database}: {count} of {KNOWN} run, {len(NOT_OURS)} do not apply")
        for name, reason in sorted(NOT_OURS.items()):
            terminalreporter.write_line(f"      {name}: {reason}")
