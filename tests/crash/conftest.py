"""The crash tier's fixtures, and its counts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash.world import sim, template

__all__ = ["sim", "template"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the random kills, what tests tell of themselves, what the tier covered, and what must end blocked."""
    _kills(terminalreporter)
    _told(terminalreporter)
    counts: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        if report.nodeid.startswith("tests/crash/"):
            name = report.nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return
    from tests.crash.test_scripted import BLOCKS

    terminalreporter.section("crash tier")
    for name, count in sorted(counts.items()):
        if count > 1:
            terminalreporter.write_line(f"{count:5} {name}")
    blocked = [" ".join(cell) for cell in sorted(BLOCKS)]
    terminalreporter.write_line("must end blocked (legacy dialect; nothing tells whose the volume's status is):")
    for cell in blocked:
        terminalreporter.write_line(f"      {cell}")


#: Sections of the summary, by the property in which tests record their lines.
SECTIONS = {"matrix": "fault matrix", "machine": "state machine", "beside_nova": "beside Nova"}


def _told(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines that tests have recorded for the summary."""
    found: dict[str, list[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, lines in report.user_properties if report.when == "call" else ():
                found.setdefault(key, []).extend(lines if key in SECTIONS else ())
    for key, title in SECTIONS.items():
        if found.get(key):
            terminalreporter.section(title)
            for line in found[key]:
                terminalreporter.write_line(line)


def _kills(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line a case of the random kills, and one for all."""
    runs: list[dict[str, Any]] = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for key, value in report.user_properties
        if key == "kills"
    ]
    if not runs:
        return
    terminalreporter.section("random kills")
    total = {key: sum(run[key] for run in runs) for key in ("kills", "stops", "flows", "duplicates", "violations")}
    total |= {"seconds": round(sum(run["seconds"] for run in runs), 1), "jobs": {}, "case": "all"}
    for run in [*sorted(runs, key=lambda run: run["case"]), total]:
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(run["jobs"].items()))
        terminalreporter.write_line(
            f"{run['case']}: {run['kills']} kills, {run['stops']} stopped and taken over, {run['flows']} flows"
            f"{f' ({jobs})' if jobs else ''}, {run['duplicates']} effects repeated in flight,"
            f" {run['violations']} violations, {run['seconds']} s"
        )
    terminalreporter.write_line(
        f"seed {runs[0]['seed']}; again: bin/test crash --kills {total['kills']} --seed {runs[0]['seed']}"
    )
