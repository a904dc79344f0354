"""``tether --help`` is quick: it imports nothing heavy and costs little more than cliff itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import ROOT

HEAVY = (
    "taskflow",
    "os_brick",
    "libvirt",
    "eventlet",
    "sqlalchemy",
    "openstack",
    "cinderclient",
    "networkx",
    "cryptography",
)
ROUNDS = 9

TETHER = "import sys; sys.argv = ['tether', '--help']; from tether.cli.main import main; sys.exit(main())"
EMPTY = """
import sys
from cliff.app import App
from cliff.commandmanager import CommandManager
app = App("an empty program", "1", CommandManager("no.commands.here"))
sys.exit(app.run(["--help"]))
"""
DUMP = f"""
import atexit, sys
tops = lambda: sorted(name for name, module in sys.modules.items() if "." not in name and module)
atexit.register(lambda: print("imported:", *tops()))
{TETHER}
"""


def _run(script: str, **environment: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return set(_run(DUMP).rpartition("imported:")[2].split())


@pytest.mark.parametrize("name", HEAVY)
def test_help_does_not_import(imported: set[str], name: str) -> None:
    assert "cliff" in imported  # the list is a real one
    assert name not in imported


def _cpu_seconds(script: str, byte_code: Path) -> float:
    """Return user and system time of one run: steady where the clock on the wall is not.

    Args:
        script: what to run.
        byte_code: where the byte code is, as in an installed program; else each run compiles what a machine without
            writable caches (``PYTHONDONTWRITEBYTECODE``) has not kept.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(script, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(byte_code))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_help_costs_little_more_than_an_empty_program(
    at_most: Callable[[str, float, str, float], None], tmp_path: Path
) -> None:
    """Compare the quickest of several interleaved runs: noise only ever adds."""
    for script in (EMPTY, TETHER):
        _cpu_seconds(script, tmp_path)  # writes the byte code
    rounds = [(_cpu_seconds(EMPTY, tmp_path), _cpu_seconds(TETHER, tmp_path)) for _ in range(ROUNDS)]
    empty, ours = (min(column) for column in zip(*rounds, strict=True))
    at_most("tether --help against an empty cliff program", ours / empty, "x", 1.3)
