"""To take over an attachment that another tool, or a person, or a tether whose ledger is lost has made.

Nothing of the attachment itself is changed: what is made is the mapping, tether's link and its mark.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import reaches_by_network, sources_of
from tether.adapters.guest.model import Disk, Scope, Server
from tether.adapters.guest.xml import not_own
from tether.adapters.host.model import Device
from tether.errors import ConflictError, FinalError
from tether.persistence.ledger import MappingRow
from tether.tasks.evidence import Evidence, find_evidence, refused
from tether.tasks.host import is_device, is_shared, mismatch, record_device
from tether.tasks.mapping import ServerFacts, check_owner, check_project, check_server
from tether.tasks.step import Step


@dataclass(frozen=True)
class Adoptable:
    """What all five books say of an attachment that may be taken over.

    Args:
        owner: the instance in Cinder's row, whoever's that is.
        sources: what the disk opens in each definition.
        path: the device on the host; empty where QEMU connects by itself.
        linked: tether's link leads to it already.
        marks: by definition, the job of the mark that was there before.
    """

    attachment_id: str
    owner: str
    target: str
    bus: str
    address: dict[str, str]
    sources: list[str]
    path: str
    identity: str
    linked: bool
    marks: dict[str, str]


class CheckAdoptable(Step):
    """Show by all five books that the volume is attached to the server, by nobody's job.

    Cinder: in-use, one attached row. Both definitions (of a server that is shut off, the persistent one): one disk
    with the volume's serial or source, at one target. Host: the device behind the disk is the connection's, with the
    volume's size and identity. Ledger: no mapping. No other server of this host has the volume, unless it is
    multiattach.

    Effect: none; in the legacy dialect the connection info is asked for again by os-initialize_connection.
    Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-adoptable/1"
    gives = "adoptable"

    def act(self, volume: Volume, server: ServerFacts, connector: dict[str, object]) -> Adoptable:
        del server  # it is read again
        now = self.run.see_server()
        check_server(now)
        check_owner(self.run, now)
        check_project(self.run, volume)
        found = find_evidence(self.tools, self.tools.cinder.show_volume(volume.id), now)
        self._refuse_other_case(volume, found)
        connection = self.run.connection(found.row.id, connector)
        device = None
        for disk in found.disks.values():
            device = self._device(volume, disk, connection)
        disk = found.disk
        return Adoptable(
            attachment_id=found.row.id,
            owner=found.row.owner,
            target=disk.target,
            bus=disk.bus,
            address=dict(disk.address),
            sources=sorted({each.source for each in found.disks.values()}),
            path=device.path if device else "",
            identity=device.identity if device else "",
            linked=device is not None and self.tools.host.find(volume.id) is not None,
            marks=_marks(now, volume.id),
        )

    def _refuse_other_case(self, volume: Volume, found: Evidence) -> None:
        """Raise FinalError if it is another case by now than the flow was built for."""
        params, disk = self.job.params, found.disk
        path = "network" if disk.source_type == "network" else "host"
        if (found.dialect, path, disk.target, disk.bus) != (
            params.dialect,
            params.data_path,
            params.device,
            params.bus,
        ):
            raise refused(volume, "it was attached in another way meanwhile", "run the command again")

    def _device(self, volume: Volume, disk: Disk, connection: Connection) -> Device | None:
        """Return the host's device behind a disk, proven to be the volume; None where QEMU connects by itself."""
        if reaches_by_network(connection, self.job.params.data_path):
            if disk.source not in sources_of(connection):
                raise refused(volume, f"{disk.target} opens {disk.source}, which is not where Cinder exports it")
            return None
        device = self.tools.host.device_at(volume.id, disk.source, connection)
        if device is None:
            raise refused(volume, f"{disk.target} opens {disk.source}, to which the volume's connection does not lead")
        wrong = mismatch(volume, device, self.tools.host.expected_identity(connection))
        if wrong:
            raise refused(volume, f"{device.path} is not the volume: {wrong}")
        for row in self.tools.ledger.list_connections(self.run.machine.machine_id):
            if row.volume_id != volume.id and is_device(row, device.path, device.identity):
                raise refused(volume, f"{device.path} is volume {row.volume_id}'s in the device ledger")
        if volume.encrypted and not self.tools.host.encryption_open(volume.id):
            raise refused(
                volume,
                f"{disk.source} is not opened by a dm-crypt mapping of tether's name, so that a detach could close it",
                "detach it with the tool that attached it",
            )
        return device


def _marks(server: Server, volume_id: str) -> dict[str, str]:
    """Return the job that each definition's mark names, where there is one."""
    definitions = {scope: server.definition(scope) for scope in Scope}
    return {
        str(scope): definition.marks[volume_id]
        for scope, definition in definitions.items()
        if definition is not None and volume_id in definition.marks
    }


class AdoptMapping(Step):
    """Put the attachment into the ledger, with its connection info sealed.

    Effect: a mapping row with the attachment's id and owner. Key: the job. May be repeated.
    Compensation: delete the row and the sealed connection info.
    Uncertain: the database does not answer; repeat.
    Crash windows: after the row, before the step's result: found by the job's id.
    """

    code = "adopt-mapping/1"
    book = "ledger"
    repeatable = True

    def act(self, connector: dict[str, object], adoptable: Adoptable) -> None:
        params = self.job.params
        if self.tools.ledger.mapping_of_job(self.job.id) is None:
            try:
                self.tools.ledger.add_mapping(
                    MappingRow(
                        id=str(uuid.uuid4()),
                        job_id=self.job.id,
                        volume_id=self.job.volume_id,
                        server_id=self.job.server_id,
                        state="attaching",
                        target=adoptable.target,
                        bus=adoptable.bus,
                        address=adoptable.address,
                        mode=params.mode,
                        dialect=params.dialect,
                        data_path=params.data_path,
                        machine_id=self.run.machine.machine_id,
                        owner_mark=adoptable.owner,
                        attachment_id=adoptable.attachment_id,
                        encrypted=params.encrypted,
                    )
                )
            except ConflictError as error:
                raise FinalError(error.message, resource=error.resource, hint=error.hint) from error
        self.run.remember(self.run.connection(adoptable.attachment_id, connector))

    def undo(self) -> None:
        row = self.tools.ledger.mapping_of_job(self.job.id)
        if row is not None:
            self.tools.ledger.delete_mapping(row.volume_id, row.server_id)


class AdoptDevice(Step):
    """Make tether's link to the device, and its row in the device ledger.

    Effect: a link and a row; the device is not touched. Key: the volume id. May be repeated.
    Compensation: remove both, unless they were there before or another mapping of this host uses them.
    Uncertain: time limit, killed helper: repeat.
    Crash windows: before, between and after the two.
    """

    code = "adopt-device/1"
    book = "host"
    repeatable = True

    def act(self, adoptable: Adoptable) -> None:
        if not adoptable.linked:
            self.tools.host.link(self.job.volume_id, adoptable.path)
        record_device(self.run, adoptable.path, adoptable.identity)

    def undo(self, adoptable: Adoptable) -> None:
        if is_shared(self.run):
            return
        if not adoptable.linked:
            self.tools.host.unlink(self.job.volume_id)  # its answer proves it
        self.tools.ledger.delete_connection(self.run.machine.machine_id, self.job.volume_id)


class AdoptDisk(Step):
    """Put tether's mark beside the disk, in each definition that the server has: the pivot.

    The mark of a disk that has not tether's alias says its target and source: by these a detach finds it.

    Effect: the mark; the disk is not touched. Key: the job. May be repeated.
    Compensation: put the earlier mark back, or take the mark out.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before, between and after the two definitions.
    """

    code = "adopt-disk/1"
    book = "guest"
    repeatable = True

    def act(self, adoptable: Adoptable) -> None:
        with self.run.server_lease():
            server = self.run.see_server()
            check_server(server)
            for scope in Scope:
                definition = server.definition(scope)
                if definition is None:
                    continue
                disk = next((disk for disk in definition.disks if disk.target == adoptable.target), None)
                if disk is None or disk.source not in adoptable.sources:
                    raise FinalError(
                        f"{adoptable.target} has left the {scope} definition of server {server.name} meanwhile",
                        resource=f"server {server.uuid}",
                        hint="somebody changes the server: run the command again once that is over",
                    )
                self._mark(server, scope, disk, self.job.id)

    def undo(self, adoptable: Adoptable) -> None:
        with self.run.server_lease():
            server = self.run.see_server()
            for scope in Scope:
                definition = server.definition(scope)
                if definition is None or definition.marks.get(self.job.volume_id) != self.job.id:
                    continue
                # A guest that was started meanwhile has what its persistent definition had.
                before = adoptable.marks.get(scope) or adoptable.marks.get(Scope.PERSISTENT)
                disk = definition.disk(self.job.volume_id)
                if before and disk is not None:
                    self._mark(server, scope, disk, before)
                else:
                    self.tools.guest.unmark(server.uuid, scope, self.job.volume_id)

    def _mark(self, server: Server, scope: Scope, disk: Disk, job_id: str) -> None:
        volume_id = self.job.volume_id
        self.tools.guest.mark(server.uuid, scope, volume_id, job_id, not_own(disk.xml, volume_id))


class FinishAdoption(Step):
    """Make the mapping *attached*.

    Effect: the mapping row's state. Key: the job.
    Compensation: none: past the pivot.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "finish-adoption/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, state="attached")
