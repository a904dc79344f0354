"""Runs tether's command line on copies of one embedded world, each command in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tether.sim.script import clear
from tether.sim.store import Store

# Children are forked from this process: what it has imported they need not import again.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # as tether.cli.main does
for _module in (
    "cinderclient.v3.client",
    "cinderclient.contrib.noauth",
    "cliff.formatters.table",
    "keystoneauth1.session",
    "oslo_config.cfg",
    "taskflow.engines.action_engine.engine",
    "tether.audit.books",
    "tether.cli.main",
    "tether.cli.plan",
    "tether.cli.work",
    "tether.runner.preview",
    "tether.runner.world",
    "tether.sim.cinder.transport",
    "tether.sim.world",
):
    importlib.import_module(_module)

#: Settle times in proportion to a world that answers in milliseconds.
PACE = """
[DEFAULT]
data_path = {data_path}
[cinder]
rpc_response_timeout = 0.3
settle_margin = 0.1
[libvirt]
libvirt_settle = 0.15
[host]
host_settle = 0.15
"""

KILLED = 137
#: Exit codes that end a job for good.
DONE, ROLLED_BACK, BLOCKED = 0, 3, 4


@dataclass
class Outcome:
    """How one command ended.

    Args:
        code: the exit code; 137 if it was killed.
        out: what it printed on stdout; ``err`` on stderr.
    """

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A command that was begun; its output goes to files."""

    pid: int
    out: Path
    err: Path

    def wait(self) -> Outcome:
        """Wait for its end."""
        _pid, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(128 - code if code < 0 else code, self.out.read_text(), self.err.read_text())


class SimWorld:
    """One embedded world in a directory.

    Args:
        host: on which the commands run: empty, or the directory of a second host below that of the first.
    """

    def __init__(self, directory: Path, data_path: str = "host", host: str = "") -> None:
        self.directory = directory
        self.host = host
        self._runs = 0
        self._config = directory.parent / f"{directory.name}.conf"
        self._config.write_text(PACE.format(data_path=data_path))

    def tether(self, *words: str, config: str = "") -> Outcome:
        """Run a command in a forked process, so that it may be killed, with the imports done."""
        return self.start(*words, config=config).wait()

    def start(self, *words: str, config: str = "") -> Running:
        """Begin such a command, and return at once."""
        self._runs += 1
        out, err = (self.directory.parent / f"{self.directory.name}.{self._runs}.{name}" for name in ("out", "err"))
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                with out.open("w") as stdout, err.open("w") as stderr:
                    sys.stdout, sys.stderr = stdout, stderr
                    from tether.cli.main import main

                    code = main(
                        ["--config-file", config or str(self._config), "--sim", str(self.directory / self.host), *words]
                    )
            finally:
                os._exit(code)
        return Running(pid, out, err)

    def script(self, call: str, action: str, *, times: int = 1, seconds: float = 0.2, status: int = 400) -> None:
        """Script a failure."""
        options = ["--times", str(times), "--seconds", str(seconds), "--status", str(status)]
        done = self.tether("sim", "script", *options, str(self.directory / self.host), call, action)
        assert done.code == 0, done.err

    def forgive(self) -> None:
        """Forget what was scripted."""
        clear(Store(self.directory / self.host))

    def books(self) -> dict[str, Any]:
        """Return the five books, once everything that was to happen late has happened."""
        self._let_late_things_happen()
        return judge.snapshot(self.directory)

    def _let_late_things_happen(self) -> None:
        due = [time.time() - 1]
        for path in self.directory.glob("**/*.json"):
            text = json.loads(path.read_text())
            late = [item for key in ("late", "pending") for item in _items(text.get(key))]
            due += [item[key] for item in late for key in ("due", "at") if key in item]
        time.sleep(max(0.0, max(due) - time.time()) + 0.01 * (len(due) > 1))
        if len(due) > 1:  # they are carried out when a book is next opened
            self.tether("mapping", "show", "vol1", "guest1")

    def jobs(self) -> list[tuple[str, str]]:
        """Return kind and state of every job, the newest first."""
        with sqlite3.connect(f"file:{self.directory / 'tether.sqlite'}?mode=ro", uri=True, timeout=10) as connection:
            return connection.execute("SELECT kind, state FROM tether_jobs ORDER BY created_at DESC").fetchall()

    def step_of(self, kind: str) -> str:
        """Return the step at which the newest job of a kind is; empty if there is none."""
        with sqlite3.connect(f"file:{self.directory / 'tether.sqlite'}?mode=ro", uri=True, timeout=10) as connection:
            query = "SELECT step FROM tether_jobs WHERE kind = ? ORDER BY created_at DESC"
            return str((connection.execute(query, (kind,)).fetchone() or [""])[0])


def _items(value: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return [item for item in found if isinstance(item, dict)]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh world with its database."""
    world = SimWorld(tmp_path_factory.mktemp("template") / "world")
    done = world.tether("job", "list")
    assert done.code == 0, done.err
    return world.directory


@pytest.fixture
def sim(template: Path) -> Iterator[SimWorld]:
    """A world of this test's own, in memory: what is killed here are processes, never the machine."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tether-test-") as scratch:
        directory = Path(scratch) / "world"
        shutil.copytree(template, directory)
        yield SimWorld(directory)
