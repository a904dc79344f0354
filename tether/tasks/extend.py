"""To make an attached volume larger: in Cinder, on this host, and in the running guest."""

from __future__ import annotations

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import reaches_by_network
from tether.adapters.guest.model import Disk, Scope, Server
from tether.errors import ConfigError, FinalError, NotFound, OperatorNeeded, UncertainError, Unchanged
from tether.tasks.host import GIB
from tether.tasks.mapping import check_project, check_server
from tether.tasks.repair import attached_row, own_disks
from tether.tasks.run import Run
from tether.tasks.step import Step

#: From here on Cinder extends a volume that is *in-use*.
IN_USE = "3.42"
#: Seconds between two looks at a volume that is *extending*, at most.
LOOK = 1.0


def not_extended(run: Run, why: str, hint: str) -> FinalError:
    """Return the refusal of an extend."""
    return FinalError(
        f"volume {run.job.volume_name} is not extended: {why}", resource=f"volume {run.job.volume_id}", hint=hint
    )


def _connection(run: Run) -> Connection:
    """Return how this host reaches the volume, as its attach has sealed it, or as Cinder says."""
    return run.connection(run.mapping().attachment_id, dict(run.tools.host.connector()))


def _by_network(run: Run) -> bool:
    """Return True if QEMU reaches the volume by itself: there is no device on this host."""
    return run.job.params.data_path == "network" or reaches_by_network(_connection(run), run.job.params.data_path)


def check_size(run: Run, volume: Volume) -> None:
    """Raise FinalError unless Cinder can make the volume that large, or it is so already."""
    name, size = volume.name or volume.id, run.job.params.size
    if volume.size > size:
        raise not_extended(
            run, f"it has {volume.size} GiB, and Cinder makes no volume smaller", f"give {volume.size} or more"
        )
    if volume.size == size:
        return
    if volume.status != "in-use":
        hint = "wait until it is in-use"
        if volume.status.startswith("error"):
            hint = f"see cinder-volume's log, then, as administrator: openstack volume set --state in-use {name}"
        raise not_extended(run, f"it is {volume.status}, not in-use", hint)
    if not run.cloud.speaks(IN_USE):
        raise not_extended(
            run,
            f"Cinder speaks {run.cloud.microversion}, and extends an attached volume from {IN_USE}",
            "detach it first, then: openstack volume set --size",
        )


class CheckExtendable(Step):
    """Refuse what cannot be extended, before anything has happened.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-extendable/1"

    def act(self) -> None:
        try:
            volume = self.tools.cinder.show_volume(self.job.volume_id)
        except NotFound as error:
            raise not_extended(self.run, "it is gone", error.hint) from error
        check_project(self.run, volume)
        mapping = attached_row(self.run)
        audit = f"see: tether audit; tether explain {self.job.volume_name}"
        rows = {row.id: row.status for row in self.tools.cinder.list_attachments(volume.id)}
        if rows.pop(mapping.attachment_id, "absent") != "attached":
            raise not_extended(self.run, f"Cinder does not have its attachment {mapping.attachment_id}", audit)
        if rows:
            raise not_extended(
                self.run,
                f"it has {len(rows)} more attachments, whose hosts and guests would not take notice",
                f"detach it there first: cinder attachment-list --volume-id {volume.id}",
            )
        check_size(self.run, volume)
        server = self.run.see_server()
        check_server(server)
        if not own_disks(self.run, server).keys() >= {scope for scope in Scope if server.definition(scope)}:
            raise not_extended(self.run, f"server {server.name} does not have its disk", audit)
        if not _by_network(self.run) and self.tools.host.find(volume.id) is None:
            raise not_extended(self.run, "this host has no device of it", "connect it anew: tether repair --apply")


class ExtendVolume(Step):
    """Have Cinder extend the volume, and wait until it has: *in-use*, *extending*, *in-use*. The pivot.

    A 413 (quota), a 400, and a scheduler that finds no space leave the volume as it was: the job then ends so. A
    driver that fails, such as one that cannot extend an attached volume, leaves it *error_extending*: the job is
    blocked, and tries again once an administrator has reset the status.

    Effect: POST os-extend. Key: the volume's size. May be repeated: each try reads the size first.
    Compensation: none: Cinder makes no volume smaller.
    Uncertain: timeout, 5xx, lost connection: repeat; what was sent may still be carried out until the settle time.
    Crash windows: before the call; while the volume is extending; after it, before the result is stored.
    """

    code = "extend-volume/1"
    book = "cinder"
    repeatable = True
    forward_only = True

    def act(self) -> int:
        volume = self._ended()
        if volume.size < self.job.params.size:
            refusal = self._ask()
            volume = self._ended()
            if volume.size < self.job.params.size:
                self.run.wait_quiet("cinder")
                volume = self._ended()
            if volume.size < self.job.params.size:
                raise refusal
        return volume.size

    def _ask(self) -> Unchanged:
        """Ask for it; return what is to be said if the volume has not grown in the end."""
        if self.run.cancelled:
            return self._unchanged("cancelled", "nothing is left; run the command again when you want it")
        try:
            self.tools.cinder.extend(self.job.volume_id, self.job.params.size)
        except (FinalError, ConfigError) as error:
            return self._unchanged(error.message, error.hint)
        return self._unchanged(
            f"Cinder has accepted {self.job.params.size} GiB and given the volume back as it was",
            "see whether a backend has the space: cinder get-pools --detail, and cinder-scheduler's log",
        )

    def _unchanged(self, why: str, hint: str) -> Unchanged:
        told = not_extended(self.run, why, hint)
        return Unchanged(told.message, resource=told.resource, hint=told.hint)

    def _ended(self) -> Volume:
        """Return the volume once Cinder is done with it.

        Raises:
            OperatorNeeded: Cinder's driver has failed, or is still at work.
        """
        clock, settings, job = self.tools.clock, self.tools.settings, self.job
        deadline = clock.time() + settings.extend_timeout
        while True:
            volume = self.tools.cinder.show_volume(job.volume_id)
            if volume.status == "error_extending":
                raise OperatorNeeded(
                    f"Cinder could not extend volume {job.volume_name}: its driver has failed, and left it"
                    f" {volume.status}; it is attached as before, with {volume.size} GiB",
                    resource=f"volume {job.volume_id}",
                    hint=f"see cinder-volume's log, then, as administrator: openstack volume set --state in-use"
                    f" {job.volume_id}; then try again: tether job resume {job.id}, or give up: tether job settle"
                    f" {job.id} --as attached --reason TEXT",
                )
            if volume.status != "extending":
                return volume
            if clock.time() >= deadline:
                raise OperatorNeeded(
                    f"Cinder has been extending volume {job.volume_name} for {settings.extend_timeout:g} s",
                    resource=f"volume {job.volume_id}",
                    hint=f"see cinder-volume's log; once it is done: tether job resume {job.id}",
                )
            self.run.pause(min(LOOK, settings.retry_interval))


class ExtendDevice(Step):
    """Have this host take notice: rescan the paths, resize the multipath map.

    Effect: os-brick's extend_volume. Key: the device's size. May be repeated.
    Compensation: none: past the pivot.
    Uncertain: time limit, killed helper, a device that is still too small: repeat.
    Crash windows: before, inside and after: repeating is harmless.
    """

    code = "extend-device/1"
    book = "host"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        if _by_network(self.run):
            return
        device = self.tools.host.extend(self.job.volume_id, _connection(self.run))
        if device.size < self.job.params.size * GIB:
            raise UncertainError(
                f"{device.path} of volume {self.job.volume_name} still has {device.size} bytes: this host does not see"
                f" {self.job.params.size} GiB",
                resource=f"volume {self.job.volume_id}",
                hint="see whether the backend's target has grown: iscsiadm -m session --rescan, lsblk, multipath -ll",
            )


class ResizeEncryption(Step):
    """Let dm-crypt take up all of the device; the guest's disk stays smaller than it by the LUKS header.

    Effect: cryptsetup resize. Key: the mapping's size. May be repeated.
    Compensation: none: past the pivot.
    Uncertain: time limit, killed helper, a mapping that is still too small: repeat.
    Crash windows: before, inside and after: repeating is harmless.
    """

    code = "resize-encryption/1"
    book = "host"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        encryption = self.tools.cinder.show_encryption(self.job.volume_id)
        if _by_network(self.run) or encryption is None or encryption.control_location != "front-end":
            return
        self.tools.host.resize_encryption(self.job.volume_id, self.tools.keys.passphrase(encryption))
        usable = self.tools.host.usable_size(self.job.volume_id)
        if usable <= (self.job.params.size - 1) * GIB:  # a header is far smaller than the GiB that sizes go by
            raise UncertainError(
                f"the dm-crypt mapping of volume {self.job.volume_name} still has {usable} bytes",
                resource=f"volume {self.job.volume_id}",
                hint=f"look at: cryptsetup status tether-{self.job.volume_id}",
            )


class ResizeGuest(Step):
    """Have QEMU and the running guest take notice; one that is shut off finds the new size at its next start.

    Effect: blockResize. Key: the live disk's capacity. May be repeated.
    Compensation: none: past the pivot.
    Uncertain: timeout, connection lost, a disk that is still too small: repeat.
    Crash windows: before or after the call: repeating is harmless.
    """

    code = "resize-guest/1"
    book = "guest"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        with self.run.server_lease():
            server = self.run.see_server()
            if server.live is None:
                return
            target = self._disk(server).target
            capacity = self.tools.guest.capacity(server.uuid, target)
            wanted = self._wanted(capacity)
            if capacity >= wanted:
                return
            self.tools.guest.resize(server.uuid, target, wanted)
            now = self.tools.guest.capacity(server.uuid, target)
            if now < wanted:
                raise UncertainError(
                    f"disk {target} of server {server.name} has {now} bytes after the resize, not {wanted}",
                    resource=f"server {server.uuid}",
                    hint=f"look at: virsh domblkinfo {server.name} {target}",
                )

    def _disk(self, server: Server) -> Disk:
        disk = own_disks(self.run, server).get(Scope.LIVE)
        if disk is None:
            raise FinalError(
                f"server {server.name} no longer has volume {self.job.volume_name} as a disk",
                resource=f"server {server.uuid}",
                hint=f"see: tether explain {self.job.volume_name}",
            )
        return disk

    def _wanted(self, capacity: int) -> int:
        """Return the bytes that the guest's disk is to have.

        On the host data path what QEMU opens says it. A LUKS disk that QEMU opens by itself lacks its header, as much
        as it lacks of a whole number of GiB now (Nova asks qemu-img for it: virt/libvirt/driver.py:
        _resize_attached_encrypted_volume).
        """
        if not _by_network(self.run):
            return self.tools.host.usable_size(self.job.volume_id)
        header = -capacity % GIB if self.job.params.encrypted else 0
        return self.job.params.size * GIB - header
