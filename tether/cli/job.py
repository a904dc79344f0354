"""``tether job``: list, show, resume, abort and settle."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tether.cli.base import JOB_FIELDS, Lister, Reported, ShowOne, job_fields, job_state, moment
from tether.cli.consent import add_force, is_forced
from tether.cli.printable import Lines

if TYPE_CHECKING:
    from tether.persistence.ledger import Job, Ledger
    from tether.runner.world import Books

COLUMNS = ("job", "kind", "state", "volume", "server", "step", "created")


#: Of a number on the command line: no more fit into every database and thread pool.
MOST_DIGITS = 9


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {'9' * MOST_DIGITS}")
    return int(text)


class ListJobs(Lister):
    """List jobs, the newest first. Exit 4 if a row of the ledger is damaged: the others are listed."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--open", action="store_true", help="only those that have not ended")
        parser.add_argument("--limit", type=positive, default=50, metavar="N", help="at most so many; default: 50")
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
                for job in book.ledger.list_jobs(
                    open_only=parsed_args.open, limit=parsed_args.limit, damaged=self.damaged
                )
            ]
        return COLUMNS, rows


def _reached(book: Books, job: Job) -> str:
    """Return the step that an open job is at: the one that runs, or that was cut off."""
    busy = {"RUNNING", "REVERTING"}
    return next((atom.name for detail in book.logbook.flows(job.id) for atom in detail if atom.state in busy), "")


def find_job(ledger: Ledger, name: str, *, last: bool) -> Job:
    """Return the job that the words name."""
    from tether.errors import UsageError

    if bool(name) == last:
        raise UsageError("name one job", hint="give JOB (the beginning of its id is enough), or --last")
    if not last:
        return ledger.job(name)
    from tether.runner.whole import find

    newest = ledger.last_job()
    return (find(ledger, newest.params.whole) if newest.params.whole else None) or newest


def whole(command: Reported, ledger: Ledger, job: Job) -> Job:
    """Return the job to take up: the open one that a job is a part of, or itself."""
    from tether.runner.whole import whole_of

    found = whole_of(ledger, job)
    if found.id != job.id:
        command.app.say(f"tether: job {job.id} is a part of job {found.id}, which is taken up")
    return found


class _OneJob(ShowOne):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("job", nargs="?", default="", metavar="JOB", help="the job's id, or the beginning of it")
        parser.add_argument("--last", action="store_true", help="the newest job")
        return parser


class ShowJob(_OneJob):
    """Show a job: what it is about, how it stands, and its steps."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.runner.whole import parts_of

        with self.ledger() as book:
            job = find_job(book.ledger, parsed_args.job, last=parsed_args.last)
            fields = job_fields(job, live=book.is_live(job))
            mark = _owner_mark(book, job)
            parts = [f"{part.id} {part.volume_name} {part.state}" for part in parts_of(book.ledger, job)]
            steps = _in_order(job, [(a.name, a.state) for detail in book.logbook.flows(job.id) for a in detail])
        fields |= {
            "request_id": job.request_id,
            "owner_mark": mark,
            "dialect": job.params.dialect,
            "data_path": job.params.data_path,
            "mode": job.params.mode,
            "forced": FORCED[job.params.force],
            "whole": job.params.whole,
            "parts": parts if self.is_machine else Lines("\n".join(parts)),
            "step": job.step,
            "steps": [f"{name} {state}" for name, state in steps] if self.is_machine else _steps(steps),
            "error": job.error["message"] if job.error else "",
            "because": job.error["reason"]["message"] if job.error and job.error.get("reason") else "",
            "hint": job.error.get("hint", "") if job.error else "",
            "attempts": job.attempts,
            "runner": str(job.runner) if job.runner else "",
            "settled": _settled(job),
            "created": moment(job.created_at),
            "updated": moment(job.updated_at),
            "finished": moment(job.finished_at),
        }
        return tuple(fields), tuple(fields.values())


def _owner_mark(book: Books, job: Job) -> str:
    """Return the mark that the attachment of an attach carries, or that a detach is about; empty if there is none."""
    if job.kind == "attach":
        return job.owner if job.params.owner_mark else ""
    mapping = book.ledger.mapping(job.volume_id, job.server_id)
    return mapping.owner_mark if mapping is not None else ""


def _settled(job: Job) -> str:
    said = job.settled
    return f"as {said['as']} by {said['by']} at {moment(said['at'])}: {said['reason']}" if said else ""


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
    return Lines("\n".join(f"{name.partition('/')[0]}: {state.lower()}" for name, state in steps))


#: By what a job is forced, as it is shown.
FORCED = {"": "", "request": "by its request", "resume": "by a resume"}
RESUMED = ("job", "kind", "state", "volume", "server", "exit_code")
#: Exit codes from the one that an operator must know first to the one that needs nothing.
GRAVEST = (4, 1, 5, 6, 2, 143, 130, 3, 0)


class ResumeJob(Lister):
    """Take interrupted or blocked jobs up again, each in the direction it had; return the job's own exit code.

    Of several jobs the gravest code: 4, then 1, 5, 6, 2, 3, 0. With --force one detach becomes a forced one, for good.
    """

    fields = RESUMED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("jobs", nargs="*", metavar="JOB", help="the job's id, or the beginning of it")
        parser.add_argument("--last", action="store_true", help="the newest job")
        parser.add_argument("--all", action="store_true", help="all of this host that nobody works on")
        parser.add_argument("--parallel", type=positive, default=8, metavar="N", help="so many at a time; default: 8")
        parser.add_argument(
            "--fenced",
            action="store_true",
            help="also from a runner that cannot be seen from here: its container or host is known to be down for good",
        )
        add_force(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        from tether.errors import UsageError
        from tether.runner.force import resume_forced
        from tether.runner.jobs import Runner
        from tether.runner.whole import whole_of

        forced = is_forced(parsed_args)
        if forced and (parsed_args.all or len(parsed_args.jobs) > 1):
            raise UsageError("--force is for one job", hint="name the detach whose writes may be lost, or give --last")
        if [bool(parsed_args.jobs), parsed_args.last, parsed_args.all].count(True) != 1:
            raise UsageError("name the jobs", hint="give JOB… (the beginning of an id is enough), --last, or --all")
        with self.ledger() as book:
            if parsed_args.all:
                listed = book.ledger.list_jobs(open_only=True, limit=None, damaged=self.damaged)
                found = [whole_of(book.ledger, job) for job in listed if not book.is_live(job)][::-1]
            else:
                named = [find_job(book.ledger, name, last=parsed_args.last) for name in parsed_args.jobs or [""]]
                found = [whole(self, book.ledger, job) for job in named]
            jobs = list({job.id: job for job in found}.values())
        with self.world(jobs[0].request_id if len(jobs) == 1 else "", connects=True) as world:
            from tether.cli.work import take_up, take_up_many

            if parsed_args.all:
                here = world.tools.host.identity().machine_id
                others = [job for job in jobs if job.place.machine_id != here]
                jobs = [job for job in jobs if job.place.machine_id == here]
                if others:
                    self.app.say(f"tether: {len(others)} jobs are other hosts' to resume")
                if not jobs:
                    self.app.say("tether: there is nothing to resume")
                    return RESUMED, []
            if len(jobs) == 1:
                title = f"resume {jobs[0].kind} of {jobs[0].volume_name} · {jobs[0].server_name}"
                resume = resume_forced if forced else Runner.resume

                def work(runner: Runner) -> Job:
                    return resume(runner, jobs[0], fenced=parsed_args.fenced)

                ended = [take_up(self.app, world, title, work, several=bool(jobs[0].params.volumes))]
            else:
                ended = take_up_many(self.app, world, jobs, parsed_args.parallel, fenced=parsed_args.fenced)
            now = world.tools.clock.time()
        codes = [self.exit_code, *(job.exit_code or 0 for job in ended)]
        self.exit_code = min(codes, key=GRAVEST.index)
        return RESUMED, [
            (job.id, job.kind, job_state(job, live=job.is_live(now)), job.volume_name, job.server_name, job.exit_code)
            for job in ended
        ]


class AbortJob(_OneJob):
    """Roll an interrupted, running or blocked job back; exit 0 once it is rolled back.

    The runner of a running job is asked to stop first, which it does before its next step.
    """

    fields = JOB_FIELDS

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        with self.ledger() as book:
            job = whole(self, book.ledger, find_job(book.ledger, parsed_args.job, last=parsed_args.last))
        with self.world(job.request_id, connects=True) as world:
            from tether.cli.work import take_up

            title = f"abort {job.kind} of {job.volume_name} · {job.server_name}"
            several = bool(job.params.volumes)
            job = take_up(self.app, world, title, lambda runner: runner.abort(job), "rolled-back", several=several)
        self.exit_code = 0 if job.state == "rolled-back" else job.exit_code or 1
        fields = job_fields(job, live=False)
        return tuple(fields), tuple(fields.values())


class SettleJob(_OneJob):
    """End a blocked job by your word, once you have put right by hand what it could not.

    The five books are read first; what contradicts you is named, and nothing is changed (exit 4). Your name, the time
    and the reason are kept with the job. Nothing but the ledger is changed.
    """

    fields = JOB_FIELDS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--as",
            dest="end",
            required=True,
            choices=("attached", "clean"),
            help="the volume is attached, as all books say; or nothing is left of it on this server",
        )
        parser.add_argument("--reason", required=True, metavar="TEXT", help="kept with the job")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.audit.settle import settle
        from tether.runner.jobs import Runner

        with self.ledger() as book:
            job = find_job(book.ledger, parsed_args.job, last=parsed_args.last)
        with self.world(job.request_id) as world:
            runner = Runner(world.tools, world.logbook)
            try:
                job = settle(runner, job, parsed_args.end, parsed_args.reason)
            finally:
                runner.close()
        fields = job_fields(job, live=False)
        return tuple(fields), tuple(fields.values())
