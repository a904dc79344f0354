"""``tether repair``: what an audit finds is put right by jobs, as far as that is safe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tether.audit.drift import Kind
from tether.cli.base import Lister

if TYPE_CHECKING:
    from tether.audit.drift import Drift
    from tether.audit.repair import Action, Plan
    from tether.audit.survey import Survey
    from tether.persistence.ledger import Job
    from tether.runner.jobs import Runner
    from tether.runner.world import World

DRIFT = 7
BLOCKED = 4
SIGNALLED = (130, 143)
COLUMNS = ("action", "volume", "server", "drift", "text", "result")
DETAILS = ("volume_id", "server_id", "job")


class Repairing(Lister):
    """What repairs have in common: the jobs that a plan asks for, and the table of what came of them.

    Attributes:
        drifts: the kinds that it is about; empty for all.
        agreed: what is said when nothing is left of them.
    """

    fields = (*COLUMNS, *DETAILS)
    drifts: frozenset[Kind] = frozenset()
    agreed = "all books agree"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.set_defaults(fit_width=True)  # on a terminal: texts are sentences
        return parser

    def go(
        self, parsed_args: argparse.Namespace, *, volume: str, server: str, apply: bool
    ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Read the books, carry out what is planned, and return the table; sets the exit code.

        Args:
            volume, server: only of these; empty for all.
            apply: carry it out.
        """
        self.volume, self.server = volume, server
        self.results: dict[tuple[str, ...], tuple[Action, str, str]] = {}
        with self.world(connects=apply) as world:
            survey, plan = self._look(world)
            if apply:
                survey, plan = self._apply(world, survey, plan)
        for item in survey.unread:
            self.app.say(f"tether: unread: {item.book}, {item.what}: {item.reason}")
        rows = [*self._rows(plan, applied=apply)]
        if not self.exit_code:
            self.exit_code = DRIFT if plan.actions or plan.left or survey.unread else 0
        self.app.say(f"tether: {self._verdict(plan, survey, applied=apply)}")
        wanted = self.fields if self.is_machine or set(parsed_args.columns) - set(COLUMNS) else COLUMNS
        return wanted, [tuple(row[name] for name in wanted) for row in rows]

    def _look(self, world: World) -> tuple[Survey, Plan]:
        from tether.audit import names
        from tether.audit.kinds import judge
        from tether.audit.repair import make_plan
        from tether.audit.survey import read_survey

        survey = read_survey(world.tools)
        volume = names.find(survey, "volume", self.volume) if self.volume else ""
        server = names.find(survey, "server", self.server) if self.server else ""
        drifts = [
            drift
            for drift in judge(survey)
            if volume in {"", drift.volume_id}
            and server in {"", drift.server_id}
            and (not self.drifts or drift.kind in self.drifts)
        ]
        return survey, make_plan(survey, drifts)

    def _apply(self, world: World, survey: Survey, plan: Plan) -> tuple[Survey, Plan]:
        """Run what is planned, read the books again, and so on while there is something that was not tried."""
        from tether.errors import NotFound

        while True:
            made = {job_id for _action, _result, job_id in self.results.values() if job_id}
            todo = [action for action in plan.actions if action.key not in self.results and action.job_id not in made]
            if not todo:
                return survey, plan
            for action in todo:
                self._carry_out(world, survey, action)
                if self.exit_code in SIGNALLED:
                    return survey, plan
            try:
                survey, plan = self._look(world)
            except NotFound:  # what was asked for is gone with the last book that knew it
                return survey, type(plan)((), ())

    def _carry_out(self, world: World, survey: Survey, action: Action) -> None:
        from tether.audit.repair import make_job
        from tether.cli.work import take_up
        from tether.errors import TetherError

        title = f"{action.kind} {survey.volume_name(action.volume_id)}"

        def work(runner: Runner) -> Job:
            if action.job_id:
                return runner.resume(world.tools.ledger.job(action.job_id))
            return runner.run(make_job(runner, survey, action))

        try:
            job = take_up(self.app, world, title, work)
        except TetherError as error:
            self.app.report(error)
            self.results[action.key] = action, f"not done: {error.message}", ""
            return
        if job.exit_code in SIGNALLED or job.exit_code == BLOCKED:
            self.exit_code = job.exit_code or 0
        why = f": {job.error['message']}" if job.error and job.exit_code else ""
        self.results[action.key] = action, f"{job.state}{why}", job.id

    def _rows(self, plan: Plan, *, applied: bool) -> Iterator[dict[str, Any]]:
        from tether.audit.repair import JOBS

        for action, result, job_id in self.results.values():
            yield _row(action.drifts[0], action.kind, JOBS[action.kind][1], result, job_id)
        tried = set(self.results)
        for action in plan.actions:
            if not applied:
                yield _row(action.drifts[0], action.kind, JOBS[action.kind][1], "planned", action.job_id)
                continue
            reason = self.results[action.key][1] if action.key in tried else "see the job above"
            for drift in action.drifts:
                yield _row(drift, "stays", drift.text, reason)
        for left in plan.left:
            yield _row(left.drift, "stays", left.drift.text, left.reason)

    def _verdict(self, plan: Plan, survey: Survey, *, applied: bool) -> str:
        stays = sum(len(action.drifts) for action in plan.actions) * applied + len(plan.left)
        if not applied:
            jobs = _count(len(plan.actions), "job")
            return f"{jobs} planned, {_count(stays, 'drift')} stay" if plan.actions or stays else self._nothing(survey)
        done = _count(len(self.results), "job")
        return f"{done} run; {_count(stays, 'drift')} left" if stays else f"{done} run; {self._nothing(survey)}"

    def _nothing(self, survey: Survey) -> str:
        return "no drift in what could be read" if survey.unread else self.agreed


class Repair(Repairing):
    """Put right what tether audit finds, by jobs like any other; show the plan unless --apply is given.

    Nothing that a guest or the host may be using is freed, and nothing that is not tether's own is touched: it is
    listed with the reason why it stays. Exit code 0 if nothing is to be done or is left, 7 if something is, 4 if a
    job ended blocked.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--plan", action="store_true", help="show what would be done; nothing is changed (default)")
        what.add_argument("--apply", action="store_true", help="do it, then read the books again")
        parser.add_argument("--server", default="", metavar="SERVER", help="only of this server: its UUID or name")
        parser.add_argument("--volume", default="", metavar="VOLUME", help="only of this volume: its id or name")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        return self.go(parsed_args, volume=parsed_args.volume, server=parsed_args.server, apply=parsed_args.apply)


class Reconnect(Repairing):
    """Connect what this host has lost with a reboot: devices, links and dm-crypt, as Cinder says now.

    For the boot of a host, before its guests start. A job that the reboot interrupted, or that was blocked before, is
    taken up first. Exit code 0 if nothing is to be done or is left, 7 if something is, 4 if a job ended blocked.
    """

    drifts = frozenset({Kind.BLOCKED_JOB, Kind.INTERRUPTED_JOB, Kind.MISSING_DEVICE, Kind.STALE_CONNECTION})
    agreed = "what is attached is connected"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--server", default="", metavar="SERVER", help="only of this server: its UUID or name")
        which.add_argument("--all", action="store_true", help="of every server of this host")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        return self.go(parsed_args, volume="", server=parsed_args.server, apply=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _row(drift: Drift, action: str, text: str, result: str, job: str = "") -> dict[str, Any]:
    return {
        "action": action,
        "volume": drift.volume,
        "server": drift.server,
        "drift": str(drift.kind),
        "text": text,
        "result": result,
        "volume_id": drift.volume_id,
        "server_id": drift.server_id,
        "job": job,
    }
