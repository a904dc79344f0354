"""``tether job``: list, show, resume and abort."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tether.cli.base import Lister, ShowOne, job_fields, job_state, moment

if TYPE_CHECKING:
    from tether.persistence.ledger import Job, Ledger
    from tether.runner.jobs import Runner
    from tether.runner.world import Books

COLUMNS = ("job", "kind", "state", "volume", "server", "step", "created")


class ListJobs(Lister):
    """List jobs, the newest first."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--open", action="store_true", help="only those that have not ended")
        parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many; default: 50")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        with self.ledger() as book:
            rows = [
                (
                    job.id,
                    job.kind,
                    job_state(job, live=book.is_live(job)),
                    job.volume_name,
                    job.server_name,
                    (job.step or (_reached(book, job) if job.open else "")).partition("/")[0],
                    moment(job.created_at),
                )
                for job in book.ledger.list_jobs(open_only=parsed_args.open, limit=parsed_args.limit)
            ]
        return COLUMNS, rows


def _reached(book: Books, job: Job) -> str:
    """Return the step that an open job is at: the one that runs, or that was cut off."""
    busy = {"RUNNING", "REVERTING"}
    return next((atom.name for detail in book.logbook.flows(job.id) for atom in detail if atom.state in busy), "")


def find_job(ledger: Ledger, parsed_args: argparse.Namespace) -> Job:
    """Return the job that the words name."""
    from tether.errors import UsageError

    if bool(parsed_args.job) == parsed_args.last:
        raise UsageError("name one job", hint="give JOB (the beginning of its id is enough), or --last")
    return ledger.last_job() if parsed_args.last else ledger.job(parsed_args.job)


class _OneJob(ShowOne):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("job", nargs="?", default="", metavar="JOB", help="the job's id, or the beginning of it")
        parser.add_argument("--last", action="store_true", help="the newest job")
        return parser


class ShowJob(_OneJob):
    """Show a job: what it is about, how it stands, and its steps."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        with self.ledger() as book:
            job = find_job(book.ledger, parsed_args)
            fields = job_fields(job, live=book.is_live(job))
            steps = _in_order(job, [(a.name, a.state) for detail in book.logbook.flows(job.id) for a in detail])
        fields |= {
            "request_id": job.request_id,
            "owner_mark": job.owner if job.params.owner_mark else "",
            "dialect": job.params.dialect,
            "data_path": job.params.data_path,
            "mode": job.params.mode,
            "step": job.step,
            "steps": [f"{name} {state}" for name, state in steps] if self.is_machine else _steps(steps),
            "error": job.error["message"] if job.error else "",
            "hint": job.error["hint"] if job.error else "",
            "attempts": job.attempts,
            "created": moment(job.created_at),
            "updated": moment(job.updated_at),
            "finished": moment(job.finished_at),
        }
        return tuple(fields), tuple(fields.values())

    @property
    def is_machine(self) -> bool:
        """True if the output is for a program."""
        return self.formatter is not None and type(self.formatter).__name__ in {"JSONFormatter", "YAMLFormatter"}


def _in_order(job: Job, steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a job's steps in the order of its flow; as they are stored if this release does not know the flow."""
    from tether.errors import ConflictError
    from tether.flows.plan import shape

    try:
        names = [step.code for flow in shape(job.kind, job.version, job.params) for step in flow.steps]
    except ConflictError:
        return steps
    return sorted(steps, key=lambda step: names.index(step[0]))


def _steps(steps: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name.partition('/')[0]}: {state.lower()}" for name, state in steps)


class _WorkOnJob(_OneJob):
    verb: str

    def work(self, runner: Runner) -> Callable[[Job], Job]:
        """Return what is done with the job."""
        raise NotImplementedError

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.cli.work import take_up

        with self.ledger() as book:
            job = find_job(book.ledger, parsed_args)
        with self.world(job.request_id) as world:
            title = f"{self.verb} {job.kind} of {job.volume_name} · {job.server_name}"
            job = take_up(self.app, world, title, lambda runner: self.work(runner)(job))
        self.exit_code = self.code_of(job)
        fields = job_fields(job, live=False)
        return tuple(fields), tuple(fields.values())

    def code_of(self, job: Job) -> int:
        """Return the command's exit code."""
        return job.exit_code or 0


class ResumeJob(_WorkOnJob):
    """Take an interrupted or blocked job up again; return the job's own exit code."""

    verb = "resume"

    def work(self, runner: Runner) -> Callable[[Job], Job]:
        return runner.resume


class AbortJob(_WorkOnJob):
    """Roll an interrupted or blocked job back; exit 0 once it is rolled back."""

    verb = "abort"

    def work(self, runner: Runner) -> Callable[[Job], Job]:
        return runner.abort

    def code_of(self, job: Job) -> int:
        if job.exit_code == 0:
            self.app.say(f"tether: job {job.id} had nothing left to do: it ended {job.state}")
            self.app.say("next: undo it with its opposite")
        return 0 if job.state == "rolled-back" else job.exit_code or 1
