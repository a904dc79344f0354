"""Cinder's side, in the legacy dialect: the volume actions of Nova Kilo, as /v3 actions.

Until ``os-attach`` these have neither a row nor an owner in Cinder: a *reserve* or a *begin_detaching* whose
answer is not recorded cannot be told from a stranger's, and ends blocked instead of being guessed.
"""

from __future__ import annotations

from tether.adapters.cinder.model import Attachment, Volume
from tether.adapters.guest.slots import Slot
from tether.errors import NotFound, OperatorNeeded, UncertainError
from tether.tasks.run import Run
from tether.tasks.step import Step
from tether.tasks.volume import Export


def own_row(run: Run, owner: str) -> Attachment | None:
    """Return the attachment with this owner, if Cinder lists one."""
    run.see_volume()
    rows = run.tools.cinder.list_attachments(run.job.volume_id)
    return next((row for row in rows if row.owner == owner), None)


def unknown_owner(run: Run) -> OperatorNeeded:
    """Return the error for a volume that is *attaching*, by this job or by a stranger."""
    return OperatorNeeded(
        f"volume {run.job.volume_name} is attaching, but whether by this job cannot be known",
        resource=f"volume {run.job.volume_id}",
        hint=f"if nobody else attaches it: cinder reset-state --state available; then: tether job resume {run.job.id}",
    )


class LegacyReserve(Step):
    """Reserve the volume; it becomes *attaching*, with no row and no owner.

    Effect: os-reserve. Key: none.
    Compensation: os-unreserve, only if our 202 is recorded; otherwise blocked (it may be a stranger's).
    Uncertain: timeout, 5xx: *available* once the settle time is over means not done; *attaching* is blocked.
    Crash windows: before the call; after the call, before its result is stored.
    """

    code = "reserve-volume-legacy/1"
    gives = "attachment_id"
    book = "cinder"

    def act(self, volume: Volume) -> str:
        self.tools.cinder.reserve(volume.id)
        return ""  # the legacy dialect has no attachment until os-attach

    def look(self, volume: Volume) -> None:
        self._refuse_attaching()

    def undo(self, result: str | None) -> None:
        if result is None:
            if self.in_doubt:
                self._refuse_attaching()
            return
        # os-terminate_connection has unreserved already; by now the status may be a stranger's.
        if LegacyExport.code in self.run.undone or self._status() != "attaching":
            return
        self.tools.cinder.unreserve(self.job.volume_id)
        if self._status() == "attaching":
            raise UncertainError(f"volume {self.job.volume_name} is still attaching after os-unreserve")

    def _status(self) -> str:
        return self.tools.cinder.show_volume(self.job.volume_id).status

    def _refuse_attaching(self) -> None:
        if self._status() == "attaching":
            raise unknown_owner(self.run)


class LegacyExport(Step):
    """Export the volume to this host.

    Effect: os-initialize_connection; the backend makes a target. Key: volume and connector. May be repeated.
    Compensation: os-terminate_connection, which unreserves too, and os-detach of our row if there is one by
    then; the backend's export stays, as Cinder leaves it: listed residue.
    Uncertain: timeout, 5xx: repeat.
    Crash windows: before the call; inside it; after it, before its result is stored.
    """

    code = "export-volume-legacy/1"
    gives = "export"
    book = "cinder"
    on_targets = True
    repeatable = True

    def act(self, connector: dict[str, object]) -> Export:
        connection = self.tools.cinder.initialize_connection(self.job.volume_id, connector)
        self.run.remember(connection)
        return Export.of(connection)

    def undo(self, connector: dict[str, object]) -> None:
        if self.code in self.run.undoing:
            # Cut off inside this undo: if it had terminated, the volume was free, and may be a stranger's by now.
            status = self.tools.cinder.show_volume(self.job.volume_id).status
            if status == "attaching" and own_row(self.run, self.job.owner) is None:
                raise unknown_owner(self.run)
            self.run.undoing.discard(self.code)
        release(self.run, connector)
        self.run.undone.add(self.code)


def release(run: Run, connector: dict[str, object]) -> None:
    """Close the export and drop our row, if there is one: os-terminate_connection, then os-detach."""
    run.refuse_while_held()
    owner = run.tools.ledger.mapping(run.job.volume_id, run.job.server_id)
    row = own_row(run, owner.owner_mark or run.job.owner) if owner else None
    run.tools.cinder.terminate_connection(run.job.volume_id, connector)
    if row is None:
        return
    try:
        run.tools.cinder.detach(run.job.volume_id, row.id)
    except NotFound:
        pass
    if own_row(run, row.owner) is not None:
        raise UncertainError(f"attachment {row.id} is still there after os-detach")


class LegacyAttach(Step):
    """Make the volume *in-use* and its row *attached*.

    Effect: os-attach with the owner mark; the same owner again gets the same row. Key: the owner mark.
    Compensation: none here: past the pivot; the export's undo drops the row after the guest has let go.
    Uncertain: timeout, 5xx: list, repeat.
    Crash windows: before the call; after the call, before its result is stored.
    """

    code = "complete-attachment-legacy/1"
    gives = "row_id"
    book = "cinder"
    repeatable = True
    forward_only = True

    def act(self, slot: Slot) -> str:
        owner = self.job.owner
        row = own_row(self.run, owner)
        if row is None or row.status != "attached":
            self.tools.cinder.attach(
                self.job.volume_id,
                owner=owner,
                mountpoint=f"/dev/{slot.target}",
                mode=self.run.mapping().mode,
            )
            row = own_row(self.run, owner)
        if row is None or row.status != "attached":
            raise UncertainError(f"volume {self.job.volume_name} has no attached row after os-attach")
        return row.id


class LegacyFinishMapping(Step):
    """Make the mapping *attached*.

    Effect: the mapping row's state, attachment id and owner. Key: the job.
    Compensation: none: past the pivot; the row itself is create-mapping's.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "finish-mapping-legacy/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self, row_id: str) -> None:
        self.tools.ledger.update_mapping(
            self.job.volume_id,
            self.job.server_id,
            state="attached",
            attachment_id=row_id,
            owner_mark=self.job.owner,
        )


class LegacyRelease(Step):
    """Close the export and drop the row: os-terminate_connection, os-detach.

    Effect: the two actions. Key: the owner mark.
    Compensation: none: past the pivot.
    Uncertain: timeout, 5xx: repeat; the row is gone when Cinder no longer lists it.
    Crash windows: between the two and around each: repeating is harmless.
    """

    code = "release-attachment-legacy/1"
    book = "cinder"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self) -> None:
        if own_row(self.run, self.run.mapping().owner_mark) is None:
            return  # os-detach comes last: terminating once more would unreserve whoever has the volume now
        release(self.run, dict(self.tools.host.connector()))
        status = self.tools.cinder.show_volume(self.job.volume_id).status
        if status == "detaching":
            raise UncertainError(f"volume {self.job.volume_name} is still detaching after os-detach")
