"""The ledger's side: the checks before any effect, and the mapping (Nova's block device mapping)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.model import Definition, Power, Server
from tether.adapters.guest.slots import Slot, choose_slot
from tether.errors import ConflictError, FinalError, NotFound, UsageError
from tether.persistence.ledger import MappingRow
from tether.tasks.run import Run
from tether.tasks.step import Step


@dataclass(frozen=True)
class ServerFacts:
    """What later steps need of the server as it was at the start."""

    uuid: str
    name: str
    power: str


class ReadVolume(Step):
    """Read the volume.

    Effect: none. Key: the volume's id. Compensation: none.
    Uncertain: the read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "read-volume/1"
    gives = "volume"

    def act(self) -> Volume:
        try:
            return self.tools.cinder.show_volume(self.job.volume_id)
        except NotFound as error:
            raise FinalError(
                f"volume {self.job.volume_name} is gone", resource=f"volume {self.job.volume_id}", hint=error.hint
            ) from error


class ReadServer(Step):
    """Read the server.

    Effect: none. Key: the domain's UUID. Compensation: none.
    Uncertain: the read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "read-server/1"
    gives = "server"

    def act(self) -> ServerFacts:
        server = self.run.see_server()
        return ServerFacts(server.uuid, server.name, server.power)


class ReadConnector(Step):
    """Read the connector: how this host names itself to Cinder.

    Effect: none. Key: the host. Compensation: none.
    Uncertain: the read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "read-connector/1"
    gives = "connector"

    def act(self) -> dict[str, object]:
        return dict(self.tools.host.connector())


class CheckAttachable(Step):
    """Refuse what cannot be attached, before anything has happened.

    Follows Nova Kilo's ``volume/cinder.py:check_attach`` (status, zone) and master's
    ``compute/api.py:_check_attach_and_reserve_volume`` (multiattach), and adds what the guest says: both
    definitions, a free slot, no saved memory, no migration.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-attachable/1"

    def act(self, volume: Volume, server: ServerFacts, connector: dict[str, object]) -> None:
        del connector  # it must be readable before anything happens
        check_volume(self.run, volume)
        now = self.run.see_server()
        check_server(now)
        check_owner(self.run, now)
        for definition in (now.persistent, now.live):
            check_free(self.run, definition, now)
        free_slot(self.run, now)


def check_volume(run: Run, volume: Volume) -> None:
    """Raise FinalError unless the volume can be attached now."""
    name = volume.name or volume.id
    where = f"volume {volume.id}"
    check_project(run, volume)
    if volume.status.startswith("error"):
        raise FinalError(
            f"volume {name} is in status {volume.status}",
            resource=where,
            hint="find out why in Cinder's volume log; an administrator may then reset its state",
        )
    settings = run.tools.settings
    if not settings.cross_az_attach and settings.availability_zone not in {"", volume.availability_zone}:
        raise FinalError(
            f"volume {name} is in zone {volume.availability_zone}, this host in {settings.availability_zone}",
            resource=where,
            hint="use a volume of this zone, or set [cinder] cross_az_attach",
        )
    if volume.multiattach and volume.encrypted:
        raise FinalError(
            f"volume {name} is multiattach and encrypted, which Cinder does not support together", resource=where
        )
    if volume.status == "available" and not volume.multiattach:
        _refuse_reset(run, volume)
    if volume.status == "available" or (volume.multiattach and volume.status in {"in-use", "reserved", "attaching"}):
        return
    if volume.status == "in-use":
        raise _in_use(run, volume)
    if volume.status in {"reserved", "attaching", "detaching"}:
        raise FinalError(
            f"volume {name} is {volume.status}: another attach or detach is under way, or was left behind",
            resource=where,
            hint="see who: tether job list, and cinder attachment-list --volume-id " + volume.id,
        )
    raise FinalError(
        f"volume {name} is in status {volume.status}, not available", resource=where, hint="wait until it is available"
    )


def _refuse_reset(run: Run, volume: Volume) -> None:
    """Raise FinalError if another server still has the volume, although somebody has reset its status in Cinder."""
    for row in run.tools.ledger.list_mappings(volume_id=volume.id):
        if row.server_id != run.job.server_id:
            name, server = volume.name or volume.id, run.tools.ledger.job_of(row).server_name
            raise FinalError(
                f"volume {name} is attached to server {server}, although Cinder says that it is available: two"
                " servers would write to it",
                resource=f"volume {volume.id}",
                hint=f"detach it there first: tether detach {name} {server}; or put Cinder right: tether repair --apply"
                f" --volume {name}",
            )


def check_project(run: Run, volume: Volume) -> None:
    """Raise FinalError if the volume is another project's."""
    mine = run.cloud.project_id
    if volume.project_id and mine and volume.project_id != mine:
        raise FinalError(
            f"volume {volume.name or volume.id} belongs to project {volume.project_id}, not to {mine}",
            resource=f"volume {volume.id}",
            hint="use the credentials of the volume's project",
        )


def _in_use(run: Run, volume: Volume) -> FinalError:
    """Return the refusal of a volume that is attached elsewhere.

    What the ledger knows is named as people know it: Cinder shows tether's owner mark in the server's place.
    """
    rows = {row.attachment_id: row for row in run.tools.ledger.list_mappings(volume_id=volume.id)}
    users, hint = [], "detach it there first"
    for owner, attachment_id in volume.attached_to:
        row = rows.get(attachment_id)
        if row is None:
            users.append(owner or "a host")
            continue
        server = run.tools.ledger.job_of(row).server_name
        users.append(f"server {server}")
        hint = f"detach it there first: tether detach {volume.name or volume.id} {server}"
    return FinalError(
        f"volume {volume.name or volume.id} is in use: attached to {', '.join(users) or 'something'}",
        resource=f"volume {volume.id}",
        hint=hint,
    )


def check_server(server: Server) -> None:
    """Raise FinalError unless the server's disks can be changed now."""
    where = f"server {server.uuid}"
    if server.persistent is None:
        raise FinalError(
            f"server {server.name} is transient: it has no persistent definition",
            resource=where,
            hint="define it with: virsh define",
        )
    if server.power is Power.CRASHED:
        raise FinalError(
            f"server {server.name} has crashed", resource=where, hint="destroy or restart it first: virsh destroy"
        )
    if server.migrating:
        raise FinalError(f"server {server.name} is migrating", resource=where, hint="wait until it has arrived")
    if server.managed_save:
        raise FinalError(
            f"server {server.name} has a managed-save image, which would bring its own disks back",
            resource=where,
            hint="start it, or drop the image with: virsh managedsave-remove " + server.name,
        )


def check_owner(run: Run, server: Server) -> None:
    """Raise FinalError if Nova manages the server, unless that is wanted.

    Nova's ``delete_dangling_bdms`` (since 2023) and its hard reboot know only the attachments of its own database.
    """
    if server.nova and not run.job.params.allow_nova:
        raise FinalError(
            f"server {server.name} is managed by Nova, which drops disks and deletes attachments that it does not"
            " know at the next reboot of its server",
            resource=f"server {server.uuid}",
            hint="use Nova for it: openstack server add volume, remove volume; or, knowing that, give --allow-nova",
        )


def check_free(run: Run, definition: Definition | None, server: Server) -> None:
    """Raise FinalError if a definition already has a disk with this volume's alias or serial."""
    for disk in definition.disks if definition else ():
        if disk.alias == f"ua-{run.job.volume_id}" or disk.serial == run.job.volume_id:
            raise FinalError(
                f"server {server.name} already has volume {run.job.volume_name} as {disk.target},"
                " but the ledger does not know it",
                resource=f"server {server.uuid}",
                hint="it was attached by another tool: detach it there first, or take it over: tether adopt"
                f" {run.job.volume_name} {server.name}",
            )


def free_slot(run: Run, server: Server) -> Slot:
    """Return the place that the disk gets: free in both definitions and in the ledger.

    Raises:
        FinalError: nothing is free; ConflictError, UsageError: the device name asked for cannot be given.
    """
    held = [
        Slot(row.target, row.bus, dict(row.address))
        for row in run.tools.ledger.list_mappings(server_id=server.uuid)
        if row.job_id != run.job.id
    ]
    try:
        return choose_slot(
            server.live,
            server.persistent,
            bus=run.job.params.bus,
            device=run.job.params.device,
            taken=held,
            limit=run.tools.settings.max_disk_devices_to_attach,
        )
    except (FinalError, ConflictError, UsageError) as error:
        raise type(error)(
            f"server {server.name}: {error.message}", resource=f"server {server.uuid}", hint=error.hint
        ) from error


class CreateMapping(Step):
    """Choose the device name, bus and address, and hold them in the ledger.

    Effect: a mapping row. Key: the job.
    Compensation: delete the row.
    Uncertain: the database does not answer; read back by the job's id.
    Crash windows: after the row, before the step's result: found by the job's id.
    """

    code = "create-mapping/1"
    gives = "slot"
    book = "ledger"
    in_turn = True

    def act(self, volume: Volume) -> Slot:
        params = self.job.params
        with self.run.server_lease():
            server = self.run.see_server()
            slot = free_slot(self.run, server)
            self.tools.ledger.add_mapping(
                MappingRow(
                    id=str(uuid.uuid4()),
                    job_id=self.job.id,
                    volume_id=volume.id,
                    server_id=self.job.server_id,
                    state="attaching",
                    target=slot.target,
                    bus=slot.bus,
                    address=slot.address,
                    mode="ro" if volume.readonly else params.mode,
                    dialect=params.dialect,
                    data_path=params.data_path,
                    machine_id=self.run.machine.machine_id,
                    owner_mark=self.run.owner_mark,
                    encrypted=params.encrypted,
                )
            )
        return slot

    def look(self, volume: Volume) -> Slot | None:
        row = self.tools.ledger.mapping_of_job(self.job.id)
        return None if row is None else Slot(row.target, row.bus, dict(row.address))

    def undo(self) -> None:
        row = self.tools.ledger.mapping_of_job(self.job.id)
        if row is not None:
            self.tools.ledger.delete_mapping(row.volume_id, row.server_id)


class FinishMapping(Step):
    """Make the mapping *attached*.

    Effect: the mapping row's state and attachment id. Key: the job.
    Compensation: none: past the pivot; the row itself is create-mapping's.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "finish-mapping/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self, attachment_id: str) -> None:
        self.tools.ledger.update_mapping(
            self.job.volume_id, self.job.server_id, state="attached", attachment_id=attachment_id
        )


class DeleteMapping(Step):
    """Forget the mapping: the last step of a detach.

    Effect: the mapping row goes. Key: volume and server.
    Compensation: none: past the pivot.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "delete-mapping/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.tools.ledger.delete_mapping(self.job.volume_id, self.job.server_id)
