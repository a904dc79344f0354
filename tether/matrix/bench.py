"""Small worlds for the matrix, and commands in processes of their own, forked with the imports done."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tether import faults
from tether.matrix import judge
from tether.matrix.journeys import BESIDE, BOTH, PLAIN, RESUME, Variant
from tether.matrix.wrecks import WRECKS, arrived
from tether.persistence import owner
from tether.sim.world import create

#: Runs one command line and returns its exit code.
Program = Callable[[list[str]], int]

#: Waits in proportion to a world that answers in milliseconds.
PACE = """
[DEFAULT]
run_dir = /run/tether-matrix
data_path = {data_path}
lease_ttl = {lease_ttl}
[cinder]
owner_mark = {owner_mark}
rpc_response_timeout = 1.0
settle_margin = 0.1
[libvirt]
libvirt_settle = 1.1
[host]
host_settle = 1.1
"""
#: Seconds: of a lease, and of one that shall lapse soon.
LEASE, SHORT_LEASE = 30.0, 0.4
#: Seconds after which a command that has not ended never will, beside what it rightly waits for Cinder.
PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """How one command ended.

    Args:
        code: the exit code; 137 if it was killed; None if it was stopped and is still there.
        passed: the points that it passed, in order.
    """

    code: int | None
    said: str
    passed: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How a world is made.

    Args:
        of: the kind of world that it was before; empty for a new one.
        words: the command that makes it, for a variant.
        wreck: what somebody else has done to it.
        host: on which the command runs.
    """

    of: str
    words: Callable[[Variant], Sequence[str]] = lambda _variant: ()
    wreck: Callable[[Path, str], None] | None = None
    host: str = ""


def _lose_keys(world: Path, _volume_id: str) -> None:
    (world / "keys").unlink()


def _pair(world: Path, _volume_id: str) -> None:
    create(world / BESIDE, world)


#: The worlds that cases begin or end with; those of a second host are in :data:`BESIDE` below the first one.
RECIPES = {
    "bare": Recipe(""),
    "fresh": Recipe("bare", lambda _variant: ("job", "list")),
    "attached": Recipe("fresh", lambda variant: variant.attach),
    "both": Recipe("fresh", lambda _variant: BOTH),
    "used": Recipe("attached", lambda variant: variant.detach),
    "keyless": Recipe("attached", wreck=_lose_keys),
    "forgotten": Recipe("keyless", lambda _variant: ("key", "forget")),
    "extended": Recipe("attached", lambda variant: ("extend", variant.volume, "2")),
    "limited": Recipe("retyped", lambda variant: ("qos", variant.volume, variant.server)),
    "adopted": Recipe("by-hand", lambda variant: ("adopt", variant.volume, variant.server)),
    "paired": Recipe("attached", wreck=_pair),
    "prepared": Recipe("paired", lambda variant: variant.migrate("prepare"), host=BESIDE),
    "arrived": Recipe("prepared", wreck=arrived),
    "taken": Recipe("arrived", lambda variant: variant.migrate("complete"), host=BESIDE),
    "left": Recipe("taken", lambda variant: variant.migrate("complete")),
    **{kind: Recipe("attached", wreck=wreck) for kind, wreck in WRECKS.items()},
}


def volume_id(world: Path, name: str) -> str:
    """Return a volume's id."""
    volumes = json.loads((world / "cinder.json").read_text())["volumes"].values()
    return next(str(each["id"]) for each in volumes if each["name"] == name)


class Bench:
    """The worlds that cases begin with, made once.

    Args:
        directory: where they are; private to this run.
        program: tether's own.
    """

    def __init__(self, directory: Path, program: Program) -> None:
        self.directory = directory
        self.program = program
        self._warm()

    def _warm(self) -> None:
        """Attach and detach in this process: what that imports and looks up, the forked commands need not."""
        place = str(self.directory / "warm")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for words in (PLAIN.attach, PLAIN.detach, RESUME):
                self.program(["--sim", place, *words])
        gc.freeze()  # a child's collections would copy what it shares with us

    def start(self, kind: str, variant: Variant) -> Path:
        """Return the world of this kind; it is copied, never changed."""
        place = self.directory / f"{kind}-{variant.name or 'plain'}"
        if place.exists():
            return place
        recipe = RECIPES[kind]
        making = self.directory / f"making-{kind}-{variant.name}-{os.getpid()}"
        if recipe.of:
            shutil.copytree(self.start(recipe.of, variant), making, symlinks=True)
        if recipe.wreck is not None:
            recipe.wreck(making, volume_id(making, variant.volume))
        else:
            words = ("sim", "create", str(making)) if not recipe.of else recipe.words(variant)
            done = World(self, making, replace(variant, host=recipe.host)).run(words)
            if done.code != 0:
                raise RuntimeError(f"no world to begin with: {done.said}")
        with contextlib.suppress(OSError):  # another process was quicker
            making.rename(place)
        shutil.rmtree(making, ignore_errors=True)
        return place

    def world(self, name: str, kind: str, variant: Variant) -> World:
        """Return a new world like that one."""
        place = self.directory / name
        shutil.copytree(self.start(kind, variant), place, symlinks=True)
        return World(self, place, variant)

    def books(self, kind: str, variant: Variant) -> dict[str, Any]:
        """Return the books of the world that cases begin with."""
        return World(self, self.start(kind, variant), variant).books()

    def identities(self, kind: str, variant: Variant) -> list[list[str]]:
        """Return whose the mappings are in the world that cases begin with."""
        return World(self, self.start(kind, variant), variant).identities()

    def danger(self, kind: str, variant: Variant) -> list[str]:
        """Return what is dangerous in the world that cases begin with."""
        return World(self, self.start(kind, variant), variant).danger() if kind in WRECKS else []


class World:
    """One embedded world, and commands in it."""

    def __init__(self, bench: Bench, directory: Path, variant: Variant) -> None:
        self.bench = bench
        self.directory = directory
        self.variant = variant
        self.lease = LEASE
        self.away = False
        self._runs = 0

    @property
    def ledger(self) -> Path:
        """Tether's database, which may not be there yet."""
        return self.directory / "tether.sqlite"

    @property
    def patience(self) -> float:
        """Seconds after which a command that has not ended never will."""
        return PATIENCE

    def books(self) -> dict[str, Any]:
        """Return the five books, as they can be compared."""
        found = judge.comparable(self.directory)
        if self.variant.several:
            # Which of two devices that are connected at once the host calls what is chance.
            found = json.loads(re.sub(r"/dev/sd[ab]\b", "/dev/sd", json.dumps(found)))
        return found

    def identities(self) -> list[list[str]]:
        """Return whose the mappings are."""
        return judge.identities(self.directory)

    def danger(self) -> list[str]:
        """Return what must be true at no moment."""
        return [*judge.danger(judge.snapshot(self.directory)), *judge.told(self.directory)]

    def is_residue(self, line: str, end: str) -> bool:
        """Return True for what is known to stay: the legacy dialect's export, and that an unplug is pending.

        Args:
            end: how the job ended.
        """
        if self.variant.dialect == "legacy" and self._is_export(line):
            return True
        was, _, now = line.partition(" -> ")
        marks = (", 1]", ", 0]"), ("'pending_unplug': 1", "'pending_unplug': 0")
        return end == "rolled-back" and any(was.endswith(now.replace(*mark)) for mark in marks)

    def _is_export(self, line: str) -> bool:
        return line.endswith("exported: False -> True")

    def options(self, config: Path, words: Sequence[str]) -> list[str]:
        """Return the global options of a command; ``config`` is a file to be written for it."""
        config.write_text(
            PACE.format(data_path=self.variant.data_path, owner_mark=self.variant.owner_mark, lease_ttl=self.lease)
        )
        world = [] if words[:2] == ("sim", "create") else ["--sim", str(self.directory / self.variant.host)]
        return ["--config-file", str(config), *world]

    @property
    def environment(self) -> dict[str, str]:
        """What a command's environment has in addition."""
        return {}

    def run(self, words: Sequence[str], armed: Sequence[str] = ()) -> Outcome:
        """Run a command to its end.

        Args:
            armed: faults, as ``--fault`` has them.
        """
        return self.wait(self.begin(words, armed))

    def begin(self, words: Sequence[str], armed: Sequence[str] = ()) -> Child:
        """Start a command."""
        self._runs += 1
        said, passed = (self.directory.parent / f"{self.directory.name}.{self._runs}.{each}" for each in ("said", "at"))
        options = self.options(self.directory.parent / f"{self.directory.name}.{self._runs}.conf", words)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be(said, passed, armed, [*options, *words])
        return Child(pid, said, passed)

    def _be(self, said: Path, passed: Path, armed: Sequence[str], words: list[str]) -> None:
        """Be the command; never returns."""
        code: int | None = 70
        try:
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            if self.away:  # as a runner of a host that nobody here can look into
                place = ("elsewhere", "elsewhere", "b", "pid:[1]")
                owner._machine = lambda: place  # type: ignore[assignment]  # noqa: SLF001 - a cached fact
            os.environ.update(self.environment)
            faults.disarm()
            for spec in armed:
                faults.arm(spec)
            tell = os.open(passed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            faults.record(lambda name: os.write(tell, f"{name}\n".encode()))
            code = self.bench.program(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001 - the end of a child
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(70 if code is None else code)

    def wait(self, child: Child) -> Outcome:
        """Wait until a command has ended; end it if it does not."""
        handle = os.pidfd_open(child.pid)
        try:
            if not select.select([handle], [], [], self.patience)[0]:
                os.kill(child.pid, signal.SIGKILL)
                with child.said.open("a") as stream:
                    stream.write(f"matrix: it did not end within {self.patience:.0f} s\n")
        finally:
            os.close(handle)
        return child.ended(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))

    def wait_stopped(self, child: Child) -> Outcome | None:
        """Wait until a command has stopped itself; return how it ended if it did that instead."""
        deadline = time.monotonic() + self.patience
        while True:
            pid, status = os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                return None
            if pid:
                return child.ended(os.waitstatus_to_exitcode(status))
            if time.monotonic() > deadline:
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.005)

    def settle(self) -> None:
        """Let everything happen that was to happen late."""
        due = [0.0]
        for path in self.directory.glob("**/*.json"):
            book = json.loads(path.read_text())
            for key in ("late", "pending"):
                found = book.get(key) or []
                calls = found if isinstance(found, list) else list(found.values())
                due += [
                    call[when] for call in calls if isinstance(call, dict) for when in ("due", "at") if when in call
                ]
        if len(due) > 1:
            time.sleep(max(0.0, max(due) - time.time()) + 0.01)
            self.run(("mapping", "show", self.variant.volume, self.variant.server))

    def remove(self) -> None:
        """Delete the world with all that its commands have left."""
        shutil.rmtree(self.directory)
        for path in self.directory.parent.glob(f"{self.directory.name}.*"):
            path.unlink()


@dataclass(frozen=True)
class Child:
    """A command under way."""

    pid: int
    said: Path
    passed: Path

    def ended(self, code: int) -> Outcome:
        """Return the outcome for an exit code; negative for a signal."""
        passed = self.passed.read_text().split() if self.passed.exists() else []
        said = self.said.read_text() if self.said.exists() else ""
        return Outcome(128 - code if code < 0 else code, said, tuple(passed))
