"""Named fault points: the lines where a crash or a lost reply matters.

A point is a call of :func:`point` with a name such as ``reserve-volume.act.before``. When nothing is
armed it costs one dictionary look-up. Points are armed only by an explicit option of a test run
(:func:`arm`, or the hidden command-line option ``--fault``), never by an environment variable that could
be left behind on a production host.

Names are ``STEP.PHASE.MOMENT``: the step's name without its version, ``act`` or ``undo``, and ``before``
or ``after``; durable commits are ``commit.STEP.PHASE.MOMENT``.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from tether.errors import FinalError, UncertainError, UsageError

ACTIONS = ("fail", "uncertain", "lost-reply", "kill")


@dataclass
class Fault:
    """One armed fault.

    Args:
        point: the point's name.
        action: ``fail`` raises a FinalError, ``uncertain`` and ``lost-reply`` an UncertainError (the
            former before the effect, the latter after it, so that the caller sees a time-out of a call
            that was carried out), ``kill`` ends this process with SIGKILL.
        times: how many passes it hits; then it is spent.
    """

    point: str
    action: str
    times: int = 1


_armed: dict[str, Fault] = {}


def arm(spec: str) -> Fault:
    """Arm one fault from ``POINT=ACTION`` or ``POINT=ACTION*TIMES``.

    Raises:
        UsageError: the text is not of that form, or the action is unknown.
    """
    name, _, rest = spec.partition("=")
    action, _, times = rest.partition("*")
    if not name or action not in ACTIONS or (times and not times.isdigit()):
        raise UsageError(
            f"cannot read the fault {spec!r}",
            hint=f"write POINT=ACTION or POINT=ACTION*TIMES, with an action of {', '.join(ACTIONS)}",
        )
    fault = Fault(name, action, int(times or 1))
    _armed[name] = fault
    return fault


def disarm() -> None:
    """Forget every armed fault."""
    _armed.clear()


def point(name: str) -> None:
    """Pass the point ``name``; does nothing unless a fault is armed there.

    Raises:
        FinalError: armed with ``fail``.
        UncertainError: armed with ``uncertain`` or ``lost-reply``.
    """
    fault = _armed.get(name)
    if fault is None or fault.times < 1:
        return
    fault.times -= 1
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "fail":
        raise FinalError(f"injected failure at {name}")
    raise UncertainError(f"injected {fault.action} at {name}")
