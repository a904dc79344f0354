"""What shows that an attachment made elsewhere is one: Cinder's row and the disk in the server. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from tether.adapters.cinder.model import Attachment, Volume
from tether.adapters.guest.disk import sources_of
from tether.adapters.guest.model import Definition, Disk, Scope, Server, alias_of
from tether.errors import FinalError
from tether.persistence.ledger import owner_of
from tether.tasks.run import Toolbox


@dataclass(frozen=True)
class Evidence:
    """One attachment as Cinder and the server show it.

    Args:
        row: Cinder's, with its connection.
        dialect: attachments or legacy: which of Cinder's APIs made it.
        disks: the disk in each definition that the server has.
    """

    row: Attachment
    dialect: str
    disks: dict[Scope, Disk]

    @property
    def disk(self) -> Disk:
        """The disk as the persistent definition has it."""
        return self.disks[Scope.PERSISTENT]


def find_evidence(tools: Toolbox, volume: Volume, server: Server) -> Evidence:
    """Return the one attachment of the volume to the server.

    Raises:
        FinalError: there is none, more than one, or half of one; the message says what was found.
    """
    if volume.status != "in-use":
        raise refused(volume, f"Cinder says that it is {volume.status}, not in-use")
    row = tools.cinder.show_attachment(_the_row(tools, volume, server).id)
    dialect = _dialect(volume, row)
    disks: dict[Scope, Disk] = {}
    for scope in Scope:
        definition = server.definition(scope)
        disk = None if definition is None else _disk(tools, volume, server, definition, row)
        if disk is not None:
            disks[scope] = disk
    wanted = [scope for scope in Scope if server.definition(scope) is not None]
    missing = [scope for scope in wanted if scope not in disks]
    if missing == wanted:
        raise refused(volume, f"server {server.name} has no disk of it: an attachment without a disk")
    if missing:
        have = next(iter(disks))
        raise refused(
            volume,
            f"{disks[have].target} of server {server.name} is in its {have} definition alone: a {have}-only disk",
            f"put it into the {missing[0]} definition too, or detach it there: virsh dumpxml {server.name}",
        )
    places = {(disk.target, disk.bus) for disk in disks.values()}
    if len(places) > 1:
        names = " and ".join(f"{disk.target} ({scope})" for scope, disk in disks.items())
        raise refused(volume, f"it is {names} of server {server.name}: not one disk in both definitions")
    _refuse_other_users(tools, volume, server, row, {disk.source for disk in disks.values()})
    return Evidence(row, dialect, disks)


def refused(volume: Volume, why: str, hint: str = "put that right first; see: tether audit") -> FinalError:
    """Return the refusal of an adoption."""
    return FinalError(
        f"volume {volume.name or volume.id} is not adopted: {why}", resource=f"volume {volume.id}", hint=hint
    )


def _the_row(tools: Toolbox, volume: Volume, server: Server) -> Attachment:
    """Return Cinder's row of the volume and the server.

    A row that names the server, or the owner mark of the job that has marked the server's disk, is the server's.
    Otherwise a plain volume has only one.
    """
    rows = tools.cinder.list_attachments(volume.id)
    definitions = [server.definition(scope) for scope in Scope]
    jobs = {definition.marks.get(volume.id, "") for definition in definitions if definition is not None}
    owners = {server.uuid, *(owner_of(job) for job in jobs if job)}
    mine = [row for row in rows if row.owner in owners] if volume.multiattach else rows
    if len(mine) != 1:
        found = ", ".join(f"{row.id} ({row.status}, instance {row.owner or 'unset'})" for row in rows) or "none"
        raise refused(volume, f"Cinder must have exactly one attachment of it to server {server.name}; it has {found}")
    (row,) = mine
    if row.status != "attached":
        raise refused(volume, f"Cinder has its attachment {row.id} as {row.status}, not attached")
    others = {other.uuid: other.name for other in tools.guest.list_servers() if other.uuid != server.uuid}
    if row.owner in others:
        raise refused(volume, f"Cinder's attachment {row.id} is that of server {others[row.owner]}")
    return row


def _dialect(volume: Volume, row: Attachment) -> str:
    if row.connection is not None:
        return "attachments"
    if "attached_mode" in volume.metadata and row.owner:  # os-attach alone writes it
        return "legacy"
    raise refused(volume, f"Cinder has no connection info for its attachment {row.id}")


def _disk(tools: Toolbox, volume: Volume, server: Server, definition: Definition, row: Attachment) -> Disk | None:
    """Return the volume's disk of a definition, if there is one.

    Raises:
        FinalError: there are two, or its serial and its source contradict each other.
    """
    found = [disk for disk in definition.disks if _is_disk(tools, volume, disk, row)]
    if len(found) > 1:
        names = " and ".join(disk.target for disk in found)
        raise refused(volume, f"{names} of server {server.name} are both it: two disks on one volume")
    if found and found[0].serial not in {"", volume.id}:
        raise refused(volume, f"{found[0].target} of server {server.name} opens it with the serial {found[0].serial}")
    return found[0] if found else None


def _is_disk(tools: Toolbox, volume: Volume, disk: Disk, row: Attachment) -> bool:
    if volume.id == disk.serial or disk.alias == alias_of(volume.id):
        return True
    if row.connection is None or not disk.source:
        return False
    if disk.source_type == "network":
        return disk.source in sources_of(row.connection)
    if disk.source_type != "block":
        return False
    return tools.host.device_at(volume.id, disk.source, row.connection) is not None


def _refuse_other_users(tools: Toolbox, volume: Volume, server: Server, row: Attachment, sources: set[str]) -> None:
    """Raise FinalError if the ledger, or another server of this host, has the volume too and may not."""
    for mapping in tools.ledger.list_mappings(volume_id=volume.id):
        if not volume.multiattach or mapping.attachment_id == row.id:
            raise refused(volume, f"the ledger has it, as {mapping.target} of server {mapping.server_id}")
    if volume.multiattach:
        return
    for other in tools.guest.list_servers():
        for definition in (other.live, other.persistent):
            if other.uuid == server.uuid or definition is None:
                continue
            if definition.holds(volume.id) or sources & {disk.source for disk in definition.disks}:
                raise refused(volume, f"server {other.name} has a disk of it too: two servers on one plain volume")
