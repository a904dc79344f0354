"""What an attach takes in a real world, beside a script of the same calls without durability."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx

from bench import straight, worlds
from bench.measure import median, note, spread_of
from bench.output import Findings, Table, at_most, options, scratch, sqlite_facts
from tether.adapters.cinder.model import Volume
from tether.flows.graph import graph
from tether.persistence.database import Database
from tether.persistence.ledger import Job
from tether.persistence.migrations import upgrade
from tether.runner.jobs import Runner
from tether.runner.requests import Request, submit
from tether.runner.watch import Event
from tether.runner.world import open_world
from tether.tasks.run import Toolbox

QUESTION = "What does it cost that an attach can be resumed or rolled back at every moment?"
#: How many volumes are attached at once, each to a guest of its own; and with --quick.
AT_ONCE, FEW = 8, 2
#: At most, of tether by the script; several at once have the same limit in every world.
LIMITS, LIMIT_AT_ONCE = {worlds.LIVE: 1.1, worlds.LAB: 1.0}, 1.1
TETHER, SCRIPT, BARE = "tether", "script", "bare effects"
PROGRAM = [sys.executable, "-P", "-c", "import sys; from tether.cli.main import main; sys.exit(main())"]
LIBRARIES = ("taskflow", "SQLAlchemy", "os-brick", "python-cinderclient", "libvirt-python")


class Recorder:
    """An adapter whose calls are noted.

    Args:
        calls: gets ``book.method`` and seconds of each.
    """

    def __init__(self, adapter: Any, book: str, calls: list[tuple[str, float]]) -> None:
        self._adapter = adapter
        self._book = book
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._adapter, name)

        def call(*args: Any, **words: Any) -> Any:
            started = time.perf_counter()
            try:
                result = method(*args, **words)
            finally:
                self._calls.append((f"{self._book}.{name}", time.perf_counter() - started))
            return result

        if name == "for_job":
            return lambda *args: Recorder(method(*args), self._book, self._calls)
        return call


@dataclass
class Bench:
    """One world, opened once, for tether and the script alike.

    Args:
        place: the world.
        tools: its adapters.
        walls: what was measured: seconds, by what it is of; the same place in two lists is the same round.
    """

    place: worlds.Place
    tools: Toolbox
    runner: Runner
    database: str
    walls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    told: list[Event] = field(default_factory=list)
    job: Job | None = None

    # -- one attach ------------------------------------------------------------------------------------------

    def by_tether(self, volume_id: str, server: str, runner: Runner | None = None, kind: str = "attach") -> Job:
        """Run a job of tether to its end, as the command does."""
        runner = runner or self.runner
        job = runner.run(submit(runner, kind, Request(volume_id, server), str(uuid.uuid4())).job)
        if job.state not in {"attached", "detached"}:
            raise RuntimeError(f"job {job.id} is {job.state}: {job.error}")
        return job

    def round(self, number: int) -> None:
        """Measure each way once; each round begins with another one."""
        for way in _turned((self._tether, self._script, self._bare), number):
            way(self.place.volumes[0], self.place.guests[0])

    def _tether(self, volume_id: str, server: str) -> None:
        self.told.clear()
        started = time.perf_counter()
        accepted = submit(self.runner, "attach", Request(volume_id, server), str(uuid.uuid4()))
        submitted = time.perf_counter()
        self.job = self.runner.run(accepted.job)
        ended = time.perf_counter()
        if self.job.state != "attached":
            raise RuntimeError(f"job {self.job.id} is {self.job.state}: {self.job.error}")
        self.walls[TETHER].append(ended - started)
        self.steps["submit"].append(submitted - started)
        for event in self.told:
            if event.state == "SUCCESS":
                self.steps[event.step].append(event.seconds)
        self.by_tether(volume_id, server, kind="detach")

    def _script(self, volume_id: str, server: str) -> None:
        with self._measured(SCRIPT):
            attached = straight.attach(self.tools, volume_id, server)
        straight.detach(self.tools, attached)

    def _bare(self, volume_id: str, server: str) -> None:
        volume, server_id = self._known(volume_id, server)
        with self._measured(BARE):
            attached = straight.attach_blindly(self.tools, volume, server_id)
        straight.detach(self.tools, attached)

    def _known(self, volume_id: str, server: str) -> tuple[Volume, str]:
        return self.tools.cinder.show_volume(volume_id), self.tools.guest.find_server(server).uuid

    # -- several at once -------------------------------------------------------------------------------------

    def round_at_once(self, number: int) -> None:
        """Attach all volumes at once, each to a guest of its own, by tether and by as many scripts."""
        pairs = list(zip(self.place.volumes, self.place.guests, strict=True))
        for way in _turned((self._tether_at_once, self._script_at_once), number):
            way(pairs)

    def _tether_at_once(self, pairs: Sequence[tuple[str, str]]) -> None:
        with self._measured(_at_once(TETHER)):
            _together(self.by_tether, pairs)
        for pair in pairs:
            self.by_tether(*pair, kind="detach")

    def _script_at_once(self, pairs: Sequence[tuple[str, str]]) -> None:
        with self._measured(_at_once(SCRIPT)):
            found = _together(lambda *pair: straight.attach(self.tools, *pair), pairs)
        for attached in found:
            straight.detach(self.tools, attached)

    # -- the command -----------------------------------------------------------------------------------------

    def round_of_commands(self) -> None:
        """Measure the program's start, and a whole ``tether attach``."""
        with self._measured("tether --version"):
            self._run("--version")
        options = [*self.place.words, "--database", self.database]
        pair = (self.place.volumes[0], self.place.guests[0])
        with self._measured("tether attach"):
            self._run(*options, "attach", *pair)
        self._run(*options, "detach", *pair)

    def _run(self, *words: str) -> None:
        command = [*PROGRAM, *words]
        done = subprocess.run(command, env=self.place.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"tether {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.walls[name].append(time.perf_counter() - started)

    # -- what they call --------------------------------------------------------------------------------------

    def calls(self) -> Table:
        """Note the calls of one attach each, unmeasured otherwise."""
        pair = (self.place.volumes[0], self.place.guests[0])
        noted: dict[str, list[tuple[str, float]]] = {TETHER: [], SCRIPT: []}
        ours = Runner(_recorded(self.tools, noted[TETHER]), self.runner.logbook)
        try:
            self.by_tether(*pair, runner=ours)
        finally:
            ours.close()
        self.by_tether(*pair, kind="detach")
        straight.detach(self.tools, straight.attach(_recorded(self.tools, noted[SCRIPT]), *pair))
        return _calls_table(noted)


def _recorded(tools: Toolbox, calls: list[tuple[str, float]]) -> Toolbox:
    adapters: dict[str, Any] = {
        book: Recorder(getattr(tools, book), book, calls) for book in ("cinder", "host", "guest")
    }
    return replace(tools, **adapters)


def _calls_table(noted: Mapping[str, Sequence[tuple[str, float]]]) -> Table:
    counts = {name: Counter(call for call, _ in calls) for name, calls in noted.items()}
    sums: dict[str, Counter[str]] = {name: Counter() for name in noted}
    for name, calls in noted.items():
        for call, seconds in calls:
            sums[name][call] += seconds  # type: ignore[assignment]
    table = Table(
        "The calls of one attach",
        ["", "tether", "ms", "script", "ms"],
        note="of one attach each, so their times are no medians; identity() of Cinder and of the host is remembered",
    )
    for call in dict.fromkeys([*counts[SCRIPT], *counts[TETHER]]):
        row: list[Any] = [call]
        for name in (TETHER, SCRIPT):
            row += [counts[name][call], sums[name][call] * 1000.0]
        table.rows.append(row)
    return table


def _together(work: Callable[..., Any], pairs: Sequence[tuple[str, str]]) -> list[Any]:
    """Call ``work`` for all pairs at once; the threads are there before the first call."""
    ready = threading.Barrier(len(pairs))

    def one(pair: tuple[str, str]) -> Any:
        ready.wait()
        return work(*pair)

    with ThreadPoolExecutor(len(pairs)) as pool:
        return [done.result() for done in [pool.submit(one, pair) for pair in pairs]]


def _turned(ways: Sequence[Callable[..., None]], number: int) -> list[Callable[..., None]]:
    """Return the ways so that each comes after every other alike: what the one before leaves to do befalls all."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def _at_once(name: str) -> str:
    return f"{name}, at once"


# -- where the time goes ------------------------------------------------------------------------------------------


def critical_path(flow: nx.DiGraph, seconds: Mapping[str, float]) -> list[str]:
    """Return the steps that an attach waits for: the longest path through its graph, by what each step takes."""
    weighted = nx.DiGraph()
    start = ""
    for step in flow.nodes:
        for before in [*flow.predecessors(step)] or [start]:
            weighted.add_edge(before, step, seconds=seconds.get(step, 0.0))
    return [step for step in nx.dag_longest_path(weighted, weight="seconds") if step != start]


def _path_table(bench: Bench) -> Table:
    """Return the steps with what they take, those of the critical path marked."""
    if bench.job is None:
        raise RuntimeError("nothing was measured")
    taken = {step: median(found) for step, found in bench.steps.items()}
    path = critical_path(graph("attach", bench.job.params), taken)
    whole = median(bench.walls[TETHER])
    table = Table(
        "Where the time of tether's attach goes",
        ["", "ms", "share", "waited for"],
        note="medians; the critical path is the longest way through the flow's graph, by what its steps take",
    )

    def add(name: str, seconds: float, waited: str) -> None:
        table.rows.append([name, seconds * 1000, f"{seconds / whole:.0%}", waited])

    add("(the request becomes a job)", taken["submit"], "yes")
    for step in [step for step in taken if step != "submit"]:
        add(step.partition("/")[0], taken[step], "yes" if step in path else "no")
    counted = taken["submit"] + sum(taken[step] for step in path)
    add("(between the steps, lease and end)", whole - counted, "yes")
    return table


# -- the whole ----------------------------------------------------------------------------------------------------


def _wall_table(bench: Bench, names: Sequence[str], title: str, reference: str, remark: str = "") -> Table:
    rounds = len(bench.walls[names[0]])
    table = Table(
        title,
        ["", "wall ms", "min to max", f"by {reference}"],
        note=f"medians of {rounds} interleaved rounds; ratios are medians of the rounds' own{remark}",
    )
    for name in names:
        walls = [seconds * 1000 for seconds in bench.walls[name]]
        table.rows.append([name, median(walls), spread_of(walls), _ratio(bench, name, reference)])
    return table


def _ratio(bench: Bench, name: str, reference: str) -> float:
    pairs = zip(bench.walls[name], bench.walls[reference], strict=True)
    return median([mine / other for mine, other in pairs])


def _together_words(guests: int) -> str:
    return f"{guests} volumes to {guests} guests at once"


def measure(bench: Bench, world: str, rounds: int) -> Findings:
    """Measure everything, and return it."""
    findings = Findings(f"attach-{world}", QUESTION, quick=False, libraries=LIBRARIES)
    guests = len(bench.place.guests)
    calls = bench.calls()  # and all that the first attach loads
    parts: list[tuple[str, Callable[[int], None]]] = [("one attach", bench.round)]
    if guests > 1:
        parts.append((_together_words(guests), bench.round_at_once))
    for name, work in [*parts, ("the command", lambda _number: bench.round_of_commands())]:
        for number in range(rounds):
            work(number)
            note(f"{name}: round {number + 1} of {rounds}")
    findings.tables.append(_wall_table(bench, [TETHER, SCRIPT, BARE], "One attach, imports done", SCRIPT))
    if guests > 1:
        names = [_at_once(TETHER), _at_once(SCRIPT)]
        findings.tables.append(_wall_table(bench, names, _together_words(guests), names[1]))
    else:
        note(f"{AT_ONCE} volumes to {AT_ONCE} guests at once: not measured, this world has one guest")
    remark = "; the command imports all that it needs, and os-brick beside that"
    findings.tables.append(
        _wall_table(bench, ["tether --version", "tether attach"], "The command", "tether --version", remark)
    )
    findings.tables += [_path_table(bench), calls]
    if world in LIMITS:
        findings.bars.append(
            at_most(f"attach_vs_script_{world}", _ratio(bench, TETHER, SCRIPT), "times", LIMITS[world])
        )
        if guests > 1:
            at_once = _ratio(bench, _at_once(TETHER), _at_once(SCRIPT))
            findings.bars.append(at_most(f"attach_at_once_vs_script_{world}", at_once, "times", LIMIT_AT_ONCE))
    return findings


def main() -> None:
    """Measure, and print."""
    parser = options(__doc__ or "", rounds=7)
    parser.add_argument(
        "--world",
        choices=worlds.WORLDS,
        required=True,
        help="live: bin/live's; lab: bin/lab's, which has the host data path; sim: the embedded one, whose figures mean"
        " nothing",
    )
    words = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # the commands' libraries; what they say is not measured
    rounds = 1 if words.quick else words.rounds
    scratched = Findings("", "", quick=True)
    with (
        scratch(words.directory, scratched, postgresql=False) as folder,
        worlds.opened(words.world, FEW if words.quick else AT_ONCE) as place,
    ):
        database = folder.sqlite("attach")
        _make_tables(database)
        settings = place.settings.but(database=database)
        with open_world(settings, sim=place.sim, request_id=f"req-{uuid.uuid4()}") as world:
            told: list[Event] = []
            runner = Runner(world.tools, world.logbook, told.append)
            try:
                findings = measure(Bench(place, world.tools, runner, database, told=told), words.world, rounds)
            finally:
                runner.close()
            with world.database.engine.connect() as connection:
                findings.durability["tether, SQLite"] = sqlite_facts(connection)
    findings.quick = words.quick or words.world not in LIMITS
    findings.versions |= scratched.versions
    findings.settings |= {"rounds": rounds, "world": words.world, "data path": settings.data_path}
    findings.show(as_json=words.json)


def _make_tables(url: str) -> None:
    database = Database(url)
    try:
        upgrade(database)
    finally:
        database.close()


if __name__ == "__main__":
    main()
