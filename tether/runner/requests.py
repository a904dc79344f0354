"""Turns what an operator asks for into a job, exactly one for one request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.model import Definition, Scope, Server
from tether.adapters.guest.slots import target_name
from tether.errors import ConflictError, FinalError, HeldError, NotFound, OperatorNeeded, UsageError
from tether.flows.registry import CURRENT
from tether.persistence.ledger import Job, MappingRow
from tether.persistence.params import Params
from tether.runner.jobs import DONE, Runner
from tether.tasks.evidence import find_evidence
from tether.tasks.run import Toolbox

LOG = logging.getLogger(__name__)

#: Most characters of an idempotency key: the width of its column.
KEY_LENGTH = 255


@dataclass(frozen=True)
class Request:
    """What was asked for; empty means: as the settings say.

    Args:
        volume: id or unique name.
        server: UUID or name.
        key: the caller's idempotency key (``--request-id``), or empty.
        join: wait for another job about the same thing, instead of exit code 5.
        allow_nova: also on a server that Nova manages.
        format_luks: format an encrypted volume that has no LUKS header, whatever it holds.
        force: detach although the host cannot flush the device: what was not written is given up.
    """

    volume: str
    server: str
    device: str = ""
    bus: str = ""
    mode: str = "rw"
    dialect: str = "auto"
    key: str = ""
    join: bool = True
    allow_nova: bool = False
    format_luks: bool = False
    force: bool = False


@dataclass(frozen=True)
class Asked:
    """A request on its way to becoming a job."""

    kind: str
    request: Request
    job_id: str


@dataclass(frozen=True)
class Accepted:
    """A job, and whether it is new: then it is still to be run."""

    job: Job
    new: bool


def submit(runner: Runner, kind: str, request: Request, job_id: str) -> Accepted:
    """Return the job for a request: a new one, or the one that already does or did it.

    Args:
        kind: ``attach``, ``detach`` or ``adopt``.
        job_id: the id of a new job; calls to Cinder carry ``req-`` and this id already.

    Raises:
        NotFound: no such volume, server or mapping.
        ConflictError: it is attached, or being attached, in another way.
        HeldError: another job has the volume.
        OperatorNeeded: it was attached, and somebody else has taken it away since.
        UsageError: the idempotency key is too long to be kept.
    """
    check_key(request.key)
    ledger = runner.tools.ledger
    earlier = ledger.job_of_key(request.key) if request.key else None
    if earlier is not None:
        return Accepted(_earlier(runner, earlier, kind, request), new=False)
    volume = runner.tools.cinder.find_volume(request.volume)
    server = runner.tools.guest.find_server(request.server)
    running = ledger.open_job(volume.id)
    # After the job: one that has just ended has its mapping by now.
    mapping = ledger.mapping(volume.id, server.uuid)
    if running is not None:
        return _join(runner, running, volume, server, Asked(kind, request, job_id))
    return _new(runner, mapping, volume, server, Asked(kind, request, job_id))


def check_key(key: str) -> None:
    """Raise UsageError if an idempotency key is too long to be kept."""
    if len(key) > KEY_LENGTH:
        raise UsageError(
            f"the request id has {len(key)} characters, at most {KEY_LENGTH} are kept",
            hint="use a shorter --request-id, such as a UUID",
        )


def repeated(runner: Runner, job: Job, key: str, *, same: bool, join: bool) -> Accepted:
    """Return the job that an idempotency key has made before.

    Args:
        same: the request is the one that made it.
        join: wait for it if it runs.

    Raises:
        ConflictError: the key belongs to another request.
        HeldError: the job is open, and is not waited for.
    """
    if not same:
        raise ConflictError(
            f"the request id {key!r} belongs to job {job.id}: {job.kind} of {job.volume_name}",
            resource=f"job {job.id}",
            hint="use a new --request-id for a new request",
        )
    live = runner.is_live(job)
    if job.open and not (live and join):
        raise held(job, live=live)
    return Accepted(job, new=False)


def check_here(runner: Runner, mapping: MappingRow, volume: Volume) -> None:
    """Raise UsageError if the volume is attached on another host."""
    if mapping.machine_id != runner.place().machine_id:
        raise UsageError(
            f"volume {volume.name or volume.id} is attached on another host (machine id {mapping.machine_id})",
            resource=f"volume {volume.id}",
            hint="run this there",
        )


def _new(runner: Runner, mapping: MappingRow | None, volume: Volume, server: Server, asked: Asked) -> Accepted:
    """Return a new job for a request, unless what it asks for is done."""
    ledger, kind, request, job_id = runner.tools.ledger, asked.kind, asked.request, asked.job_id
    if kind == "attach" and mapping is not None:
        compare(mapping, volume, server, replace(request, format_luks=False))
        check_attached(mapping, volume, server)
        if request.format_luks:
            LOG.warning("--format-luks is ignored: volume %s is attached, so it has its header", volume.name)
    if (mapping is None) == (kind == "detach"):
        done = already_detached(runner.tools, volume, server) if mapping is None else ledger.job_of(mapping)
        return Accepted(done, new=False)
    if mapping is not None:
        params = replace(detach_params(mapping, volume), force="request" if request.force else "")
        if request.force and params.data_path == "network":
            LOG.warning("--force changes nothing: volume %s is no device of this host", volume.name or volume.id)
    elif kind == "adopt":
        params = adopt_params(runner.tools, volume, server)
    else:
        params = attach_params(runner.tools, volume, server, request)
    params = replace(params, allow_nova=request.allow_nova)
    job = new_job(runner, kind, volume, (server.uuid, server.name), params, job_id=job_id, key=request.key)
    return store(runner, job, lambda holder: _join(runner, holder, volume, server, asked))


def new_job(
    runner: Runner, kind: str, volume: Volume, server: tuple[str, str], params: Params, *, job_id: str, key: str = ""
) -> Job:
    """Return a job that is to begin, by this runner; it is not stored yet.

    Args:
        server: the server's id and name.
        key: the caller's idempotency key, or empty.

    Raises:
        ConflictError: the server is moving to another host, and this is no part of that.
    """
    if not kind.startswith("migrate-"):
        _refuse_moving(runner.tools, volume, server)
    return Job(
        id=job_id,
        kind=kind,
        version=CURRENT[kind],
        state="running",
        attempts=1,
        volume_id=volume.id,
        volume_name=volume.name or volume.id,
        server_id=server[0],
        server_name=server[1],
        request_id=f"req-{job_id}",
        params=replace(params, targets=_shared_targets(runner.tools, volume, params)),
        place=runner.place(),
        idempotency_key=key or None,
    )


def _refuse_moving(tools: Toolbox, volume: Volume, server: tuple[str, str]) -> None:
    row = tools.ledger.handovers.find(volume.id, server[0])
    if row is not None:
        raise ConflictError(
            f"server {server[1]} is moving to host {row.host}, and volume {volume.name or volume.id} with it",
            resource=f"volume {volume.id}",
            hint=f"finish that first: tether migrate complete {server[1]} --to {row.host}; or give it up with abort",
        )


def _shared_targets(tools: Toolbox, volume: Volume, params: Params) -> str:
    """Return the service of whose targets a job needs this host's lock, or empty.

    As os-brick's ``guard_connection``: False is never, None (from 3.69) always, True where the initiator scans by
    itself. Before 3.48 Cinder names no service.
    """
    if params.data_path == "network" or volume.shared_targets is False or not volume.service_uuid:
        return ""
    return "" if volume.shared_targets and tools.host.scans_manually() else volume.service_uuid


def store(runner: Runner, job: Job, join: Callable[[Job], Accepted]) -> Accepted:
    """Return the job, stored; if another has just taken the volume, what ``join`` makes of that one.

    Raises:
        HeldError: another job had the volume, and has ended since.
    """
    try:
        return Accepted(runner.add(job), new=True)
    except HeldError:
        holder = runner.tools.ledger.open_job(job.volume_id)
        if holder is None:
            raise
        return join(holder)


def attach_params(tools: Toolbox, volume: Volume, server: Server, request: Request) -> Params:
    """Return the case of an attach.

    Raises:
        FinalError: the dialect cannot attach this volume.
        UsageError, ConflictError: the words and the ledger show that the device name cannot be had.
    """
    settings, cloud = tools.settings, tools.cinder.identity()
    dialect = request.dialect if request.dialect != "auto" else settings.dialect
    if dialect == "auto":
        dialect = "attachments" if cloud.speaks("3.44") else "legacy"
    if dialect == "legacy" and volume.multiattach:
        raise FinalError(
            f"volume {volume.name} is multiattach, which the legacy dialect does not know",
            resource=f"volume {volume.id}",
            hint="use --dialect attachments",
        )
    if dialect == "attachments" and not cloud.speaks("3.44"):
        raise FinalError(
            f"Cinder speaks {cloud.microversion}; the attachments dialect needs 3.44", hint="use --dialect legacy"
        )
    if dialect == "attachments" and volume.metadata.get("readonly") == "False":
        LOG.warning(
            "volume %s was attached with the legacy dialect before: Cinder will show its attachments as ro,"
            " although they are rw",
            volume.name,
        )
    params = Params(
        device=request.device.removeprefix("/dev/"),
        bus=request.bus or settings.disk_bus,
        mode=request.mode,
        dialect=dialect,
        data_path=settings.data_path,
        encrypted=volume.encrypted,
        multiattach=volume.multiattach,
        owner_mark=attach_marked(tools) and dialect == "attachments",
        format_luks=request.format_luks,
        header="none" if volume.encrypted and settings.data_path == "host" else "",
    )
    _check_format(params, volume)
    _check_device(tools.ledger.list_mappings(server_id=server.uuid), params, server)
    return params


def attach_marked(tools: Toolbox) -> bool:
    """Return True if a new attachment carries the owner mark of its job."""
    setting = tools.settings.owner_mark
    return setting == "on" or (setting == "auto" and tools.cinder.identity().service_token)


def detach_params(mapping: MappingRow, volume: Volume) -> Params:
    """Return the case of a detach: that of the attach before it."""
    return Params(
        device=mapping.target,
        bus=mapping.bus,
        mode=mapping.mode,
        dialect=mapping.dialect,
        data_path=mapping.data_path,
        encrypted=mapping.encrypted,
        multiattach=volume.multiattach,
        owner_mark=bool(mapping.owner_mark),
    )


def adopt_params(tools: Toolbox, volume: Volume, server: Server) -> Params:
    """Return the case of an adoption, as the disk and Cinder's row say it.

    Raises:
        FinalError: they do not show one attachment; nothing has happened.
    """
    found = find_evidence(tools, volume, server)
    disk = found.disk
    return Params(
        device=disk.target,
        bus=disk.bus,
        mode="ro" if disk.readonly else "rw",
        dialect=found.dialect,
        data_path="network" if disk.source_type == "network" else "host",
        encrypted=volume.encrypted,
        multiattach=volume.multiattach,
        owner_mark=bool(found.row.owner),
    )


def _check_format(params: Params, volume: Volume) -> None:
    """Raise UsageError if there is nothing on this volume that could be formatted on this host."""
    if params.format_luks and not params.header:
        why = "is reached by QEMU itself (data_path = network)" if volume.encrypted else "is not encrypted"
        raise UsageError(
            f"volume {volume.name or volume.id} {why}, so --format-luks has nothing to format",
            resource=f"volume {volume.id}",
            hint="leave --format-luks out",
        )


def _check_device(mappings: list[MappingRow], params: Params, server: Server) -> None:
    """Raise UsageError or ConflictError if the words and the ledger alone show that the device name cannot be had."""
    if not params.device:
        return
    target = target_name(params.device, params.bus)
    for row in mappings:
        if row.target == target:
            raise ConflictError(
                f"the device name {target} of server {server.name} is held by volume {row.volume_id}",
                resource=f"server {server.uuid}",
                hint="choose another name, or leave it out",
            )


def _earlier(runner: Runner, job: Job, kind: str, request: Request) -> Job:
    """Return the job that the same request made before.

    Raises:
        ConflictError: it was another request.
        HeldError: nobody works on it, or it is not to be waited for.
    """
    _same(job, kind, request)
    live = runner.is_live(job)
    if job.open and not (live and request.join):
        raise held(job, live=live)
    return job


def _same(job: Job, kind: str, request: Request) -> None:
    """Raise ConflictError if the request is not the one that made the job."""
    named = {job.volume_id, job.volume_name} & {request.volume} and {job.server_id, job.server_name} & {request.server}
    if job.kind != kind or not named:
        raise ConflictError(
            f"the request id {request.key!r} belongs to job {job.id}: {job.kind} of {job.volume_name} and"
            f" {job.server_name}",
            resource=f"job {job.id}",
            hint="use a new --request-id for a new request",
        )
    if kind == "detach" and request.force != (job.params.force == "request"):
        raise ConflictError(
            f"the request id {request.key!r} belongs to job {job.id}, which was asked for"
            f" {'without' if request.force else 'with'} --force",
            resource=f"job {job.id}",
            hint="use a new --request-id for a new request",
        )
    if kind == "attach" and (found := _difference(request, job.params)):
        name, has, asked = found
        raise ConflictError(
            f"the request id {request.key!r} belongs to job {job.id}, with {name} {has}, not {asked}",
            resource=f"job {job.id}",
            hint="use a new --request-id for a new request",
        )


def compare(mapping: MappingRow, volume: Volume, server: Server, request: Request) -> None:
    """Raise ConflictError if it is attached in another way than asked for."""
    asked = replace(request, mode="") if volume.readonly else request
    if found := _difference(asked, detach_params(mapping, volume)):
        name, has, value = found
        raise ConflictError(
            f"volume {volume.name or volume.id} is attached to {server.name} with {name} {has}, not {value}",
            resource=f"volume {volume.id}",
            hint=f"detach it first: tether detach {volume.id} {server.name}",
        )


def check_attached(mapping: MappingRow, volume: Volume, server: Server) -> None:
    """Raise OperatorNeeded if what the ledger has as attached is not so any more in Cinder or in the guest."""
    name = volume.name or volume.id
    gone = [f"the {scope} definition has no disk of it" for scope in Scope if _lacks(server.definition(scope), volume)]
    if mapping.attachment_id not in {attachment_id for _owner, attachment_id in volume.attached_to}:
        gone.append(f"Cinder has no attachment {mapping.attachment_id}, and says that it is {volume.status}")
    if gone:
        raise OperatorNeeded(
            f"volume {name} was attached to server {server.name}, but is not any more: {'; '.join(gone)}",
            resource=f"volume {volume.id}",
            hint=f"take the rest away with: tether detach {volume.id} {server.name}; then attach it again",
        )


def _lacks(definition: Definition | None, volume: Volume) -> bool:
    return definition is not None and definition.disk(volume.id) is None


def _difference(request: Request, params: Params) -> tuple[str, str, str] | None:
    """Return what was asked for otherwise than in a case: its name, what the case has, and what was asked."""
    asked = {
        "device": request.device.removeprefix("/dev/"),
        "bus": request.bus,
        "mode": request.mode,
        "dialect": request.dialect if request.dialect != "auto" else "",
        "format_luks": "yes" if request.format_luks else "",
    }
    for name, value in asked.items():
        has = getattr(params, name)
        has = ("yes" if has else "no") if isinstance(has, bool) else has
        if value and value != has:
            return name, has, value
    return None


def _join(runner: Runner, running: Job, volume: Volume, server: Server, asked: Asked) -> Accepted:
    """Return the open job if it is about the same thing; otherwise wait for it a while, or refuse."""
    kind, request = asked.kind, asked.request
    same = running.kind == kind and running.server_id == server.uuid and request.force == bool(running.params.force)
    if same and kind == "attach":
        if request.format_luks and not running.params.format_luks:
            raise ConflictError(
                f"job {running.id} attaches volume {running.volume_name} without --format-luks",
                resource=f"job {running.id}",
                hint=f"wait until it has ended: tether job show {running.id}",
            )
        mapping = runner.tools.ledger.mapping_of_job(running.id)
        if mapping is not None:
            compare(mapping, volume, server, replace(request, format_luks=False))
    live = runner.is_live(running)
    if same and live and request.join:
        return Accepted(running, new=False)
    if live and request.join:
        ended = runner.wait_for(running, seconds=runner.tools.settings.wait)
        if not ended.open:
            return submit(runner, kind, request, asked.job_id)
    raise held(running, live=live, force=request.force)


def held(running: Job, *, live: bool, force: bool = False) -> HeldError:
    """Return the refusal of a request whose volume an open job has.

    Args:
        force: what was asked for is a forced detach, which an open detach can be made by its resume.
    """
    state = "running" if live else "blocked" if running.state == "blocked" else "interrupted"
    whither = {"attach": "to", "detach": "from"}.get(running.kind, "on")
    consent = " --force --accept-lost-writes" if force and running.kind == "detach" else ""
    first = f"first: tether job resume {running.id}{consent}, or: tether job abort {running.id}"
    return HeldError(
        f"volume {running.volume_name} is held by job {running.id}: {running.called} {whither} {running.server_name},"
        f" {state}",
        resource=f"volume {running.volume_id}",
        hint=f"see: tether job show {running.id}" if live else first,
    )


def already_detached(tools: Toolbox, volume: Volume, server: Server) -> Job:
    """Return the job that detached the volume from the server.

    Raises:
        NotFound: it was not tether that had attached it.
    """
    last = tools.ledger.last_job_of(volume.id, server.uuid)
    if last is None or last.state != DONE["detach"]:
        raise NotFound(
            f"tether has not attached volume {volume.name or volume.id} to server {server.name}",
            resource=f"volume {volume.id}",
            hint="see: tether mapping list; to take over what another tool has attached: tether adopt",
        )
    return last
