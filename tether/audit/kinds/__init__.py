"""The kinds of drift: a function each, from what was read to what is found. None of them reads or changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tether.audit.drift import Drift, Kind
from tether.audit.kinds import cinder, disks, host, jobs
from tether.audit.survey import Survey

#: What finds which kinds.
FINDERS: tuple[Callable[[Survey], Iterable[Drift]], ...] = (
    disks.two_servers,
    disks.two_disks,
    disks.serial_mismatch,
    disks.without_attachment,
    disks.foreign,
    disks.one_sided,
    disks.pending_unplug,
    host.wrong_device,
    host.missing_device,
    host.unused,
    host.unused_secret,
    cinder.reserved_without_job,
    cinder.contradiction,
    cinder.attachment_without_disk,
    cinder.mapping_without_anything,
    cinder.stale_connection,
    jobs.left,
    jobs.unfinished_migration,
)


def judge(survey: Survey) -> list[Drift]:
    """Return every drift that a survey proves, the gravest first."""
    order = list(Kind)
    found = [drift for finder in FINDERS for drift in finder(survey)]
    return sorted(found, key=lambda drift: (order.index(drift.kind), drift.volume, drift.server, drift.about))
