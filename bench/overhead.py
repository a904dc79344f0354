"""What durability costs: the same chain of nine steps under tether, under TaskFlow alone, and under the peers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench import peers, profile, tether_side
from bench.measure import Child, Sample, interleave, median, ratio, spread_of
from bench.output import Findings, Place, Table, at_least, at_most, options, scratch

QUESTION = "What does it cost to run nine steps durably, each with its intent stored before its effect?"
AT_A_TIME = 8
#: A stock flow takes some thirty times as long as the others: fewer of them are measured.
STOCK_SHARE = 6

BARE, TUNED = "bare TaskFlow", "bare, tether's options"
TETHER, STOCK, DBOS, SHIPPED, RAW = "tether", "stock backend", "DBOS", "DBOS as shipped", "raw commits"
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"


def _name(peer: str, database: str) -> str:
    return f"{peer}, {database}"


def _makers() -> dict[str, tuple[Any, ...]]:
    """Return what makes each peer, in the order of a round, and the database it wants."""
    found: dict[str, tuple[Any, ...]] = {
        BARE: ("", peers.Bare),
        TUNED: ("", peers.BareTuned, tether_side.ENGINE),
    }
    for database in (SQLITE, POSTGRESQL):
        raw = peers.RawSqlite if database == SQLITE else peers.RawPostgresql
        kinds: dict[str, Any] = {TETHER: tether_side.make_world, STOCK: peers.Stock, DBOS: peers.Dbos}
        if database == SQLITE:
            kinds[SHIPPED] = peers.dbos_as_shipped
        kinds[RAW] = raw
        found |= {_name(peer, database): (database, make) for peer, make in kinds.items()}
    return found


def _start(stack: ExitStack, place: Place, name: str, database: str, make: Any, *args: Any) -> Child:
    if database:
        file = name.replace(", ", "-").replace(" ", "-")
        args = (stack.enter_context(place.database(database.lower(), file)), *args)
    return stack.enter_context(Child(make, *args))


def _one_table(found: dict[str, list[Sample]], threads: int, commits: dict[str, int | None]) -> Table:
    first = next(iter(found))
    table = Table(
        f"{threads} at a time",
        ["", "wall ms/flow", "min to max", "CPU ms/flow", "flows/s", f"wall by {first}", "commits/flow"],
        note=f"medians of {len(found[first])} interleaved rounds; ratios are medians of the rounds' own;"
        " CPU is that of the peer's process, without PostgreSQL's",
    )
    for name, samples in found.items():
        walls = [sample.wall_ms for sample in samples]
        figures = [median(walls), spread_of(walls), median([sample.cpu_ms for sample in samples])]
        against = ratio(samples, found[first], lambda sample: sample.wall_ms)
        table.rows.append([name, *figures, median([sample.rate for sample in samples]), against, commits.get(name)])
    return table


def _bars(
    alone: dict[str, list[Sample]], together: dict[str, list[Sample]], commits: int | None
) -> list[dict[str, Any]]:
    """Return the bars for which both sides were measured."""
    bars = []
    ours = _name(TETHER, SQLITE)
    if ours in alone and BARE in alone:
        wall = ratio(alone[ours], alone[BARE], lambda sample: sample.wall_ms)
        bars.append(at_most("wall_vs_bare", wall, "times", 1.0))
    if ours in alone and _name(STOCK, SQLITE) in alone:
        cpu = ratio(alone[ours], alone[_name(STOCK, SQLITE)], lambda sample: sample.cpu_ms)
        bars.append(at_most("cpu_vs_stock", cpu, "times", 0.04))
    for database, limit in ((SQLITE, 2.0), (POSTGRESQL, 1.6)):
        mine, other = _name(TETHER, database), _name(DBOS, database)
        if mine in together and other in together:
            rate = ratio(together[mine], together[other], lambda sample: sample.rate)
            bars.append(at_least(f"rate_vs_dbos_{database.lower()}", rate, "times", limit))
    if commits is not None:
        bars.append(at_most("commits_per_flow", commits, "commits", 10))
    return bars


def _commit_table(children: dict[str, Child]) -> Table:
    table = Table("Commits of one tether job", ["", "submit", "lease", "first intent to end", "release"])
    for name, child in children.items():
        if name.startswith(TETHER):
            found = child.call("count_commits")
            table.rows.append([name, found["submit"], found["lease"], found["flow"], found["release"]])
    return table


def main() -> None:
    """Measure, and print."""
    parser = options(__doc__ or "", rounds=5, flows=40)
    parser.add_argument("--profile", action="store_true", help="also show where the CPU time of a tether flow goes")
    words = parser.parse_args()
    makers = _makers()
    for name in words.only or []:
        if name not in makers:
            parser.error(f"there is no peer {name!r}; one of: {'; '.join(makers)}")
    chosen = {name: maker for name, maker in makers.items() if not words.only or name in words.only}
    rounds, flows = (1, 1) if words.quick else (words.rounds, words.flows)
    findings = Findings("overhead", QUESTION, words.quick, settings={"rounds": rounds, "flows": flows})
    counts = {name: max(1, flows // STOCK_SHARE) if name.startswith(STOCK) else flows for name in chosen}
    on_server = any(maker[0] == POSTGRESQL for maker in chosen.values())
    with scratch(words.directory, findings, postgresql=on_server) as place, ExitStack() as stack:
        children = {name: _start(stack, place, name, *maker) for name, maker in chosen.items()}
        alone = interleave(children, rounds, counts, 1)
        commits = _commits_a_flow(children)
        more = counts if words.quick else {name: max(AT_A_TIME, 2 * count) for name, count in counts.items()}
        together = interleave(children, rounds, more, AT_A_TIME)
        table = _commit_table(children)
        profiled = profile.tables(place.sqlite("profiled"), flows) if words.profile else []
        findings.durability |= {name: facts for name, child in children.items() if (facts := child.call("facts"))}
    findings.tables += [_one_table(alone, 1, commits), _one_table(together, AT_A_TIME, {})]
    findings.tables += [*([table] if table.rows else []), *profiled]
    most = max((row[3] for row in table.rows), default=None)
    findings.bars += _bars(alone, together, most)
    findings.show(as_json=words.json)


def _commits_a_flow(children: dict[str, Child]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name, child in children.items():
        before = child.call("commits")
        if before is not None:
            child.call("run_many", 1, 1)
        found[name] = None if before is None else child.call("commits") - before
    return found


if __name__ == "__main__":
    main()
