"""Runs one helper process to its end, or ends it with everything that it has started.

Helpers are forked by an origin (:mod:`tether.adapters.host.origin`), of which this process has one at most: it
is started for the first helper, or by :func:`prepare`, and anew once it has ended or is of another environment.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tether.adapters.host import origin

_PIECE = 65536
_PAUSE = 0.02
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Ended:
    """How a helper ended.

    Args:
        answer: what it wrote to standard output.
        log: what it and its commands wrote to standard error.
        in_time: False if it was ended for its time limit.
        status: its exit status; negative: the signal that ended it; None: it could not be ended, or never began.
        left: process ids of its group that could not be ended (in uninterruptible sleep).
    """

    answer: bytes
    log: bytes
    in_time: bool
    status: int | None
    left: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Helper:
    """A helper, and our ends of its streams."""

    pid: int
    requests: int
    answers: int
    log: int


def prepare(environment: Mapping[str, str]) -> None:
    """Have an origin load os-brick while the caller does something else."""
    with suppress(ConnectionError):
        _origin_of(environment).order(origin.LOAD)


def run(line: bytes, *, environment: Mapping[str, str], brick: bool, limit: float, settle: float) -> Ended:
    """Have a helper forked in a session of its own, give it one line, and wait for its end.

    Whatever of its group is still there when it ends, or when the limit is over, is ended by SIGKILL and
    waited for, so that nothing of it acts after this returns, ``left`` aside.

    Args:
        line: goes to its standard input, which then stays open until the end.
        environment: of the helper and its commands.
        brick: True if it needs os-brick.
        limit: seconds until it is ended; an origin that has first to be started counts in.
        settle: seconds to wait for the group's end.
    """
    ends = time.monotonic() + limit
    found = _origin_of(environment)
    with ExitStack() as streams:
        try:
            try:
                helper = found.fork(streams, ends, brick=brick)
            except ConnectionError:
                # It had ended. No helper of it has been given anything to do.
                found = _origin_of(environment, instead_of=found)
                helper = found.fork(streams, ends, brick=brick)
        except TimeoutError:
            _drop(found)
            return Ended(b"", b"", in_time=False, status=None, left=())
        except ConnectionError:
            log, status = _drop(found)
            return Ended(b"", log, in_time=True, status=status, left=())
        try:
            in_time, answer, log = _follow(helper, line, ends)
        finally:
            # Not reaped yet, so its id still names this group and no other.
            left = _end_group(helper.pid, settle)
            status = None if helper.pid in left else _reaped(helper.pid)
    return Ended(answer, log, in_time, status, left)


class _Origin:
    """The running origin.

    Args:
        environment: its own, and so that of its helpers.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        _become_subreaper()
        self.environment = dict(environment)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = os.memfd_create("log of tether's origin of helpers")
        me = os.pidfd_open(os.getpid())
        with theirs:
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    # As root, it must not import from whatever directory the caller is in.
                    [sys.executable, "-P", "-m", origin.__name__],
                    self.environment,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), origin.ORDERS),
                        (os.POSIX_SPAWN_DUP2, self._log, 1),
                        (os.POSIX_SPAWN_DUP2, self._log, 2),
                        (os.POSIX_SPAWN_DUP2, me, origin.TETHER),
                    ],
                    setsid=True,
                    setsigmask=[],
                )
            finally:
                os.close(me)

    def order(self, order: bytes, streams: tuple[int, ...] = ()) -> None:
        """Send an order.

        Raises:
            ConnectionError: it has ended.
        """
        socket.send_fds(self._orders, [order], streams)

    def fork(self, streams: ExitStack, ends: float, *, brick: bool) -> _Helper:
        """Have it fork a helper.

        Args:
            streams: closes our ends of the helper's.
            ends: on the monotonic clock.

        Raises:
            ConnectionError: it ended before.
            TimeoutError: there is none in time.
        """
        if brick:
            self.order(origin.LOAD)
        (theirs, requests), (answers, said), (log, warned) = os.pipe(), os.pipe(), os.pipe()
        for number in (requests, answers, log):
            streams.callback(os.close, number)
            os.set_blocking(number, False)
        try:
            self.order(origin.FORK, (theirs, said, warned))
        finally:
            for number in (theirs, said, warned):
                os.close(number)
        return _Helper(_first_word(answers, ends), requests, answers, log)

    def close(self) -> tuple[bytes, int]:
        """End it; return its log and its exit status. Its helpers do not end with it."""
        os.kill(self._pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        log = os.pread(self._log, _PIECE, 0)
        self.leave()
        return log, status

    def leave(self) -> None:
        """Close our side of it."""
        self._orders.close()
        os.close(self._log)


_lock = threading.Lock()
_running: list[_Origin] = []


def _origin_of(environment: Mapping[str, str], instead_of: _Origin | None = None) -> _Origin:
    """Return the origin for an environment; start it unless it runs.

    Args:
        instead_of: one that has ended.
    """
    with _lock:
        if _running and (_running[0] is instead_of or _running[0].environment != environment):
            _running.pop().close()
        if not _running:
            _running.append(_Origin(environment))
        return _running[0]


def _drop(found: _Origin) -> tuple[bytes, int | None]:
    """End an origin that is of no use; return its log and exit status, unless another thread has done so."""
    with _lock:
        if found not in _running:
            return b"", None
        _running.remove(found)
        return found.close()


@atexit.register
def _end() -> None:
    while _running:
        _running.pop().close()


def _forget() -> None:
    """In a fork of this process: the origin is not its own."""
    global _lock  # noqa: PLW0603 - another thread may have held it
    _lock = threading.Lock()
    while _running:
        _running.pop().leave()


os.register_at_fork(after_in_child=_forget)


def _become_subreaper() -> None:
    """Have helpers, and what is left of their groups, become children of this process once their parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def _first_word(answers: int, ends: float) -> int:
    """Return the process id that a helper sends before all else."""
    word = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while not word.endswith(b"\n"):
            if not selector.select(max(0.0, ends - time.monotonic())):
                raise TimeoutError
            if not _collect(answers, word) and not word.endswith(b"\n"):
                raise ConnectionResetError
    return int(word)


def _follow(helper: _Helper, line: bytes, ends: float) -> tuple[bool, bytes, bytes]:
    """Feed the helper and collect what it says until it ends or the limit is over."""
    texts = {helper.answers: bytearray(), helper.log: bytearray()}
    handle = os.pidfd_open(helper.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for number in (handle, *texts):
                selector.register(number, selectors.EVENT_READ)
            selector.register(helper.requests, selectors.EVENT_WRITE)
            ended = False
            while not ended and (left := ends - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == handle:
                        ended = True
                    elif key.fd == helper.requests:
                        line = _feed(helper.requests, line)
                        if not line:
                            selector.unregister(helper.requests)
                    elif not _collect(key.fd, texts[key.fd]):
                        selector.unregister(key.fd)
            for number, text in texts.items():
                _collect(number, text)
    finally:
        os.close(handle)
    return ended, bytes(texts[helper.answers]), bytes(texts[helper.log])


def _feed(number: int, line: bytes) -> bytes:
    """Write what goes; return the rest."""
    try:
        return line[os.write(number, line) :]
    except BrokenPipeError:
        # It died before it read: its exit status tells.
        return b""


def _collect(number: int, text: bytearray) -> bool:
    """Read what is there; return False at the end of the stream."""
    while True:
        try:
            piece = os.read(number, _PIECE)
        except BlockingIOError:
            return True
        if not piece:
            return False
        text += piece


def _end_group(group: int, settle: float) -> tuple[int, ...]:
    """End every process of the group, and return those that are still there after ``settle`` seconds."""
    ends = time.monotonic() + settle
    while True:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return ()
        alive = _alive(group)
        if not alive or time.monotonic() > ends:
            return alive
        time.sleep(_PAUSE)


def _reaped(group: int) -> int | None:
    """Return the exit status of the group's first, and leave no zombie of the group."""
    status = None
    with suppress(ChildProcessError):
        status = os.waitstatus_to_exitcode(os.waitpid(group, 0)[1])
        # Those whose parent was of the group have become ours.
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG):
            pass
    return status


def _alive(group: int) -> tuple[int, ...]:
    """Return the group's processes that have not ended; a zombie has."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(entry.name))
    return tuple(found)
