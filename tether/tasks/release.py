"""To free what nothing uses: of a mapping whose disk is gone, and of volumes that no mapping has."""

from __future__ import annotations

from tether.adapters.cinder.model import Connection
from tether.adapters.guest.model import Scope, Server
from tether.errors import FinalError, OperatorNeeded, UncertainError
from tether.persistence.overview import jobs_about
from tether.tasks.guest import clear_secrets
from tether.tasks.host import is_shared, sources_elsewhere
from tether.tasks.repair import not_repaired
from tether.tasks.run import Run
from tether.tasks.step import Step
from tether.tasks.users import refuse_used, stray_rows
from tether.tasks.volume import delete_until_gone


def prove_unused(run: Run) -> None:
    """Refuse the repair, before anything has happened, of what may be in use.

    Raises:
        FinalError: something uses it, or nobody can say that nothing does.
    """
    try:
        refuse_used(run)
    except (OperatorNeeded, UncertainError) as error:
        raise FinalError(error.message, resource=error.resource, hint=error.hint) from error


class CheckUnused(Step):
    """Show that no server has a disk of the mapping, nor anything else uses it.

    Every domain of this host is read, both definitions of each; a volume that other mappings of this host have keeps
    its connection, and only the mapping's own server is judged.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-unused/1"

    def act(self) -> None:
        if self.tools.ledger.mapping(self.job.volume_id, self.job.server_id) is None:
            raise not_repaired(self.run, "the ledger no longer has it")
        self.run.see_volume()
        if not is_shared(self.run):
            prove_unused(self.run)
            return
        server = self.run.see_server()
        for definition in (server.live, server.persistent):
            if definition is not None and definition.holds(self.job.volume_id):
                raise not_repaired(self.run, f"server {server.name} has a disk of it")


class CheckStray(Step):
    """Show that nothing uses the volume, and that what the host has of it can be disconnected.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-stray/1"

    def act(self) -> None:
        if self.tools.ledger.list_mappings(volume_id=self.job.volume_id):
            raise not_repaired(self.run, "the ledger has it by now")
        prove_unused(self.run)
        device = self.tools.host.find(self.job.volume_id)
        if device is not None and _connection(self.run) is None:
            raise not_repaired(self.run, f"nobody can say how {device.path} was connected: log out by hand")


def _connection(run: Run) -> Connection | None:
    """Return how Cinder says that one of our attachments is reached, if one has connection info."""
    found = [run.tools.cinder.show_attachment(row.id).connection for row in stray_rows(run)]
    return next((connection for connection in found if connection is not None), None)


class ClearMark(Step):
    """Take tether's mark out of definitions whose disk somebody has taken out; it stays when virsh detaches a disk.

    Effect: the marks of this ledger's jobs go. Key: volume and job. Compensation: none: there is no disk.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "clear-mark/1"
    book = "guest"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        volume_id, guest = self.job.volume_id, self.tools.guest
        ours = {job.id for job in jobs_about(self.tools.ledger, [volume_id])}
        for server in guest.survey().servers:
            if not any(self._stale(server, scope, ours) for scope in Scope):
                continue
            with self.tools.leases.held(f"server:{server.uuid}", wait=self.tools.settings.wait, job=self.job.id):
                now = guest.show_server(server.uuid)
                for scope in Scope:
                    if self._stale(now, scope, ours):
                        guest.unmark(server.uuid, scope, volume_id)

    def _stale(self, server: Server, scope: Scope, ours: set[str]) -> bool:
        definition = server.definition(scope)
        return (
            definition is not None
            and definition.marks.get(self.job.volume_id) in ours
            and definition.disk(self.job.volume_id) is None
        )


class ClearSecret(Step):
    """Undefine the libvirt secrets of a volume that nothing uses.

    Effect: secretUndefine. Key: kind and usage. Compensation: none: nothing uses them.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "clear-secret/1"
    book = "guest"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        refuse_used(self.run)
        clear_secrets(self.run)


class ClearHost(Step):
    """Close dm-crypt, disconnect and remove tether's link of a volume that nothing uses.

    A device goes only by the connection info of an attachment of ours; a link that leads nowhere goes alone.

    Effect: the mapping, the connection, the link and the device ledger's row go. Key: the volume id.
    Compensation: none: nothing uses them.
    Uncertain: time limit, killed helper, residue: repeat.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "clear-host/1"
    book = "host"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self) -> None:
        refuse_used(self.run)
        host, volume_id = self.tools.host, self.job.volume_id
        if self.job.params.data_path == "host":
            host.close_encryption(volume_id)
            if host.encryption_open(volume_id):
                raise UncertainError(f"the dm-crypt mapping of volume {self.job.volume_name} is still open")
            connection = _connection(self.run)
            if connection is not None and connection.protocol != "rbd":
                host.disconnect(volume_id, connection, sources_elsewhere(self.run, connection))
                if left := host.residue(volume_id, connection):
                    raise UncertainError(f"volume {self.job.volume_name} is not disconnected: {'; '.join(left)}")
        if host.find(volume_id) is None:
            host.unlink(volume_id)
        self.tools.ledger.delete_connection(self.run.machine.machine_id, volume_id)


class ClearRows(Step):
    """Delete the attachments that jobs of this ledger have left, of a volume that nothing uses.

    Effect: DELETE /attachments/{id}. Key: the owner mark of a job that has ended.
    Compensation: none: nothing uses them.
    Uncertain: timeout, 5xx: repeat; a row is gone when Cinder no longer lists it.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "clear-rows/1"
    book = "cinder"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self) -> None:
        for row in stray_rows(self.run):
            refuse_used(self.run)
            delete_until_gone(self.run, row.id)
