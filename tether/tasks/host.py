"""The host's side: the connection, the device and dm-crypt. Absent from a flow on the network data path."""

from __future__ import annotations

import logging

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import reaches_by_network
from tether.adapters.host.model import Device
from tether.errors import ConflictError, FinalError, NotFound, OperatorNeeded, TetherError, UncertainError
from tether.persistence.ledger import ConnectionRow, Ledger
from tether.tasks.run import Run
from tether.tasks.step import Step
from tether.tasks.users import refuse_opened
from tether.tasks.volume import Export

LOG = logging.getLogger(__name__)

GIB = 1024**3
#: Seconds that the last of a volume's paths may take to come into its map after the log-in.
LATE = 10.0
#: What ``connect-host`` gives for a protocol that QEMU speaks by itself (rbd): no device on this host.
NO_DEVICE = Device(link="", path="", kind="network")


def is_shared(run: Run, data_path: str = "") -> bool:
    """Return True while another mapping of this host uses the volume, by this data path or by any."""
    return uses_elsewhere(
        run.tools.ledger, run.job.volume_id, run.job.server_id, run.machine.machine_id, data_path=data_path
    )


def uses_elsewhere(ledger: Ledger, volume_id: str, server_id: str, machine_id: str, *, data_path: str = "") -> bool:
    """Return True if another server of this host has a mapping of the volume, or is being handed over to or from it.

    Args:
        data_path: count only those that use this one: a device is needed by *host* alone; empty for any.
    """
    rows = [row for row in ledger.list_mappings(volume_id=volume_id) if row.server_id != server_id]
    ends = {row.server_id: row.machine_id for row in ledger.handovers.list(volume_id=volume_id)} if rows else {}
    return any(
        machine_id in {row.machine_id, ends.get(row.server_id)} and data_path in {"", row.data_path} for row in rows
    )


def disconnect(run: Run, attachment_id: str, connector: dict[str, object]) -> None:
    """Disconnect the volume from this host and prove that nothing is left; a forced job's is told what it has lost.

    Raises:
        OperatorNeeded: the server still has the disk: a connection that a guest uses is never dropped
            (CVE-2023-2088 is what happens otherwise).
        UncertainError: something is left.
    """
    if is_shared(run, "host"):
        return
    run.refuse_while_held()
    try:
        connection = run.connection(attachment_id, connector)
    except (NotFound, FinalError) as error:
        _disconnect_blind(run, error)
        return
    if not reaches_by_network(connection, run.job.params.data_path):
        _refuse_anothers(run)
        forced = bool(run.job.params.force)
        if forced:
            refuse_opened(run)
        others = sources_elsewhere(run, connection)
        for failed in run.tools.host.disconnect(run.job.volume_id, connection, others, force=forced):
            LOG.warning("volume %s: %s; what had not been written by then may be lost", run.job.volume_name, failed)
        left = run.tools.host.residue(run.job.volume_id, connection)
        if left:
            raise UncertainError(
                f"volume {run.job.volume_name} is not fully disconnected: {'; '.join(left)}",
                resource=f"volume {run.job.volume_id}",
                hint="see what holds it: lsblk, iscsiadm -m session, multipath -ll",
            )
    run.tools.ledger.delete_connection(run.machine.machine_id, run.job.volume_id)


def sources_elsewhere(run: Run, connection: Connection) -> frozenset[str]:
    """Return what the disks of all servers of this host open, where the connection is shared with other volumes.

    Only of NFS: a mount is one for all volumes of its share, and none of a server that is shut off holds it.
    """
    if connection.protocol != "nfs":
        return frozenset()
    definitions = [each for server in run.tools.guest.list_servers() for each in (server.live, server.persistent)]
    return frozenset(disk.source for each in definitions if each is not None for disk in each.disks)


def _refuse_anothers(run: Run) -> None:
    """Raise OperatorNeeded if the device behind our link is another volume's in the device ledger."""
    device = run.tools.host.find(run.job.volume_id)
    if device is None:
        return
    for row in run.tools.ledger.list_connections(run.machine.machine_id):
        if row.volume_id != run.job.volume_id and is_device(row, device.path, device.identity):
            raise OperatorNeeded(
                f"{device.path}, which volume {run.job.volume_name} was connected as, is volume {row.volume_id}'s:"
                " it is not disconnected",
                resource=f"volume {run.job.volume_id}",
                hint="two volumes with one device: check the backend's exports and the host's paths (lsblk,"
                f" multipath -ll), then: tether job resume {run.job.id}",
            )


def is_device(row: ConnectionRow, path: str, identity: str) -> bool:
    """Return True if a row of the device ledger is about this device.

    A name alone is no proof where both say who they are: after a reboot the kernel gives it to another device.
    """
    return row.identity == identity if row.identity and identity else row.path == path


def _disconnect_blind(run: Run, error: TetherError) -> None:
    """Forget the device if it has gone, where Cinder no longer says how the volume is connected.

    Raises:
        OperatorNeeded: the device is there, and cannot be logged out from without the connection info.
    """
    run.see_volume()
    device = run.tools.host.find(run.job.volume_id)
    if device is not None:
        raise OperatorNeeded(
            f"volume {run.job.volume_name} is connected as {device.path}, and Cinder no longer says how:"
            f" {error.message}",
            resource=f"volume {run.job.volume_id}",
            hint=f"log out of its target by hand (iscsiadm -m session -P 3), remove {device.link}, then: tether job"
            f" resume {run.job.id}",
        ) from error
    run.tools.ledger.delete_connection(run.machine.machine_id, run.job.volume_id)


def record_device(run: Run, path: str, identity: str) -> None:
    """Put the volume's device into the device ledger.

    Raises:
        FinalError: it is another volume's there.
    """
    try:
        run.tools.ledger.record_connection(
            ConnectionRow(run.machine.machine_id, run.job.volume_id, identity or None, path)
        )
    except ConflictError as error:
        raise FinalError(error.message, resource=error.resource, hint=error.hint) from error


class ConnectHost(Step):
    """Connect the host: session, paths, map, and tether's own link.

    Effect: os-brick's connect_volume, and the device ledger's row. Key: the volume id. May be repeated.
    Compensation: disconnect and prove that nothing is left; skipped while another mapping of this host uses the
    volume; never while the server has the disk.
    Uncertain: time limit, killed helper: repeat.
    Crash windows: before, inside and after the connect; before the ledger's row.
    """

    code = "connect-host/1"
    gives = "device"
    book = "host"
    on_targets = True
    repeatable = True

    def act(self, attachment_id: str, connector: dict[str, object], export: Export) -> Device:
        connection = self.run.connection(attachment_id, connector)
        if reaches_by_network(connection, self.job.params.data_path):
            return NO_DEVICE
        device = self.tools.host.connect(self.job.volume_id, connection)
        record_device(self.run, device.path, device.identity)
        return device

    def undo(self, attachment_id: str, connector: dict[str, object]) -> None:
        disconnect(self.run, attachment_id, connector)


class VerifyDevice(Step):
    """Show that the device is the volume: its size always, its identity where the connection info names one.

    And that it has the paths that the settings ask for.

    Effect: none. Key: none. Compensation: none; a wrong device that is open or another volume's is not
    disconnected: the job is blocked.
    Uncertain: it cannot be read; nothing has been plugged yet.
    Crash windows: none.
    """

    code = "verify-device/1"

    def act(
        self, volume: Volume, attachment_id: str, connector: dict[str, object], export: Export, device: Device
    ) -> None:
        if device.kind == "network":
            return
        found = self.tools.host.find(volume.id)
        if found is None:
            raise FinalError(
                f"the device of volume {self.job.volume_name} has gone from this host",
                resource=f"volume {volume.id}",
                hint="see the kernel's log for lost paths",
            )
        connection = self.run.connection(attachment_id, connector)
        wrong = mismatch(volume, found, self.tools.host.expected_identity(connection))
        if not wrong:
            self._check_paths(found, self.tools.host.expected_paths(connection))
            return
        others = [
            row
            for row in self.tools.ledger.list_connections(self.run.machine.machine_id)
            if row.volume_id != volume.id and row.path == found.path
        ]
        message = f"{found.path} is not volume {self.job.volume_name}: {wrong}"
        if found.open_count or others:
            raise OperatorNeeded(
                f"{message}; it is in use, so it is not disconnected",
                resource=f"volume {volume.id}",
                hint="find out whose it is before anything else: lsblk, multipath -ll",
            )
        raise FinalError(
            message, resource=f"volume {volume.id}", hint="stale paths on this host, or a wrong export: check both"
        )

    def _check_paths(self, device: Device, expected: int) -> None:
        """Tell of paths that are missing.

        Raises:
            FinalError: too few are there, as ``volume_min_paths`` says.
        """
        least = min(expected, self.tools.settings.volume_min_paths)
        deadline = self.tools.clock.time() + LATE
        while device.paths < least and self.tools.clock.time() < deadline:
            self.run.pause(self.tools.settings.retry_interval)
            device = self.tools.host.find(self.job.volume_id) or device
        told = f"volume {self.job.volume_name} is connected over {device.paths} of {expected} paths"
        if device.paths < least:
            raise FinalError(
                f"{told}, and [host] volume_min_paths asks for {least}",
                resource=f"volume {self.job.volume_id}",
                hint="see which portal this host does not reach (multipath -ll, iscsiadm -m session -P 1), and whether"
                " multipathd runs; or go on with fewer: lower volume_min_paths",
            )
        if device.paths < expected:
            LOG.warning("%s: see multipath -ll", told)


def mismatch(volume: Volume, device: Device, expected: str) -> str:
    """Return what is wrong with the device, or an empty text."""
    if device.identities_differ:
        return "its paths report different identities"
    if expected and device.identity != expected:
        return f"its identity is {device.identity or 'unknown'}, the connection info names {expected}"
    # Backends round up to their extents, never down, and by less than a GiB.
    if not volume.size * GIB <= device.size < (volume.size + 1) * GIB:
        return f"it has {device.size} bytes, the volume has {volume.size} GiB"
    return ""


def close_encryption(run: Run) -> None:
    """Close dm-crypt and prove it, unless another mapping of this host uses it."""
    if is_shared(run, "host"):
        return
    run.refuse_while_held()
    run.tools.host.close_encryption(run.job.volume_id)
    if run.tools.host.encryption_open(run.job.volume_id):
        raise UncertainError(f"the dm-crypt mapping of volume {run.job.volume_name} is still open")


class CloseEncryption(Step):
    """Close dm-crypt.

    Effect: the mapping goes. Key: its name. Compensation: none: past the pivot.
    Uncertain: time limit, killed helper: repeat.
    Crash windows: before, inside and after: repeating is harmless.
    """

    code = "close-encryption/1"
    book = "host"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        close_encryption(self.run)


class DisconnectHost(Step):
    """Disconnect the host and prove that nothing is left.

    A forced job passes over a flush that fails; its device is one that no server names, and that nobody has open.

    Effect: logout, devices and link removed, the device ledger's row deleted. Key: the volume id.
    Compensation: none: past the pivot.
    Uncertain: time limit, killed helper, residue: repeat.
    Crash windows: before, inside and after: repeating is harmless.
    """

    code = "disconnect-host/1"
    book = "host"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self) -> None:
        try:
            disconnect(self.run, self.run.attachment_id(), dict(self.tools.host.connector()))
        except UncertainError as error:
            raise UncertainError(error.message, resource=error.resource, hint=self._ways_out(error.hint)) from error

    def _ways_out(self, hint: str) -> str:
        """Return a hint with what only an operator can decide: that the storage will not come back."""
        if self.job.params.force:
            return hint
        again = f"tether job resume {self.job.id}"
        return f"{hint}, then: {again}; if its storage is gone for good: {again} --force --accept-lost-writes"
