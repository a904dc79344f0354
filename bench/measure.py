"""What every bench shares: peers in processes of their own, interleaved rounds, medians, tables, and the bars.

Each peer runs in a child process, so that its CPU time is its own, its threads take nobody else's interpreter
lock, and one of them can be killed. A round measures every peer once, one after the other: what the machine does
besides hits them alike, so a ratio is the median of the ratios inside the rounds.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

_CONTEXT = multiprocessing.get_context("spawn")


class Peer(Protocol):
    """Something that runs flows, inside a child process."""

    def run_many(self, flows: int, threads: int) -> None:
        """Run so many flows to their ends, so many at a time."""

    def facts(self) -> dict[str, Any]:
        """Return what its durability rests on, as it reads it back."""

    def commits(self) -> int | None:
        """Return how many transactions it has committed so far, if that can be seen."""

    def close(self) -> None:
        """Close everything."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Args:
        flows: how many flows it took in.
        wall: seconds; ``cpu`` the seconds of the peer's process.
    """

    flows: int
    wall: float
    cpu: float

    @property
    def wall_ms(self) -> float:
        """Milliseconds a flow."""
        return self.wall / self.flows * 1000

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU time a flow."""
        return self.cpu / self.flows * 1000

    @property
    def rate(self) -> float:
        """Flows a second."""
        return self.flows / self.wall


class PeerFailed(Exception):
    """A peer's process raised; the message is its traceback."""


class Child:
    """A peer in a process of its own.

    Args:
        make: a function of a module that makes the peer, with ``args``.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, **words: Any) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, make, args, words), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, *args: Any, **words: Any) -> Any:
        """Call a method of the peer and return what it returns."""
        return self.timed(method, *args, **words)[0]

    def timed(self, method: str, *args: Any, **words: Any) -> tuple[Any, float, float]:
        """Call a method of the peer; return its result, and the wall and CPU seconds that it took there."""
        self._pipe.send((method, args, words))
        found: tuple[Any, float, float] = self._answer()
        return found

    def measure(self, flows: int, threads: int) -> Sample:
        """Run flows and return what they took."""
        _, wall, cpu = self.timed("run_many", flows, threads)
        return Sample(flows, wall, cpu)

    def _answer(self) -> Any:
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise PeerFailed(f"the peer's process ended with {self._process.exitcode}") from None
        if not good:
            raise PeerFailed(answer)
        return answer

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    def kill(self) -> None:
        """End it with SIGKILL, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()
        self._pipe.close()

    def close(self) -> None:
        """Let it close what it holds, and end it."""
        if self._process.is_alive():
            try:
                self.call("close")
            finally:
                self.kill()


def _serve(pipe: multiprocessing.connection.Connection, make: Callable[..., Any], args: Any, words: Any) -> None:
    """Make the peer, then answer calls until the other side ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    try:
        peer = make(*args, **words)
        pipe.send((True, None))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise
    while True:
        try:
            method, args, words = pipe.recv()
        except EOFError:
            os._exit(1)  # the other side is gone; jobs that are stopped inside a step would keep this one for ever
        try:
            cpu, wall = time.process_time(), time.perf_counter()
            result = getattr(peer, method)(*args, **words)
            answer: tuple[bool, Any] = (True, (result, time.perf_counter() - wall, time.process_time() - cpu))
        except Exception:  # noqa: BLE001  # the other process raises it again
            answer = (False, traceback.format_exc())
        pipe.send(answer)


_pools: dict[int, ThreadPoolExecutor] = {}


def spread(flows: int, threads: int, one: Callable[[], object]) -> None:
    """Call ``one`` so many times, so many at a time; the threads are kept for the next call."""
    if threads == 1:
        for _ in range(flows):
            one()
        return
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="caller")
    for done in [_pools[threads].submit(one) for _ in range(flows)]:
        done.result()


def interleave(
    children: Mapping[str, Child], rounds: int, flows: Mapping[str, int], threads: int
) -> dict[str, list[Sample]]:
    """Measure every child once a round, after as many flows as make its connections, caches and threads."""
    found: dict[str, list[Sample]] = {name: [] for name in children}
    for name, child in children.items():
        child.call("run_many", min(threads, flows[name]), threads)
    for number in range(1, rounds + 1):
        for name, child in children.items():
            found[name].append(child.measure(flows[name], threads))
        note(f"round {number} of {rounds}, {threads} at a time")
    return found


def note(text: str) -> None:
    """Say on stderr how far the bench is."""
    print(text, file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    """Return the median, over the rounds, of our figure by theirs."""
    return median([figure(mine) / figure(other) for mine, other in zip(ours, theirs, strict=True)])


def spread_of(values: Sequence[float]) -> str:
    """Return the least and the greatest, as the tables show them."""
    return f"{min(values):.1f} to {max(values):.1f}"
