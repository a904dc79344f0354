"""Cinder's side, in the attachments dialect (microversion 3.44 and later)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tether.adapters.cinder.model import Attachment, Connection, Volume
from tether.errors import AttachmentLost, FinalError, NotFound, OperatorNeeded, UncertainError
from tether.tasks.run import Run
from tether.tasks.step import Step

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """What later steps need of the connection, without its secrets."""

    protocol: str
    access_mode: str = "rw"
    encrypted: bool = False
    auth: bool = False
    qos_specs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, connection: Connection) -> Export:
        """Return the public part of a connection."""
        return cls(
            protocol=connection.protocol,
            access_mode=connection.access_mode,
            encrypted=connection.encrypted,
            auth=connection.auth,
            qos_specs=dict(connection.qos_specs),
        )


def own_attachments(run: Run) -> list[Attachment]:
    """Return the attachments of the volume that carry this job's owner mark, oldest state first.

    The volume is read first: a list says nothing unless the volume itself is seen.
    """
    run.see_volume()
    rows = run.tools.cinder.list_attachments(run.job.volume_id)
    order = ("attached", "attaching", "reserved")
    mine = [row for row in rows if row.owner == run.job.owner]
    return sorted(mine, key=lambda row: order.index(row.status) if row.status in order else len(order))


def delete_until_gone(run: Run, attachment_id: str) -> None:
    """Delete an attachment and prove it gone."""
    try:
        run.tools.cinder.delete_attachment(attachment_id)
    except NotFound:
        pass
    run.see_volume()
    if any(row.id == attachment_id for row in run.tools.cinder.list_attachments(run.job.volume_id)):
        raise UncertainError(f"attachment {attachment_id} is still there after its deletion")


def answered_export(run: Run, attachment_id: str, connector: dict[str, object]) -> None:
    """Export an attachment until Cinder has answered: its manager is through with it then, well or not.

    Raises:
        UncertainError: no answer.
    """
    # A deletion without an answer may still be carried out: an export that came after it would stay for good.
    run.wait_quiet("cinder")
    try:
        run.tools.cinder.update_attachment(attachment_id, with_mode(run, connector))
    except (FinalError, NotFound):
        pass


def export_again(run: Run, attachment_id: str, connector: dict[str, object]) -> None:
    """Export a connected attachment once more where its deletion failed, before the next: that says if it helped.

    Cinder 29's LVM driver fails for good to terminate what its target no longer has, and after a restart it restores
    the targets of *in-use* volumes alone (``volume/manager.py:_init_host``): not of those on their way.
    """
    try:
        answered_export(run, attachment_id, connector)
    except UncertainError as error:
        LOG.warning("%s", error)
        run.uncertain("cinder")
        run.wait_quiet("cinder")


def with_mode(run: Run, connector: dict[str, object]) -> dict[str, object]:
    """Return the connector with the mode: below microversion 3.54 Cinder hears of *ro* nowhere else."""
    return connector if run.job.params.mode == "rw" else connector | {"mode": run.job.params.mode}


class ReserveVolume(Step):
    """Create the Cinder attachment; the volume becomes *reserved*.

    Effect: POST /attachments without a connector.
    Key: the owner mark (a UUID of the job) as the attachment's instance; found again by listing the volume's
    attachments. Without a mark a row of unknown origin is not taken for ours: the job is blocked.
    Compensation: delete the attachment, if this job made it.
    Uncertain: timeout, 5xx, lost connection: list; absent once the settle time is over means not done.
    Crash windows: before the call; after the call, before its result is stored.
    """

    code = "reserve-volume/1"
    gives = "attachment_id"
    book = "cinder"

    def act(self, volume: Volume) -> str:
        deadline = self.tools.clock.time() + self.tools.settings.step_retry_time
        while True:
            try:
                return self.tools.cinder.create_attachment(
                    volume.id, owner=self.run.owner_mark, mode=self.job.params.mode
                )
            except FinalError:
                # Multiattach: Cinder answers 400 while another attach of the volume is under way.
                busy = volume.multiattach and self.tools.cinder.show_volume(volume.id).status in {
                    "reserved",
                    "attaching",
                }
                if not busy or self.tools.clock.time() >= deadline:
                    raise
                self.run.pause(self.tools.settings.retry_interval)

    def look(self, volume: Volume) -> str | None:
        if self.run.owner_mark:
            rows = own_attachments(self.run)
            for extra in rows[1:]:  # a reply that was lost twice: only one of them is used
                delete_until_gone(self.run, extra.id)
            return rows[0].id if rows else None
        self._refuse_strangers()
        return None

    def undo(self, result: str | None) -> None:
        if self.run.owner_mark:
            for row in own_attachments(self.run):
                delete_until_gone(self.run, row.id)
        elif result is not None:
            delete_until_gone(self.run, result)
        elif self.in_doubt:
            self._refuse_strangers()

    def _refuse_strangers(self) -> None:
        """Raise OperatorNeeded if a reserved row without an owner might be ours."""
        self.run.see_volume()
        known = {row.attachment_id for row in self.tools.ledger.list_mappings(volume_id=self.job.volume_id)}
        for row in self.tools.cinder.list_attachments(self.job.volume_id):
            if not row.owner and row.status == "reserved" and row.id not in known:
                raise OperatorNeeded(
                    f"attachment {row.id} of volume {self.job.volume_name} may be this job's or a stranger's:"
                    " attachments carry no owner mark here",
                    resource=f"volume {self.job.volume_id}",
                    hint=f"if nobody else uses it: cinder attachment-delete {row.id}; then: tether job resume"
                    f" {self.job.id}",
                )


def export(run: Run, attachment_id: str, connector: dict[str, object]) -> Export:
    """Export the volume to this host, read that back, and keep the connection."""
    run.tools.cinder.update_attachment(attachment_id, with_mode(run, connector))
    row = run.tools.cinder.show_attachment(attachment_id)
    if row.status != "attaching" or row.connection is None:
        raise UncertainError(
            f"attachment {attachment_id} is {row.status} after its update"
            + ("" if row.connection else " and has no connection info"),
            resource=f"volume {run.job.volume_id}",
        )
    run.remember(row.connection)
    return Export.of(row.connection)


class ExportVolume(Step):
    """Export the volume to this host; the attachment becomes *attaching*.

    Effect: PUT /attachments/{id} with the connector; the backend makes a target.
    Key: the attachment. May be repeated; its body's status is stale, so it is read back.
    Compensation: delete the attachment, which terminates the connection and the export. Never while it says
    *reserved* (Cinder would then ask no backend, which may have exported): the update is repeated until it answers.
    After an uncertain answer only once the settle time is over.
    Uncertain: timeout, 5xx, lost connection: repeat.
    Crash windows: before the call; inside it; after it, before its result is stored.
    """

    code = "export-volume/1"
    gives = "export"
    book = "cinder"
    on_targets = True
    repeatable = True

    def act(self, attachment_id: str, connector: dict[str, object]) -> Export:
        return export(self.run, attachment_id, connector)

    def undo(self, attachment_id: str, connector: dict[str, object]) -> None:
        # An export that comes late must find its attachment: nobody tears down what comes after the deletion.
        self.run.wait_quiet(self.book)
        try:
            row = self.tools.cinder.show_attachment(attachment_id)
        except NotFound:
            self.run.see_volume()
            return
        self.run.refuse_while_held()
        if row.status == "reserved":
            answered_export(self.run, attachment_id, connector)
        elif self.failures:
            export_again(self.run, attachment_id, connector)
        # An update that was repeated may still be carried out: an export made after the deletion stays for good.
        self.run.wait_quiet(self.book)
        delete_until_gone(self.run, attachment_id)


class CompleteAttachment(Step):
    """Complete the attachment; the volume becomes *in-use*.

    Effect: os-complete, a blind write in Cinder: the status is read before and after.
    Key: the attachment.
    Compensation: none: past the pivot a disk is not pulled for a blind write. Only if Cinder has provably lost
    the attachment is the job undone.
    Uncertain: timeout, 5xx: read, repeat.
    Crash windows: before the call; after the call, before its result is stored.
    """

    code = "complete-attachment/1"
    book = "cinder"
    repeatable = True
    forward_only = True

    def act(self, attachment_id: str, connector: dict[str, object]) -> None:
        # A late export would make a completed attachment *attaching* again, without its connection info.
        self.run.wait_quiet(self.book)
        try:
            row = self.tools.cinder.show_attachment(attachment_id)
            if row.status == "attaching" and row.connection is None:
                self.tools.cinder.update_attachment(attachment_id, with_mode(self.run, connector))
                row = self.tools.cinder.show_attachment(attachment_id)
        except NotFound as error:
            self.run.see_volume()
            raise AttachmentLost(
                f"Cinder has lost attachment {attachment_id} of volume {self.job.volume_name}",
                resource=f"volume {self.job.volume_id}",
                hint="somebody deleted it while the attach was under way; run the command again",
            ) from error
        if row.status == "attaching":
            self.tools.cinder.complete_attachment(attachment_id)
            row = self.tools.cinder.show_attachment(attachment_id)
        if row.status == "reserved":
            raise OperatorNeeded(
                f"attachment {attachment_id} of volume {self.job.volume_name} fell back to reserved under a"
                " connected guest",
                resource=f"volume {self.job.volume_id}",
                hint="somebody reset it in Cinder; see: cinder attachment-show " + attachment_id,
            )
        if row.status != "attached":
            raise UncertainError(f"attachment {attachment_id} is {row.status} after os-complete")
        if self.run.owner_mark:
            for extra in own_attachments(self.run):
                if extra.id != attachment_id:  # a reservation whose reply was lost and came late
                    delete_until_gone(self.run, extra.id)


class ReleaseAttachment(Step):
    """Delete the attachment: terminate the connection, drop the export, free the volume.

    Effect: DELETE /attachments/{id}. Key: the attachment.
    Compensation: none: past the pivot.
    Uncertain: timeout, 5xx: repeat; the row is gone when Cinder no longer lists it. After two of them it is exported
    once more before the next.
    Crash windows: before the call; inside it; after it: repeating is harmless.
    """

    code = "release-attachment/1"
    book = "cinder"
    on_targets = True
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.run.refuse_while_held()
        attachment_id = self.run.attachment_id()
        if self.failures > 1:
            export_again(self.run, attachment_id, dict(self.tools.host.connector()))
        delete_until_gone(self.run, attachment_id)


class BeginDetaching(Step):
    """Tell Cinder that a detach begins; a plain volume becomes *detaching*.

    Effect: os-begin_detaching; not for multiattach, where the volume has other users, nor for a volume that was
    reset to *available* in Cinder, or is somebody else's since.
    Key: none in Cinder: the status has no owner.
    Compensation: os-roll_detaching; in the legacy dialect only if our own answer is recorded, since nothing
    else shows that the status is ours.
    Uncertain: timeout, 5xx: read the status.
    Crash windows: before the call; after the call, before its result is stored.
    """

    code = "begin-detaching/1"
    gives = "detaching"
    book = "cinder"

    def act(self) -> str:
        if not self._guarded():
            return "not-needed"
        self.tools.cinder.begin_detaching(self.job.volume_id)
        return "recorded"

    def look(self) -> str | None:
        status = self._guarded()
        if not status:
            return "not-needed"
        return "seen" if status == "detaching" else None

    def undo(self, result: str | None) -> None:
        ours = result in {"recorded", "seen"} or self.in_doubt
        if not ours or self._guarded() != "detaching":
            return
        if self.job.params.dialect == "legacy" and result != "recorded":
            raise OperatorNeeded(
                f"volume {self.job.volume_name} is detaching, but whether by this job cannot be known",
                resource=f"volume {self.job.volume_id}",
                hint="if nobody else detaches it: cinder reset-state --state in-use; then: tether job resume"
                f" {self.job.id}",
            )
        self.tools.cinder.roll_detaching(self.job.volume_id)
        status = self._status()
        if status != "in-use":
            raise UncertainError(f"volume {self.job.volume_name} is {status} after os-roll_detaching")

    def _guarded(self) -> str:
        """Return the status that a detach of ours changes; empty if there is none, or it is somebody else's."""
        if self.job.params.multiattach:
            return ""
        volume = self.tools.cinder.show_volume(self.job.volume_id)
        mapping = self.tools.ledger.mapping(self.job.volume_id, self.job.server_id)
        ids = [attachment_id for _owner, attachment_id in volume.attached_to]
        theirs = bool(ids) and mapping is not None and mapping.attachment_id not in ids
        return "" if volume.status == "available" or theirs else volume.status

    def _status(self) -> str:
        return self.tools.cinder.show_volume(self.job.volume_id).status
