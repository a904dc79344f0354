"""To put back what an attachment of ours has lost: its row in Cinder, its connection, one of its two disks.

The mapping passes to the job that repairs it: the connection info is sealed, and the attachment marked, by its id.
"""

from __future__ import annotations

from dataclasses import dataclass

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import chap_secret, sources_of
from tether.adapters.guest.model import Disk, Scope, SecretUse, Server
from tether.adapters.host.model import Device
from tether.errors import FinalError, NotFound, UncertainError
from tether.persistence.ledger import MappingRow
from tether.tasks.host import mismatch, record_device, sources_elsewhere
from tether.tasks.run import Run
from tether.tasks.step import Step
from tether.tasks.volume import Export, export


@dataclass(frozen=True)
class Former:
    """A mapping as it was before the repair.

    Args:
        job: whose it was.
        present: its device is on this host.
    """

    job: str
    attachment_id: str
    owner_mark: str
    present: bool


#: What a volume's status may be for Cinder's operations to put it right; os-complete would hide an error.
STATUSES = ("available", "reserved", "attaching", "detaching", "in-use")


def not_repaired(run: Run, why: str) -> FinalError:
    """Return the refusal of a repair."""
    return FinalError(
        f"volume {run.job.volume_name} is left as it is: {why}",
        resource=f"volume {run.job.volume_id}",
        hint=f"see: tether explain {run.job.volume_name}",
    )


def attached_row(run: Run) -> MappingRow:
    """Return the mapping, which is attached.

    Raises:
        FinalError: it is not.
    """
    row = run.tools.ledger.mapping(run.job.volume_id, run.job.server_id)
    if row is None or row.state != "attached":
        raise not_repaired(run, "the ledger no longer has it attached")
    return row


def own_disks(run: Run, server: Server) -> dict[Scope, Disk]:
    """Return our disk in each definition that has it."""
    definitions = {scope: server.definition(scope) for scope in Scope}
    found = {}
    for scope, definition in definitions.items():
        disk = None if definition is None else definition.disk(run.job.volume_id)
        if definition is not None and disk is not None and run.job.volume_id in definition.marks:
            found[scope] = disk
    return found


def _former(run: Run) -> Former:
    row = attached_row(run)
    present = row.data_path == "host" and run.tools.host.find(row.volume_id) is not None
    return Former(row.job_id, row.attachment_id, row.owner_mark, present)


def _now(run: Run, attachment_id: str, connector: dict[str, object]) -> Connection:
    """Return how Cinder says now that the volume is reached, whatever was sealed before."""
    if run.job.params.dialect == "legacy":
        return run.tools.cinder.initialize_connection(run.job.volume_id, connector)
    row = run.tools.cinder.show_attachment(attachment_id)
    if row.status != "attached" or row.connection is None:
        raise not_repaired(run, f"Cinder has its attachment {row.id} as {row.status}, without connection info")
    return row.connection


class CheckReachable(Step):
    """See that what Cinder says now of the volume leads to what the guest and the host have, if they have it.

    Effect: none; in the legacy dialect the connection info is asked for again by os-initialize_connection.
    Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-reachable/1"
    gives = "former"

    def act(self, connector: dict[str, object]) -> Former:
        former = _former(self.run)
        volume_id = self.job.volume_id
        disks = own_disks(self.run, self.run.see_server())
        if not disks:
            raise not_repaired(self.run, f"server {self.job.server_name} has no disk of it")
        try:
            connection = _now(self.run, former.attachment_id, connector)
        except NotFound as error:
            raise not_repaired(self.run, "Cinder has no attachment of it") from error
        if self.job.params.data_path == "network":
            for disk in disks.values():
                if disk.source not in sources_of(connection):
                    raise not_repaired(self.run, f"{disk.target} opens {disk.source}, and Cinder exports it elsewhere")
            return former
        device = self.tools.host.find(volume_id)
        if device is not None and self.tools.host.device_at(volume_id, device.link, connection) is None:
            raise not_repaired(self.run, f"it is connected as {device.path}, and Cinder exports it elsewhere by now")
        return former


class CheckLost(Step):
    """See that Cinder has lost the attachment of a disk that the server has, and has given the volume to nobody.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-lost/1"
    gives = "former"

    def act(self, volume: Volume) -> Former:
        former = _former(self.run)
        if not own_disks(self.run, self.run.see_server()):
            raise not_repaired(self.run, f"server {self.job.server_name} has no disk of it")
        rows = self.tools.cinder.list_attachments(volume.id)
        if volume.status != "available" or rows:
            raise not_repaired(self.run, f"Cinder says that it is {volume.status}: somebody else may have it")
        return former


class ClaimMapping(Step):
    """Let the mapping pass to this job, so that what the job learns of the connection is sealed for the detach.

    Effect: the mapping's job. Key: the job. May be repeated.
    Compensation: give it back to the former job, and forget what this one has sealed.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "claim-mapping/1"
    book = "ledger"
    repeatable = True

    def act(self, former: Former) -> None:
        self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, job_id=self.job.id)

    def undo(self, former: Former) -> None:
        if self.tools.ledger.mapping_of_job(self.job.id) is not None:
            self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, job_id=former.job)
        self.tools.ledger.drop_stale_secrets(self.job.volume_id, self.job.server_id)


class ReconnectHost(Step):
    """Connect the host as Cinder says now: session, paths, map, and tether's own link; the connection info is sealed.

    Effect: os-brick's connect_volume, unless the device is there; the device ledger's row. Key: the volume id. May be
    repeated.
    Compensation: disconnect and prove that nothing is left, unless it was connected before; never while it is open.
    Uncertain: time limit, killed helper: repeat.
    Crash windows: before, inside and after the connect; before the ledger's row.
    """

    code = "reconnect-host/1"
    gives = "device"
    book = "host"
    on_targets = True
    repeatable = True

    def act(self, former: Former, connector: dict[str, object]) -> Device:
        connection = _now(self.run, former.attachment_id, connector)
        self.run.remember(connection)
        device = self.tools.host.find(self.job.volume_id)
        if not former.present or device is None:
            device = self.tools.host.connect(self.job.volume_id, connection)
        record_device(self.run, device.path, device.identity)
        return device

    def undo(self, former: Former, connector: dict[str, object]) -> None:
        if former.present:
            return
        connection = self.run.connection(former.attachment_id, connector)
        # it refuses while the device is open
        self.tools.host.disconnect(self.job.volume_id, connection, sources_elsewhere(self.run, connection))
        left = self.tools.host.residue(self.job.volume_id, connection)
        if left:
            raise UncertainError(
                f"volume {self.job.volume_name} is not fully disconnected: {'; '.join(left)}",
                resource=f"volume {self.job.volume_id}",
                hint="see what holds it: lsblk, iscsiadm -m session, multipath -ll",
            )


class VerifyReconnected(Step):
    """Show that the device is the volume: by size, by identity, and by what it reported when it was attached.

    Effect: none. Key: none. Compensation: none.
    Uncertain: it cannot be read.
    Crash windows: none.
    """

    code = "verify-reconnected/1"

    def act(self, volume: Volume, former: Former, connector: dict[str, object], device: Device) -> None:
        found = self.tools.host.find(volume.id)
        expected = self.tools.host.expected_identity(self.run.connection(former.attachment_id, connector))
        wrong = "it has gone again" if found is None else mismatch(volume, found, expected)
        if wrong:
            raise not_repaired(self.run, f"{device.path} is not the volume: {wrong}")


class ReopenEncryption(Step):
    """Open dm-crypt over the device again; the link then leads to the decrypted one.

    Effect: a dm-crypt mapping named after the volume. Key: its name and UUID. May be repeated.
    Compensation: close it, unless the device was there before; never while it is open.
    Uncertain: time limit, killed helper: repeat.
    Crash windows: before, inside and after the open.
    """

    code = "reopen-encryption/1"
    book = "host"
    repeatable = True

    def act(self, device: Device) -> None:
        encryption = self.tools.cinder.show_encryption(self.job.volume_id)
        if encryption is not None and encryption.control_location == "front-end":
            self.tools.host.open_encryption(self.job.volume_id, encryption, self.tools.keys.passphrase(encryption))

    def undo(self, former: Former) -> None:
        if former.present:
            return
        self.tools.host.close_encryption(self.job.volume_id)  # it refuses while the mapping is open
        if self.tools.host.encryption_open(self.job.volume_id):
            raise UncertainError(f"the dm-crypt mapping of volume {self.job.volume_name} is still open")


class RenewSecret(Step):
    """Give libvirt the CHAP password that Cinder has now, for the guest's next start; the connection info is sealed.

    Effect: the secret's value. Key: kind and usage. May be repeated.
    Compensation: none: the former value is of no use any more.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before or after the call: repeating is harmless.
    """

    code = "renew-secret/1"
    book = "guest"
    repeatable = True
    forward_only = True

    def act(self, connector: dict[str, object]) -> None:
        connection = _now(self.run, self.run.mapping().attachment_id, connector)
        self.run.remember(connection)
        password = chap_secret(connection)
        if password is not None:
            self.tools.guest.define_secret(SecretUse("iscsi", self.job.volume_id), password)


class VerifySame(Step):
    """Show that Cinder exports the volume where the server's disk has it; the job is blocked if not.

    Effect: none. Key: none. Compensation: none.
    Uncertain: it cannot be read.
    Crash windows: none.
    """

    code = "verify-same/1"
    forward_only = True

    def act(self, attachment_id: str, connector: dict[str, object], export: Export) -> None:
        connection = self.run.connection(attachment_id, connector)
        for disk in own_disks(self.run, self.run.see_server()).values():
            if self.job.params.data_path == "network":
                same = disk.source in sources_of(connection)
            else:
                same = self.tools.host.device_at(self.job.volume_id, disk.source, connection) is not None
            if not same:
                raise not_repaired(self.run, f"{disk.target} opens {disk.source}, and Cinder exports it elsewhere")


class FinishRepair(Step):
    """Keep the mapping under this job, and forget what former ones have sealed of it.

    Effect: the former jobs' secrets go. Key: volume and server.
    Compensation: none: past the pivot.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after: repeating is harmless.
    """

    code = "finish-repair/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.tools.ledger.drop_stale_secrets(self.job.volume_id, self.job.server_id)


class HoldAttachment(Step):
    """Give the mapping its new attachment: the pivot, since from here on Cinder may have exported the volume.

    Effect: the mapping's attachment id and owner. Key: the job. May be repeated.
    Compensation: give it the former ones back.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "hold-attachment/1"
    book = "ledger"
    repeatable = True

    def act(self, former: Former, attachment_id: str) -> None:
        self._hold(attachment_id, self.run.owner_mark)

    def undo(self, former: Former) -> None:
        if self.tools.ledger.mapping_of_job(self.job.id) is not None:
            self._hold(former.attachment_id, former.owner_mark)

    def _hold(self, attachment_id: str, owner_mark: str) -> None:
        self.tools.ledger.update_mapping(
            self.job.volume_id, self.job.server_id, attachment_id=attachment_id, owner_mark=owner_mark
        )


class ReadAttachment(Step):
    """Read which attachment the mapping has.

    Effect: none. Key: the mapping. Compensation: none.
    Uncertain: the read fails; it is repeated by a resume.
    Crash windows: none.
    """

    code = "read-attachment/1"
    gives = "attachment_id"

    def act(self) -> str:
        return self.run.mapping().attachment_id


class ReexportVolume(Step):
    """Export the volume to this host, whose server has a disk of it; the attachment becomes *attaching*.

    Effect: PUT /attachments/{id} with the connector. Key: the attachment. May be repeated.
    Compensation: none: a deletion would terminate the connection that the guest uses.
    Uncertain: timeout, 5xx, lost connection: repeat.
    Crash windows: before the call; inside it; after it, before its result is stored.
    """

    code = "reexport-volume/1"
    gives = "export"
    book = "cinder"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self, attachment_id: str, connector: dict[str, object]) -> Export:
        return export(self.run, attachment_id, connector)


class CheckStatus(Step):
    """See that the volume is attached by all books but its status in Cinder, and to nobody else.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-status/1"

    def act(self) -> None:
        mapping = attached_row(self.run)
        server = self.run.see_server()
        wanted = [scope for scope in Scope if server.definition(scope) is not None]
        if set(own_disks(self.run, server)) != set(wanted):
            raise not_repaired(self.run, f"server {server.name} has not the disk in all its definitions")
        self.run.see_volume()
        rows = self.tools.cinder.list_attachments(self.job.volume_id)
        if [row.id for row in rows] != [mapping.attachment_id]:
            raise not_repaired(self.run, "Cinder has other attachments of it")
        (row,) = rows
        status = self.tools.cinder.show_volume(self.job.volume_id).status
        if status not in STATUSES or (self.job.params.dialect == "legacy" and status != "detaching"):
            raise not_repaired(self.run, f"Cinder says that it is {status}, which no operation of Cinder's puts right")
        if row.status not in {"attached", "attaching"}:
            raise not_repaired(self.run, f"Cinder has its attachment {row.id} as {row.status}")


class SettleStatus(Step):
    """Bring the volume's status to *in-use* by Cinder's own operations.

    Effect: os-roll_detaching of a volume that nobody detaches; os-complete of its attachment otherwise.
    Key: the attachment. May be repeated.
    Compensation: none: the disk is in use, so that no other status is right.
    Uncertain: timeout, 5xx: read, repeat.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "settle-status/1"
    book = "cinder"
    repeatable = True
    forward_only = True

    def act(self, attachment_id: str) -> None:
        if self._status() == "detaching":
            self.tools.cinder.roll_detaching(self.job.volume_id)
        row = self.tools.cinder.show_attachment(attachment_id)
        if row.status != "attached" or self._status() != "in-use":
            self.tools.cinder.complete_attachment(attachment_id)
        if self._status() != "in-use":
            raise UncertainError(f"volume {self.job.volume_name} is {self._status()} after os-complete")

    def _status(self) -> str:
        return self.tools.cinder.show_volume(self.job.volume_id).status
