"""``tether try``: the main job in a simulated world, every command a process of its own."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tether.cli.base import Command

#: What runs a command: this Python, so that the demonstration shows the tether that it is part of.
PROGRAM = (sys.executable, "-c", "import sys; from tether.cli.main import main; sys.exit(main())")
KILLED = 137
SHOW_CURSOR = "\x1b[?25h"
#: Where the third scene dies: Cinder has exported the volume, and the host does not have it yet.
KILL_AT = "connect-host.act.before"
SHOWN = ("-c", "state", "-c", "volume", "-c", "server")
JOB_COLUMNS = ("kind", "state", "volume", "server", "step")


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of the commands: neither this machine's cloud nor its settings.

    Args:
        directory: where an empty configuration file is made.
    """
    settings = directory / "tether.conf"
    settings.touch()
    mine = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    return mine | {"PYTHONUNBUFFERED": "1", "TETHER_CONFIG_FILE": str(settings)}


@dataclass
class Stage:
    """Where the scenes play.

    Args:
        directory: of the simulated world, which is made on first use.
        out: where commands, their output and their exit codes are printed.
        wrong: what did not end as it should.
    """

    directory: Path
    out: IO[str]
    wrong: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Print a scene's heading."""
        bold, plain = ("\x1b[1m", "\x1b[0m") if self.out.isatty() else ("", "")
        self._print(f"\n{bold}# {text}{plain}\n")

    def run(self, *words: str, code: int = 0) -> None:
        """Run a command, showing it, its output and its exit code, which should be ``code``."""
        shown = shlex.join(["tether", "--sim", self.directory.name, *words])
        self._print(f"$ {shown}")
        on_terminal = self.out.isatty()
        done = subprocess.run(
            [*PROGRAM, "--sim", self.directory.name, *words],
            cwd=self.directory.parent,
            env=environment(self.directory.parent),
            check=False,
            text=True,
            # On a terminal the command draws its own progress there.
            stdout=None if on_terminal else subprocess.PIPE,
            stderr=None if on_terminal else subprocess.STDOUT,
        )
        if done.stdout:
            self._print(done.stdout.rstrip("\n"))
        ended = 128 - done.returncode if done.returncode < 0 else done.returncode
        if ended == KILLED and on_terminal:
            self._print(SHOW_CURSOR)  # which a live display hides, and ends no line
        self._print(f"[exit {ended}{' (SIGKILL)' if ended == KILLED else ''}]")
        if ended != code:
            self.wrong.append(f"`{shown}` ended with {ended} instead of {code}")

    def expect(self, volume: str, state: str) -> None:
        """Note it as wrong unless the volume has this status in Cinder's own book."""
        from tether.sim.world import contents

        for what, name, _id, found, _details in contents(self.directory):
            if (what, name) == ("volume", volume) and found != state:
                self.wrong.append(f"volume {volume} is {found}, not {state}")

    def _print(self, text: str) -> None:
        self.out.write(f"{text}\n")
        self.out.flush()


def attached(stage: Stage) -> None:
    """An attach."""
    stage.heading("1. Attach volume vol1 to the running server guest1.")
    stage.run("attach", "vol1", "guest1", *SHOWN, "-c", "device")
    stage.expect("vol1", "in-use")


def rolled_back(stage: Stage) -> None:
    """An attach that fails at the guest."""
    stage.heading("2. The guest refuses the next disk: every step before it is undone, exit 3.")
    stage.run("sim", "script", stage.directory.name, "guest.plug_live", "fail")
    stage.run("attach", "vol2", "guest1", *SHOWN, code=3)
    stage.expect("vol2", "available")


def killed(stage: Stage) -> None:
    """An attach that is killed, and resumed."""
    stage.heading("3. An attach is killed with SIGKILL in the middle; `job resume` finishes it.")
    stage.run("--fault", f"{KILL_AT}=kill", "attach", "vol2", "guest1", code=KILLED)
    stage.expect("vol2", "attaching")
    stage.run("job", "list", "--open", *(word for name in JOB_COLUMNS for word in ("-c", name)))
    stage.run("job", "resume", "--last", *SHOWN)
    stage.expect("vol2", "in-use")


def detached(stage: Stage) -> None:
    """A detach."""
    stage.heading("4. Detach.")
    stage.run("detach", "vol2", "guest1", *SHOWN)
    stage.expect("vol2", "available")


SCENES: tuple[Callable[[Stage], None], ...] = (attached, rolled_back, killed, detached)


class Try(Command):
    """Show what tether does, in a simulated world of its own that is removed afterwards. No cloud is needed.

    Four scenes: an attach; one that fails and is rolled back; one that is killed and resumed; a detach. Exits with 1
    if one of them does not end as it should.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        begun = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix="tether-try-"))
        try:
            stage = Stage(scratch / "world", self.app.stdout)
            for scene in SCENES:
                scene(stage)
        finally:
            shutil.rmtree(scratch)
        for text in stage.wrong:
            self.app.say(f"tether: {text}")
        if stage.wrong:
            self.exit_code = 1
            self.app.say("next: run the command that ended wrong by itself, with --sim and --debug")
            return
        self.app.say("")
        self.app.say(f"All {len(SCENES)} scenes ended as they should, in {time.monotonic() - begun:.1f} s.")
