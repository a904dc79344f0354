"""Ends a blocked job by an operator's word, once the books do not contradict it."""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Iterator

from tether.adapters.guest.model import Scope, SecretUse
from tether.errors import ConflictError, HeldError, NotFound, OperatorNeeded
from tether.persistence.ledger import Job, MappingRow
from tether.runner.jobs import DONE, Runner
from tether.tasks.guest import SECRET_KINDS
from tether.tasks.host import uses_elsewhere
from tether.tasks.run import Toolbox

LOG = logging.getLogger(__name__)

#: What an operator may say that the volume is.
ENDS = ("attached", "clean")


def settle(runner: Runner, job: Job, end: str, reason: str) -> Job:
    """End a blocked or interrupted job as ``attached`` or ``clean``; the ledger is made to say so too.

    Nothing outside the ledger is changed. All five books are read first.

    Args:
        reason: kept with the job, with the operator's name and the time.

    Raises:
        ConflictError: the job has ended, or is about several volumes.
        HeldError: a runner works on it.
        OperatorNeeded: a book contradicts it; the message names every contradiction.
        UncertainError: a book cannot be read: what is unread is never taken for absent.
    """
    if not job.open:
        raise ConflictError(
            f"job {job.id} has ended: {job.state}", resource=f"job {job.id}", hint="there is nothing to settle"
        )
    if job.params.volumes:
        raise ConflictError(
            f"job {job.id} is about several volumes, each of which has a job of its own",
            resource=f"job {job.id}",
            hint=f"settle the one that is blocked (tether job show {job.id}), then: tether job resume {job.id}",
        )
    if job.kind.startswith("migrate-"):
        raise ConflictError(
            f"job {job.id} is a part of a migration, of which each host knows a part only",
            resource=f"job {job.id}",
            hint=f"take it up: tether job resume {job.id}",
        )
    if runner.is_live(job):
        raise HeldError(
            f"job {job.id} is held by {job.runner}",
            resource=f"job {job.id}",
            hint=f"wait for it, or: tether job abort {job.id}",
        )
    runner.same_place(job)
    tools = runner.tools
    if end == "clean":
        _wait_quiet(tools, job)
    mapping = tools.ledger.mapping(job.volume_id, job.server_id)
    attachment = _attachment(runner, job, mapping)
    contradictions = [*(_unless_attached if end == "attached" else _unless_clean)(tools, job, mapping, attachment)]
    if contradictions:
        raise OperatorNeeded(
            f"job {job.id} cannot be settled as {end}: {'; '.join(contradictions)}",
            resource=f"job {job.id}",
            hint=f"put that right by hand, or: tether job resume {job.id}",
        )
    goal = "attached" if end == "attached" else "detached"
    done = DONE[job.kind] == goal
    settled = {"as": end, "reason": reason, "by": getpass.getuser(), "at": time.time()}
    state, code = (DONE[job.kind], 0) if done else ("rolled-back", 3)
    kept = attachment if goal == "attached" else ""
    return runner.settle(job, attachment_id=kept, state=state, exit_code=code, settled=settled)


def _wait_quiet(tools: Toolbox, job: Job) -> None:
    """Wait until no call of the job can still be carried out: what is not there yet may come."""
    until = max(job.quiet_at.values(), default=0.0)
    if job.runner is not None:  # it was cut off, at the latest when its lease lapsed
        ended = min(job.expires_at or 0.0, tools.clock.time())
        until = max(until, ended + tools.settings.settle_time)
    left = until - tools.clock.time()
    if left > 0:
        LOG.warning("waiting %.0f s: until then Cinder may still carry out a call of job %s", left, job.id)
        tools.clock.wait(left)


def _attachment(runner: Runner, job: Job, mapping: MappingRow | None) -> str:
    """Return the id of the job's attachment: the mapping's, or what its own steps have made; empty if there is none."""
    if mapping is not None and mapping.attachment_id:
        return mapping.attachment_id
    steps = {atom.name.partition("/")[0]: atom for detail in runner.logbook.flows(job.id) for atom in detail}
    for name in ("complete-attachment-legacy", "reserve-volume"):
        made = steps[name].results if name in steps else None
        if isinstance(made, str) and made:
            return made
    return ""


def _unless_attached(tools: Toolbox, job: Job, mapping: MappingRow | None, attachment: str) -> Iterator[str]:
    """Yield what speaks against the volume being attached."""
    if mapping is None:
        yield "the ledger has no mapping"
    volume = tools.cinder.show_volume(job.volume_id)
    if volume.status != "in-use":
        yield f"Cinder says that the volume is {volume.status}"
    rows = {row.id: row.status for row in tools.cinder.list_attachments(job.volume_id)}
    if rows.get(attachment) != "attached":
        yield f"Cinder has attachment {attachment or '(unknown)'} as {rows.get(attachment, 'absent')}"
    server = tools.guest.show_server(job.server_id)
    for scope in Scope:
        definition = server.definition(scope)
        if definition is not None and definition.disk(job.volume_id) is None:
            yield f"the {scope} definition of server {server.name} has no disk of it"
    if mapping is not None and mapping.data_path == "host" and tools.host.find(job.volume_id) is None:
        yield "this host has no device of it"


def _unless_clean(tools: Toolbox, job: Job, mapping: MappingRow | None, attachment: str) -> Iterator[str]:
    """Yield what is left of the job."""
    try:
        volume = tools.cinder.show_volume(job.volume_id)
    except NotFound:
        volume = None  # deleted by an operator: then its attachments are gone with it
    if volume is not None:
        ours = {job.owner, mapping.owner_mark if mapping else ""} - {""}
        for row in tools.cinder.list_attachments(job.volume_id):
            if row.id == attachment or row.owner in ours:
                yield f"Cinder still has attachment {row.id} ({row.status})"
        if volume.status in {"reserved", "attaching", "detaching"} and not volume.multiattach:
            yield f"Cinder says that the volume is {volume.status}"
    server = tools.guest.show_server(job.server_id)
    for scope in Scope:
        definition = server.definition(scope)
        if definition is not None and definition.disk(job.volume_id) is not None:
            yield f"the {scope} definition of server {server.name} still has the disk"
    if server.managed_save:
        yield f"server {server.name} has a managed-save image, which may hold the disk"
    yield from _held_by_host(tools, job)


def _held_by_host(tools: Toolbox, job: Job) -> Iterator[str]:
    """Yield what this host still holds of the volume."""
    ids = (job.volume_id, job.server_id, tools.host.identity().machine_id)
    if not uses_elsewhere(tools.ledger, *ids, data_path="host"):  # else it is another server's of this host too
        device = tools.host.find(job.volume_id)
        if device is not None:
            yield f"this host still has {device.path}"
        if tools.host.encryption_open(job.volume_id):
            yield "its dm-crypt mapping is still open"
    if not uses_elsewhere(tools.ledger, *ids):
        for kind in SECRET_KINDS:
            if tools.guest.has_secret(SecretUse(kind, job.volume_id)):
                yield f"its libvirt secret ({kind}) is still defined"
