"""To give an attached disk the limits that Cinder has for its volume now, in both of the server's definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tether.adapters.guest.disk import limits_in
from tether.adapters.guest.model import Scope
from tether.errors import FinalError, UncertainError
from tether.persistence.params import limits_from
from tether.tasks.mapping import check_server
from tether.tasks.repair import attached_row, own_disks
from tether.tasks.run import Run
from tether.tasks.step import Step


@dataclass(frozen=True)
class Limits:
    """What a disk was limited to before, by definition; what starts later is like the persistent one.

    Args:
        persistent: libvirt's names of ``<iotune>``, with bytes or operations a second.
        live: the same.
    """

    persistent: dict[str, int]
    live: dict[str, int]


def _not_limited(run: Run, why: str, hint: str) -> FinalError:
    return FinalError(
        f"the limits of volume {run.job.volume_name} are not changed: {why}",
        resource=f"volume {run.job.volume_id}",
        hint=hint,
    )


class CheckLimits(Step):
    """Read the limits that the disk has, and refuse one that is not wholly there, before anything has happened.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-limits/1"
    gives = "had"

    def act(self) -> Limits:
        attached_row(self.run)
        server = self.run.see_server()
        check_server(server)
        disks = own_disks(self.run, server)
        if not disks or disks.keys() < {scope for scope in Scope if server.definition(scope)}:
            raise _not_limited(
                self.run,
                f"server {server.name} does not have its disk",
                f"see: tether audit; tether explain {self.job.volume_name}",
            )
        had = {scope: limits_in(disk) for scope, disk in disks.items()}
        (other, *_) = had.values()
        return Limits(had.get(Scope.PERSISTENT, other), had.get(Scope.LIVE, other))


class Limit(Step):
    """What the steps of both definitions have in common.

    Attributes:
        scope: whose disk it is.
    """

    scope: ClassVar[Scope]

    def limit(self) -> None:
        """Give the disk the limits of the job.

        Raises:
            FinalError: the definition no longer has it.
        """
        if not self.give(limits_from(self.job.params.limits)):
            raise _not_limited(
                self.run,
                f"server {self.job.server_name} no longer has its disk",
                f"see: tether explain {self.job.volume_name}",
            )

    def give(self, limits: dict[str, int]) -> bool:
        """Give the disk these limits and prove it; return False if it is not there, though the definition is.

        Raises:
            UncertainError: it has others afterwards.
        """
        server = self.run.see_server()
        disk = own_disks(self.run, server).get(self.scope)
        if disk is None:
            return server.definition(self.scope) is None
        if limits_in(disk) != limits:
            self.tools.guest.limit(server.uuid, self.scope, disk.target, limits)
            disk = own_disks(self.run, self.run.see_server()).get(self.scope)
            if disk is not None and limits_in(disk) != limits:
                raise UncertainError(
                    f"disk {disk.target} of server {server.name} has not the limits that it was given",
                    resource=f"server {server.uuid}",
                    hint=f"look at: virsh blkdeviotune {server.name} {disk.target}",
                )
        return True


class LimitPersistent(Limit):
    """Give the disk its limits in the persistent definition: those that the server starts with.

    Effect: setBlockIoTune with VIR_DOMAIN_AFFECT_CONFIG. Key: the disk's limits. May be repeated.
    Compensation: the limits that it had.
    Uncertain: timeout, connection lost, limits that read back otherwise: repeat.
    Crash windows: before or after the call: repeating is harmless.
    """

    code = "limit-persistent/1"
    book = "guest"
    repeatable = True
    scope = Scope.PERSISTENT

    def act(self) -> None:
        self.limit()

    def undo(self, had: Limits) -> None:
        self.give(had.persistent)


class LimitLive(Limit):
    """Give the running disk its limits; QEMU goes by them at once.

    Effect: setBlockIoTune with VIR_DOMAIN_AFFECT_LIVE. Key: the disk's limits. May be repeated.
    Compensation: the limits that it had.
    Uncertain: timeout, connection lost, limits that read back otherwise: repeat.
    Crash windows: before or after the call: repeating is harmless.
    """

    code = "limit-live/1"
    book = "guest"
    repeatable = True
    scope = Scope.LIVE

    def act(self) -> None:
        self.limit()

    def undo(self, had: Limits) -> None:
        self.give(had.live)
