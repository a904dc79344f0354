"""What an attach or a detach would do right now: reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.disk import DiskSpec, render, spec_for
from tether.adapters.guest.model import Scope, Server
from tether.adapters.guest.slots import Slot
from tether.adapters.host.model import Device
from tether.errors import TetherError
from tether.flows.calls import ATTACHMENT, Case, calls_of
from tether.flows.plan import StepFacts, facts_of, pivot_of, shape
from tether.flows.registry import CURRENT
from tether.persistence.ledger import Job, MappingRow, Place
from tether.persistence.params import Params
from tether.runner.requests import (
    Request,
    already_detached,
    attach_params,
    check_attached,
    compare,
    detach_params,
    held,
)
from tether.sealed import Sealed
from tether.tasks.guest import CheckDetachable
from tether.tasks.mapping import CheckAttachable, ServerFacts, free_slot
from tether.tasks.run import Run, Toolbox

#: What the XML says where only the export will tell.
UNKNOWN_IQN, UNKNOWN_PORTAL = "iqn-known-after-export", "portal-known-after-export"
HOST_NOTE = (
    "discard, I/O limits, block sizes and a read-only flag of Cinder's own come with the export, and whether the"
    " device is a block device or a file with the connection"
)
NETWORK_NOTE = (
    f"{UNKNOWN_IQN} and {UNKNOWN_PORTAL} are Cinder's to say: iSCSI is assumed; CHAP, discard, I/O limits and block"
    " sizes come with the export as well"
)
FORCE_NOTE = (
    "--force passes over a flush that fails: what was written and has not reached the storage may be lost; a guest"
    " that runs must let the disk go all the same"
)


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Args:
        flow: the flow that it belongs to.
        pivot: from here the job only goes forward.
        calls: what it would call; empty where nothing is to be done in this case.
    """

    flow: str
    facts: StepFacts
    forward_only: bool
    pivot: bool
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Preview:
    """The plan of one job.

    Args:
        steps: in order; empty if there is nothing to do.
        xml: the ``<disk>`` that would be plugged, or taken out, by definition (persistent, live).
        slot: where the disk is, or would be; None if there is no place for it.
        notes: what the plan cannot know yet.
        refusal: what the command would say now instead of doing it.
        refused_by: the step that would refuse; empty if no job would be made at all.
    """

    kind: str
    volume: Volume
    server: Server
    params: Params
    steps: tuple[PlannedStep, ...]
    slot: Slot | None = None
    xml: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    refusal: TetherError | None = None
    refused_by: str = ""

    @property
    def exit_code(self) -> int:
        """What the command itself would end with: a refusing step rolls its job back, which is 3."""
        if self.refusal is None:
            return 0
        return 3 if self.refused_by else self.refusal.exit_code


def preview(tools: Toolbox, kind: str, request: Request) -> Preview:
    """Return the plan of an attach or a detach.

    Raises:
        NotFound: no such volume, server or mapping.
        ConflictError: it is attached in another way, or another volume holds the device name.
        UsageError: the device name is none of its bus.
        FinalError: the dialect cannot attach this volume.
        HeldError: another job has the volume.
        OperatorNeeded: it was attached, and somebody else has taken it away since.
    """
    volume = tools.cinder.find_volume(request.volume)
    server = tools.guest.find_server(request.server)
    running = tools.ledger.open_job(volume.id)
    if running is not None:
        raise held(running, live=running.is_live(tools.clock.time()), force=request.force)
    mapping = tools.ledger.mapping(volume.id, server.uuid)
    if kind == "attach":
        if mapping is not None:
            compare(mapping, volume, server, request)
            check_attached(mapping, volume, server)
            return _nothing(kind, volume, server, detach_params(mapping, volume), "is attached already")
        params = attach_params(tools, volume, server, request)
        return _attach(tools, volume, server, replace(params, allow_nova=request.allow_nova))
    if mapping is None:
        last = already_detached(tools, volume, server)
        return _nothing(kind, volume, server, last.params, "is detached already")
    return _detach(tools, volume, server, mapping, request)


def _nothing(kind: str, volume: Volume, server: Server, params: Params, why: str) -> Preview:
    note = f"nothing to do: volume {volume.name or volume.id} {why} ({server.name})"
    return Preview(kind, volume, server, params, (), notes=(note,))


def _attach(tools: Toolbox, volume: Volume, server: Server, params: Params) -> Preview:
    run = _run(tools, "attach", volume, server, params)
    connector = dict(tools.host.connector())
    refusal: TetherError | None = None
    slot: Slot | None = None
    xml: dict[str, str] | None = None
    try:
        CheckAttachable().bound(run).act(volume, ServerFacts(server.uuid, server.name, server.power), connector)
    except TetherError as error:
        refusal = error
    try:
        slot = free_slot(run, server)
        xml = dict.fromkeys(_scopes(server), render(_disk(run, volume, slot, connector)))
    except TetherError as error:
        refusal = refusal or error
    steps = _steps(run, server, "attach", slot.target if slot else "<target>", ATTACHMENT)
    note = NETWORK_NOTE if params.data_path == "network" else HOST_NOTE
    by = "check-attachable" if refusal else ""
    return Preview("attach", volume, server, params, steps, slot, xml, (note,), refusal, by)


def _detach(tools: Toolbox, volume: Volume, server: Server, row: MappingRow, request: Request) -> Preview:
    force = "request" if request.force else ""
    params = replace(detach_params(row, volume), allow_nova=request.allow_nova, force=force)
    run = _run(tools, "detach", volume, server, params)
    refusal: TetherError | None = None
    xml: dict[str, str] = {}
    for scope in Scope:
        definition = server.definition(scope)
        disk = None if definition is None else definition.disk(volume.id)
        if disk is not None:
            xml[str(scope)] = disk.xml
    try:
        CheckDetachable().bound(run).act()
    except TetherError as error:
        refusal = error
    slot = Slot(row.target, row.bus, dict(row.address))
    steps = _steps(run, server, "detach", row.target, row.attachment_id or ATTACHMENT)
    by = "check-detachable" if refusal else ""
    notes = (FORCE_NOTE,) if force and params.data_path == "host" else ()
    return Preview("detach", volume, server, run.job.params, steps, slot, xml, notes, refusal, by)


def _run(tools: Toolbox, kind: str, volume: Volume, server: Server, params: Params) -> Run:
    """Return a run whose job is in no database: good for the checks, which only read."""
    nowhere = Place(**dict.fromkeys(Place.__slots__, ""))
    name = volume.name or volume.id
    job = Job("plan", kind, CURRENT[kind], "running", volume.id, name, server.uuid, server.name, "", params, nowhere)
    return Run(tools, job)


def _disk(run: Run, volume: Volume, slot: Slot, connector: dict[str, object]) -> DiskSpec:
    """Return the disk as far as it is known before the export."""
    network = run.job.params.data_path == "network"
    data = {"target_portal": f"{UNKNOWN_PORTAL}:3260", "target_iqn": UNKNOWN_IQN, "target_lun": 0}
    encryption = run.tools.cinder.show_encryption(volume.id) if network and run.job.params.encrypted else None
    return spec_for(
        volume,
        Connection(protocol="iscsi", data=Sealed(data)),
        slot=slot,
        device=None if network else Device(link=_link(run), path=""),
        mode=run.job.params.mode,
        settings=run.tools.settings,
        initiator=str(connector.get("initiator", "")),
        encryption=encryption,
        data_path=run.job.params.data_path,
    )


def _scopes(server: Server) -> list[str]:
    return [str(scope) for scope in Scope if server.definition(scope) is not None]


def _steps(run: Run, server: Server, kind: str, target: str, attachment: str) -> tuple[PlannedStep, ...]:
    params, volume_id = run.job.params, run.job.volume_id
    case = Case(params, volume_id, server.name, server.live is not None, _link(run), target, attachment)
    flows = shape(kind, CURRENT[kind], params)
    pivot = pivot_of(flows)
    return tuple(
        PlannedStep(flow.name, facts, step.forward_only, step.code == pivot, calls_of(facts.name, case))
        for flow in flows
        for step in flow.steps
        for facts in [facts_of(step)]
    )


def _link(run: Run) -> str:
    return str(Path(run.tools.settings.run_dir) / "volumes" / run.job.volume_id)
