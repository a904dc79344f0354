"""Which cases there are, and running many of them at once, from where an earlier run was interrupted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tether.matrix.bench import Bench, Program
from tether.matrix.journeys import Journey, journeys
from tether.matrix.live import LiveBench
from tether.matrix.points import Point, all_points
from tether.matrix.trial import Case, Trial, Verdict

R = TypeVar("R")

#: What is tried in a live world. Not the legacy dialect: what it rightly leaves blocked only an administrator frees.
LIVE = ("network",)

#: Faults after which something is left to recover, and with it the points that a second fault can be at.
LEAVING = ("kill", "cut-off", "stop", "database-gone", "disk-full")


#: Where no part of a request runs in a thread of its own. Elsewhere a process that is stopped is so inside calls of
#: the others, which are on the wire then: nobody can stop those.
WHOLE = ("attach-all", "an abort is decided in attach-all")


@dataclass(frozen=True)
class Wanted:
    """What the operator asks for; empty is all.

    Args:
        everywhere: each point in every case that a flow is built for, not only in the first that passes it.
    """

    points: Sequence[str] = ()
    actions: Sequence[str] = ()
    flows: Sequence[str] = ()
    everywhere: bool = False

    def has(self, journey: Journey, point: Point, action: str) -> bool:
        """Return True if this cell is asked for; a point by its beginning too."""
        return (
            (not journey.actions or action in journey.actions)
            and point.name.startswith(journey.points)
            and (not self.flows or journey.flow in self.flows)
            and (not self.points or any(f"{point.name}.".startswith(f"{each}.") for each in self.points))
            and (not self.actions or action in self.actions)
            and not (action == "stop" and journey.variant.several and point.what not in WHOLE)
        )


@dataclass
class Report:
    """What is known of the cases, in a directory that outlives an interrupted run.

    Args:
        directory: where; None keeps nothing.
    """

    directory: Path | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self._path
        for line in path.read_text().splitlines() if path is not None and path.exists() else []:
            with suppress(ValueError):  # the line at which a run was killed
                verdict = Verdict(**json.loads(line))
                self.verdicts[verdict.case] = verdict

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        self.verdicts[verdict.case] = verdict
        path = self._path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as stream:
                stream.write(f"{json.dumps(verdict.as_json())}\n")

    @property
    def _path(self) -> Path | None:
        return None if self.directory is None else self.directory / "cases.jsonl"


class Campaign:
    """The cases of one run.

    Args:
        program: runs a command line of tether.
        jobs: how many cases at a time; on a live world one.
        live: the directory of a live world, to work in that.
    """

    def __init__(self, program: Program, *, jobs: int, live: Path | None = None) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - what is killed here are processes, never the machine
        self._scratch = Path(tempfile.mkdtemp(prefix="tether-matrix-", dir=memory if memory.is_dir() else None))
        global _bench  # noqa: PLW0603 - see there
        _bench = Bench(self._scratch, program) if live is None else LiveBench(self._scratch, program, live)
        self.live = live is not None
        self._pool = ProcessPoolExecutor(1 if self.live else jobs, get_context("fork"), _begin)
        self.journeys = {journey.name: journey for journey in journeys()}
        self.points = {point.name: point for point in all_points()}

    def rest(self) -> None:
        """End the processes; the worlds stay."""
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End the processes, and delete every world."""
        self.rest()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # -- which cases -----------------------------------------------------------------------------------------

    def scout(self, wanted: Wanted) -> dict[str, list[str]]:
        """Return for each journey the points that its broken command passes, in order: each run once, undisturbed."""
        some = [each for each in self.journeys.values() if not wanted.flows or each.flow in wanted.flows]
        if self.live:
            some = [each for each in some if each.kind in ("attach", "detach") and each.variant.name in LIVE]
        elif not wanted.everywhere and not wanted.flows:
            some = [each for each in some if not each.further]
        found = dict(self._map(_scout, some))
        return {each.name: found[each.name] for each in some}

    def singles(self, passed: dict[str, list[str]], wanted: Wanted) -> list[Case]:
        """Return the cases with one fault.

        For every phase each point in the first journey that passes it; kills in the first of each kind of job.
        """
        cases = []
        seen: set[tuple[str, ...]] = set()
        for name, points in passed.items():
            journey = self.journeys[name]
            for each in points:
                if each not in self.points or (self.live and self.points[each].kind == "call"):
                    continue
                point = self.points[each]
                if point.what in journey.variant.void and not wanted.everywhere:
                    continue
                place = (journey.phase, journey.where, each)
                new = wanted.everywhere or place not in seen
                killed = new or (journey.kind, *place) not in seen
                seen |= {place, (journey.kind, *place)}
                cases += [
                    Case(name, f"{each}={action}")
                    for action in point.actions
                    if (killed if action == "kill" else new) and wanted.has(journey, point, action)
                ]
        return cases

    def doubles(self, firsts: Iterable[tuple[Case, Verdict]], wanted: Wanted, count: int, seed: int) -> list[Case]:
        """Return cases with a second fault in the recovery from the first.

        Every point is first at least once and second at least once, where a recovery passes it; the rest is drawn.

        Args:
            firsts: cases with one fault, and what came of them.
        """
        chance = random.Random(seed)  # noqa: S311 - a sample, repeatable by its seed
        pairs = [
            (case, point)
            for case, verdict in firsts
            if case.fault.endswith(LEAVING)
            for point in dict.fromkeys(verdict.recovery)
            if point in self.points
            and self.points[point].kind != "read"
            and self._second_actions(self.journeys[case.journey], self.points[point], wanted)
        ]
        chance.shuffle(pairs)
        needed: list[tuple[Case, str]] = []
        first: set[str] = set()
        second: set[str] = set()
        for case, name in pairs:
            if case.points[0] not in first or name not in second:
                needed.append((case, name))
                first.add(case.points[0])
                second.add(name)
        taken = set(needed)
        rest = [pair for pair in pairs if pair not in taken]
        drawn = (needed + rest)[: max(count, len(needed))]
        return [
            Case(case.journey, case.fault, f"{name}={chance.choice(actions)}")
            for case, name in drawn
            for actions in [self._second_actions(self.journeys[case.journey], self.points[name], wanted)]
        ]

    def _second_actions(self, journey: Journey, point: Point, wanted: Wanted) -> list[str]:
        """Return what may go wrong in a recovery; nothing that only time brings to light, and no stopping."""
        actions = [action for action in point.actions if action not in ("stop", "clock-jump")]
        return [action for action in actions if wanted.has(journey, point, action)]

    # -- running them ----------------------------------------------------------------------------------------

    def run(self, cases: Sequence[Case], report: Report, tell: Callable[[Verdict], None]) -> None:
        """Run the cases that the report does not know yet; each verdict is told as it comes."""
        todo = [case for case in cases if case.name not in report.verdicts]
        for verdict in self._map(_run, [(self.journeys[case.journey], case) for case in todo]):
            report.add(verdict)
            tell(verdict)

    def _map(self, work: Callable[[Any], R], items: Iterable[Any]) -> Iterator[R]:
        """Do the work in the pool; yield results as they come."""
        futures = {self._pool.submit(work, item) for item in items}
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # interrupted: what has not begun need not
            for future in futures:
                future.cancel()


#: What the pool's processes work with: they are forked from this one.
_bench: Bench


def _scout(journey: Journey) -> tuple[str, list[str]]:
    world = _bench.world(f"scout-{os.getpid()}", journey.start, journey.variant)
    try:
        for command in journey.before:
            world.run(command.words, command.faults)
        passed = world.run(journey.broken.words, journey.broken.faults).passed
    finally:
        world.remove()
    undone = next((number for number, name in enumerate(passed) if ".undo." in name), 0) if journey.undoing else 0
    return journey.name, list(dict.fromkeys(passed[undone:]))


def _run(work: tuple[Journey, Case]) -> Verdict:
    return Trial(_bench, *work).run()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us says when to end
