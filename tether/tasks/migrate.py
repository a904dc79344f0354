"""The hand-over of a volume's connection when its server moves to another host by live migration.

While the server moves, the volume has two ends: two attachments of one owner, and a connection on each host. The
mapping names one, the hand-over the other (:mod:`tether.persistence.handovers`). Follows Nova's
``compute/manager.py:pre_live_migration`` and ``_post_live_migration``, which keep one of the two in the database.
"""

from __future__ import annotations

from tether.adapters.cinder.model import Attachment, Volume
from tether.adapters.guest.model import Scope
from tether.errors import FinalError, OperatorNeeded, UncertainError
from tether.persistence.handovers import End, Handover
from tether.persistence.ledger import MappingRow
from tether.tasks.host import is_shared
from tether.tasks.mapping import check_project
from tether.tasks.run import Run
from tether.tasks.step import Step
from tether.tasks.users import refuse_used
from tether.tasks.volume import Export, delete_until_gone, with_mode


def refused(run: Run, why: str, hint: str) -> FinalError:
    """Return the refusal of a hand-over's part; nothing has happened."""
    return FinalError(
        f"volume {run.job.volume_name} of server {run.job.server_name} is not handed over: {why}",
        resource=f"volume {run.job.volume_id}",
        hint=hint,
    )


def second_rows(run: Run, mapping: MappingRow) -> list[Attachment]:
    """Return the attachments of the mapping's owner beside the mapping's own.

    The volume is read first: a list says nothing unless the volume itself is seen.
    """
    run.see_volume()
    rows = run.tools.cinder.list_attachments(run.job.volume_id)
    return [row for row in rows if row.owner == mapping.owner_mark and row.id != mapping.attachment_id]


def refuse_busy(run: Run) -> None:
    """Refuse, before anything has happened, what a server of this host may be using.

    Raises:
        FinalError: something uses it, or nobody can say that nothing does.
    """
    if is_shared(run):
        run.refuse_while_held()
        return
    refuse_used(run)


class CheckMovable(Step):
    """Show that the volume is attached on another host, and that this host may have a second connection of it.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-movable/1"

    def act(self, volume: Volume, connector: dict[str, object]) -> None:
        del connector  # it must be readable before anything happens
        check_project(self.run, volume)
        mapping, server = self.tools.ledger.mapping(volume.id, self.job.server_id), self.job.server_name
        if mapping is None or mapping.state != "attached":
            raise refused(self.run, "it is not attached", f"see: tether explain {self.job.volume_name}")
        if mapping.machine_id == self.run.machine.machine_id:
            raise refused(self.run, "it is attached on this very host", "run this on the host that the server moves to")
        self._check_case(mapping)
        row = next(
            (row for row in self.tools.cinder.list_attachments(volume.id) if row.id == mapping.attachment_id), None
        )
        if volume.status != "in-use" or row is None or row.status != "attached":
            said = f"{volume.status}, its attachment {'gone' if row is None else row.status}"
            raise refused(self.run, f"Cinder says that it is {said}", f"see: tether explain {self.job.volume_name}")
        if others := second_rows(self.run, mapping):
            raise refused(
                self.run,
                f"Cinder has a second attachment of its owner already: {others[0].id} ({others[0].status})",
                f"if no other migration is under way: cinder attachment-delete {others[0].id}",
            )
        if self.run.server_here() is not None:
            raise refused(self.run, "this host has a server of that UUID already", f"see: virsh dominfo {server}")
        try:
            refuse_busy(self.run)
        except (OperatorNeeded, UncertainError) as error:
            raise FinalError(error.message, resource=error.resource, hint=error.hint) from error

    def _check_case(self, mapping: MappingRow) -> None:
        """Raise FinalError if this kind of attachment cannot have a second one, or not here."""
        if mapping.dialect != "attachments":
            raise refused(
                self.run,
                "it is attached by the legacy dialect, in which a volume has one connection",
                "stop the server, detach the volume, and attach it on the other host",
            )
        if not mapping.owner_mark:
            raise refused(
                self.run,
                "its attachment has no owner in Cinder, which allows a second one to the same owner alone",
                "detach it, and attach it with [cinder] owner_mark = on",
            )
        place, cloud = self.tools.ledger.job_of(mapping).place, self.run.cloud
        if (place.endpoint, place.project_id) != (cloud.endpoint, cloud.project_id):
            raise refused(
                self.run,
                f"it was attached as of project {place.project_id} at {place.endpoint}, and this host asks for"
                f" {cloud.project_id} at {cloud.endpoint}",
                "use the same endpoint and project on both hosts",
            )
        here = self.tools.settings.data_path
        if mapping.data_path != here:
            raise refused(
                self.run,
                f"it is attached by the {mapping.data_path} data path, and this host uses {here}",
                f"set data_path = {mapping.data_path} here",
            )


class CreateHandover(Step):
    """Note in the ledger that this host is to have the volume, too.

    Effect: a row. Key: volume and server. Compensation: delete it, with what the job has sealed.
    Uncertain: the database does not answer; read back.
    Crash windows: after the row, before the step's result: found by the job's id.
    """

    code = "create-handover/1"
    gives = "handover"
    book = "ledger"

    def act(self) -> str:
        machine = self.run.machine
        self.tools.ledger.handovers.begin(
            Handover(
                volume_id=self.job.volume_id,
                server_id=self.job.server_id,
                job_id=self.job.id,
                state=End.PREPARING,
                host=machine.name,
                machine_id=machine.machine_id,
            )
        )
        return machine.name

    def look(self) -> str | None:
        row = self.run.handover
        return row.host if row is not None and row.job_id == self.job.id else None

    def undo(self) -> None:
        if self.look() is not None:
            self.tools.ledger.handovers.forget(self.job.volume_id, self.job.server_id)


class SecondAttachment(Step):
    """Create the second attachment, and export the volume to this host with it.

    Effect: POST /attachments with this host's connector, in the name of the first one's owner: Cinder refuses to update
    an attachment while another of a plain volume is connected. Key: the owner; the row beside the mapping's own. May be
    repeated once the call before is over.
    Compensation: delete the row, which terminates. One that Cinder left *reserved* may have been exported all the
    same, and its deletion would ask no backend: the connection to this host is terminated before it.
    Uncertain: timeout, 5xx, lost connection: wait until it can no longer be carried out, list, repeat.
    Crash windows: before the call; inside it; after it, before its result is stored.
    """

    code = "second-attachment/1"
    gives = "attachment_id"
    book = "cinder"
    on_targets = True
    repeatable = True

    def act(self, connector: dict[str, object]) -> str:
        if self.in_doubt:
            # A second row for this host could not be taken away again without cutting the connection of the first.
            self.run.wait_quiet(self.book)
        found = self.look(connector)
        if found is not None:
            return found
        mapping = self.run.mapping()
        for row in second_rows(self.run, mapping):  # Cinder has lost how it is reached, and refuses an update
            delete_until_gone(self.run, row.id)
        return self.tools.cinder.create_attachment(
            self.job.volume_id, owner=mapping.owner_mark, mode=mapping.mode, connector=with_mode(self.run, connector)
        )

    def look(self, connector: dict[str, object]) -> str | None:
        del connector
        rows = second_rows(self.run, self.run.mapping())
        connected = (row.id for row in rows if self.tools.cinder.show_attachment(row.id).connection is not None)
        return next(connected, None)

    def undo(self, connector: dict[str, object]) -> None:
        # An export that comes late must find its attachment: nobody tears down what comes after the deletion.
        self.run.wait_quiet(self.book)
        self.run.refuse_while_held()
        rows = second_rows(self.run, self.run.mapping())
        if rows and all(row.status == "reserved" for row in rows) and not is_shared(self.run):
            self.tools.cinder.terminate_connection(self.job.volume_id, connector)
        for row in rows:
            delete_until_gone(self.run, row.id)


class ReadExport(Step):
    """Read how the volume is reached from here, and keep it.

    Effect: none. Key: the attachment. Compensation: none: what is kept goes with the hand-over's row.
    Uncertain: the read fails; what came before is undone.
    Crash windows: none.
    """

    code = "read-export/1"
    gives = "export"

    def act(self, attachment_id: str) -> Export:
        row = self.tools.cinder.show_attachment(attachment_id)
        if row.connection is None:
            raise FinalError(
                f"attachment {attachment_id} of volume {self.job.volume_name} is {row.status}, without connection info",
                resource=f"volume {self.job.volume_id}",
                hint="see Cinder's volume log for why it was not exported",
            )
        self.run.remember(row.connection)
        return Export.of(row.connection)


class FinishHandover(Step):
    """Note that this host is ready for the server.

    Effect: the row's state and attachment id. Key: volume and server.
    Compensation: none: past the pivot; the row itself is create-handover's.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "finish-handover/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self, attachment_id: str) -> None:
        self.tools.ledger.handovers.prepared(self.job.volume_id, self.job.server_id, attachment_id)


class CheckArrived(Step):
    """Show that the server is on this host, with the volume's disk in each definition that it has, and no longer moves.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-arrived/1"

    def act(self) -> None:
        row, server = self.run.handover, self.run.server_here()
        if row is None or row.state is not End.INCOMING or row.machine_id != self.run.machine.machine_id:
            raise refused(self.run, "nothing is prepared here", f"see: tether explain {self.job.volume_name}")
        again = f"then: tether migrate complete {self.job.server_name} --to {row.host}"
        if server is None:
            raise refused(
                self.run,
                "the server is not on this host",
                f"move it first (virsh migrate --live), {again}; or give it up: tether migrate abort"
                f" {self.job.server_name} --to {row.host}",
            )
        if server.migrating:
            raise refused(self.run, "the server is still on its way", f"wait until it has arrived, {again}")
        for scope in Scope:
            definition = server.definition(scope)
            if definition is not None and definition.disk(self.job.volume_id) is None:
                raise refused(
                    self.run,
                    f"the {scope} definition that has arrived has no disk of it",
                    f"see: virsh dumpxml {server.name}",
                )


class TakeMapping(Step):
    """Make this host's end the mapping's, and the source's end what is left to be released: in one transaction.

    Effect: both rows, and the secrets that belong to them. Key: volume and server.
    Compensation: none: the server is here.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the transaction: it is repeated only while the row is *incoming*.
    """

    code = "take-mapping/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.tools.ledger.handovers.swap(self.job.volume_id, self.job.server_id)


class CheckLeft(Step):
    """Show that no server of this host has a disk of the volume: it has left, or has never come.

    Effect: none. Key: none. Compensation: none.
    Uncertain: a read fails; nothing has happened yet.
    Crash windows: none.
    """

    code = "check-left/1"

    def act(self) -> None:
        row = self.run.handover
        if row is None or row.state is End.PREPARING or row.machine_id != self.run.machine.machine_id:
            raise refused(
                self.run, "this host has no end of it to release", f"see: tether explain {self.job.volume_name}"
            )
        server = self.run.server_here()
        definitions = () if server is None else (server.live, server.persistent)
        if any(definition is not None and definition.holds(self.job.volume_id) for definition in definitions):
            name = self.job.server_name
            hint = f"it runs on {row.host} by now? Then: virsh undefine {name}, and run this again"
            if row.state is End.INCOMING:
                hint = f"once it has arrived: tether migrate complete {name} --to {row.host}"
            raise refused(self.run, f"server {name} on this host has a disk of it", hint)
        try:
            refuse_busy(self.run)
        except (OperatorNeeded, UncertainError) as error:
            raise FinalError(error.message, resource=error.resource, hint=error.hint) from error


class ForgetHandover(Step):
    """Forget the hand-over: the last step of a release.

    Effect: the row goes, with the secrets of its end. Key: volume and server.
    Compensation: none: past the pivot.
    Uncertain: the database does not answer; repeat.
    Crash windows: before or after the row: repeating is harmless.
    """

    code = "forget-handover/1"
    book = "ledger"
    repeatable = True
    forward_only = True

    def act(self) -> None:
        self.tools.ledger.handovers.forget(self.job.volume_id, self.job.server_id)
