"""The fault points at which the live tier kills; it needs no part of the live world."""

from __future__ import annotations

from tether.flows import attach, detach
from tether.persistence.params import Params
from tether.tasks.step import Step

#: Reads, which a kill cannot leave half done: one of their points is enough.
READS = {"read-volume", "read-server", "read-connector"}


def label(step: type[Step]) -> str:
    return step.code.partition("/")[0]


def params(dialect: str) -> Params:
    return Params(device="", bus="virtio", mode="rw", dialect=dialect, data_path="network")


def attach_points(dialect: str, *, commits: bool) -> list[str]:
    """Return the points of an attach; ``commits`` adds those around each durable commit."""
    reads, chain = attach.steps(params(dialect))
    return _points([*reads, *chain], commits=commits)


def detach_points(dialect: str, *, commits: bool) -> list[str]:
    """Return the points of a detach."""
    return _points([*detach.guest_steps(), *detach.release_steps(params(dialect))], commits=commits)


def _points(steps: list[type[Step]], *, commits: bool) -> list[str]:
    """Return the fault points of a job at which a kill leaves different things behind."""
    found = ["commit.job.begin.after"]
    for step in steps:
        name = label(step)
        if step.book and commits:
            found += [f"commit.{name}.act.before", f"commit.{name}.act.after"]
        found += [f"{name}.act.before", *([] if name in READS else [f"{name}.act.after"])]
    return [*found, "commit.job.end.before", "commit.job.end.after"]
