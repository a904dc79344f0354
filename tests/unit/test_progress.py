"""The live display: it and the log lines above it take turns."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator

import pytest

from tether.cli.progress import Progress

LIMIT = 10.0  # seconds


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[Terminal]]:
    """The handler of log lines for the terminal."""
    made = logging.StreamHandler(Terminal())
    logging.getLogger().addHandler(made)
    yield made
    logging.getLogger().removeHandler(made)


def test_a_frame_is_drawn_only_while_no_log_line_is_written(handler: logging.StreamHandler[Terminal]) -> None:
    drawn = threading.Event()
    with Progress(handler.stream, "attach") as progress:
        progress._live.refresh = drawn.set
        with handler.lock:
            drawn.clear()  # of a frame that was begun before
            assert not drawn.wait(0.5), "a frame in the middle of a log line"
        assert drawn.wait(LIMIT), "and none after it"
