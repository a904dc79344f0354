"""How long it takes to finish a thousand jobs that one SIGKILL interrupted, against the same steps without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import tether_side
from bench.measure import Child, median, note, spread_of
from bench.output import Findings, Place, Table, at_most, options, scratch
from bench.peers import STEPS

QUESTION = "How much longer does a crash make it to finish what was under way?"
DATABASES = ("sqlite", "postgresql")
#: Seconds that each step's effect takes.
EFFECTS = (0.0, 0.05)


@dataclass(frozen=True)
class Load:
    """What is to be done.

    Args:
        plan: for each job, how many of its steps are done.
        threads: jobs at a time.
        effect: seconds that a step takes.
    """

    plan: list[int]
    threads: int
    effect: float


def _plain(url: str, load: Load) -> float:
    """Return the seconds that the jobs' remaining steps take without a crash."""
    with Child(tether_side.make_world, url, effect=load.effect) as child:
        seconds: float = child.call("run_prepared", load.plan, load.threads)
        _all_done(child, len(load.plan))
    return seconds


def _crashed(url: str, load: Load) -> tuple[float, float]:
    """Interrupt the jobs; return the seconds until all of them are finished, and those to find them."""
    broken = Child(tether_side.make_world, url)
    broken.call("park", load.plan)
    broken.kill()
    with Child(tether_side.make_world, url, effect=load.effect) as child:
        count, found, _ = child.timed("count_interrupted")
        if count != len(load.plan):
            raise RuntimeError(f"{count} of {len(load.plan)} jobs are interrupted: {child.call('states')}")
        seconds: float = child.call("resume_all", load.threads)
        _all_done(child, len(load.plan))
    return seconds, found


def _all_done(child: Child, count: int) -> None:
    states = child.call("states")
    if states != {tether_side.DONE: count}:
        raise RuntimeError(f"not every job was finished: {states}")


def main() -> None:
    """Measure, and print."""
    parser = options(__doc__ or "", rounds=3, flows=1000)
    parser.add_argument("--threads", type=int, default=16, metavar="N", help="jobs at a time; default: %(default)s")
    words = parser.parse_args()
    if set(words.only or ()) - set(DATABASES):
        parser.error(f"--only takes one of: {', '.join(DATABASES)}")
    chosen = words.only or DATABASES[:1]
    rounds, flows = (1, STEPS) if words.quick else (words.rounds, words.flows)
    plan = [number % STEPS for number in range(flows)]
    settings = {"rounds": rounds, "jobs": flows, "threads": words.threads}
    findings = Findings("recovery", QUESTION, words.quick, settings=settings)
    table = Table(
        f"{flows} jobs, interrupted in each of their steps alike, {words.threads} at a time",
        ["", "resumed s", "min to max", "without a crash s", "min to max", "resumed by plain", "found in ms"],
        note=f"medians of {rounds} interleaved rounds; from the start of the search for interrupted jobs until all have"
        " ended; without a crash: jobs of the same remaining steps, made before the clock starts",
    )
    worst = 0.0
    with scratch(words.directory, findings, postgresql="postgresql" in chosen) as place:
        for database in chosen:
            for effect in EFFECTS:
                figures = _rounds(place, database, rounds, Load(plan, words.threads, effect))
                table.rows.append([f"{database}, {effect * 1000:.0f} ms an effect", *figures])
                worst = max(worst, figures[4])
    findings.tables.append(table)
    findings.bars.append(at_most("recovery_vs_plain", worst, "times", 1.3))
    findings.show(as_json=words.json)


def _rounds(place: Place, database: str, rounds: int, load: Load) -> list[Any]:
    """Measure one case; return its row."""
    plain, crashed, found = [], [], []
    for number in range(1, rounds + 1):
        name = f"{load.effect * 1000:.0f}-{number}"
        with place.database(database, f"plain-{name}") as url:
            plain.append(_plain(url, load))
        with place.database(database, f"crashed-{name}") as url:
            seconds, search = _crashed(url, load)
        crashed.append(seconds)
        found.append(search * 1000)
        note(f"round {number} of {rounds}: {database}, {load.effect * 1000:.0f} ms an effect")
    times = median([one / other for one, other in zip(crashed, plain, strict=True)])
    return [median(crashed), spread_of(crashed), median(plain), spread_of(plain), times, median(found)]


if __name__ == "__main__":
    main()
