"""The clock that everything above waits by, so that a test can bring its own."""

from __future__ import annotations

import threading
import time
from typing import ClassVar, Protocol


class Clock(Protocol):
    """What the code needs of time."""

    def time(self) -> float:
        """Return seconds since the epoch; comparable between processes and across a restart."""

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Wait for ``seconds``, or less if ``wake`` is set meanwhile."""


class SystemClock:
    """The machine's clock.

    Attributes:
        ahead: seconds that this process's clock is wrong by: a fault that tests inject.
    """

    ahead: ClassVar[float] = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        if seconds <= 0:
            return
        if wake is None:
            time.sleep(seconds)
        else:
            wake.wait(seconds)
