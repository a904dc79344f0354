"""A runner whose jobs are made of steps of a test, over tether's own tables and no adapter at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

from taskflow.patterns import graph_flow

from tests.crash.effects import Effects, NoHost, Nothing
from tests.integration.books import Books, a_job
from tether.clock import SystemClock
from tether.errors import Interrupted
from tether.flows.registry import Part
from tether.persistence.ledger import Job
from tether.runner.jobs import Runner
from tether.settings import Settings
from tether.tasks.run import Toolbox
from tether.tasks.step import Step

SETTINGS = Settings(
    step_retry_time=0.0,
    retry_interval=0.001,
    rpc_response_timeout=0.0,
    settle_margin=0.0,
    libvirt_settle=0.0,
    host_settle=0.0,
)


class Did(Step):
    """A step that keeps what was called in ``did``, and raises what ``raises`` says at such a call, once."""

    book = "cinder"
    did: ClassVar[list[str]] = []
    raises: ClassVar[dict[str, BaseException]] = {}

    def act(self) -> Any:
        self._do("act")
        return {"made": self.label}

    def look(self) -> Any:
        self._do("look")

    def undo(self) -> None:
        self._do("undo")

    def _do(self, what: str) -> None:
        call = f"{self.label} {what}"
        self.did.append(call)
        error = self.raises.pop(call, None)
        if error is not None:
            raise error


def step(name: str, **attributes: Any) -> type[Step]:
    """Return a step's class."""
    return type(name, (Did,), {"code": f"{name}/1", **attributes})


def part(name: str, *names: str, chained: bool = True, forward: bool = False) -> Part:
    """Return a flow of such steps, in order or side by side."""
    made = [step(code, forward_only=forward)() for code in names]
    flow = graph_flow.Flow(name).add(*made)
    for before, after in pairwise(made) if chained else ():
        flow.link(before, after)
    return Part(name, lambda _params: flow, revertible=not forward)


class Jobs:
    """Runs jobs, and takes them up as another process would."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.parts: Sequence[Part] = ()
        Did.did, Did.raises = [], {}
        cinder: Any = Effects()
        nothing: Any = Nothing()
        host: Any = NoHost()
        tools = Toolbox(cinder, host, nothing, nothing, books.ledger, books.leases, SystemClock(), SETTINGS)
        self.runner = Runner(tools, books.logbook, parts=lambda _kind, _version: self.parts)

    @property
    def did(self) -> list[str]:
        """What was called since this was last asked."""
        found, Did.did = Did.did, []
        return found

    def run(self, *parts: Part, raises: Mapping[str, BaseException] | None = None, **changes: Any) -> Job:
        """Run a new job; ``raises``: at which calls what goes wrong."""
        self.parts = parts
        Did.raises = dict(raises or {})
        job = a_job(place=self.runner.place(), **{"kind": "detach" if len(parts) > 1 else "attach", **changes})
        return self.runner.run(self.runner.add(job))

    def cut_off(self, *parts: Part, at: str, **raises: BaseException) -> Job:
        """Run a new job that is left inside a call, as a kill there would leave it."""
        return self.run(*parts, raises={at: Interrupted("cut off"), **raises})

    def stored(self, job: Job) -> dict[str, str]:
        """Return the stored states of a job's steps by label."""
        return {
            atom.name.partition("/")[0]: str(atom.state) for flow in self.books.logbook.flows(job.id) for atom in flow
        }


@contextmanager
def own_jobs(books: Books) -> Iterator[Jobs]:
    """Open a runner of such jobs."""
    jobs = Jobs(books)
    try:
        yield jobs
    finally:
        jobs.runner.close()
