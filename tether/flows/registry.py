"""Which flows a job runs, by the job's kind and version. A stored version never changes its meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskflow.patterns import graph_flow

from tether.errors import ConflictError
from tether.flows import adopt, attach, detach
from tether.persistence.ledger import Params

#: The version that new jobs get.
CURRENT = {"attach": 1, "detach": 1, "adopt": 1}


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
    ("detach", 1): (
        Part("detach-guest", detach.build_guest),
        Part("detach-release", detach.build_release, revertible=False),
    ),
    ("adopt", 1): (Part("adopt", adopt.build),),
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
