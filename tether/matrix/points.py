"""All fault points there are: from the steps of every flow, from the calls of the world, and those of the commands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tether import faults
from tether.flows.registry import CURRENT, parts
from tether.persistence.params import Params
from tether.sim.script import CALLS
from tether.tasks.step import Step

MOMENTS = ("before", "after")

#: Points outside a step, by the kind of thing that is written there.
OTHERS = {
    "commit.job.begin": "a job is added, with its lease",
    "commit.job.end": "a job's end, with its lease given up",
    "commit.job.leave": "a run is interrupted, and its job left to be resumed",
    "commit.job.renew": "a lease is taken anew that has lapsed, while the machine slept",
    "commit.job.force": "a resume makes a detach forced",
    "commit.header.format": "it is decided to format an encrypted volume",
    "commit.header.open": "an encrypted volume is about to be opened",
    "commit.prune": "a batch of ended jobs is deleted",
    "commit.upgrade": "the schema is made",
    "key.create": "the first key is written",
    "key.canary": "the text by which a wrong key is known is stored",
    "key.rotate.add": "a new key is put in front of the others",
    "key.rotate.begin": "a rotation is noted, sealed with its new key",
    "key.rotate.rows": "a batch of secrets is sealed anew",
    "key.rotate.end": "a rotation is noted as done",
    "key.rotate.drop": "keys that nothing is sealed with any more are dropped",
    "key.forget.rows": "what no key opens is deleted",
    "key.forget.end": "what is sealed from here on is sealed with the keys that are there",
}

#: Calls that change nothing.
READS = ("show_", "list_", "read_", "find", "survey", "device_at")
#: Made only by an abort that finds a reserve stored and an export that was never begun. The two are one commit, unless
#: a second passes between them (a machine that sleeps, say).
RARE = ("cinder.unreserve",)
_CALL = ("fail", "lost-reply", "late", "cut-off", "hang")
#: Calls whose success is read back, since there are backends that report it wrongly.
_BELIEVED = (
    "cinder.delete_attachment",
    "cinder.complete_attachment",
    "cinder.roll_detaching",
    "cinder.extend",
    "host.disconnect",
    "host.extend",
    "host.resize_encryption",
    "host.close_encryption",
    "guest.plug_persistent",
    "guest.plug_live",
    "guest.resize",
    "guest.limit_persistent",
    "guest.limit_live",
    "guest.undefine_secret",
)
_CALLS = {
    faults.TOKEN: ("blind",),
    "guest.unplug_live": (*_CALL, "refuse", "ignore"),
    **{f"host.{verb}": (*_CALL, "kill-helper") for verb in ("connect", "disconnect", "format_encryption")},
}


@dataclass(frozen=True, order=True)
class Point:
    """One fault point.

    Args:
        name: as :func:`tether.faults.point` has it.
        kind: *effect*, *read* (a step that changes nothing), *commit*, *call* or *key*.
        what: the step, the call or the write that it is around.
    """

    name: str
    kind: str
    what: str

    @property
    def actions(self) -> tuple[str, ...]:
        """What may go wrong here; the others would be the same as one of these, or cannot be."""
        after = self.name.endswith(".after")
        if self.kind == "call":
            return (*_CALLS.get(self.name, _CALL), *(("not-done",) if self.name in _BELIEVED else ()))
        process = ("kill", "stop", "clock-jump", "lost-reply" if after else "uncertain")
        if self.kind == "effect":
            return (*process, "fail")
        if self.kind == "read":
            return ("kill", "fail") if ".act." in self.name else ("kill",)
        if self.kind == "commit":
            return (*process, "database-gone", *(() if after else ("disk-full",)))
        return ("kill",)


def all_points() -> list[Point]:
    """Return every point, in a steady order."""
    return sorted({point.name: point for point in _all()}.values())


def _all() -> Iterator[Point]:
    cases = itertools.product(("attachments", "legacy"), ("host", "network"), (False, True))
    for (dialect, data_path, encrypted), kind in itertools.product(cases, CURRENT):
        params = Params(dialect=dialect, data_path=data_path, encrypted=encrypted)
        for part in parts(kind, CURRENT[kind]):
            if part.revertible:
                yield from _of_commit(f"commit.{part.name}.turn-back", f"an abort is decided in {part.name}")
            steps = [step for step, _data in part.build(params).iter_nodes()]
            for step in steps:  # what only reads, and is alone in its flow, has nothing to undo
                yield from _of_step(step, revertible=part.revertible and (len(steps) > 1 or bool(step.book)))
    for call in (*CALLS, faults.TOKEN):
        if not (call.partition(".")[2].startswith(READS) or call in RARE):
            yield Point(call, "call", call)
    for name, what in OTHERS.items():
        yield from _of_commit(name, what)


def _of_commit(name: str, what: str) -> Iterator[Point]:
    for moment in MOMENTS if name != "key.forget.rows" else MOMENTS[1:]:
        yield Point(f"{name}.{moment}", "key" if name.startswith("key.") else "commit", what)


def _of_step(step: Step, *, revertible: bool) -> Iterator[Point]:
    for phase, moment in itertools.product(("act", "undo") if revertible else ("act",), MOMENTS):
        name = f"{step.label}.{phase}.{moment}"
        yield Point(name, "effect" if step.book else "read", step.label)
        if step.book:
            yield Point(f"commit.{name}", "commit", step.label)
