"""Turns the parts of a hand-over into jobs: one a volume of the server, on the host where the part's effects are.

The hosts share a ledger, which says what is to be done where. Each part may be asked for again: what is done is done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from tether.adapters.guest.disk import DiskSpec, reaches_by_network, spec_for
from tether.adapters.guest.slots import Slot
from tether.errors import ConflictError, FinalError, NotFound, TetherError, UsageError
from tether.persistence.handovers import End, Handover
from tether.persistence.ledger import Job, MappingRow
from tether.runner.jobs import Runner
from tether.runner.requests import Accepted, detach_params, held, new_job, store
from tether.tasks.run import Toolbox

PREPARE, COMPLETE, RELEASE = "migrate-prepare", "migrate-complete", "migrate-release"


@dataclass(frozen=True)
class Move:
    """A server on its way to another host.

    Args:
        server: id and name, as the ledger has them: one of the hosts does not know the server.
        to: the name of the host that it moves to.
        here: this host's machine id.
    """

    server: tuple[str, str]
    to: str
    here: str
    mappings: tuple[MappingRow, ...]
    handovers: tuple[Handover, ...]

    @property
    def words(self) -> str:
        """What a command about it is followed by."""
        return f"{self.server[1]} --to {self.to}"


def find_move(runner: Runner, server: str, to: str) -> Move:
    """Return what the ledger has of a server's volumes.

    Args:
        server: UUID or name.

    Raises:
        NotFound: tether has attached nothing to such a server.
        UsageError: several servers have that name.
        ConflictError: it is moving to another host.
    """
    ledger = runner.tools.ledger
    names = {row.server_id: ledger.job_of(row).server_name for row in ledger.list_mappings()}
    found = [(server_id, name) for server_id, name in names.items() if server in (server_id, name)]
    if not found:
        raise NotFound(
            f"the ledger has no volume of a server {server}",
            resource=f"server {server}",
            hint="see: tether mapping list; the ledger must be the one of both hosts",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} servers are named {server}: {', '.join(sorted(server_id for server_id, _name in found))}",
            resource=f"server {server}",
            hint="give the UUID instead of the name",
        )
    mappings = tuple(ledger.list_mappings(server_id=found[0][0]))
    handovers = tuple(ledger.handovers.list(server_id=found[0][0]))
    for row in handovers:
        if row.host != to:
            raise ConflictError(
                f"server {found[0][1]} is being moved to host {row.host}, not to {to}",
                resource=f"server {found[0][0]}",
                hint=f"finish that first: tether migrate complete, or abort, {found[0][1]} --to {row.host}",
            )
    return Move(found[0], to, runner.tools.host.identity().machine_id, mappings, handovers)


def check_destination(runner: Runner, move: Move) -> None:
    """Raise UsageError unless this is the host that the server is to move to."""
    name = runner.tools.host.identity().name
    if name != move.to:
        raise UsageError(
            f"this host is {name}; what server {move.server[1]} needs on host {move.to} can only be made there",
            resource=f"server {move.server[0]}",
            hint=f"run this on host {move.to}",
        )


#: Makes the job of one volume, or finds the one that does it or has done it.
Start = Callable[[Runner], Accepted]


def preparations(move: Move) -> list[tuple[str, Start]]:
    """Return the jobs by which this host gets ready, each by its volume's id."""
    return [(row.volume_id, _preparation(move, row)) for row in move.mappings]


def _preparation(move: Move, mapping: MappingRow) -> Start:
    def start(runner: Runner) -> Accepted:
        ledger = runner.tools.ledger
        end = ledger.handovers.find(mapping.volume_id, mapping.server_id)
        if end is not None and end.state is End.INCOMING:
            _check_there(runner, move, mapping.volume_id)
            return Accepted(ledger.job(end.job_id), new=False)
        if end is not None and end.state is End.OUTGOING:
            raise ConflictError(
                f"server {move.server[1]} has moved to host {move.to} already",
                resource=f"server {move.server[0]}",
                hint=f"on the host that it came from: tether migrate complete {move.words}",
            )
        volume = runner.tools.cinder.show_volume(mapping.volume_id)
        params = replace(detach_params(mapping, volume), owner_mark=False)
        job = new_job(runner, PREPARE, volume, move.server, params, job_id=str(uuid.uuid4()))
        return store(runner, job, lambda holder: _join(runner, holder, PREPARE))

    return start


def _check_there(runner: Runner, move: Move, volume_id: str) -> None:
    """Raise ConflictError if the device of a volume that was prepared has gone since: after a reboot of this host."""
    tools = runner.tools
    recorded = any(row.volume_id == volume_id for row in tools.ledger.list_connections(move.here))
    if recorded and tools.host.find(volume_id) is None:
        raise ConflictError(
            f"host {move.to} was prepared for volume {volume_id}, and its device has gone from here since",
            resource=f"volume {volume_id}",
            hint=f"tether migrate abort {move.words}; then prepare it again",
        )


def disks_there(tools: Toolbox, move: Move) -> list[DiskSpec]:
    """Return the disks whose XML is another on the host that the server moves to: those that QEMU connects by itself.

    The others open tether's link, which has one name on every host.

    Raises:
        ConflictError: the host is not prepared for one of the volumes, or has the server already.
        FinalError: Cinder has lost how a volume is reached from there.
    """
    ends = {row.volume_id: row for row in move.handovers}
    specs = []
    for mapping in move.mappings:
        end = ends.get(mapping.volume_id)
        if end is None or end.state is not End.INCOMING:
            raise ConflictError(
                f"host {move.to} is not prepared for volume {mapping.volume_id} of server {move.server[1]}",
                resource=f"volume {mapping.volume_id}",
                hint=f"first there: tether migrate prepare {move.words}",
            )
        connection = tools.cinder.show_attachment(end.attachment_id).connection
        if connection is None:
            raise FinalError(
                f"Cinder has lost how volume {mapping.volume_id} is reached from host {move.to}",
                resource=f"volume {mapping.volume_id}",
                hint=f"there: tether migrate abort {move.words}; then prepare it again",
            )
        if reaches_by_network(connection, mapping.data_path):
            specs.append(
                spec_for(
                    tools.cinder.show_volume(mapping.volume_id),
                    connection,
                    slot=Slot(mapping.target, mapping.bus, dict(mapping.address)),
                    device=None,
                    mode=mapping.mode,
                    settings=tools.settings,
                    initiator=tools.ledger.job(end.job_id).place.initiator,
                    encryption=tools.cinder.show_encryption(mapping.volume_id) if mapping.encrypted else None,
                    data_path=mapping.data_path,
                )
            )
    return specs


def completions(move: Move) -> list[tuple[str, Start]]:
    """Return the jobs of this host's part once the server has moved; none if that is done.

    Raises:
        ConflictError: it is not this host's turn.
    """
    here = [row for row in move.handovers if row.machine_id == move.here]
    for row in move.handovers:
        if row.state is End.PREPARING:
            raise _unprepared(move, row)
        if row.machine_id != move.here and row.state is End.INCOMING:
            raise ConflictError(
                f"host {move.to} has not taken server {move.server[1]} over yet",
                resource=f"server {move.server[0]}",
                hint=f"first there: tether migrate complete {move.words}",
            )
    return [(row.volume_id, _step(move, row, COMPLETE if row.state is End.INCOMING else RELEASE)) for row in here]


def releases(move: Move) -> list[tuple[str, Start]]:
    """Return the jobs by which this host, for which the server was, lets go again what it has prepared.

    Raises:
        ConflictError: this host has prepared nothing, or the server has moved.
    """
    for row in move.handovers:
        if row.state is End.PREPARING:
            raise _unprepared(move, row)
        if row.state is End.OUTGOING:
            raise ConflictError(
                f"server {move.server[1]} has moved to host {move.to}: there is nothing to take back",
                resource=f"server {move.server[0]}",
                hint=f"finish it: tether migrate complete {move.words}",
            )
        if row.machine_id != move.here:
            raise ConflictError(
                f"host {move.to} has what was prepared for server {move.server[1]}",
                resource=f"server {move.server[0]}",
                hint=f"run this on host {move.to}",
            )
    return [(row.volume_id, _step(move, row, RELEASE)) for row in move.handovers]


def _unprepared(move: Move, row: Handover) -> TetherError:
    return ConflictError(
        f"host {move.to} is not ready for volume {row.volume_id}: job {row.job_id} has not ended",
        resource=f"job {row.job_id}",
        hint=f"on host {move.to}: tether job resume {row.job_id}, or: tether job abort {row.job_id}",
    )


def _step(move: Move, row: Handover, kind: str) -> Start:
    def start(runner: Runner) -> Accepted:
        tools = runner.tools
        mapping = tools.ledger.mapping(row.volume_id, row.server_id)
        volume = tools.cinder.show_volume(row.volume_id)
        if mapping is None:
            raise NotFound(
                f"the mapping of volume {volume.name or volume.id} on server {move.server[1]} is gone from the ledger",
                resource=f"volume {volume.id}",
                hint=f"see: tether explain {volume.name or volume.id}",
            )
        params = replace(detach_params(mapping, volume), owner_mark=False)
        job = new_job(runner, kind, volume, move.server, params, job_id=str(uuid.uuid4()))
        return store(runner, job, lambda holder: _join(runner, holder, kind))

    return start


def _join(runner: Runner, running: Job, kind: str) -> Accepted:
    """Return the open job if it does the same; otherwise refuse."""
    live = runner.is_live(running)
    if live and running.kind == kind:
        return Accepted(running, new=False)
    raise held(running, live=live)
