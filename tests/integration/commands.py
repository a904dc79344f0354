"""Commands in processes of their own, which can be sent signals while they run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.crash.world import Outcome, SimWorld

DEADLINE = 30.0


class Command:
    """A command on an embedded world, under way.

    Args:
        words: the command line after the global options of the world.
        bare: leave those options out.
    """

    _count = 0

    def __init__(self, sim: SimWorld, *words: str, bare: bool = False) -> None:
        Command._count += 1
        self._sim = sim
        stem = f"command-{Command._count}"
        self._out, self._err = (sim.directory.parent / f"{stem}.{name}" for name in ("out", "err"))
        given = [] if bare else ["--config-file", str(sim._config), "--sim", str(sim.directory)]
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                with self._out.open("w") as stdout, self._err.open("w") as stderr:
                    sys.stdout, sys.stderr = stdout, stderr
                    from tether.cli.main import main

                    try:
                        code = main([*given, *words])
                    except SystemExit as ended:  # argparse's way out
                        code = int(ended.code or 0)
            finally:
                os._exit(code)

    def reaches(self, call: str) -> Self:
        """Wait until the failure that is scripted for ``call`` is used up: then the call is under way."""
        book = self._sim.directory / "script.json"
        wait_until(lambda: not any(item["call"] == call for item in _failures(book)), f"{call} is under way")
        return self

    def says(self, text: str) -> Self:
        """Wait until it has said something on stderr."""
        wait_until(lambda: self._err.exists() and text in self._err.read_text(), f"{text!r} on stderr")
        return self

    def stands(self) -> Self:
        """Wait until the fault *stop* has stopped it; SIGCONT lets it go on."""
        _pid, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self._err.read_text()
        return self

    def signal(self, number: int) -> Self:
        """Send the process a signal."""
        os.kill(self.pid, number)
        return self

    def end(self) -> Outcome:
        """Wait for its end."""
        _pid, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(128 - code if code < 0 else code, self._out.read_text(), self._err.read_text())


def _failures(book: Path) -> list[dict[str, str]]:
    return list(json.loads(book.read_text()).get("failures", [])) if book.exists() else []


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Poll a condition; fail when the time is over."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def run(sim: SimWorld, *words: str, bare: bool = False) -> Outcome:
    """Run a command to its end."""
    return Command(sim, *words, bare=bare).end()
