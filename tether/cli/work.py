"""Runs a job under a command: progress, signals, and the last word. Imported only by commands that run one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from tether.cli.logs import BOUND
from tether.cli.progress import Progress
from tether.errors import TetherError
from tether.flows.plan import shape
from tether.runner.jobs import Runner
from tether.runner.requests import Accepted

if TYPE_CHECKING:
    from tether.cli.main import Tether
    from tether.persistence.ledger import Job
    from tether.runner.world import World

SIGNALLED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def carry_out(
    app: Tether, world: World, title: str, start: Callable[[Runner], Accepted], *, several: bool = False
) -> Job:
    """Get a job from ``start``, run it unless somebody else does, and say how it ended.

    Args:
        several: it runs other jobs, which are shown by their ids.

    Returns:
        The job; its ``exit_code`` is the command's.
    """

    def work(runner: Runner) -> Job:
        accepted = start(runner)
        return runner.run(accepted.job) if accepted.new else runner.wait_for(accepted.job)

    return take_up(app, world, title, work, several=several)


def take_up(
    app: Tether,
    world: World,
    title: str,
    work: Callable[[Runner], Job],
    wanted: str = "",
    *,
    several: bool = False,
) -> Job:
    """Let ``work`` run a job, with progress and signals, and say how it ended, unless that is the ``wanted`` state."""
    with Progress(app.stderr, title, quiet=app.options.verbose_level == 0, by_job=several) as progress:
        runner = Runner(world.tools, world.logbook, progress.watch)
        with _signals(app, progress, runner) as caught:
            try:
                job = work(runner)
            finally:
                runner.close()
    return job if job.state == wanted else conclude(app, job, caught)


def take_up_many(app: Tether, world: World, jobs: Sequence[Job], parallel: int, *, fenced: bool) -> list[Job]:
    """Resume several jobs, so many at a time, and say how each ended that did not end well.

    Ctrl-C and SIGTERM leave those under way to be resumed, and the others as they are.
    """
    title = f"resume {len(jobs)} jobs"
    with Progress(app.stderr, title, quiet=app.options.verbose_level == 0, by_job=True) as progress:
        runner = Runner(world.tools, world.logbook, progress.watch)
        with _signals(app, progress, runner, several=True) as caught:
            try:
                results = runner.resume_all(jobs, parallel, fenced=fenced, begin=lambda job: BOUND.here(job.request_id))
            finally:
                runner.close()
    return [_concluded(app, job, result, caught) for job, result in zip(jobs, results, strict=True)]


def _concluded(app: Tether, job: Job, result: Job | TetherError, caught: list[int]) -> Job:
    if isinstance(result, TetherError):
        app.report(result)
        return replace(job, exit_code=result.exit_code)
    return conclude(app, result, caught)


def conclude(app: Tether, job: Job, caught: list[int]) -> Job:
    """Print what is to be known of a job that did not end well, and what to run next."""
    if job.state == "running":
        app.say(f"tether: job {job.id} was interrupted; nothing was undone")
        app.say(f"next: tether job resume {job.id}, or: tether job abort {job.id}")
        return replace(job, exit_code=SIGNALLED.get(signal.Signals(caught[-1]), 1) if caught else 1)
    if job.exit_code and job.error:
        app.say(f"tether: {_told(job.error)}")
        if job.state == "blocked":
            if reason := job.error.get("reason"):
                app.say(f"tether: it was being undone because: {_told(reason)}")
            app.say(f"tether: job {job.id} is blocked; what it holds stays as it is")
        hint = job.error.get("hint", "")
        if job.state == "blocked" and "tether job" not in hint:
            hint = f"{hint}; then: " * bool(hint) + f"tether job resume {job.id}"
            flows = shape(job.kind, job.version, job.params)
            if job.step not in {step.code for flow in flows if not flow.revertible for step in flow.steps}:
                hint += f", or: tether job abort {job.id}"
        app.say(f"next: {hint or f'tether job show {job.id}'}")
    return job


def _told(error: Mapping[str, Any]) -> str:
    """Return a stored error as people read it."""
    step = error.get("step", "").partition("/")[0]
    return f"{error['message']} (at {step})" if step else str(error["message"])


@contextmanager
def _signals(app: Tether, progress: Progress, runner: Runner, *, several: bool = False) -> Iterator[list[int]]:
    """Ctrl-C rolls back (before the pivot); a second one, or SIGTERM, leaves the job to be resumed.

    Of several jobs none is rolled back for a Ctrl-C: nobody can tell which one was meant.
    """
    caught: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if not runner.runs:  # nothing of ours is under way: we may be waiting for another's job
            raise SystemExit(SIGNALLED[signal.Signals(number)])
        if number == signal.SIGINT and caught.count(signal.SIGINT) == 1 and not several:
            runner.cancel()
            tell("rolling back, unless the guest has the volume already; Ctrl-C again leaves it to be resumed")
        else:
            runner.stop()
            tell("stopping; what is not finished can be resumed")

    def tell(text: str) -> None:
        if not progress.tell(text):
            # It may have cut into a print of the same stream, which is not to be entered twice.
            with suppress(OSError):  # nobody reads it any more: no reason to end the job otherwise
                os.write(app.stderr.fileno(), f"tether: {text}\n".encode())

    before = {number: signal.signal(number, on_signal) for number in SIGNALLED}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
