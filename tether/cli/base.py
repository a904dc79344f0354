"""What every command shares: errors become messages and exit codes, jobs become rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliff import command, lister, show

from tether.errors import TetherError

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

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; return its exit code."""
        try:
            code: int = super().run(parsed_args)  # type: ignore[misc]  # cliff's, by the order of the bases
        except TetherError as error:
            self.app.report(error)
            return error.exit_code
        return self.exit_code or code

    @property
    def sim(self) -> Path | None:
        """The embedded world's directory, if one was asked for."""
        return Path(self.app.options.sim) if self.app.options.sim else None

    @contextmanager
    def world(self, request_id: str = "") -> Iterator[World]:
        """Open the world of the global options."""
        from tether.runner.world import open_world

        with open_world(self.app.settings(), sim=self.sim, request_id=request_id) as world:
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


class Command(Reported, command.Command):  # type: ignore[misc]  # two `run`s, on purpose
    """A command without a result to format."""


class Lister(Reported, lister.Lister):  # type: ignore[misc]  # two `run`s, on purpose
    """A command whose result is a table."""


class ShowOne(Reported, show.ShowOne):  # type: ignore[misc]  # two `run`s, on purpose
    """A command whose result is one object."""


def moment(seconds: float | None) -> str:
    """Return a time as text, in UTC, or empty."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_state(job: Job, *, live: bool) -> str:
    """Return the job's state; *interrupted* is a running one that nobody works on."""
    return "interrupted" if job.state == "running" and not live else job.state


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
