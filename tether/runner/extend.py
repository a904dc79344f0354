"""Turns a request to extend a volume into a job, exactly one for one request."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tether.adapters.cinder.model import Volume
from tether.errors import FinalError, UsageError
from tether.persistence.ledger import Job, MappingRow
from tether.runner.jobs import Runner
from tether.runner.requests import Accepted, check_here, check_key, detach_params, held, new_job, repeated, store

#: The greatest size that Cinder's column holds, in GiB.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Extension:
    """What was asked for.

    Args:
        volume: id or unique name.
        size: the new size, in GiB.
        key: the caller's idempotency key (``--request-id``), or empty.
        join: wait for another job about the volume, instead of exit code 5.
    """

    volume: str
    size: int
    key: str = ""
    join: bool = True


def submit_extend(runner: Runner, asked: Extension, job_id: str) -> Accepted:
    """Return the job for a request: a new one, or the one that already does or did it.

    Raises:
        NotFound: no such volume or server.
        UsageError: the size is none, or the volume is not attached by tether on this host.
        ConflictError: the idempotency key belongs to another request.
        HeldError: another job has the volume.
        FinalError: the volume is larger already, or attached more than once.
    """
    if not 1 <= asked.size <= LARGEST:
        raise UsageError(f"{asked.size} is no size of a volume", hint="give whole GiB, 1 or more")
    check_key(asked.key)
    tools = runner.tools
    earlier = tools.ledger.job_of_key(asked.key) if asked.key else None
    if earlier is not None:
        return _earlier(runner, earlier, asked)
    volume = tools.cinder.find_volume(asked.volume)
    running = tools.ledger.open_job(volume.id)
    if running is not None:
        return _join(runner, running, asked, job_id)
    mapping = _mapping(runner, volume)
    if volume.size > asked.size:
        raise FinalError(
            f"volume {volume.name or volume.id} has {volume.size} GiB, and Cinder makes no volume smaller",
            resource=f"volume {volume.id}",
            hint=f"give {volume.size} or more",
        )
    server = tools.guest.find_server(mapping.server_id)
    params = replace(detach_params(mapping, volume), size=asked.size)
    job = new_job(runner, "extend", volume, (server.uuid, server.name), params, job_id=job_id, key=asked.key)
    return store(runner, job, lambda holder: _join(runner, holder, asked, job_id))


def _mapping(runner: Runner, volume: Volume) -> MappingRow:
    """Return the one mapping of the volume, which is this host's."""
    name, resource = volume.name or volume.id, f"volume {volume.id}"
    rows = runner.tools.ledger.list_mappings(volume_id=volume.id)
    if not rows:
        raise UsageError(
            f"volume {name} is not attached by tether",
            resource=resource,
            hint=f"extend it in Cinder alone: openstack volume set --size SIZE {name}; if another tool has attached it,"
            f" take it over first: tether adopt {name} SERVER",
        )
    if len(rows) > 1:
        raise FinalError(
            f"volume {name} is attached to {len(rows)} servers, whose guests would not all take notice",
            resource=resource,
            hint="detach all but one: tether mapping list",
        )
    (row,) = rows
    check_here(runner, row, volume)
    return row


def _earlier(runner: Runner, job: Job, asked: Extension) -> Accepted:
    """Return the job that the same request made before."""
    same = job.kind == "extend" and asked.volume in (job.volume_id, job.volume_name) and job.params.size == asked.size
    return repeated(runner, job, asked.key, same=same, join=asked.join)


def _join(runner: Runner, running: Job, asked: Extension, job_id: str) -> Accepted:
    """Return the open job if it does the same; otherwise wait for it a while, or refuse."""
    live = runner.is_live(running)
    if live and asked.join:
        if running.kind == "extend" and running.params.size == asked.size:
            return Accepted(running, new=False)
        if not runner.wait_for(running, seconds=runner.tools.settings.wait).open:
            return submit_extend(runner, asked, job_id)
    raise held(running, live=live)
