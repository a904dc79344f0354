"""To put the missing half of a disk back: into the running guest, or into its persistent definition."""

from __future__ import annotations

from dataclasses import dataclass

from tether.adapters.guest.model import Disk, Power, Scope, Unplugged
from tether.errors import OperatorNeeded
from tether.tasks.guest import Elements, put_back
from tether.tasks.mapping import check_server
from tether.tasks.repair import attached_row, not_repaired, own_disks
from tether.tasks.step import Step


@dataclass(frozen=True)
class Half:
    """The half of a disk that is there; no secret in it.

    Args:
        job: the mapping's.
        marked: the definition without the disk has tether's mark all the same.
    """

    missing: str
    element: str
    job: str
    marked: bool = False


class CheckHalf(Step):
    """See that one of the server's two definitions has our disk, and the other has nothing in its place.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-half/1"
    gives = "half"

    def act(self) -> Half:
        mapping = attached_row(self.run)
        server = self.run.see_server()
        check_server(server)
        disks = own_disks(self.run, server)
        missing = [scope for scope in Scope if server.definition(scope) is not None and scope not in disks]
        if len(disks) != 1 or len(missing) != 1:
            raise not_repaired(self.run, f"server {server.name} has no half of it")
        (there,) = disks.values()
        other = server.definition(missing[0])
        if there.target != mapping.target or (other is not None and other.holds(self.job.volume_id)):
            raise not_repaired(self.run, f"it is not the {mapping.target} that the ledger has")
        if missing[0] is Scope.LIVE and mapping.data_path == "host" and self._has_no_device(there):
            raise not_repaired(self.run, "this host has no device of it")
        marked = other is not None and self.job.volume_id in other.marks  # it outlives a disk that virsh detaches
        return Half(str(missing[0]), there.xml, mapping.job_id, marked)

    def _has_no_device(self, disk: Disk) -> bool:
        return disk.source_type != "network" and self.tools.host.find(self.job.volume_id) is None


class PlugHalf(Step):
    """Put the missing half of a disk back, as the other half has it: the pivot.

    Effect: tether's mark, then ``<disk>`` (attachDeviceFlags). Key: the volume's disk. May be repeated.
    Compensation: unplug it again, and take the mark out if it was not there before; a guest that does not let go
    blocks the job.
    Uncertain: timeout, connection lost: repeat; each try reads the XML first.
    Crash windows: before the mark; between mark and disk; after the disk.
    """

    code = "plug-half/1"
    book = "guest"
    repeatable = True

    def act(self, half: Half) -> None:
        elements = Elements(persistent=half.element, live=half.element, job=half.job)
        put_back(self.run, Scope(half.missing), elements)
        if half.missing == Scope.LIVE:
            self.run.pivoted = True
            # What was asked of the disk that has left is over with it.
            self.tools.ledger.update_mapping(self.job.volume_id, self.job.server_id, pending_unplug=False)

    def undo(self, half: Half) -> None:
        scope = Scope(half.missing)
        with self.run.server_lease():
            server = self.run.see_server()
            definition = server.definition(scope)
            if definition is None:
                return
            disk = definition.disk(self.job.volume_id)
            answer = Unplugged.REMOVED if disk is None else self.tools.guest.unplug(server.uuid, scope, disk.handle)
            if answer is not Unplugged.REMOVED:
                raise OperatorNeeded(
                    f"server {server.name} does not let volume {self.job.volume_name} go ({answer})",
                    resource=f"server {server.uuid}",
                    hint=("resume the guest" if server.power is Power.PAUSED else "see why the guest holds the disk")
                    + f", then: tether job resume {self.job.id}",
                )
            if not half.marked:
                self.tools.guest.unmark(server.uuid, scope, self.job.volume_id)
