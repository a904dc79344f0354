"""What is to be done about each drift: a plan of jobs, the safest first, and what stays, with its reason.

A job is planned only for what is tether's own, and proves once more by itself what the plan rests on. Nothing that a
guest or the host may be using is freed: the plan leaves it, and so does the job.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.model import Server
from tether.audit.drift import Drift, Kind, Owner
from tether.audit.survey import Survey
from tether.errors import FinalError
from tether.persistence.ledger import Job, MappingRow
from tether.persistence.params import Params
from tether.runner.jobs import Runner
from tether.runner.requests import adopt_params, attach_marked, detach_params, new_job
from tether.tasks.run import Toolbox


class Stage(IntEnum):
    """In which order: first what only finishes, then what takes back or connects, at last what frees."""

    RESUME = 0
    CONNECT = 1
    LEDGER = 2
    GUEST = 3
    ATTACH = 4
    STATUS = 5
    RELEASE = 6
    CLEAN = 7


#: A kind of job -> its place in the order, and what it does.
JOBS = {
    "resume": (Stage.RESUME, "take the job up again, in the direction that it had"),
    "repair-connect": (Stage.CONNECT, "connect the host as Cinder says now, and seal that for the detach"),
    "adopt": (Stage.LEDGER, "take the attachment into the ledger"),
    "repair-define": (Stage.GUEST, "put the missing half of the disk back, as the other half and the ledger have it"),
    "repair-attach": (Stage.ATTACH, "attach the volume in Cinder again, before somebody else gets it"),
    "repair-complete": (Stage.STATUS, "bring the volume's status to in-use by Cinder's own operations"),
    "repair-release": (Stage.RELEASE, "finish the detach: disconnect the host, delete attachment and mapping"),
    "repair-clean": (Stage.CLEAN, "free what nothing uses: secret, dm-crypt, link, attachments of jobs that ended"),
}

#: Which job ends a drift of tether's own.
REPAIRS = {
    Kind.BLOCKED_JOB: "resume",
    Kind.INTERRUPTED_JOB: "resume",
    Kind.MISSING_DEVICE: "repair-connect",
    Kind.STALE_CONNECTION: "repair-connect",
    Kind.LIVE_ONLY_DISK: "repair-define",
    Kind.PERSISTENT_ONLY_DISK: "repair-define",
    Kind.DISK_WITHOUT_ATTACHMENT: "repair-attach",
    Kind.MAPPING_WITHOUT_ANYTHING: "repair-release",
    Kind.UNUSED_CRYPT: "repair-clean",
    Kind.UNUSED_LINK: "repair-clean",
    Kind.UNUSED_DEVICE: "repair-clean",
    Kind.UNUSED_SESSION: "repair-clean",
    Kind.UNUSED_MAP: "repair-clean",
    Kind.UNUSED_SECRET: "repair-clean",
}

#: Why a drift of tether's own stays.
STAYS = {
    Kind.TWO_SERVERS: "which of the two may write cannot be told from here, and a disk is not pulled from a guest",
    Kind.TWO_DISKS: "which of the two the guest writes to cannot be told from here, and a disk is not pulled from it",
    Kind.WRONG_DEVICE: "the guest may be writing to it: find out whose data that is before anything else",
    Kind.SERIAL_MISMATCH: "the serial of a disk cannot be changed while it is there: detach and attach it",
    Kind.UNFINISHED_MIGRATION: "whether the server is to move is for you to say: tether migrate complete, or abort",
    Kind.PENDING_UNPLUG: "only the guest can answer it: detach the volume, or restart the guest",
}


@dataclass(frozen=True)
class Action:
    """One job of a plan.

    Args:
        kind: of :data:`JOBS`; ``resume`` for a job that is there already.
        drifts: what it ends.
        server_id: empty where no server has to do with it.
        job_id: of the job that is resumed, or empty.
    """

    kind: str
    drifts: tuple[Drift, ...]
    volume_id: str
    server_id: str = ""
    job_id: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What it is about: it is tried once."""
        # One about several volumes is resumed once, whichever of them shows that it was left.
        return (self.kind, self.job_id) if self.job_id else (self.kind, self.volume_id, self.server_id)

    @property
    def stage(self) -> Stage:
        """Its place in the order."""
        return JOBS[self.kind][0]


@dataclass(frozen=True)
class Left:
    """A drift that stays, and why."""

    drift: Drift
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is to be done, in order, and what stays."""

    actions: tuple[Action, ...]
    left: tuple[Left, ...]


def make_plan(survey: Survey, drifts: Iterable[Drift]) -> Plan:
    """Return the plan for these drifts; a volume on a server gets one job at a time, the safest first."""
    actions: dict[tuple[str, ...], Action] = {}
    left: list[Left] = []
    for drift in drifts:
        kind, reason = _decide(survey, drift)
        if kind is None:
            left.append(Left(drift, reason))
            continue
        server_id = "" if kind == "repair-clean" else drift.server_id
        action = Action(kind, (drift,), drift.volume_id, server_id, drift.about if kind == "resume" else "")
        known = actions.get(action.key)
        actions[action.key] = action if known is None else replace(known, drifts=(*known.drifts, drift))
    ordered = sorted(actions.values(), key=lambda action: action.stage)
    first: dict[str, Action] = {}
    for action in ordered:
        first.setdefault(action.volume_id, action)
    return Plan(tuple(action for action in ordered if first[action.volume_id] is action), tuple(left))


def _decide(survey: Survey, drift: Drift) -> tuple[str | None, str]:  # noqa: PLR0911 - a table of cases
    """Return the job that ends a drift, or None and why it stays."""
    if drift.owner is Owner.UNKNOWN and drift.kind is Kind.FOREIGN_DISK:
        return "adopt", ""
    if drift.owner in {Owner.FOREIGN, Owner.NOVA}:
        whose = "Nova's" if drift.owner is Owner.NOVA else "another tool's, or a person's"
        return None, f"it is {whose}, and is left to them" + (f"; see: {drift.safe}" if drift.safe else "")
    if drift.host and survey.machine is not None and drift.host != survey.machine.name:
        return None, f"it is to be repaired on its own host, {drift.host}"
    server = survey.servers.get(drift.server_id)
    if server is not None and server.nova:
        return None, "Nova manages the server"
    if drift.kind in {Kind.RESERVED_WITHOUT_JOB, Kind.CINDER_CONTRADICTION, Kind.ATTACHMENT_WITHOUT_DISK}:
        return _cinder(survey, drift)
    kind = REPAIRS.get(drift.kind)
    if kind is None:
        return None, STAYS.get(drift.kind, "no operation repairs it")
    if drift.owner is Owner.UNKNOWN and kind != "repair-clean":
        return None, "it carries tether's mark, and this ledger does not know it: see tether adopt"
    if kind == "repair-attach" and not _is_modern(survey, drift):
        return None, "the legacy dialect has no reservation: attach it in Cinder by hand, or detach it"
    if kind == "repair-clean":
        return _clean(survey, drift)
    return kind, ""


def _is_modern(survey: Survey, drift: Drift) -> bool:
    mapping = survey.mapping_of.get((drift.volume_id, drift.server_id))
    return mapping is not None and mapping.dialect == "attachments"


def _cinder(survey: Survey, drift: Drift) -> tuple[str | None, str]:
    """Return what ends a drift of the volume's status, if one of Cinder's own operations does."""
    mappings = survey.mappings_of.get(drift.volume_id, [])
    if not mappings:
        return "repair-clean", ""
    if len(mappings) > 1:
        return None, "several servers have it: nobody can say whose the status is"
    (mapping,) = mappings
    if not survey.is_here(mapping.machine_id):
        return None, f"it is to be repaired on its own host, {survey.host_name(mapping.machine_id)}"
    if survey.seat(drift.volume_id, mapping.server_id) is not None:
        return "repair-complete", ""
    return "repair-release", ""


def _clean(survey: Survey, drift: Drift) -> tuple[str | None, str]:
    """Return the job that frees a thing of the host's, if it can be freed without knowing how it was connected."""
    held = {item.kind for item in survey.holdings_of.get(drift.volume_id, ())}
    strays = [
        row
        for row in survey.unmapped_rows(drift.volume_id)
        if survey.owner_of(row) is Owner.OURS and row.connection is not None
    ]
    if held & {"device", "session", "map"} and not strays:
        return None, "no book says how it was connected: log out by hand (iscsiadm -m node -T TARGET --logout)"
    return "repair-clean", ""


# -- the job -----------------------------------------------------------------------------------------------------


def make_job(runner: Runner, survey: Survey, action: Action) -> Job:
    """Store the job of an action as this runner's own.

    Raises:
        TetherError: it cannot be made; then nothing has happened.
    """
    tools = runner.tools
    volume = tools.cinder.show_volume(action.volume_id)
    server_id = action.server_id or _server_of(survey, action)
    mapping = tools.ledger.mapping(volume.id, server_id)
    server_name = survey.server_name(server_id) if server_id else "-"
    params = _params(tools, action, volume, survey.servers.get(server_id), mapping)
    job_id = str(uuid.uuid4())
    return runner.add(new_job(runner, action.kind, volume, (server_id, server_name), params, job_id=job_id))


def _server_of(survey: Survey, action: Action) -> str:
    """Return the server of the only mapping, where what Cinder says names none; empty if there is no mapping."""
    mappings = survey.mappings_of.get(action.volume_id, [])
    return mappings[0].server_id if len(mappings) == 1 and action.kind != "repair-clean" else ""


def _params(
    tools: Toolbox, action: Action, volume: Volume, server: Server | None, mapping: MappingRow | None
) -> Params:
    if action.kind == "adopt" and server is not None:
        return adopt_params(tools, volume, server)
    if action.kind == "repair-clean":
        return Params(data_path=tools.settings.data_path, encrypted=volume.encrypted, multiattach=volume.multiattach)
    if mapping is None:
        raise FinalError(f"the ledger no longer has volume {volume.name or volume.id}", hint="see: tether audit")
    params = detach_params(mapping, volume)
    return replace(params, owner_mark=attach_marked(tools)) if action.kind == "repair-attach" else params
