"""Live progress on a terminal; nothing in a pipe."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Self

from tether.cli.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.matrix.trial import Verdict
    from tether.runner.watch import Event

#: TaskFlow's states of a step, as a person reads them: mark, word, style.
WORDS = {
    "RUNNING": ("…", "running", "cyan"),
    "SUCCESS": ("✓", "done", "green"),
    "FAILURE": ("✗", "failed", "red"),
    "REVERTING": ("…", "undoing", "yellow"),
    "REVERTED": ("↩", "undone", "yellow"),
}
#: A second.
REFRESHES = 12


class Progress:
    """Shows the steps of a job as they change.

    Args:
        stderr: drawn on only if it is a terminal.
        by_job: a row is a job and the step that it is at, instead of a step of the one job.
    """

    def __init__(self, stderr: IO[str], title: str, *, quiet: bool = False, by_job: bool = False) -> None:
        self._by_job = by_job
        self._shown = stderr.isatty() and not quiet
        self._stderr = stderr
        self._heading = self._title = one_line(title)
        self._spinners: dict[str, Any] = {}
        self._rows: dict[str, tuple[str, float]] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._live: Any = None
        self._painter = threading.Thread(target=self._paint, daemon=True)
        self._ended = threading.Event()

    @property
    def watch(self) -> Callable[[Event], None] | None:
        """What a runner calls; None where nothing is shown."""
        return self._on_event if self._shown else None

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=self._table, console=Console(file=self._stderr), auto_refresh=False)
            self._live.start()
            self._log_to(sys.stderr)  # which the display has taken over
            self._painter.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            self._ended.set()
            self._painter.join()
            self._log_to(self._stderr)
            self._live.stop()

    def _paint(self) -> None:
        """Draw the display anew, and never while a log line is written above it.

        rich lets both happen at once: each then moves the cursor by the height that the display had before the other.
        """
        while not self._ended.wait(1 / REFRESHES):
            with ExitStack() as turn:
                for handler in self._handlers():
                    handler.acquire()
                    turn.callback(handler.release)
                self._live.refresh()

    def _log_to(self, stream: IO[str]) -> None:
        """Send log lines for the terminal there: above the display, which would otherwise wipe them out."""
        for handler in self._handlers():
            handler.setStream(stream)

    @staticmethod
    def _handlers() -> list[logging.StreamHandler[Any]]:
        return [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]

    def tell(self, text: str) -> bool:
        """Say something in the title; safe in a signal handler. Return False where nothing is shown."""
        self._title = f"{self._heading}: {text}"
        return self._shown

    def _on_event(self, event: Event) -> None:
        with self._lock:
            seconds = 0.0 if event.state in {"RUNNING", "REVERTING"} else event.seconds
            row = f"{event.job_id[:8]} {event.step}" if self._by_job else event.step
            if self._by_job:
                for other in [name for name in self._rows if name.startswith(event.job_id[:8])]:
                    del self._rows[other]
            self._rows[row] = (event.state, seconds)
            if event.state == "FAILURE":
                self._failed.add(row)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False)
        for step, (state, seconds) in list(self._rows.items()):
            mark, word, style = WORDS.get(state, ("?", state.lower(), ""))
            if step in self._failed and state != "FAILURE":
                mark, word, style = "✗", f"failed, {word}", "red"
            busy = state in {"RUNNING", "REVERTING"}
            table.add_row(
                self._spinners.setdefault(step, Spinner("dots", style=style)) if busy else Text(mark, style=style),
                step.partition("/")[0],
                Text(word, style=style),
                "" if busy else f"{seconds * 1000:.0f} ms",
            )
        # Not the table's own title, which is no wider than its rows.
        return Group(Text(self._title, style="bold"), table)


class Counted:
    """Counts many cases on a terminal, each with how it ended; shows nothing in a pipe."""

    def __init__(self, stderr: IO[str]) -> None:
        self._shown = stderr.isatty()
        self._stderr = stderr
        self._wrong = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(file=self._stderr), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: int | None) -> None:
        """Begin to count."""
        self._wrong = 0
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(what, total=total)

    def count(self, verdict: Verdict) -> None:
        """Count one."""
        self._wrong += bool(verdict.violations)
        if self._bar is not None:
            (task,) = self._bar.task_ids
            wrong = f", [red]{self._wrong} wrong[/red]" if self._wrong else ""
            self._bar.update(task, advance=1, description=f"{one_line(verdict.case)[:70]:70}{wrong}")
