"""Several volumes as one request, all or nothing: a job whose parts are jobs, each an attach like any other.

The parts run side by side up to the guest, and wait there for each other. A part that fails takes the others back. What
is attached by then, since it failed at the guest itself, is detached again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from taskflow import states

from tether.adapters.cinder.model import Volume
from tether.adapters.guest.model import Server
from tether.errors import (
    ConflictError,
    FinalError,
    HeldError,
    NotFound,
    OperatorNeeded,
    TetherError,
    UncertainError,
    UsageError,
)
from tether.persistence.ledger import Job, Ledger, MappingRow
from tether.persistence.params import Params
from tether.runner.jobs import Flows, Runner
from tether.runner.requests import (
    Accepted,
    Request,
    attach_params,
    check_attached,
    check_key,
    compare,
    detach_params,
    held,
    new_job,
)
from tether.tasks.guest import PlugPersistent
from tether.tasks.run import Run
from tether.tasks.siblings import Siblings

LOG = logging.getLogger(__name__)

KIND = "attach-all"


def part_id(whole: str, volume_id: str, undo: int = 0) -> str:
    """Return the id of the job by which a request attaches a volume, or of its nth detach of it."""
    return str(uuid.uuid5(uuid.UUID(whole), f"{volume_id} undo {undo}" if undo else volume_id))


def whole_of(ledger: Ledger, job: Job) -> Job:
    """Return the job to take up for a job: the open one that it is a part of, or itself."""
    if not job.params.whole:
        return job
    try:
        whole = ledger.job(job.params.whole)
    except NotFound:  # pruned
        return job
    return whole if whole.open else job


def parts_of(ledger: Ledger, whole: Job) -> list[Job]:
    """Return the attaches of a request that have been made, in its order."""
    found = []
    for volume_id in whole.params.volumes.split():
        part = find(ledger, part_id(whole.id, volume_id))
        found += [part] if part else []
    return found


def find(ledger: Ledger, job_id: str) -> Job | None:
    """Return a job if it is there."""
    try:
        return ledger.job(job_id)
    except NotFound:
        return None


def submit_all(runner: Runner, names: Sequence[str], request: Request, job_id: str) -> Accepted:
    """Return the job for several volumes: a new one, or the one that already does or did it.

    Args:
        names: ids or unique names of the volumes.
        request: the rest; its volume and device say nothing.
        job_id: the id of a new job.

    Raises:
        NotFound: no such volume or server.
        UsageError: a volume is named twice, or an option does not fit one of them.
        ConflictError: one is attached in another way; FinalError: one cannot be attached; OperatorNeeded: one was
            attached, and somebody else has taken it away since.
        HeldError: another job has one of them.
    """
    check_key(request.key)
    tools = runner.tools
    server = tools.guest.find_server(request.server)
    volumes = [tools.cinder.find_volume(name) for name in names]
    ids = [volume.id for volume in volumes]
    for number, volume in enumerate(volumes):
        if volume.id in ids[:number]:
            raise UsageError(f"volume {volume.name or volume.id} is named twice", hint="name each volume once")
    earlier = tools.ledger.job_of_key(request.key) if request.key else None
    if earlier is not None:
        return Accepted(_same(earlier, server, ids, request.key), new=False)
    for volume in volumes:
        running = tools.ledger.open_job(volume.id)
        if running is not None:
            return _join(runner, whole_of(tools.ledger, running), server, names, request, job_id)
    mappings = {volume.id: tools.ledger.mapping(volume.id, server.uuid) for volume in volumes}
    for volume in volumes:
        if mapping := mappings[volume.id]:
            compare(mapping, volume, server, request)
            check_attached(mapping, volume, server)
    wanted = [volume for volume in volumes if mappings[volume.id] is None]
    if not wanted:
        return Accepted(_done(tools.ledger, [row for row in mappings.values() if row]), new=False)
    # Nothing is begun if one of them cannot be.
    cases = [attach_params(tools, volume, server, request) for volume in wanted]
    params = Params(
        bus=cases[0].bus,
        mode=request.mode,
        dialect=cases[0].dialect,
        data_path=cases[0].data_path,
        allow_nova=request.allow_nova,
        volumes=" ".join(volume.id for volume in wanted),
    )
    names_server = (server.uuid, server.name)
    job = new_job(runner, KIND, wanted[0], names_server, params, job_id=job_id, key=request.key)
    many = f"{len(wanted)} volumes" if len(wanted) > 1 else f"volume {wanted[0].name or wanted[0].id}"
    job = replace(job, volume_id=job_id, volume_name=many, params=params)
    return Accepted(runner.add(job), new=True)


def _same(job: Job, server: Server, ids: Sequence[str], key: str) -> Job:
    if job.kind != KIND or job.server_id != server.uuid or not set(job.params.volumes.split()) <= set(ids):
        raise ConflictError(
            f"the request id {key!r} belongs to job {job.id}: {job.kind} of {job.volume_name} and {job.server_name}",
            resource=f"job {job.id}",
            hint="use a new --request-id for a new request",
        )
    return job


def _done(ledger: Ledger, mappings: Sequence[MappingRow]) -> Job:
    """Return the job that attached them; of several the newest."""
    jobs = [ledger.job_of(row) for row in mappings]
    newest = max(jobs, key=lambda job: job.created_at)
    return (find(ledger, newest.params.whole) if newest.params.whole else None) or newest


def _join(  # noqa: PLR0917 - what was asked, as it was asked
    runner: Runner, running: Job, server: Server, names: Sequence[str], request: Request, job_id: str
) -> Accepted:
    """Return the open job if it is the same request; otherwise wait for it a while, or refuse."""
    live = runner.is_live(running)
    if live and request.join:
        asked = {runner.tools.cinder.find_volume(name).id for name in names}
        if running.kind == KIND and running.server_id == server.uuid and set(running.params.volumes.split()) == asked:
            return Accepted(running, new=False)
        if not runner.wait_for(running, seconds=runner.tools.settings.wait).open:
            return submit_all(runner, names, request, job_id)
    raise held(running, live=live)


class Parts:
    """Carries out the parts of one run of such a job.

    Args:
        runner: which runs them, in threads of their own.
        run: of the job that they are parts of.
        fenced: the host of the runner that had them is known to be down for good.
    """

    def __init__(self, runner: Runner, run: Run, *, fenced: bool) -> None:
        self._fenced = fenced
        self._runner = runner
        self._run = run
        self._job = run.job
        self._ledger = runner.tools.ledger
        self._volumes = run.job.params.volumes.split()
        ids = [part_id(run.job.id, volume_id) for volume_id in self._volumes]
        self._siblings = Siblings(run.job.id, ids, run.check)
        self._refused: list[TetherError] = []

    def attach(self) -> None:
        """Attach every volume.

        Raises:
            FinalError, HeldError: one of them was not attached.
            OperatorNeeded: one of them is blocked, or another runner has it.
        """
        parts = self._made()
        try:
            with ThreadPoolExecutor(len(parts) or 1, thread_name_prefix="part") as pool:
                list(pool.map(self._attach, parts))
        finally:
            self._siblings.let_targets_go()
        self._run.check()
        # The first one is the reason of the others; but one that is rolled back takes those back that are blocked.
        final = [error for error in self._refused if not isinstance(error, OperatorNeeded)]
        for error in final or self._refused:
            raise error

    def _made(self) -> list[tuple[Job, bool]]:
        """Return the parts, and which are new; those that are not there yet are made, all before any of them runs.

        After one that cannot be made the others are left out. What was made before it has nothing to undo yet.
        """
        parts = []
        for volume_id in self._volumes:
            part = find(self._ledger, part_id(self._job.id, volume_id))
            try:
                parts.append((part or self._runner.add(self._new(volume_id)), part is None))
            except UncertainError as error:  # it may have been made
                LOG.warning("%s", error.message)
                self._run.stop()
                break
            except TetherError as error:
                self._refused.append(error)
                self._siblings.failed(volume_id, blocked=False)
                break
        return parts

    def _attach(self, made: tuple[Job, bool]) -> None:
        part, new = made
        try:
            part = self._carried_out(part, new=new)
        except TetherError as error:
            LOG.warning("%s", error.message)
            self._run.stop()
            return
        if part.state == "running":
            # It is left as it is, as where the database does not answer: then so are the others, and the whole.
            self._run.stop()
            return
        if part.state == "attached":
            self._siblings.attached(part.id)
            return
        self._refused.append(_error_of(part))
        self._siblings.failed(part.volume_name, blocked=part.state == "blocked" and "reason" not in (part.error or {}))

    def _carried_out(self, part: Job, *, new: bool) -> Job:
        if new:
            return self._runner.run(part, prepare=lambda run, _connection, flows: self._meet(run, flows))
        if self._runner.is_live(part):
            return self._runner.wait_for(part)
        return self._runner.resume(
            part, fenced=self._fenced, prepare=lambda run, _connection, flows: self._meet(run, flows)
        )

    def _meet(self, run: Run, flows: Flows) -> None:
        """Let a part that is taken up again know the others, and them what it has done before."""
        run.siblings = self._siblings
        for detail in flows.values():
            for atom in detail:
                if atom.state == states.SUCCESS:
                    self._siblings.passed(atom.name, run.job.id)
        if PlugPersistent.code in run.begun:
            self._siblings.arrived(run.job.id)

    def _new(self, volume_id: str) -> Job:
        tools, asked = self._runner.tools, self._job.params
        volume = tools.cinder.find_volume(volume_id)
        server = tools.guest.show_server(self._job.server_id)
        request = Request(
            volume_id, server.uuid, bus=asked.bus, mode=asked.mode, dialect=asked.dialect, allow_nova=asked.allow_nova
        )
        params = replace(attach_params(tools, volume, server, request), allow_nova=asked.allow_nova)
        return self._part("attach", volume, params, part_id(self._job.id, volume_id))

    def _part(self, kind: str, volume: Volume, params: Params, job_id: str) -> Job:
        server = (self._job.server_id, self._job.server_name)
        job = new_job(self._runner, kind, volume, server, replace(params, whole=self._job.id), job_id=job_id)
        return replace(job, request_id=self._job.request_id)  # by which Cinder's logs have its calls

    def is_done(self) -> bool:
        """Return True if every volume is attached by its part."""
        parts = parts_of(self._ledger, self._job)
        return len(parts) == len(self._volumes) and all(part.state == "attached" for part in parts)

    def undo(self) -> None:
        """See that none of them is attached by this request.

        Raises:
            OperatorNeeded: one of them cannot be taken back.
        """
        for volume_id in reversed(self._volumes):
            part = find(self._ledger, part_id(self._job.id, volume_id))
            if part is None:
                continue
            if self._runner.is_live(part):
                part = self._runner.wait_for(part)
            if part.open:
                self._ended(self._runner.abort(part, fenced=self._fenced), "rolled-back")
            elif part.state == "attached":
                self._detach(part)

    def _detach(self, part: Job) -> None:
        mapping = self._ledger.mapping(part.volume_id, part.server_id)
        if mapping is None or mapping.job_id != part.id:
            return  # somebody has detached it since
        before = list(self._detaches(part))
        job = self._runner.resume(before[-1], fenced=self._fenced) if before and before[-1].open else None
        self._run.check()
        if job is None or job.state == "rolled-back":  # what kept that one from its end may be over
            volume = self._runner.tools.cinder.find_volume(part.volume_id)
            params = replace(detach_params(mapping, volume), allow_nova=self._job.params.allow_nova)
            new = self._part("detach", volume, params, part_id(self._job.id, part.volume_id, len(before) + 1))
            job = self._runner.run(self._runner.add(new))
        self._ended(job, "detached")

    def _detaches(self, part: Job) -> Iterator[Job]:
        """Yield the detaches that were begun before, the oldest first."""
        number = 1
        while (job := find(self._ledger, part_id(self._job.id, part.volume_id, number))) is not None:
            yield job
            number += 1

    def _ended(self, part: Job, state: str) -> None:
        """Refuse to go on if a part has not ended as it was to."""
        self._run.check()
        if part.state != state:
            error = _error_of(part)
            raise OperatorNeeded(error.message, resource=error.resource, hint=error.hint)


def _error_of(part: Job) -> TetherError:
    """Return why a part has not ended as it was to."""
    error = part.error or {}
    reason = error.get("reason", error) if part.state != "blocked" else error
    at = reason.get("step", "").partition("/")[0]
    words = f"{part.kind} of volume {part.volume_name}{f', at {at}' if at else ''}: {reason.get('message', part.state)}"
    if part.state == "blocked" and (undone := error.get("reason")):
        words += f" (it was being undone because: {undone['message']})"
    kind: type[TetherError] = FinalError
    if part.open:
        kind = OperatorNeeded
    elif reason.get("code") == HeldError.code:
        kind = HeldError
    return kind(words, resource=f"volume {part.volume_id}", hint=reason.get("hint", ""))
