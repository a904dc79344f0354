"""Who holds a lease: a process, so exactly named that it cannot be mistaken for a later one, and how it is ended."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tether.persistence.intact import loaded, typed


@dataclass(frozen=True, slots=True)
class Owner:
    """A runner's process.

    Args:
        machine_id: ``/etc/machine-id`` of its host.
        boot_id: the host's boot; a process of another boot is dead.
        namespace: in which its pid means something: two containers of one host may have the same machine id.
        start_time: the process's start in clock ticks since boot (``/proc/PID/stat``, field 22).
        token: random, so that two runners of one process exclude each other too.
    """

    machine_id: str
    host: str
    boot_id: str
    namespace: str
    pid: int
    start_time: int
    token: str

    @classmethod
    def current(cls) -> Owner:
        """Return this process, with a new token."""
        pid = os.getpid()
        return cls(*_machine(), pid, _start_time(pid) or 0, str(uuid.uuid4()))

    @classmethod
    def load(cls, text: str) -> Owner:
        """Return the owner that :meth:`dump` wrote.

        Raises:
            TypeError, ValueError: it did not.
        """
        return typed(cls, dict(loaded(text, "the owner")))

    def dump(self) -> str:
        """Return the owner as a lease's row keeps it."""
        return json.dumps(asdict(self))

    @property
    def is_visible(self) -> bool:
        """True if this process would see it if it ran: it is of this host and of this pid namespace."""
        return (self.machine_id, self.namespace) == (_machine()[0], _machine()[3])

    @property
    def is_dead(self) -> bool:
        """True if it provably runs no more: of an earlier boot of this host, or visible and not there."""
        machine_id, _host, boot_id, _namespace = _machine()
        if self.machine_id == machine_id and self.boot_id != boot_id:
            return True
        return self.is_visible and _start_time(self.pid) != self.start_time

    def end(self, patience: float) -> bool:
        """End the process and its children, and wait until they are gone.

        The children too: a helper that its runner has started goes on working for it.

        Args:
            patience: seconds to wait for them.

        Returns:
            True if all of them are gone; False if that cannot be brought about from here: it is of another host or
            container, or another user's, or does not end.
        """
        if self.is_dead:
            return True
        if not self.is_visible or self.pid == os.getpid():
            return False
        deadline = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            try:
                own = _open(stack, self.pid, self.start_time)
                if own is None:
                    return True
                # Stopped first: from now on it has no further children.
                signal.pidfd_send_signal(own, signal.SIGSTOP)
                family = [own, *(_open(stack, pid, start) for pid, start in _descendants(self.pid))]
                for handle in family:
                    if handle is not None:
                        with contextlib.suppress(ProcessLookupError):
                            signal.pidfd_send_signal(handle, signal.SIGKILL)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
            return all(handle is None or _gone(handle, deadline) for handle in family)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@functools.cache
def _machine() -> tuple[str, str, str, str]:
    """Return machine id, name and boot id of this host, and the pid namespace."""
    host = os.uname().nodename
    boot = _text("/proc/sys/kernel/random/boot_id")
    return _text("/etc/machine-id") or host, host, boot, str(Path("/proc/self/ns/pid").readlink())


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the state on; None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _descendants(pid: int) -> list[tuple[int, int]]:
    """Return the pids and start times of a process's children, of their children, and so on."""
    children: dict[int, list[tuple[int, int]]] = {}
    for path in Path("/proc").iterdir():
        fields = _stat(int(path.name)) if path.name.isdigit() else None
        if fields is not None:
            children.setdefault(int(fields[1]), []).append((int(path.name), int(fields[19])))
    found, parents = [], [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [child for child, _start in below]
    return found


def _open(stack: contextlib.ExitStack, pid: int, start_time: int) -> int | None:
    """Return a handle on exactly this process; None if it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, handle)
    # The handle first, then the proof: the number may have been given to another process before.
    return handle if _start_time(pid) == start_time else None


def _gone(handle: int, deadline: float) -> bool:
    return bool(select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0])
