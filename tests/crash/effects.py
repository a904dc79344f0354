"""Jobs whose only effects are lines in a journal outside their process, as flows of trivial steps.

The journal is the world that these steps change, and the witness against the runner: one file a job, a line a write,
which a SIGKILL cannot take back. A line says when, which process (its *life*), under which generation of the lease, and
what happened: ``begin`` (with what the database then showed of the step), ``call`` (with the moment at which the guard
before it was passed), ``effect``, ``end``; and ``left``, when the runner let the job go.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from sqlalchemy.engine import make_url
from taskflow.patterns import graph_flow

from tether.adapters.cinder.model import CinderIdentity
from tether.adapters.guest.model import GuestIdentity
from tether.adapters.host.model import HostIdentity
from tether.clock import SystemClock
from tether.errors import FinalError, UncertainError
from tether.flows.registry import Part
from tether.persistence.ledger import Job
from tether.tasks.step import Step

# -- shapes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """One flow: which step needs which. ``forward``: it only goes forward."""

    name: str
    needs: Mapping[str, Sequence[str]]
    forward: bool = False


def _chain(*names: str) -> dict[str, Sequence[str]]:
    return {name: names[max(0, number - 1) : number] for number, name in enumerate(names)}


#: By kind and version of a job. Steps named ``look-…`` look for their effect after an interruption; ``blind-…`` cannot.
SHAPES: dict[tuple[str, int], tuple[Piece, ...]] = {
    ("attach", 1): (Piece("chain", _chain("look-a", "blind-b", "look-c", "blind-d", "look-e", "blind-f", "look-g")),),
    ("detach", 1): (
        Piece("first", _chain("blind-a", "look-b", "blind-c")),
        Piece("second", _chain("look-x", "blind-y", "look-z"), forward=True),
    ),
    ("attach", 2): (
        Piece(
            "graph",
            {
                "look-a": (),
                "blind-b": ("look-a",),
                "look-c": ("look-a",),
                "blind-d": ("look-a",),
                "blind-e": ("blind-b", "look-c", "blind-d"),
                "look-f": ("blind-e",),
                "blind-g": ("blind-e",),
                "look-h": ("look-f", "blind-g"),
                "blind-i": (),
            },
        ),
    ),
    ("detach", 2): (
        Piece("first", {"look-a": (), "blind-b": (), "blind-c": ("look-a", "blind-b")}),
        Piece("second", {"blind-w": (), "look-x": ("blind-w",), "blind-y": ("blind-w",), "look-z": ()}, forward=True),
    ),
}


def may_fail(shape: tuple[str, int]) -> list[str]:
    """Return the steps that a job of this shape may be told to fail at: those that can still be undone."""
    return [name for piece in SHAPES[shape] if not piece.forward for name in piece.needs]


def parts(kind: str, version: int) -> tuple[Part, ...]:
    """Return a job's flows, as the registry would."""
    return _parts(kind, version)


@functools.cache
def _parts(kind: str, version: int) -> tuple[Part, ...]:
    def build(piece: Piece) -> graph_flow.Flow:
        return graph_flow.Flow(piece.name).add(*[_step(name, piece)() for name in piece.needs])

    return tuple(
        Part(piece.name, lambda _params, piece=piece: build(piece), revertible=not piece.forward)
        for piece in SHAPES[kind, version]
    )


def _step(name: str, piece: Piece) -> type[Step]:
    """Return the class of one step, with its needs for inputs."""

    def act(self: Recorded, **tokens: str) -> str:
        return self.work(tokens)

    def look(self: Recorded, **tokens: str) -> str | None:
        return self.found()

    inputs = {need.replace("-", "_"): str for need in piece.needs[name]}
    act.__annotations__ = {**inputs, "return": str}
    look.__annotations__ = {**inputs, "return": str | None}
    own: dict[str, Any] = {
        "code": f"{name}/1",
        "gives": name.replace("-", "_"),
        "forward_only": piece.forward,
        "act": act,
    }
    return type(name, (Recorded,), own | ({"look": look} if name.startswith("look") else {}))


# -- the world -----------------------------------------------------------------------------------------------


class World:
    """The journal as one life writes it, and the database as anybody sees it."""

    def __init__(self, directory: Path, url: str, life: int, *, ready: int = -1) -> None:
        self.directory = directory
        self.url = url
        self.life = life
        self._ready = ready
        self._mine = threading.local()
        self.clock = GuardClock()

    def note(self, job: Job, what: str, **more: Any) -> None:
        """Add one line to a job's journal."""
        line = {"t": time.time(), "life": self.life, "gen": job.generation, "what": what, **more}
        handle = os.open(self.directory / job.id, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{json.dumps(line)}\n".encode())
        finally:
            os.close(handle)
        ready, self._ready = self._ready, -1
        if ready >= 0:
            os.write(ready, b"r")

    def complain(self, text: str) -> None:
        """Keep what no worker should ever meet."""
        with (self.directory / f"!{self.life}").open("a") as stream:
            stream.write(f"{text}\n")

    def state(self, job: Job, step: str) -> str:
        """Return a step's state as the database shows it to others."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = connect(self.url)
        rows = ask(connection, "SELECT steps FROM tether_flows WHERE job_id = '%s'" % job.id)  # noqa: UP031
        found = {atom["name"]: str(atom["state"]) for (text,) in rows for atom in json.loads(text)}
        return found.get(step, "PENDING")


class GuardClock(SystemClock):
    """Remembers when each thread last asked for the time: the guard before a call asks for it."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def time(self) -> float:
        self._mine.last = time.time()
        return float(self._mine.last)

    @property
    def last(self) -> float:
        return float(self._mine.last)


def connect(url: str) -> Any:
    """Connect by the plain driver."""
    found = make_url(url)
    if found.get_backend_name() == "sqlite":
        return sqlite3.connect(f"file:{found.database}?mode=ro", uri=True, timeout=30, check_same_thread=False)
    server = {"host": str(found.query["host"]), "user": str(found.username), "dbname": str(found.database)}
    return psycopg.connect(**server, autocommit=True)  # type: ignore[arg-type]


def ask(connection: Any, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement, with nothing left open."""
    with closing(connection.cursor()) as cursor:
        return list(cursor.execute(statement).fetchall())


#: The life that this process is; a flow's steps belong to no job and to no process.
world: World


def enter(found: World) -> None:
    """Let the steps of this process write as this life."""
    global world  # noqa: PLW0603 - see above
    world = found


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a job's journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Effects:
    """The adapter: each call is one line that stays."""

    def for_job(self, request_id: str) -> Effects:
        return self

    def identity(self) -> CinderIdentity:
        return CinderIdentity("http://cinder.test", "p", "3.71", service_token=True)

    def change(self, job: Job, step: str, phase: str) -> str:
        """Have an effect, or take it back."""
        guard, token = world.clock.last, f"{random.getrandbits(32):08x}"
        world.note(job, "call", step=step, phase=phase, guard=guard)
        _dawdle()
        world.note(job, "effect", step=step, phase=phase, token=token)
        _dawdle()
        return token

    def present(self, job: Job, step: str) -> str | None:
        """Return the token of a step's effect, if it is there."""
        token = None
        path = world.directory / job.id
        for line in read(path) if path.exists() else []:
            if line["what"] == "effect" and line["step"] == step:
                token = line["token"] if line["phase"] == "act" else None
        return token


def _dawdle() -> None:
    """Let calls take a while, so that kills come inside them too."""
    if random.random() < 0.3:
        time.sleep(random.random() * 0.002)


class Nothing:
    """Stands for the adapters that no step here calls."""

    def identity(self) -> Any:
        return GuestIdentity("test:///default", "")


class NoHost(Nothing):
    def identity(self) -> Any:
        return HostIdentity("h", "m", "b", "iqn.test", "")


# -- steps ---------------------------------------------------------------------------------------------------


class Recorded(Step):
    """A step that journals all it does."""

    code: ClassVar[str] = ""
    book = "cinder"

    def act(self, **tokens: str) -> str:
        raise NotImplementedError

    def work(self, tokens: Mapping[str, str]) -> str:
        step = self.label
        world.note(
            self.job, "begin", step=step, phase="act", seen=world.state(self.job, self.code), tokens=dict(tokens)
        )
        self._may_fail("before")
        if self.forward_only and random.random() < 0.15:
            raise FinalError(f"{step} is not to be had now")
        token = str(self.tools.cinder.change(self.job, step, "act"))
        self._may_fail("after")
        world.note(self.job, "end", step=step, phase="act", token=token)
        return token

    def found(self) -> str | None:
        step = self.label
        token = self.tools.cinder.present(self.job, step)
        if token is not None:
            world.note(self.job, "end", step=step, phase="act", token=token)
        return token

    def undo(self) -> None:
        step = self.label
        world.note(self.job, "begin", step=step, phase="undo", seen=world.state(self.job, self.code))
        if random.random() < 0.15:
            error = random.choice([FinalError, UncertainError])
            raise error(f"{step} cannot be undone now")
        if step.startswith("blind") or self.tools.cinder.present(self.job, step) is not None:
            self.tools.cinder.change(self.job, step, "undo")
        world.note(self.job, "end", step=step, phase="undo")

    def _may_fail(self, moment: str) -> None:
        if self.job.server_name == f"{self.label} {moment}":
            raise FinalError(f"{self.label} fails as planned")
