"""The crash tier's fixtures, and its counts."""

from __future__ import annotations

import pytest

from tests.crash.world import sim, template

__all__ = ["sim", "template"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the matrix covered: cells of scripted failures, kills, and those that must end blocked."""
    counts: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        if report.nodeid.startswith("tests/crash/"):
            name = report.nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return
    from tests.crash.test_kill import BLOCKS as KILL_BLOCKS
    from tests.crash.test_kill import UNDO_BLOCKS
    from tests.crash.test_scripted import BLOCKS

    terminalreporter.section("crash tier")
    for name, count in sorted(counts.items()):
        if count > 1:
            terminalreporter.write_line(f"{count:5} {name}")
    blocked = [" ".join(cell) for cell in sorted(BLOCKS)]
    terminalreporter.write_line("must end blocked (legacy dialect; nothing tells whose the volume's status is):")
    for cell in [*blocked, *sorted(f"killed at {point}" for point in KILL_BLOCKS | UNDO_BLOCKS)]:
        terminalreporter.write_line(f"      {cell}")
