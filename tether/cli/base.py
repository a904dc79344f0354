"""What every command shares: errors become messages and exit codes, jobs become rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stevedore
from cliff import command, lister, show

from tether.cli.printable import Lines, one_line, printable
from tether.errors import TetherError, UsageError

if TYPE_CHECKING:
    from tether.cli.main import Tether
    from tether.persistence.ledger import Job
    from tether.persistence.vault import Vault
    from tether.runner.world import Books, World


class Reported:
    """Mixed into a cliff command: a TetherError becomes its message, its hint and its exit code."""

    app: Tether
    #: What the command returns if nothing is raised.
    exit_code = 0
    #: The columns of the result, where they are known beforehand: a wrong ``-c`` is then refused before anything is
    #: done.
    fields: tuple[str, ...] = ()

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser; options are spelt out: ``--all`` of one command is no ``--allow-nova`` of another."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]  # as in `run`
        parser.allow_abbrev = False
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; return its exit code."""
        try:
            if columns := self.columns(parsed_args):
                _check_columns(parsed_args, columns)
            code: int = super().run(parsed_args)  # type: ignore[misc]  # cliff's, by the order of the bases
        except TetherError as error:
            self.app.report(error)
            return error.exit_code
        return self.exit_code or code

    def columns(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        """Return the columns of the result, where they are known beforehand."""
        return self.fields

    def get_epilog(self) -> str:
        """Return nothing: cliff would read the metadata of every installed package to say which one a command is of."""
        return ""

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        """Print the result.

        Raises:
            UsageError: a column was asked for that it does not have.
            TetherError: stdout cannot be written; what was done stays done.
        """
        _check_columns(parsed_args, column_names)
        if parsed_args.formatter == "table":  # the others are for programs, which want the very text
            data = _for_people(data)
        try:
            code: int = super().produce_output(parsed_args, column_names, data)  # type: ignore[misc]  # as in `run`
            self.app.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TetherError(
                f"the result cannot be written: {error.strerror or error}", hint="see: tether job list"
            ) from error
        return code

    def damaged(self, error: TetherError) -> None:
        """Tell of a row of the ledger that cannot be read; the others are shown, and the exit code says so."""
        self.app.report(error)
        self.exit_code = error.exit_code

    @property
    def sim(self) -> Path | None:
        """The embedded world's directory, if one was asked for."""
        return Path(self.app.options.sim) if self.app.options.sim else None

    @contextmanager
    def world(self, request_id: str = "", *, connects: bool = False) -> Iterator[World]:
        """Open the world of the global options.

        Args:
            request_id: the ``global_request_id`` of every call to Cinder.
            connects: the host will be asked for more than what it holds.
        """
        from tether.cli.logs import BOUND

        BOUND.request_id = request_id or "-"
        settings = self.app.settings()
        if connects and not self.sim:
            from tether.adapters.host.brick import prepare

            # Before the rest is imported, so that both happen at the same time.
            prepare(settings)
        from tether.runner.world import open_world

        with open_world(settings, sim=self.sim, request_id=request_id) as world:
            yield world

    @contextmanager
    def ledger(self) -> Iterator[Books]:
        """Open the database alone."""
        from tether.runner.world import open_ledger

        with open_ledger(self.app.settings(), sim=self.sim) as books:
            yield books

    @contextmanager
    def vault(self) -> Iterator[Vault]:
        """Open the database and the keys of its secrets."""
        from tether.runner.world import open_vault

        with open_vault(self.app.settings(), sim=self.sim) as vault:
            yield vault


def _check_columns(parsed_args: argparse.Namespace, column_names: Sequence[str]) -> None:
    """Raise UsageError for a column that is not there; cliff would leave it out, or fail once all is done."""
    asked = [name.lower().strip().replace(" ", "_") for name in parsed_args.columns]
    unknown = [name for name in asked if name not in column_names]
    if unknown:
        raise UsageError(f"there is no column {', '.join(unknown)}", hint=f"one of: {', '.join(column_names)}")


def _for_people(data: Any) -> Any:
    """Return a row, or rows, with the texts made printable, each on one line unless it was made of several."""
    if isinstance(data, str):
        return printable(data) if isinstance(data, Lines) else one_line(data)
    return [_for_people(item) for item in data] if isinstance(data, list | tuple) else data


class Command(Reported, command.Command):  # type: ignore[misc]  # two `run`s, on purpose
    """A command without a result to format."""


@cache
def _formats(namespace: str) -> stevedore.ExtensionManager[Any]:
    """Return the output formats; ``tether --help`` makes every command, and each would look them up anew."""
    return stevedore.ExtensionManager(namespace, invoke_on_load=True)


class _Formatted(Reported):
    """A command with a result to format."""

    formatter_namespace: str
    formatter: Any

    def _load_formatter_plugins(self) -> stevedore.ExtensionManager[Any]:
        return _formats(self.formatter_namespace)

    @property
    def is_machine(self) -> bool:
        """True if the output is for a program, which wants lists as lists."""
        return type(self.formatter).__name__ in {"JSONFormatter", "YAMLFormatter"}


class Lister(_Formatted, lister.Lister):  # type: ignore[misc]  # two `run`s, on purpose
    """A command whose result is a table."""

    formatter_namespace = "cliff.formatter.list"


class ShowOne(_Formatted, show.ShowOne):  # type: ignore[misc]  # two `run`s, on purpose
    """A command whose result is one object."""

    #: cliff's own place would change every other cliff program.
    formatter_namespace = "tether.formats.show"


def moment(seconds: float | None) -> str:
    """Return a time as text, in UTC, or empty."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_state(job: Job, *, live: bool) -> str:
    """Return the job's state; *interrupted* is a running one that nobody works on."""
    return "interrupted" if job.state == "running" and not live else job.state


#: The names of `job_fields`.
JOB_FIELDS = ("job", "kind", "state", "volume", "volume_id", "server", "server_id", "exit_code")


def job_fields(job: Job, *, live: bool) -> dict[str, Any]:
    """Return a job as the fields that ``attach``, ``detach`` and ``job`` show."""
    return {
        "job": job.id,
        "kind": job.kind,
        "state": job_state(job, live=live),
        "volume": job.volume_name,
        "volume_id": job.volume_id,
        "server": job.server_name,
        "server_id": job.server_id,
        "exit_code": job.exit_code,
    }
