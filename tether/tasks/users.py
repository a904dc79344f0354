"""Who may be using a volume on this host: what must be nobody before a repair frees anything. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

from tether.adapters.cinder.model import Attachment
from tether.adapters.guest.model import Definition, Scope, Server
from tether.errors import OperatorNeeded, UncertainError
from tether.persistence.ledger import owner_of
from tether.persistence.overview import jobs_about
from tether.tasks.run import Run


def refuse_used(run: Run, path: str = "") -> None:
    """Refuse to go on while any server of this host may use the volume.

    Args:
        path: the volume's device, where it is known.

    Raises:
        OperatorNeeded: a server has a disk of it, a mapping of this host has it, or its device is open.
        UncertainError: not every server can be read.
    """
    volume_id = run.job.volume_id
    servers = _servers(run)
    device = run.tools.host.find(volume_id)
    sources = {path, *((device.link, device.path) if device is not None else ())} - {""}
    users = [
        f"server {server.name} has a disk of it ({scope})"
        for server in servers
        for scope in Scope
        if _uses(server.definition(scope), volume_id, sources)
    ]
    machine_id = run.machine.machine_id
    users += [
        f"the ledger has it as {row.target} of server {row.server_id}"
        for row in run.tools.ledger.list_mappings(volume_id=volume_id)
        if row.machine_id == machine_id and row.server_id != run.job.server_id
    ]
    if device is not None and device.open_count:
        users.append(f"{device.path} is open")
    if users:
        raise OperatorNeeded(
            f"volume {run.job.volume_name} is in use: {'; '.join(users)}",
            resource=f"volume {volume_id}",
            hint=f"see: tether explain {run.job.volume_name}; once nothing uses it: tether job resume {run.job.id}",
        )


def refuse_opened(run: Run) -> None:
    """Refuse to take the volume's device away while a disk of any server of this host names it, running or not.

    Raises:
        OperatorNeeded: one does.
        UncertainError: not every server can be read.
    """
    device = run.tools.host.find(run.job.volume_id)
    if device is None:
        return
    users = [
        f"{server.name} ({scope})"
        for server in _servers(run)
        for scope in Scope
        if (definition := server.definition(scope)) is not None
        and {device.link, device.path} & {disk.source for disk in definition.disks}
    ]
    if users:
        raise OperatorNeeded(
            f"the device of volume {run.job.volume_name} is a disk of server {', '.join(users)}: it stays",
            resource=f"volume {run.job.volume_id}",
            hint=f"take that disk out (virsh detach-disk), then: tether job resume {run.job.id}",
        )


def _servers(run: Run) -> Sequence[Server]:
    """Return all servers of this host.

    Raises:
        UncertainError: not all of them can be read.
    """
    survey = run.tools.guest.survey()
    if survey.unread:
        raise UncertainError(
            f"server {next(iter(survey.unread))} cannot be read, so nobody can say that it does not use volume"
            f" {run.job.volume_name}",
            hint=f"look at it with: virsh dumpxml {next(iter(survey.unread))}",
        )
    return survey.servers


def _uses(definition: Definition | None, volume_id: str, sources: set[str]) -> bool:
    return definition is not None and (
        definition.holds(volume_id) or bool(sources & {disk.source for disk in definition.disks})
    )


def stray_rows(run: Run) -> list[Attachment]:
    """Return the volume's attachments that jobs of this ledger and host have made and that no mapping has.

    The volume is read first: a list says nothing unless the volume itself is seen.
    """
    run.see_volume()
    ledger, volume_id = run.tools.ledger, run.job.volume_id
    here = run.machine.machine_id
    jobs = [job for job in jobs_about(ledger, [volume_id]) if not job.open and job.place.machine_id == here]
    owners = {owner_of(job.id) for job in jobs}
    mappings = ledger.list_mappings(volume_id=volume_id)
    known = {row.attachment_id for row in mappings} | {row.owner_mark for row in mappings}
    rows = run.tools.cinder.list_attachments(volume_id)
    return [row for row in rows if row.owner in owners and not {row.id, row.owner} & known]
