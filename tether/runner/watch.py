"""What a runner tells of its jobs while they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One change of one step, for whoever watches.

    Args:
        step: the step's name with its version.
        state: TaskFlow's state: RUNNING, SUCCESS, FAILURE, REVERTING or REVERTED.
        seconds: since the step's last change.
    """

    job_id: str
    step: str
    state: str
    seconds: float


Watch = Callable[[Event], None]


def watcher(job_id: str, watch: Watch) -> Callable[[str, dict[str, Any]], None]:
    """Return what TaskFlow calls at every change of a step of a job, which tells ``watch``."""
    since: dict[str, float] = {}

    # TaskFlow passes the second by its name, and would silently call nothing that has another.
    def on_change(state: str, details: dict[str, Any]) -> None:
        step = details.get("task_name")
        if step:
            now = time.monotonic()
            watch(Event(job_id, step, state, now - since.get(step, now)))
            since[step] = now

    return on_change
