"""Where log lines go: stderr as the verbosity says, and a file; plain or as JSON, without secrets."""

from __future__ import annotations

import argparse
import logging
import threading
from typing import IO, Any

from tether.cli.printable import one_line, printable
from tether.errors import ConfigError
from tether.sealed import mask

#: What is shown on the console: nothing but warnings, unless asked for.
CONSOLE = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO}
#: Libraries that would repeat what tether says itself, or print bodies with secrets, at lower levels.
QUIET = ("taskflow", "keystoneauth", "cinderclient", "stevedore", "urllib3", "cliff", "openstack", "alembic", "asyncio")


class Bound(logging.Filter):
    """Gives every log line the request id of the job that the command is about: Cinder's logs have the same one.

    A filter, and no context variable: a flow's steps may run in threads of a pool, which have a context of their own.
    A command about several jobs has one for each thread that runs a job.
    """

    request_id = "-"

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()

    def here(self, request_id: str) -> None:
        """Set the request id of this thread's lines."""
        self._of_thread.request_id = request_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = getattr(self._of_thread, "request_id", self.request_id)
        return True


BOUND = Bound()


class Plain(logging.Formatter):
    """Lines of text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))  # a traceback has lines of its own

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return one_line(super().formatMessage(record))


def configure(options: argparse.Namespace, stderr: IO[str]) -> None:
    """Install the handlers that the global options ask for."""
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "taskflow" else logging.WARNING)
    console = logging.StreamHandler(stderr)
    console.setLevel(logging.DEBUG if options.debug else CONSOLE.get(options.verbose_level, logging.DEBUG))
    handlers: list[logging.Handler] = [console]
    if options.log_file:
        try:
            file = logging.FileHandler(options.log_file)
        except OSError as error:
            raise ConfigError(
                f"the log file cannot be written: {error}", hint="give --log-file another path"
            ) from error
        file.setLevel(logging.DEBUG if options.debug else logging.INFO)
        handlers.append(file)
    for handler in handlers:
        handler.setFormatter(_Masked(_formatter(options, console=handler is console)))
        handler.addFilter(BOUND)
        root.addHandler(handler)


class _Masked(logging.Formatter):
    """A formatter whose lines hold no secret, whatever a foreign library has put into a message or an exception."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return mask(self._inner.format(record))


def _formatter(options: argparse.Namespace, *, console: bool) -> logging.Formatter:
    if options.log_json:
        import structlog

        processors: list[Any] = [
            structlog.stdlib.ExtraAdder(allow=["request_id"]),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ]
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    if console and not options.debug:
        return Plain("%(levelname)s: %(message)s")
    return Plain("%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s")
