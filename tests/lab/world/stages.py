"""Prints the time of each part, as the live world does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def stage(name: str, work: Callable[[], T]) -> T:
    """Do one thing, and print its line with the seconds that it took."""
    started = time.monotonic()
    result = work()
    print(f"{name:<34} {time.monotonic() - started:6.1f} s", flush=True)
    return result
