"""``tether faults``: the fault matrix, which shows that nothing is ever left half done."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.cli.base import Lister
from tether.cli.job import positive

if TYPE_CHECKING:
    from tether.matrix.campaign import Campaign, Report, Wanted
    from tether.matrix.trial import Case, Verdict

COLUMNS = ("flow", "phase", "cases", "done", "rolled_back", "blocked", "nothing", "violations")


class ListFaults(Lister):
    """List the fault points: where each is, and what can go wrong there."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        from tether.matrix.points import all_points

        points = all_points()
        self.app.say(f"{len(points)} points")
        return ("point", "kind", "around", "actions"), [
            (point.name, point.kind, point.what, " ".join(point.actions)) for point in points
        ]


class RunFaults(Lister):
    """Break every point of every flow in every way, recover, and have an independent judge compare the five books.

    Each case has an embedded world of its own, and each of its commands a process of its own. Exit code 1 if a case
    ended in anything but done, rolled back or, in the legacy dialect, blocked for a reason that nobody can know.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        from tether.faults import ACTIONS

        parser = super().get_parser(prog_name)
        few = "; may be repeated"
        parser.add_argument(
            "--point", action="append", default=[], metavar="NAME", help=f"only this one, or those below it{few}"
        )
        parser.add_argument("--action", action="append", default=[], choices=ACTIONS, help=f"only this{few}")
        parser.add_argument("--flow", action="append", default=[], metavar="NAME", help=f"only this, as detach{few}")
        parser.add_argument(
            "--everywhere",
            action="store_true",
            help="each point in every case that a flow is built for, not only in the first that passes it",
        )
        parser.add_argument(
            "--world",
            choices=("sim", "live"),
            default="sim",
            help="embedded worlds, or the live one that bin/live has started (TETHER_LIVE_DIR, or .live); default: sim",
        )
        parser.add_argument(
            "--double", action="store_true", help="a second fault in the recovery from the first; a sample"
        )
        parser.add_argument(
            "--cases", type=positive, metavar="N", help="a sample of so many; default with --double: 500"
        )
        parser.add_argument("--seed", type=int, default=1, metavar="N", help="what samples are drawn from; default: 1")
        parser.add_argument(
            "--jobs", type=positive, metavar="N", help="so many at a time; default: three times the cores"
        )
        parser.add_argument(
            "--report", type=Path, metavar="DIR", help="keep each case there, go on from there, and make a page of it"
        )
        parser.add_argument("--json", action="store_true", help="end with the figures in one line of JSON")
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; its figures come last."""
        self.figures = ""
        code = super().run(parsed_args)
        if parsed_args.json and self.figures:
            self.app.stdout.write(f"{self.figures}\n")
        return code

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        from tether.matrix.campaign import Campaign, Report, Wanted

        wanted = Wanted(parsed_args.point, parsed_args.action, parsed_args.flow, everywhere=parsed_args.everywhere)
        report = Report(parsed_args.report)
        begun = time.monotonic()
        live = Path(os.environ.get("TETHER_LIVE_DIR") or ".live").absolute() if parsed_args.world == "live" else None
        campaign = Campaign(_program, jobs=parsed_args.jobs or 3 * (os.cpu_count() or 1), live=live)
        try:
            cases = self._run(campaign, report, wanted, parsed_args)
        finally:
            campaign.close()
        verdicts = [report.verdicts[case.name] for case in cases]
        missed = _without_case(campaign, cases, wanted) if parsed_args.cases is None else []
        summary = _summary(verdicts, missed, time.monotonic() - begun, parsed_args)
        self._tell(summary, verdicts, missed)
        if parsed_args.report is not None:
            self._write_page(parsed_args.report, campaign, summary, cases, report)
        self.figures = _figures(verdicts, missed, parsed_args)
        self.exit_code = 1 if missed or any(verdict.violations for verdict in verdicts) else 0
        return COLUMNS, _table(campaign, cases, report)

    def _run(self, campaign: Campaign, report: Report, wanted: Wanted, asked: argparse.Namespace) -> list[Case]:
        """Run what is asked for; return its cases."""
        import random

        from tether.cli.progress import Counted
        from tether.errors import UsageError

        with Counted(self.app.stderr) as shown:
            shown.begin("looking where each flow passes", None)
            passed = campaign.scout(wanted)
            cases = campaign.singles(passed, wanted)
            if not cases:
                raise UsageError("there is no such case", hint="see: tether faults list")
            if asked.double:
                firsts = [case for case in cases if case.fault.endswith("=kill")]
                shown.begin("one fault", len(firsts))
                campaign.run(firsts, report, shown.count)
                known = [(case, report.verdicts[case.name]) for case in firsts]
                cases = campaign.doubles(known, wanted, asked.cases or 500, asked.seed)
            elif asked.cases is not None:
                cases = random.Random(asked.seed).sample(cases, min(asked.cases, len(cases)))  # noqa: S311 - a sample
            shown.begin("two faults" if asked.double else "one fault", len(cases))
            campaign.run(cases, report, shown.count)
        return cases

    def _tell(self, summary: str, verdicts: list[Verdict], missed: list[str]) -> None:
        """Say what came of it, and what went wrong."""
        self.app.say(summary)
        for name in missed:
            self.app.say(f"tether: no case passes {name}")
        for verdict in verdicts:
            for line in verdict.violations:
                self.app.say(f"tether: {verdict.case}: {line}")

    def _write_page(self, directory: Path, campaign: Campaign, summary: str, cases: list[Case], report: Report) -> None:
        from tether.matrix.page import page

        cells: dict[tuple[str, str], list[Verdict]] = {}
        for case in cases:
            for fault in filter(None, (case.fault, case.second)):
                point, _, action = fault.partition("=")
                cells.setdefault((point, action), []).append(report.verdicts[case.name])
        path = directory / "index.html"
        path.write_text(page(summary, campaign.points.values(), cells))
        self.app.say(f"see: {path}")


def _program(words: list[str]) -> int:
    """Run tether's own command line."""
    from tether.cli.main import main

    return main(words)


def _without_case(campaign: Campaign, cases: list[Case], wanted: Wanted) -> list[str]:
    """Return the points that nothing was broken at, of those that were asked for."""
    if wanted.points or wanted.actions or wanted.flows or campaign.live:
        return []
    return sorted(campaign.points.keys() - {point for case in cases for point in case.points})


def _summary(verdicts: list[Verdict], missed: list[str], seconds: float, asked: argparse.Namespace) -> str:
    points = {each.partition("=")[0] for verdict in verdicts for each in verdict.case.split() if "=" in each}
    wrong = sum(bool(verdict.violations) for verdict in verdicts)
    seeded = f", seed {asked.seed}" if asked.double or asked.cases is not None else ""
    return (
        f"{len(points)} points, {len(verdicts)} cases with {'two faults' if asked.double else 'one fault'},"
        f" {sum(verdict.resumes for verdict in verdicts)} resumes, {wrong} violations,"
        f" {len(missed)} points without a case, {seconds:.0f} s{seeded}"
    )


def _figures(verdicts: list[Verdict], missed: list[str], asked: argparse.Namespace) -> str:
    from tether.matrix.figures import bar, machine

    wrong = sum(bool(verdict.violations) for verdict in verdicts)
    bars = [
        bar("violations", wrong, "cases", 0, holds=not wrong),
        bar("points_without_case", len(missed), "points", 0, holds=not missed),
    ]
    return json.dumps({"bars": bars, "cases": len(verdicts), "double": asked.double, "machine": machine()})


def _table(campaign: Campaign, cases: list[Case], report: Report) -> list[tuple[Any, ...]]:
    """Return the cases counted by flow and phase, and their sum."""
    from tether.matrix.page import look

    counts: dict[tuple[str, str], Counter[str]] = {}
    for case in cases:
        journey = campaign.journeys[case.journey]
        for key in ((journey.flow, journey.phase), ("all", "")):
            counts.setdefault(key, Counter())[look(report.verdicts[case.name])] += 1
    counts["all", ""] = counts.pop(("all", ""))
    looks = ("done", "rolled-back", "blocked", "nothing", "violation")
    return [(*key, found.total(), *(found[each] for each in looks)) for key, found in counts.items()]
