"""Runs tether's command line on a live world.

``installed`` starts the program as an operator does. ``forked`` is for the many runs of the crash tests: it forks a
server process that has done the imports and opened nothing (libvirt's event thread would not survive a fork).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.live.world.layout import World

PROGRAM = Path(sys.executable).with_name("tether")
LIMIT = 100  # seconds for one command
KILLED = 137
DONE, FAILED, CONFLICT, ROLLED_BACK, BLOCKED, HELD, NOT_FOUND = range(7)

#: Seconds and counts at which a live world's tether waits, so that tests are quick; see the settings of these names.
PACE = {
    "cinder.settle_margin": 1,
    "libvirt.libvirt_settle": 1,
    "DEFAULT.retry_interval": 0.2,
    "DEFAULT.step_retry_time": 20,
}

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.live.preload"])


@dataclass(frozen=True)
class Outcome:
    """How one command ended: its exit code (137 if it was killed), what it printed on stdout and on stderr."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line on stderr: what to run next, if the command failed."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def environment(world: World, changes: Mapping[str, object]) -> dict[str, str]:
    """Return the environment for a command: the world's, and settings by ``section.option``."""
    variables = {
        "OS_{}__{}".format(*name.upper().split(".")): str(value) for name, value in {**PACE, **changes}.items()
    }
    return world.environment | {"TETHER_CONFIG_FILE": str(world.config_file)} | variables


def installed(world: World, words: tuple[str, ...], changes: Mapping[str, object]) -> Outcome:
    """Run the installed program."""
    done = subprocess.run(
        [str(PROGRAM), *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(world, changes),
    )
    return Outcome(128 - done.returncode if done.returncode < 0 else done.returncode, done.stdout, done.stderr)


def forked(world: World, words: tuple[str, ...], changes: Mapping[str, object]) -> Outcome:
    """Run the same in a fork with the imports done.

    Raises:
        AssertionError: it does not end within the limit; it is killed then.
    """
    with tempfile.TemporaryDirectory(prefix="tether-test-") as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        process = _FORKS.Process(target=_run, args=(words, environment(world, changes), str(out), str(err)))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{words} does not end; it has printed:\n{err.read_text()}")
        code = process.exitcode
        process.close()
        return Outcome(128 - code if code < 0 else code, out.read_text(), err.read_text())


def _run(words: tuple[str, ...], variables: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(variables)
    with Path(out).open("w") as sys.stdout, Path(err).open("w") as sys.stderr:
        from tether.cli.main import main

        code = main(list(words))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without what pytest and multiprocessing do at an exit
