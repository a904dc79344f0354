"""What the jobs of one all-or-nothing request share while they run: the gate before the guest, and their locks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tether.adapters.host.targets import TargetLock
from tether.errors import FinalError, OperatorNeeded, TetherError


@dataclass
class Siblings:
    """The jobs of one request, each run in a thread of this process.

    None of them changes the guest before all of them have come as far: until then there is nothing to take out of a
    guest that may have begun to use it. It gets them in the order of the request.

    Args:
        whole: the job that they are parts of.
        members: their ids, in the order of the request.
        check: unwinds if the whole was asked to stop, or has lost its lease.
    """

    whole: str
    members: Sequence[str]
    check: Callable[[], None]
    _awaited: set[str] = field(init=False)
    _passed: set[tuple[str, str]] = field(default_factory=set, init=False)
    _over: set[str] = field(default_factory=set, init=False)
    _failure: TetherError | None = field(default=None, init=False)
    #: Held by the one that is on shared targets: their common lock does not keep siblings from each other.
    turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    _locks: dict[Path, TargetLock] = field(default_factory=dict, init=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._awaited = set(self.members)

    def passed(self, step: str, job_id: str) -> None:
        """Note that a job is through with a step that they do in turn."""
        with self._guard:
            self._passed.add((step, job_id))

    def is_next(self, step: str, job_id: str) -> bool:
        """Return True once all before a job are through with a step.

        Raises:
            FinalError: one of them was not attached.
            OperatorNeeded: one of them is blocked.
        """
        with self._all_well():
            before = self.members[: self.members.index(job_id)]
            return all(each in self._over or (step, each) in self._passed for each in before)

    def attached(self, job_id: str) -> None:
        """Note that a job has ended, and its volume is attached."""
        with self._guard:
            self._awaited.discard(job_id)
            self._over.add(job_id)

    def arrived(self, job_id: str) -> None:
        """Note that all that a job does before the guest is done."""
        with self._guard:
            self._awaited.discard(job_id)

    def failed(self, volume: str, *, blocked: bool) -> None:
        """Note that a job has ended without its volume being attached; the first one counts.

        Args:
            blocked: it may still be taken up again, forward.
        """
        with self._guard:
            if self._failure is None:
                hint = f"see: tether job show {self.whole}"
                self._failure = (
                    OperatorNeeded(f"the attach of volume {volume}, of the same request, is blocked", hint=hint)
                    if blocked
                    else FinalError(f"volume {volume}, of the same request, was not attached", hint=hint)
                )

    def is_complete(self) -> bool:
        """Return True once all have arrived.

        Raises:
            FinalError: one of them was not attached.
            OperatorNeeded: one of them is blocked.
        """
        with self._all_well():
            return not self._awaited

    @contextmanager
    def _all_well(self) -> Iterator[None]:
        with self._guard:
            if self._failure is not None:
                raise self._failure
            yield

    def lock(self, lock: TargetLock) -> TargetLock:
        """Return the one lock of these shared targets that the siblings have in common."""
        with self._guard:
            return self._locks.setdefault(lock.path, lock)

    def let_targets_go(self) -> None:
        """Release what they have in common: none of them runs any more."""
        for lock in self._locks.values():
            lock.release()


class Whole(Protocol):
    """Carries out the jobs of an all-or-nothing request: the runner's."""

    def attach(self) -> None:
        """Attach every volume.

        Raises:
            FinalError, HeldError: one of them was not attached.
            OperatorNeeded: one of them is blocked.
        """

    def is_done(self) -> bool:
        """Return True if every volume is attached."""

    def undo(self) -> None:
        """See that none of them is attached by this request.

        Raises:
            OperatorNeeded: one of them cannot be taken back.
        """
