"""The channel to a guest: its emulated UART loses lines, and what has come must be known to be whole."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.world.console import Console, ConsoleError

OUTPUT = "first\nsecond"
WHOLE = "{id} first\n{id} second\n{id} END {code} 12\n"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., Console]]:
    """Return a console whose guest gives these answers, one for each time that the command comes."""
    path = tmp_path / "channel"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def start(*answers: str, code: int = 0) -> Console:
        threading.Thread(target=_answer, args=(listening, answers, code), daemon=True).start()
        return Console(path, tmp_path / "log")

    yield start
    listening.close()


def _answer(listening: socket.socket, answers: tuple[str, ...], code: int) -> None:
    channel, _ = listening.accept()
    with channel, channel.makefile("r") as lines:
        left = list(answers)
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "run" and left:
                channel.sendall(left.pop(0).format(id=rest.split()[0], code=code).encode())


def test_an_answer_without_losses(guest: Callable[..., Console]) -> None:
    assert guest(WHOLE).run("x") == OUTPUT


def test_a_command_without_output(guest: Callable[..., Console]) -> None:
    assert guest("{id} END 0 0\n").run("x") == ""


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param("{id} second\n{id} END 0 12\n", id="the first line"),
        pytest.param("t\n{id} second\n{id} END 0 12\n", id="the beginning of the first"),
        pytest.param("{id} first\n{id} con\n{id} END 0 12\n", id="a part within"),
        pytest.param("{id} first\n{id} second\n", id="the end"),
        pytest.param("", id="all"),
    ],
)
def test_what_was_lost_is_asked_for_again(guest: Callable[..., Console], cut: str) -> None:
    assert guest(cut, WHOLE).run("x", timeout=10) == OUTPUT


def test_what_never_comes_whole_is_no_answer(guest: Callable[..., Console]) -> None:
    with pytest.raises(ConsoleError, match="no answer"):
        guest("{id} second\n{id} END 0 12\n").run("x", timeout=1.5)


def test_a_command_that_failed(guest: Callable[..., Console]) -> None:
    with pytest.raises(ConsoleError, match="ended with 3"):
        guest(WHOLE, code=3).run("x")
