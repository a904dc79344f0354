"""Which flows a job runs, by the job's kind and version. A stored version never changes its meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskflow.patterns import graph_flow

from tether.errors import ConflictError
from tether.flows import adopt, attach, detach, extend, migrate, qos, repair, whole
from tether.persistence.params import Params

#: The version that new jobs get.
CURRENT = {
    "attach": 1,
    "attach-all": 1,
    "detach": 1,
    "adopt": 1,
    "extend": 1,
    "qos": 1,
    "migrate-prepare": 1,
    "migrate-complete": 1,
    "migrate-release": 1,
    "repair-connect": 1,
    "repair-attach": 1,
    "repair-define": 1,
    "repair-complete": 1,
    "repair-release": 1,
    "repair-clean": 1,
}


@dataclass(frozen=True)
class Part:
    """One flow of a job.

    Args:
        name: the flow's durable name.
        build: makes it for one case; its steps belong to no job, so that many jobs share one flow.
        revertible: False for a flow past the job's pivot, which only goes forward.
    """

    name: str
    build: Callable[[Params], graph_flow.Flow]
    revertible: bool = True


_PARTS: dict[tuple[str, int], Sequence[Part]] = {
    ("attach", 1): (Part("attach", attach.build),),
    ("attach-all", 1): (Part("attach-all", whole.build_attach),),
    ("detach", 1): (
        Part("detach-guest", detach.build_guest),
        Part("detach-release", detach.build_release, revertible=False),
    ),
    ("adopt", 1): (Part("adopt", adopt.build),),
    ("extend", 1): (
        Part("extend-check", extend.build_check),
        Part("extend-volume", extend.build_volume, revertible=False),
        Part("extend-use", extend.build_use, revertible=False),
    ),
    ("qos", 1): (Part("qos", qos.build),),
    ("migrate-prepare", 1): (Part("migrate-prepare", migrate.build_prepare),),
    ("migrate-complete", 1): (
        Part("migrate-arrived", migrate.build_arrived),
        Part("migrate-take", migrate.build_take, revertible=False),
    ),
    ("migrate-release", 1): (
        Part("migrate-left", migrate.build_left),
        Part("migrate-release", migrate.build_release, revertible=False),
    ),
    ("repair-connect", 1): (
        Part("repair-connect", repair.build_connect),
        Part("repair-renew", repair.build_renew, revertible=False),
    ),
    ("repair-attach", 1): (
        Part("repair-reserve", repair.build_reserve),
        Part("repair-attach", repair.build_attach, revertible=False),
    ),
    ("repair-define", 1): (Part("repair-define", repair.build_define),),
    ("repair-complete", 1): (
        Part("repair-status", repair.build_status),
        Part("repair-complete", repair.build_complete, revertible=False),
    ),
    ("repair-release", 1): (
        Part("repair-unused", repair.build_unused),
        Part("repair-release", repair.build_release, revertible=False),
    ),
    ("repair-clean", 1): (
        Part("repair-stray", repair.build_stray),
        Part("repair-clean", repair.build_clean, revertible=False),
    ),
}


def parts(kind: str, version: int) -> Sequence[Part]:
    """Return the flows of a job, in order.

    Raises:
        ConflictError: this release does not know that version.
    """
    try:
        return _PARTS[kind, version]
    except KeyError:
        raise ConflictError(
            f"this release does not know {kind} version {version}",
            hint="resume the job with the release that made it",
        ) from None
