"""Writes docs/performance.md from what the benches printed with ``--json``; nothing in it is written by hand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.output import shown
from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
#: In the order of the document: what is run for each.
BENCHES = {
    "overhead": "bench/overhead",
    "growth": "bench/growth",
    "recovery": "bench/recovery",
    "memory": "bench/memory",
    "attach-live": "bench/attach --world live",
    "attach-lab": "bench/attach --world lab",
}

HEAD = (
    "# Performance\n\n"
    "`bench/report` writes this page from the last lines of `bench/overhead --json`, `bench/growth --json`,"
    " `bench/recovery --json`, `bench/memory --json` and `bench/attach --json`; nothing here is written by hand. Each"
    " bench measures its peers in the same run, in interleaved rounds, every peer in a process of its own;"
    " `bench/attach` measures a script in tether's own process. Figures of one table may be compared with each other,"
    " those of two runs hardly.\n"
)


def read(path: str) -> dict[str, Any]:
    """Return the findings in a bench's saved output: its last line.

    Raises:
        SystemExit: it does not end with a bench's findings, or with ones that mean nothing.
    """
    lines = Path(path).read_text(encoding="utf-8").strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
        known = found["bench"] in BENCHES
    except (IndexError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise SystemExit(f"{path} does not end with what a bench prints with --json")
    if found["quick"]:
        raise SystemExit(f"{path} was made with --quick: its figures mean nothing")
    return found


def document(findings: Sequence[dict[str, Any]]) -> str:
    """Return the page."""
    ordered = sorted(findings, key=lambda found: [*BENCHES].index(found["bench"]))
    return "\n".join([HEAD, *_bars(ordered), *(line for found in ordered for line in _section(found))])


def _bars(findings: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [
            f"`{item['name']}`",
            f"{shown(item['value'])} {item['unit']}",
            f"{'at least' if item.get('at_least') else 'at most'} {item['limit']}",
            "yes" if item["holds"] else "**no**",
            f"`{BENCHES[found['bench']]}`",
        ]
        for found in findings
        for item in found["bars"]
    ]
    yield "## The bars\n"
    yield from _table(["bar", "measured", "limit", "holds", "by"], rows)


def _section(found: dict[str, Any]) -> Iterator[str]:
    yield f"## `{BENCHES[found['bench']]}`\n\n{found['question']}\n"
    for table in found["tables"]:
        yield f"**{table['title']}**\n"
        if table["rows"]:
            yield from _table(table["columns"], [[shown(cell) for cell in row] for row in table["rows"]])
        else:
            yield "None.\n"
        if table["note"]:
            yield f"{table['note'][0].upper()}{table['note'][1:]}.\n"
    machine = found["machine"]
    yield f"Measured {found['date']} at commit {found['commit']}. Settings: {_words(found['settings'])}.\n"
    yield f"Machine: {_words(machine)}. Libraries: {_words(found['libraries'])}.\n"
    durable = [f"{name}: {_words(facts)}" for name, facts in found["durability"].items() if facts]
    if durable:
        yield f"Durability, as read back: {'; '.join(durable)}.\n"


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def main() -> None:
    """Read the files, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="the saved output of a bench with --json")
    parser.add_argument("--to", metavar="FILE", default=str(DOCUMENT), help="the page; default: docs/performance.md")
    words = parser.parse_args()
    findings = [read(path) for path in words.files]
    twice = {found["bench"] for found in findings}
    if len(twice) < len(findings):
        sys.exit("two files are of one bench: give one of each")
    Path(words.to).write_text(document(findings), encoding="utf-8")


if __name__ == "__main__":
    main()
