"""Turns a request to give a disk the limits of its volume into a job, exactly one for one request."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.disk import limits_of
from tether.adapters.guest.model import Server
from tether.errors import UsageError
from tether.persistence.ledger import Job, MappingRow
from tether.persistence.params import limits_text
from tether.runner.jobs import Runner
from tether.runner.requests import Accepted, check_here, check_key, detach_params, held, new_job, repeated, store

KIND = "qos"


@dataclass(frozen=True)
class Limiting:
    """What was asked for.

    Args:
        volume: id or unique name.
        server: UUID or name.
        key: the caller's idempotency key (``--request-id``), or empty.
        join: wait for another job about the volume, instead of exit code 5.
    """

    volume: str
    server: str
    key: str = ""
    join: bool = True


def submit_qos(runner: Runner, asked: Limiting, job_id: str) -> Accepted:
    """Return the job for a request: a new one, or the one that the same request made.

    The limits are those that Cinder has now, and stay the job's when it is resumed.

    Raises:
        NotFound: no such volume or server.
        UsageError: the volume is not attached there by tether on this host.
        ConfigError: Cinder does not show the QoS specs.
        FinalError: a limit is no number.
        ConflictError: the idempotency key belongs to another request.
        HeldError: another job has the volume.
    """
    check_key(asked.key)
    tools = runner.tools
    earlier = tools.ledger.job_of_key(asked.key) if asked.key else None
    if earlier is not None:
        return _earlier(runner, earlier, asked)
    volume = tools.cinder.find_volume(asked.volume)
    server = tools.guest.find_server(asked.server)
    running = tools.ledger.open_job(volume.id)
    if running is not None:
        return _wait(runner, running, asked, job_id)
    mapping = _mapping(runner, volume, server)
    limits = limits_text(limits_of(volume, tools.cinder.show_qos(volume.id)))
    params = replace(detach_params(mapping, volume), limits=limits)
    job = new_job(runner, KIND, volume, (server.uuid, server.name), params, job_id=job_id, key=asked.key)
    return store(runner, job, lambda holder: _wait(runner, holder, asked, job_id))


def _mapping(runner: Runner, volume: Volume, server: Server) -> MappingRow:
    """Return the mapping, which is this host's."""
    row = runner.tools.ledger.mapping(volume.id, server.uuid)
    name = volume.name or volume.id
    if row is None:
        raise UsageError(
            f"volume {name} is not attached to server {server.name} by tether",
            resource=f"volume {volume.id}",
            hint=f"see: tether mapping list; if another tool has attached it: tether adopt {name} {server.name}",
        )
    check_here(runner, row, volume)
    return row


def _earlier(runner: Runner, job: Job, asked: Limiting) -> Accepted:
    """Return the job that the same request made before."""
    same = job.kind == KIND and (
        asked.volume in (job.volume_id, job.volume_name) and asked.server in (job.server_id, job.server_name)
    )
    return repeated(runner, job, asked.key, same=same, join=asked.join)


def _wait(runner: Runner, running: Job, asked: Limiting, job_id: str) -> Accepted:
    """Wait a while for the open job, also for one of the same kind: its limits may be older; or refuse."""
    live = runner.is_live(running)
    if live and asked.join and not runner.wait_for(running, seconds=runner.tools.settings.wait).open:
        return submit_qos(runner, asked, job_id)
    raise held(running, live=live)
