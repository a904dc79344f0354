"""Daemons by pid file: started once, known for certain, ended surely."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tests.live.world.layout import WorldError


def wait_until(what: str, check: Callable[[], bool], timeout: float, pause: float = 0.05) -> None:
    """Look until ``check`` says yes.

    Raises:
        WorldError: it did not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise WorldError(f"{what}: not within {timeout:g} s")
        time.sleep(pause)


def runs(pid: int, comm: str) -> bool:
    """Tell whether this process exists, is no zombie, and has this name."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    name, rest = stat.split("(", 1)[1].rsplit(")", 1)
    return name == comm and rest.split()[0] not in "ZX"


def environment_of(pid: int, patience: float = 10) -> list[bytes] | None:
    """Return the environment that a process was started with; None if it is gone, or is a kernel's thread.

    Inside an exec the kernel shows none at all, for as long as it reads the new program from the disk: an empty one
    is looked at again.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return None
        if text:
            return text.split(b"\0")
        if state in "ZX" or time.monotonic() > deadline:
            return None
        time.sleep(0.01)


class Owner(Protocol):
    """Whose a process is: where its pid and log are kept, and the environment by which it is known."""

    @property
    def directory(self) -> Path: ...
    @property
    def logs(self) -> Path: ...
    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def mark(self) -> str: ...


class Daemon:
    """One process of a world.

    Args:
        world: whose it is.
        name: of its pid file and its log.
        comm: the kernel's name of the process.
        command: what to run; it must stay in the foreground and keep its pid over every exec.
    """

    def __init__(self, world: Owner, name: str, comm: str, command: Sequence[str] = ()) -> None:
        self.world, self.name, self.comm, self.command = world, name, comm, list(command)
        self.pid_file = world.directory / f"{name}.pid"
        self.log = world.logs / f"{name}.log"

    def pid(self) -> int | None:
        """Return the pid if the process runs and is this world's."""
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if runs(pid, self.comm) and self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        """A pid is used again some day, and another world has the same daemons."""
        environment = environment_of(pid)
        return environment is not None and self.world.mark.encode() in environment

    def start(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Start it unless it runs, and wait until it serves.

        Raises:
            WorldError: it ended or did not serve in time; the end of its log is in the message.
        """
        if self.pid() is None:
            self.launch()
        self.wait(ready, timeout)

    def launch(self) -> None:
        """Start it. The child writes the pid file before it becomes the daemon, so that none is ever lost."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.pid_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            subprocess.Popen(
                ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.pid_file), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.world.environment,
                start_new_session=True,
            )

    def wait(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until it serves (see start)."""
        started = time.monotonic()
        while not ready():
            if self._ended():
                raise WorldError(f"{self.name} ended. Its log, {self.log}, ends:\n{self._tail()}")
            if time.monotonic() - started > timeout:
                raise WorldError(f"{self.name} does not serve after {timeout:g} s. Its log ends:\n{self._tail()}")
            time.sleep(0.05)

    def _ended(self) -> bool:
        """Tell whether what was launched is gone; its name means nothing before the last exec."""
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return False  # the child has not written it yet
        return not self._is_ours(pid)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:]) if self.log.exists() else ""

    def stop(self, first: signal.Signals = signal.SIGTERM, patience: float = 10) -> None:
        """End it: by ``first``, and by SIGKILL after ``patience`` seconds."""
        pid = self.pid()
        if pid is not None:
            end(pid, self.comm, first, patience)
        self.pid_file.unlink(missing_ok=True)


def end(pid: int, comm: str, first: signal.Signals = signal.SIGTERM, patience: float = 10) -> None:
    """End a process that is known to be ours, and wait until it is gone."""
    for number, limit in ((first, patience), (signal.SIGKILL, 10)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + limit
        while runs(pid, comm):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise WorldError(f"process {pid} ({comm}) does not end, even by SIGKILL")
