"""The program: global options, logging, and the exit code of whatever goes wrong.

Nothing heavy is imported here or by any module of a command: ``tether --help`` loads them all.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliff.app import App
from cliff.commandmanager import CommandManager

from tether.cli.printable import one_line
from tether.errors import TetherError, UsageError
from tether.sealed import mask

if TYPE_CHECKING:
    from tether.settings import Settings

DESCRIPTION = """Attach Cinder volumes to libvirt/KVM guests so that nothing is ever left half done.

Exit codes: 0 done; 1 unexpected error; 2 usage, configuration or conflict; 3 not done and nothing left;
4 blocked, operator needed; 5 held by another runner; 6 no such thing; 7 drift found; 130 and 143 signals."""


#: The file descriptor of stderr, the last of the standard streams.
STDERR = 2


class Tether(App):
    """The command-line program."""

    NAME = "tether"

    def __init__(self) -> None:
        # Deferred, so that `tether attach --help` is the command's help and not the program's.
        super().__init__(DESCRIPTION, version("tether"), CommandManager("tether.commands"), deferred_help=True)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        parser = super().build_option_parser(
            description,
            version,
            {"formatter_class": argparse.RawDescriptionHelpFormatter, "prog": "tether"} | (argparse_kwargs or {}),
        )
        group = parser.add_argument_group("the world to work in")
        group.add_argument("--config-file", metavar="FILE", help="settings; default /etc/tether/tether.conf")
        group.add_argument("--os-cloud", metavar="NAME", help="the cloud in clouds.yaml; default OS_CLOUD, or OS_*")
        group.add_argument("--sim", metavar="DIR", help="work in an embedded world; made on first use")
        group.add_argument("--database", metavar="URL", help="where jobs and mappings are kept (SQLAlchemy URL)")
        parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
        parser.add_argument("--fault", action="append", default=[], metavar="POINT=ACTION", help=argparse.SUPPRESS)
        return parser

    def configure_logging(self) -> None:
        from tether.cli.logs import configure

        with self._refusing():
            configure(self.options, self.stderr)

    def initialize_app(self, argv: list[str]) -> None:
        with self._refusing():
            for name in ("config_file", "os_cloud", "sim", "database"):
                # `--sim "$WORLD"` with WORLD unset would otherwise go to the cloud of the environment.
                if getattr(self.options, name) == "":
                    option = f"--{name.replace('_', '-')}"
                    raise UsageError(f"{option} is empty", hint=f"give it a value, or leave {option} out")
            for spec in self.options.fault:
                from tether import faults

                faults.arm(spec)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """End the program at a TetherError, as a wrong option does; cliff would make it exit code 1."""
        try:
            yield
        except TetherError as error:
            self.report(error)
            raise SystemExit(error.exit_code) from error

    def interact(self) -> None:
        raise UsageError("there is no command to run", hint="see: tether --help")

    def run_subcommand(self, argv: list[str]) -> int:
        helps = argv[0] == "help" and len(argv) > 1
        words = argv[1:] if helps else argv
        names = sorted(name for name, _command in self.command_manager)
        try:
            self.command_manager.find_command(words)
        except ValueError as error:  # cliff prints its suggestions on stdout, and ends a help with 1
            if words[0].startswith("-"):
                raise UsageError(f"tether has no option {words[0]}", hint="see: tether --help") from error
            group = [name for name in names if name.startswith(f"{words[0]} ")]
            if not helps or not group:
                wanted = ", ".join(f"tether {name}" for name in group or self.get_fuzzy_matches(words[0]))
                raise UsageError(
                    f"{' '.join(words)!r} is not a tether command", hint=f"perhaps {wanted}; or see: tether --help"
                ) from error
        code: int = super().run_subcommand(argv)
        return code

    def settings(self) -> Settings:
        """Return the settings: the file, the environment, then the command line."""
        from tether.settings import load

        settings = load(self.options.config_file or os.environ.get("TETHER_CONFIG_FILE"))
        changes: dict[str, Any] = {}
        if self.options.os_cloud:
            changes["os_cloud"] = self.options.os_cloud
        if self.options.database:
            changes["database"] = self.options.database
        settings = settings.but(**changes)
        if self.options.sim:
            from tether.sim.world import ensure, fit

            ensure(Path(self.options.sim))
            settings = fit(settings, Path(self.options.sim))
        return settings

    def say(self, text: str) -> None:
        """Print a line for people, on stderr; a stderr that cannot be written changes nothing else."""
        with suppress(OSError):
            print(one_line(mask(text)), file=self.stderr)

    def report(self, error: TetherError) -> None:
        """Print what went wrong and what to do next."""
        self.say(f"tether: {error.message}")
        if error.hint:
            self.say(f"next: {error.hint}")


def _fill_closed_streams() -> None:
    """Put /dev/null where the caller closed a standard stream; the next file opened would take its place."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we run


def _is_text(word: str) -> bool:
    """Return False for a word whose bytes are no UTF-8: no database and no URL can hold it."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    _fill_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 is no reason to lose a result
        sys.stdout.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    # os-brick brings eventlet along, and oslo.utils imports it only to ask whether it has patched anything.
    sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # None makes the import fail
    program = Tether()
    for word in words:
        if not _is_text(word):
            program.report(UsageError(f"{word!a} is not valid UTF-8", hint="write it in UTF-8, or give an id"))
            return UsageError.exit_code
    if not words:
        program.parser.print_help(program.stderr)
        return 2
    try:
        return program.run(words)
    except TetherError as error:
        program.report(error)
        return error.exit_code
    finally:
        logging.shutdown()
