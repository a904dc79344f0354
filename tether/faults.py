"""Named fault points: the lines where a crash or a lost reply matters.

A point is a call of :func:`point` with a name such as ``reserve-volume.act.before``. When nothing is
armed it costs one dictionary look-up. Points are armed only by an explicit option of a test run
(:func:`arm`, or the hidden command-line option ``--fault``), never by an environment variable that could
be left behind on a production host.

Names are ``STEP.PHASE.MOMENT``: the step's name without its version, ``act`` or ``undo``, and ``before``
or ``after``; durable commits are ``commit.STEP.PHASE.MOMENT``; ``key.…`` is around what changes the keys. The embedded
world also passes a point for each call that it answers, such as ``cinder.create_attachment``: there the other side goes
wrong, not the caller.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from tether.clock import SystemClock
from tether.errors import FinalError, UncertainError, UsageError

#: What a fault may do. Those of CALL_ACTIONS alone are the embedded world's to carry out, at a call.
ACTIONS = {
    "fail": "refused for good",
    "uncertain": "no answer, and it did not happen",
    "lost-reply": "it happens, and the answer is lost",
    "kill": "SIGKILL of this process",
    "stop": "SIGSTOP of this process",
    "disk-full": "the next write finds the database's disk full",
    "database-gone": "the database does not answer for a while",
    "clock-jump": "this process's clock is an hour ahead from here on",
    "late": "no answer, and it happens a little later",
    "cut-off": "SIGKILL of this process while it waits for the answer, and it happens a little later",
    "hang": "no answer until the caller's patience is over, and it does not happen",
    "blind": "Cinder shows this process nothing of the project, as with a wrong token",
    "refuse": "the guest refuses to let a disk go",
    "ignore": "the guest does not answer, and may let the disk go until it is started anew",
    "not-done": "answered as done, and it is not",
    "kill-helper": "the helper that carries it out is killed when it is done, before it answers",
}
_OF_CALLS = ("late", "cut-off", "hang", "blind", "kill-helper", "not-done", "refuse", "ignore")
CALL_ACTIONS = ("fail", "lost-reply", *_OF_CALLS)
POINT_ACTIONS = tuple(action for action in ACTIONS if action not in _OF_CALLS)
#: Where calls of the embedded world begin.
BOOKS = ("cinder", "host", "guest")

#: Passed by every request to the embedded Cinder.
TOKEN = "cinder.token"  # noqa: S105 - no secret

#: Seconds that a database is gone, and that a clock jumps.
GONE = 0.4
JUMP = 3600.0
_SAID = {"disk-full": "database or disk is full", "database-gone": "disk I/O error"}


@dataclass
class Fault:
    """One armed fault.

    Args:
        point: the point's name.
        action: one of :data:`ACTIONS`. ``uncertain`` and ``lost-reply`` raise an UncertainError, the former before the
            effect, the latter after it.
        times: how many passes it hits; then it is spent.
        until: on the monotonic clock, when it ends by itself.
    """

    point: str
    action: str
    times: int = 1
    until: float | None = None


_armed: dict[str, Fault] = {}


def is_call(name: str) -> bool:
    """Return True for a call that the embedded world answers."""
    return name.partition(".")[0] in BOOKS


def arm(spec: str) -> Fault:
    """Arm one fault from ``POINT=ACTION`` or ``POINT=ACTION*TIMES``.

    Raises:
        UsageError: the text is not of that form, or there is no such action at that point.
    """
    name, _, rest = spec.partition("=")
    action, _, times = rest.partition("*")
    actions = CALL_ACTIONS if is_call(name) else POINT_ACTIONS
    if not name or action not in actions or (times and not times.isdigit()):
        raise UsageError(
            f"cannot read the fault {spec!r}",
            hint=f"write POINT=ACTION or POINT=ACTION*TIMES, with an action of {', '.join(actions)}",
        )
    fault = Fault(name, action, int(times or 1))
    _armed[name] = fault
    return fault


def disarm() -> None:
    """Forget every armed fault."""
    _armed.clear()


class _Recording(dict[str, Fault]):
    """Tells of every point that is looked up, and thereby passed."""

    def __init__(self, armed: dict[str, Fault], tell: Callable[[str], object]) -> None:
        super().__init__(armed)
        self._tell = tell

    def get(self, name: str, default: Fault | None = None) -> Fault | None:  # type: ignore[override]
        self._tell(name)
        return super().get(name, default)


def record(tell: Callable[[str], object]) -> None:
    """Have every point that this process passes from here on told by its name."""
    global _armed  # noqa: PLW0603 - so that it costs nothing when nobody listens
    _armed = _Recording(_armed, tell)


def taken(name: str) -> Fault | None:
    """Pass the point ``name``; return the fault that hits here, used up by one, or None."""
    fault = _armed.get(name)
    if fault is None or fault.times < 1 or (fault.until is not None and time.monotonic() > fault.until):
        return None
    fault.times -= 1
    return fault


def point(name: str) -> None:
    """Pass the point ``name``; does nothing unless a fault is armed there.

    Raises:
        FinalError: armed with ``fail``.
        UncertainError: armed with ``uncertain`` or ``lost-reply``.
        sqlite3.OperationalError: a database that a fault elsewhere has broken.
    """
    fault = taken(name)
    if fault is None:
        return
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "clock-jump":
            SystemClock.ahead = JUMP
        case "disk-full" | "database-gone" if name in _DATABASE:
            raise sqlite3.OperationalError(_SAID[fault.action])
        case "disk-full":
            _armed["database.write"] = Fault("database.write", "disk-full")
        case "database-gone":
            for each in _DATABASE:
                _armed[each] = Fault(each, "database-gone", times=1_000_000, until=time.monotonic() + GONE)
        case "fail":
            raise FinalError(f"injected failure at {name}")
        case _:
            raise UncertainError(f"injected {fault.action} at {name}")


#: Passed inside every transaction, where the driver's own errors arise.
_DATABASE = ("database.write", "database.read")
