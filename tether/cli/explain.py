"""``tether explain``: the story of one volume, server or job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tether.cli.base import ShowOne, job_state, moment
from tether.cli.printable import Lines, one_line

if TYPE_CHECKING:
    from tether.audit.story import Story
    from tether.persistence.ledger import Job


class Explain(ShowOne):
    """Tell the story of a volume, a server or a job: what each book says, what happened, what to run next.

    Nothing is changed. A job is named by its id or the beginning of it.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.set_defaults(fit_width=True)  # on a terminal: texts are sentences
        parser.add_argument(
            "word", metavar="VOLUME|SERVER|JOB", help="an id, a unique name, or the beginning of a job's id"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.audit.story import tell
        from tether.audit.survey import read_survey

        with self.world() as world:
            survey = read_survey(world.tools)
            story = tell(survey, world.tools.ledger, world.logbook, parsed_args.word)
        for item in survey.unread:
            self.app.say(f"tether: unread: {item.book}, {item.what}: {item.reason}")
        fields = {
            "about": story.subject,
            **{book: self._list(lines, "") for book, lines in story.books.items()},
            "since": moment(story.since),
            "history": self._list(_history(story, survey.at), "no job that is open, or that anything here is from"),
            "verdict": story.verdict,
            "drift": self._list([f"{item.kind}: {item.text}" for item in story.drifts], "none"),
            "next": story.next or "nothing",
        }
        shown = {name: value for name, value in fields.items() if value or self.is_machine}
        return tuple(shown), tuple(shown.values())

    def _list(self, lines: list[str], none: str) -> list[str] | str:
        """Return the lines for a program, or as the text of a table's cell."""
        if self.is_machine:
            return lines
        return Lines("\n".join(one_line(line) for line in lines)) if lines else none


def _history(story: Story, now: float) -> list[str]:
    """Return the jobs, newest first; of the newest its steps, too, if it is what is asked about or has not ended."""
    lines = []
    for job in story.jobs:
        error = f": {job.error['message']}" if job.error else ""
        lines.append(f"{moment(job.created_at)} {_told(job, now)}{error} (job {job.id})")
        if job is not story.jobs[0]:
            continue
        if job.open or story.subject.startswith("job "):
            begin = job.created_at
            lines += [
                f"  +{step.at - begin:.1f} s {step.name}: {step.state.lower()}, {step.took:.1f} s"
                for step in story.steps
            ]
        elif story.steps:
            last = story.steps[-1]
            lines.append(f"  {len(story.steps)} steps, the last {last.name}: {last.state.lower()}")
    return lines


def _told(job: Job, now: float) -> str:
    way = "from" if job.kind == "detach" else "to"
    return f"{job.called} of {job.volume_name} {way} {job.server_name}: {job_state(job, live=job.is_live(now))}"
