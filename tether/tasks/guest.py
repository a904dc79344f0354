"""The guest's side: libvirt secrets, and the disk in the persistent and the live definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.disk import DiskSpec, chap_secret, reaches_by_network, render, source_of, spec_for
from tether.adapters.guest.model import Definition, Disk, Power, Scope, SecretUse, Server, Unplugged
from tether.adapters.guest.slots import Slot
from tether.adapters.guest.xml import not_own
from tether.adapters.host.model import Device
from tether.errors import FinalError, OperatorNeeded, UncertainError
from tether.tasks.host import NO_DEVICE, is_shared
from tether.tasks.mapping import check_owner, check_server
from tether.tasks.run import Run
from tether.tasks.step import Step

SECRET_KINDS = ("iscsi", "volume")


class DefineSecret(Step):
    """Give libvirt the secrets that QEMU needs to reach and to read the volume: CHAP, and LUKS by QEMU.

    The ceph secret is the host's own: it is named, never made.

    Effect: secrets with the volume id as their usage; their value is set anew each time.
    Key: kind and usage. May be repeated.
    Compensation: undefine them, once no other mapping of this host uses them.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before, between and after the calls.
    """

    code = "define-secret/1"
    book = "guest"
    repeatable = True

    def act(self, attachment_id: str, connector: dict[str, object]) -> None:
        connection = self.run.connection(attachment_id, connector)
        if not reaches_by_network(connection, self.job.params.data_path):
            return
        password = chap_secret(connection)
        if password is not None:
            self.tools.guest.define_secret(SecretUse("iscsi", self.job.volume_id), password)
        if self.job.params.encrypted:
            encryption = self.tools.cinder.show_encryption(self.job.volume_id)
            if encryption is not None and encryption.control_location == "front-end":
                passphrase = self.tools.keys.passphrase(encryption)
                self.tools.guest.define_secret(SecretUse("volume", self.job.volume_id), passphrase)

    def undo(self) -> None:
        undefine_secrets(self.run)


def undefine_secrets(run: Run) -> None:
    """Undefine the volume's secrets and prove it, unless another mapping of this host uses them."""
    if is_shared(run):
        return
    run.refuse_while_held()
    clear_secrets(run)


def clear_secrets(run: Run) -> None:
    """Undefine the volume's secrets and prove it; the caller has shown that nothing uses them."""
    for kind in SECRET_KINDS:
        use = SecretUse(kind, run.job.volume_id)
        if run.tools.guest.has_secret(use):
            run.tools.guest.undefine_secret(use)
            if run.tools.guest.has_secret(use):
                raise UncertainError(f"the libvirt secret of volume {run.job.volume_name} is still defined")


class UndefineSecret(Step):
    """Undefine the volume's libvirt secrets.

    Effect: secretUndefine. Key: kind and usage. Compensation: none: past the pivot.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before, between and after the calls: repeating is harmless.
    """

    code = "undefine-secret/1"
    book = "guest"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        undefine_secrets(self.run)


class Plug(Step):
    """Put the disk into one of the server's two definitions; see the two steps below."""

    scope: ClassVar[Scope]
    book = "guest"
    repeatable = True

    def spec(
        self, volume: Volume, attachment_id: str, connector: dict[str, object], slot: Slot, device: Device
    ) -> DiskSpec:
        """Return the disk."""
        connection = self.run.connection(attachment_id, connector)
        # Also on the host data path: rbd has no device here, so QEMU does the decryption.
        by_network = reaches_by_network(connection, self.job.params.data_path)
        encryption = self.tools.cinder.show_encryption(volume.id) if self.job.params.encrypted and by_network else None
        return spec_for(
            volume,
            connection,
            slot=slot,
            device=None if device == NO_DEVICE else device,
            mode=self.job.params.mode,
            settings=self.tools.settings,
            initiator=str(connector.get("initiator", "")),
            encryption=encryption,
            data_path=self.job.params.data_path,
        )

    def plug(self, server: Server, spec: DiskSpec) -> None:
        """Mark, plug, and read back; nothing if it is there already. Call it under the server's lease."""
        if self.own_disk(server, spec) is not None:
            return
        definition = server.definition(self.scope)
        source = source_of(spec)
        for disk in definition.disks if definition else ():
            if disk.source == source:
                raise FinalError(
                    f"{disk.target} of server {server.name} already opens {source}",
                    resource=f"server {server.uuid}",
                    hint="two disks on one volume destroy it: detach the other one first",
                )
        self.tools.guest.mark(server.uuid, self.scope, spec.volume_id, self.job.id)
        try:
            self.tools.guest.plug(server.uuid, self.scope, render(spec))
        except FinalError:
            # An earlier request without an answer may have come late: then it is there, and this one was refused.
            if self.own_disk(self.run.see_server(), spec) is None:
                raise
        if self.own_disk(self.run.see_server(), spec) is None:
            raise UncertainError(
                f"volume {self.job.volume_name} is not in the {self.scope} definition of server {server.name}"
                " after plugging"
            )

    def own_disk(self, server: Server, spec: DiskSpec) -> Disk | None:
        """Return our disk: alias, serial, source, target and our mark; None if there is none.

        Raises:
            OperatorNeeded: the alias is there, but the disk is not this job's.
        """
        definition = server.definition(self.scope)
        disk = None if definition is None else definition.disk(spec.volume_id)
        if definition is None or disk is None:
            return None
        ours = (
            definition.marks.get(spec.volume_id) == self.job.id
            and disk.serial == spec.volume_id
            and disk.source == source_of(spec)
            and disk.target == spec.slot.target
        )
        if not ours:
            raise OperatorNeeded(
                f"server {server.name} has a disk with volume {self.job.volume_name}'s alias that this job did not"
                " plug",
                resource=f"server {server.uuid}",
                hint=f"see: virsh dumpxml {server.name}; detach it there, then: tether job resume {self.job.id}",
            )
        return disk

    def unplug(self, scope: Scope) -> None:
        """Take this job's disk and mark out of a definition, and prove it."""
        # A plug that was cut off may still come: without its mark nobody would know the disk as ours.
        self.run.wait_quiet(self.book)
        with self.run.server_lease():
            server = self.run.see_server()
            definition = server.definition(scope)
            if server.persistent is not None and server.persistent.marks.get(self.job.volume_id) == self.job.id:
                refuse_image(self.run, server)  # saved since the disk was plugged, or before: it cannot be told
            if definition is None or definition.marks.get(self.job.volume_id) != self.job.id:
                return
            disk = definition.disk(self.job.volume_id)
            if disk is not None:
                answer = self.tools.guest.unplug(server.uuid, scope, disk.handle)
                if answer is not Unplugged.REMOVED:
                    raise OperatorNeeded(
                        f"server {server.name} does not let volume {self.job.volume_name} go ({answer})",
                        resource=f"server {server.uuid}",
                        hint=_help_guest(server) + f", then: tether job resume {self.job.id}",
                    )
            self.tools.guest.unmark(server.uuid, scope, self.job.volume_id)
            after = self.run.see_server().definition(scope)
            if after is not None and after.disk(self.job.volume_id) is not None:
                raise UncertainError(f"volume {self.job.volume_name} is still in the {scope} definition")


def refuse_image(run: Run, server: Server) -> None:
    """Refuse to go on while the server is saved: its next start gives it the disks of the image, whatever those are.

    Raises:
        OperatorNeeded: it has a managed-save image.
    """
    if server.managed_save:
        raise OperatorNeeded(
            f"server {server.name} was saved: its managed-save image may or may not hold volume {run.job.volume_name}",
            resource=f"server {server.uuid}",
            hint=f"start it, or drop the image with: virsh managedsave-remove {server.name}; then: tether job resume"
            f" {run.job.id}",
        )


def _help_guest(server: Server) -> str:
    if server.power is Power.PAUSED:
        return f"resume the guest: virsh resume {server.name}"
    return "see why the guest holds the disk (mounted, no hot-plug driver), or shut it down"


class PlugPersistent(Plug):
    """Put the disk into the persistent definition.

    Effect: tether's mark, then ``<disk>`` (attachDeviceFlags CONFIG). Key: alias, serial, source, target and mark.
    Compensation: unplug by alias, take the mark out, read the XML again; also from a guest that was started from
    this definition meanwhile.
    Uncertain: timeout, connection lost: repeat; each try reads the XML first.
    Crash windows: before the mark; between mark and disk; after the disk.
    """

    code = "plug-persistent/1"
    gives = "persistent_disk"
    meets = True
    in_turn = True
    scope = Scope.PERSISTENT

    def act(
        self, volume: Volume, attachment_id: str, connector: dict[str, object], slot: Slot, device: Device
    ) -> dict[str, str]:
        spec = self.spec(volume, attachment_id, connector, slot, device)
        with self.run.server_lease():
            server = self.run.see_server()
            check_server(server)
            self.plug(server, spec)
        return {"target": slot.target}

    def undo(self) -> None:
        # A guest that was started meanwhile has the disk live, although plug-live never ran.
        self.unplug(Scope.LIVE)
        self.unplug(Scope.PERSISTENT)


class PlugLive(Plug):
    """Put the disk into the running guest: the pivot.

    Effect: tether's mark, then ``<disk>`` (attachDeviceFlags LIVE); nothing on a guest that is shut off.
    Key: alias, serial, source, target and mark.
    Compensation: unplug by alias and wait for the guest's answer; a guest that does not let go blocks the job.
    Uncertain: timeout, connection lost: repeat; each try reads the XML first.
    Crash windows: before the mark; between mark and disk; after the disk.
    """

    code = "plug-live/1"
    gives = "live_disk"
    meets = True
    in_turn = True
    scope = Scope.LIVE

    def act(
        self, volume: Volume, attachment_id: str, connector: dict[str, object], slot: Slot, device: Device
    ) -> dict[str, str]:
        spec = self.spec(volume, attachment_id, connector, slot, device)
        with self.run.server_lease():
            server = self.run.see_server()
            refuse_image(self.run, server)
            if server.live is not None:
                try:
                    self.plug(server, spec)
                except FinalError:
                    # It was shut off under our hands: the persistent definition is all there is.
                    if self.run.see_server().live is not None:
                        raise
        self.run.pivoted = True
        return {"target": slot.target}

    def undo(self) -> None:
        self.unplug(Scope.LIVE)


@dataclass(frozen=True)
class Elements:
    """The ``<disk>`` elements as they were before a detach; empty where a definition had none. No secret in them."""

    persistent: str
    live: str
    job: str


class CheckDetachable(Step):
    """Refuse what cannot be detached, and keep the ``<disk>`` elements so that they can be put back.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-detachable/1"
    gives = "elements"

    def act(self) -> Elements:
        row = self.tools.ledger.mapping(self.job.volume_id, self.job.server_id)
        if row is None:
            raise FinalError(
                f"volume {self.job.volume_name} is no longer attached to server {self.job.server_name}",
                resource=f"volume {self.job.volume_id}",
                hint="another job has detached it: tether job list",
            )
        server = self.run.see_server()
        check_server(server)
        check_owner(self.run, server)
        held = [name for name, disks in server.memory_snapshots.items() if row.target in disks]
        if held:
            raise FinalError(
                f"snapshot {held[0]} of server {server.name} holds {row.target}: reverting to it gives the disk back",
                resource=f"server {server.uuid}",
                hint=f"delete it first: virsh snapshot-delete {server.name} {held[0]}",
            )
        volume = self.tools.cinder.show_volume(self.job.volume_id)
        if volume.status not in {"in-use", "available"} and not volume.multiattach:
            raise FinalError(
                f"volume {self.job.volume_name} is in status {volume.status}, not in-use",
                resource=f"volume {volume.id}",
                hint="see who works on it: tether job list",
            )
        elements: dict[Scope, str] = {}
        for scope in Scope:
            definition = server.definition(scope)
            disk = None if definition is None else definition.disk(self.job.volume_id)
            if definition is not None and disk is None:
                self._refuse_changed(server, definition)
            if definition is not None and disk is not None and self.job.volume_id not in definition.marks:
                raise FinalError(
                    f"the disk {disk.target} of server {server.name} carries volume {self.job.volume_name}'s alias,"
                    " but not tether's mark",
                    resource=f"server {server.uuid}",
                    hint="it was attached by another tool: detach it there",
                )
            elements[scope] = "" if disk is None else disk.xml
        if elements[Scope.LIVE] and server.power is Power.PAUSED:
            raise FinalError(
                f"server {server.name} is paused: it cannot answer an unplug",
                resource=f"server {server.uuid}",
                hint=f"resume it first: virsh resume {server.name}",
            )
        return Elements(elements[Scope.PERSISTENT], elements[Scope.LIVE], row.job_id)

    def _refuse_changed(self, server: Server, definition: Definition) -> None:
        """Raise FinalError if another disk stands where an adopted one was."""
        target, source = definition.adopted.get(self.job.volume_id, ("", ""))
        if any(disk.target == target for disk in definition.disks):
            raise FinalError(
                f"{target} of server {server.name} is no longer the disk that was adopted: it opened {source}",
                resource=f"server {server.uuid}",
                hint=f"see what it is: virsh domblklist {server.name}",
            )


def put_back(run: Run, scope: Scope, elements: Elements) -> None:
    """Plug a stored ``<disk>`` again where it is missing; never by redefining the domain."""
    element = elements.persistent if scope is Scope.PERSISTENT else elements.live
    with run.server_lease():
        server = run.see_server()
        definition = server.definition(scope)
        if not element or definition is None:
            return
        run.tools.guest.mark(server.uuid, scope, run.job.volume_id, elements.job, not_own(element, run.job.volume_id))
        if definition.disk(run.job.volume_id) is None:
            run.tools.guest.plug(server.uuid, scope, element)
        after = run.see_server().definition(scope)
        if after is not None and after.disk(run.job.volume_id) is None:
            raise UncertainError(f"volume {run.job.volume_name} is not back in the {scope} definition")


class UnplugPersistent(Step):
    """Take the disk out of the persistent definition.

    Effect: detachDeviceAlias CONFIG, and the mark goes. Key: the alias. May be repeated.
    Compensation: put the stored element and the mark back.
    Uncertain: timeout, connection lost: repeat.
    Crash windows: before the disk; between disk and mark; after the mark.
    """

    code = "unplug-persistent/1"
    book = "guest"
    on_targets = True
    repeatable = True

    def act(self, elements: Elements) -> None:
        unplug(self.run, Scope.PERSISTENT)

    def undo(self, elements: Elements) -> None:
        put_back(self.run, Scope.PERSISTENT, elements)


def unplug(run: Run, scope: Scope) -> Unplugged:
    """Take the volume's disk and mark out of one definition; return how it ended."""
    with run.server_lease():
        server = run.see_server()
        definition = server.definition(scope)
        if definition is None:
            return Unplugged.REMOVED
        disk = definition.disk(run.job.volume_id)
        if disk is not None:
            answer = run.tools.guest.unplug(server.uuid, scope, disk.handle)
            if answer is not Unplugged.REMOVED:
                return answer
        if run.job.volume_id in definition.marks:
            run.tools.guest.unmark(server.uuid, scope, run.job.volume_id)
        return Unplugged.REMOVED


class UnplugLive(Step):
    """Take the disk out of the running guest: the pivot of a detach is the first request that is sent.

    Effect: detachDeviceAlias LIVE, repeated; the mark goes. Key: the alias. May be repeated.
    Compensation: put the stored element back if the disk has left; a request that was never answered stays
    pending in QEMU and is kept as such in the mapping.
    Uncertain: the guest does not answer: the job is blocked, waiting for the guest; host and Cinder stay as
    they are. A refusal (DEVICE_REMOVAL_FAILED) is final and rolls back.
    Crash windows: before the request; after it, before the guest's answer; before the mark goes.
    """

    code = "unplug-live/1"
    book = "guest"
    pending_blocks = True

    def act(self, elements: Elements) -> None:
        server = self.run.see_server()
        refuse_image(self.run, server)
        if server.live is not None and server.power is Power.PAUSED and server.live.disk(self.job.volume_id):
            raise FinalError(
                f"server {server.name} is paused: it cannot answer an unplug",
                resource=f"server {server.uuid}",
                hint=f"resume it first: virsh resume {server.name}",
            )
        try:
            answer = unplug(self.run, Scope.LIVE)
        except UncertainError as error:  # QEMU waits for what it has sent to a storage that is gone
            hint = f"{error.hint}{self._or_stop(server)}"
            raise UncertainError(error.message, resource=error.resource, hint=hint) from error
        if answer is Unplugged.REFUSED:
            raise FinalError(
                f"server {server.name} refused to let volume {self.job.volume_name} go",
                resource=f"server {server.uuid}",
                hint=f"unmount it in the guest{self._or_stop(server)}, then detach again",
            )
        if answer is Unplugged.PENDING:
            raise UncertainError(
                f"waiting for the guest: server {server.name} has not answered the unplug of volume"
                f" {self.job.volume_name}",
                resource=f"server {server.uuid}",
                hint=f"{_help_guest(server)}{self._or_stop(server)}, then: tether job resume {self.job.id}",
            )
        self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, pending_unplug=False)

    def _or_stop(self, server: Server) -> str:
        """Return what a forced job says beside its usual hint: a disk is never torn from a running guest."""
        if not self.job.params.force:
            return ""
        return f", or stop the guest, since --force takes no disk from a running one (virsh shutdown {server.name})"

    def undo(self, elements: Elements) -> None:
        server = self.run.see_server()
        refuse_image(self.run, server)
        held = server.live is not None and server.live.disk(self.job.volume_id) is not None
        if held and self.code in self.run.in_flight:
            self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, pending_unplug=True)
        put_back(self.run, Scope.LIVE, elements)
