"""Runs one helper process to its end, or ends it with everything that it has started."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PIECE = 65536
_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    """How a helper ended.

    Args:
        answer: what it wrote to standard output.
        log: what it and its commands wrote to standard error.
        in_time: False if it was ended for its time limit.
        status: its exit status; negative: the signal that ended it; None: it could not be ended.
        left: process ids of its group that could not be ended (in uninterruptible sleep).
    """

    answer: bytes
    log: bytes
    in_time: bool
    status: int | None
    left: tuple[int, ...]


def run(command: Sequence[str], line: bytes, *, environment: Mapping[str, str], limit: float, settle: float) -> Ended:
    """Start the command in a session of its own, give it one line, and wait for its end.

    Whatever of its group is still there when it ends, or when the limit is over, is ended by SIGKILL and
    waited for, so that nothing of it acts after this returns, ``left`` aside.

    Args:
        line: goes to its standard input, which then stays open until the end.
        limit: seconds until it is ended.
        settle: seconds to wait for the group's end.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        in_time, texts = _follow(process, line, limit)
    finally:
        # Not reaped yet, so its id still names this group and no other.
        left = _end_group(process.pid, settle)
        if process.pid not in left:
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Ended(texts[0], texts[1], in_time, process.returncode, left)


def _follow(process: subprocess.Popen[bytes], line: bytes, limit: float) -> tuple[bool, tuple[bytes, bytes]]:
    """Feed the process and collect what it says until it ends or the limit is over."""
    streams = (process.stdout, process.stderr)
    ends = time.monotonic() + limit
    texts: dict[int, bytearray] = {}
    handle = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            for stream in streams:
                if stream is not None:
                    os.set_blocking(stream.fileno(), False)
                    texts[stream.fileno()] = bytearray()
                    selector.register(stream.fileno(), selectors.EVENT_READ)
            _feed(process, line)
            ended = False
            while not ended and (left := ends - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == handle:
                        ended = True
                    elif not _collect(key.fd, texts[key.fd]):
                        selector.unregister(key.fd)
            for number, text in texts.items():
                _collect(number, text)
    finally:
        os.close(handle)
    answer, log = texts.values()
    return ended, (bytes(answer), bytes(log))


def _feed(process: subprocess.Popen[bytes], line: bytes) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        # It died before it read: its exit status tells.
        return


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
