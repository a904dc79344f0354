"""How much memory a runner needs, by the number of jobs in flight."""

from __future__ import annotations

from pathlib import Path

from bench import tether_side
from bench.measure import Child, median, note
from bench.output import Findings, Table, options, scratch

QUESTION = "How much memory does a runner need with 1, 100 and 1,000 jobs in flight?"
COUNTS = (0, 1, 100, 1000)
#: Steps that each job has finished when it is looked at.
FINISHED = 4


class Held(tether_side.World):
    """Tether that holds jobs in flight."""

    def held(self, count: int) -> tuple[float, int]:
        """Start so many jobs; return the process's memory in MiB, and its threads, while each is inside a step."""
        self.park([FINISHED] * count)
        pairs = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        status = {name: text.split()[0] for name, text in pairs if text.split()}
        return int(status["VmRSS"]) / 1024, int(status["Threads"])


def main() -> None:
    """Measure, and print."""
    parser = options(__doc__ or "", rounds=3, flows=0)
    words = parser.parse_args()
    counts = COUNTS[:2] if words.quick else COUNTS
    rounds = 1 if words.quick else words.rounds
    findings = Findings("memory", QUESTION, words.quick, settings={"rounds": rounds})
    found: dict[int, list[tuple[float, int]]] = {count: [] for count in counts}
    with scratch(words.directory, findings, postgresql=False) as place:
        for number in range(1, rounds + 1):
            for count in counts:
                url = place.sqlite(f"tether-{number}-{count}")
                child = Child(Held, url)
                found[count].append(child.call("held", count))
                child.kill()
            note(f"round {number} of {rounds}")
    table = Table(
        "Memory of a runner, SQLite",
        ["jobs in flight", "resident MiB", "MiB a job above none", "threads"],
        note=f"medians of {rounds} rounds, each in a new process; every job is inside its step number {FINISHED + 1}",
    )
    none = median([size for size, _ in found[0]])
    for count in counts:
        size = median([size for size, _ in found[count]])
        table.rows.append([f"{count:,}", size, (size - none) / count if count else None, found[count][-1][1]])
    findings.tables.append(table)
    findings.show(as_json=words.json)


if __name__ == "__main__":
    main()
