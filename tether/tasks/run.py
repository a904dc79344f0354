"""What the steps of one job share while it runs: the toolbox, and what is known of earlier runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tether.adapters.cinder import wire
from tether.adapters.cinder.model import Cinder, CinderIdentity, Connection, Connector
from tether.adapters.guest.model import Guest, Server
from tether.adapters.host.model import Host, HostIdentity, Keys
from tether.adapters.host.targets import TargetLock
from tether.clock import Clock
from tether.errors import (
    ConfigError,
    FinalError,
    HeldError,
    Interrupted,
    LostLease,
    NotFound,
    OperatorNeeded,
    TetherError,
    UncertainError,
)
from tether.persistence.handovers import Handover
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Ledger, MappingRow
from tether.persistence.vault import Vault
from tether.sealed import masked
from tether.settings import Settings
from tether.tasks.siblings import Siblings, Whole

LOG = logging.getLogger(__name__)

#: Seconds of waiting that are not passed over in silence.
LONG_WAIT = 2.0
#: Seconds between two looks at a lock that somebody else has.
LOCK_PAUSE = 0.1
#: Seconds between two looks at how far the others of a request are.
SIBLING_PAUSE = 0.02
#: The name of a mapping's sealed connection.
CONNECTION = "connection"
#: Kinds of job that make a connection of their own.
CONNECTS = ("attach", "migrate-prepare")
#: Kinds of job about the end of a hand-over that the mapping does not name: there the server is, or may be, elsewhere.
OTHER_END = ("migrate-prepare", "migrate-release")


def describe(step: str, error: BaseException | None) -> dict[str, Any]:
    """Return an error as the job's row keeps it."""
    code, text, resource, hint = "unexpected", "unknown", "", "please report this"
    if isinstance(error, TetherError):
        code, text, resource, hint = error.code, error.message, error.resource, error.hint
    elif error is not None:
        text = f"{type(error).__name__}: {error}"
    found: dict[str, Any] = masked({"step": step, "code": code, "message": text, "resource": resource, "hint": hint})
    return found


@dataclass(frozen=True)
class Toolbox:
    """The adapters and the ledger: all that a step may touch.

    Args:
        vault: seals what later steps need again; None where nothing is kept.
    """

    cinder: Cinder
    host: Host
    guest: Guest
    keys: Keys
    ledger: Ledger
    leases: Leases
    clock: Clock
    settings: Settings
    vault: Vault | None = None


def _only_looked_at(*_names: Any, **_values: Any) -> None:
    """Stand in a run that carries nothing out: a plan's."""
    raise RuntimeError("a run that is only looked at stores nothing")


@dataclass(eq=False)
class Run:
    """One run of one job: from the start, a resume, or an abort.

    Args:
        job: the job as it was when the run began.
        in_flight: names of the steps whose effect or undo may have been cut off in an earlier run.
        begun: names of the steps that have begun, in this run or an earlier one: only those have something to undo.
        undone: names of the steps that are undone, in this run or an earlier one.
        undoing: names of the steps inside whose undo an earlier run was cut off.
        orderly: the earlier run stopped by itself, with every answer known.
        note: makes columns of the job's row durable with what is stored next.
        keep: makes a sealed secret of the job durable, by its name, with what is stored next.
        siblings: the jobs of the same all-or-nothing request, while they run with this one.
        whole: carries out the parts of such a request, for the job that has them.
        ended_at: the latest moment at which that earlier run can have started a call; seconds since the epoch.
    """

    tools: Toolbox
    job: Job
    in_flight: frozenset[str] = frozenset()
    ended_at: float = 0.0
    cancelled: bool = False
    stopping: bool = False
    lost: bool = False
    pivoted: bool = False
    begun: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    undoing: set[str] = field(default_factory=set)
    orderly: bool = False
    note: Callable[..., None] = _only_looked_at
    keep: Callable[[str, str], None] = _only_looked_at
    futures: list[Future[Any]] = field(default_factory=list)
    wake: threading.Event = field(default_factory=threading.Event)
    error: Mapping[str, Any] | None = None
    siblings: Siblings | None = None
    whole: Whole | None = None
    _quiet_at: dict[str, float] = field(default_factory=dict)
    _connection: Connection | None = None
    _lock: TargetLock | None = None

    def __post_init__(self) -> None:
        # That runner's clock may have been ahead: from now on a call takes no longer than it may take at most.
        now = self.tools.clock.time()
        self._quiet_at |= {book: min(until, now + self._settle(book)) for book, until in self.job.quiet_at.items()}
        self.error = self.job.error

    # -- asking it to end ------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Roll back at the next step's start, unless the job is past its pivot (Ctrl-C)."""
        self.cancelled = True
        self.wake.set()

    def stop(self) -> None:
        """Leave everything as it is, resumable, at the next moment that allows it (SIGTERM, second Ctrl-C)."""
        self.stopping = True
        self.wake.set()

    def check(self) -> None:
        """Unwind if the run was asked to stop, or has lost its lease."""
        if self.lost:
            raise LostLease(f"job {self.job.id} was taken over by another runner")
        if self.stopping:
            raise Interrupted("asked to stop")
        if self.siblings is not None:
            self.siblings.check()

    def pause(self, seconds: float) -> None:
        """Wait, but not through a request to stop."""
        self.check()
        self.tools.clock.wait(seconds, None if self.cancelled else self.wake)
        self.check()

    def failed(self, step: str, error: BaseException | None) -> None:
        """Keep the first thing that went wrong, so that a later run can still tell it."""
        if self.error is None:
            self.error = describe(step, error)
            self.note(error=self.error)

    # -- what may still be on the wire -----------------------------------------------------------------------

    def uncertain(self, book: str) -> None:
        """Note that a call to ``book`` had no answer just now: it may still be carried out."""
        self._note(book, self.tools.clock.time())

    def cut_off(self, book: str) -> None:
        """Note that an earlier run may have died inside a call to ``book``."""
        self._note(book, self.ended_at)

    def _note(self, book: str, since: float) -> None:
        until = since + self._settle(book)
        if until > self._quiet_at.get(book, 0.0):
            self._quiet_at[book] = until
            # A repeat may succeed and this process be killed after it: the first call is still on the wire then. It is
            # written with what says that the step is over; until then the step says so itself.
            self.note(quiet_at=dict(self._quiet_at))

    def _settle(self, book: str) -> float:
        settings = self.tools.settings
        return {"cinder": settings.settle_time, "guest": settings.libvirt_settle, "host": settings.host_settle}.get(
            book, 0.0
        )

    def is_quiet(self, book: str) -> bool:
        """Return True if no call of this job to ``book`` can still be carried out behind our back."""
        return self.tools.clock.time() >= self._quiet_at.get(book, 0.0)

    def wait_quiet(self, book: str) -> None:
        """Wait until that is so."""
        left = self._quiet_at.get(book, 0.0) - self.tools.clock.time()
        if left > LONG_WAIT:
            LOG.warning(
                "waiting %.0f s: until then a call to %s that had no answer may still be carried out", left, book
            )
        while not self.is_quiet(book):
            self.pause(min(1.0, self._quiet_at[book] - self.tools.clock.time()))

    def let_end(self) -> None:
        """Wait until nothing of this job is on the wire: what came later would befall whoever has the volume then."""
        for book in list(self._quiet_at):
            self.wait_quiet(book)

    # -- reading, with proven eyesight -----------------------------------------------------------------------

    @property
    def owner_mark(self) -> str:
        """The owner mark of the job's attachment, or empty where it carries none."""
        return self.job.owner if self.job.params.owner_mark else ""

    def see_volume(self) -> None:
        """Show that Cinder still shows us the volume, so that what it does not list is absent.

        Raises:
            UncertainError: it does not; then nothing can be said about its attachments.
        """
        try:
            self.tools.cinder.show_volume(self.job.volume_id)
        except NotFound as error:
            raise UncertainError(
                f"Cinder no longer shows volume {self.job.volume_id}, so nothing can be proven about its attachments",
                resource=f"volume {self.job.volume_id}",
                hint="see whether the project and the endpoint are the job's own: tether job show " + self.job.id,
            ) from error

    def see_server(self) -> Server:
        """Return the job's server as it is now.

        Raises:
            UncertainError: libvirt does not know it (it may have migrated): absence proves nothing.
        """
        try:
            return self.tools.guest.show_server(self.job.server_id)
        except NotFound as error:
            raise UncertainError(
                f"libvirt no longer knows server {self.job.server_name}; it may have migrated",
                resource=f"server {self.job.server_id}",
                hint="see: virsh list --all, here and on the other hosts",
            ) from error

    def server_here(self) -> Server | None:
        """Return the job's server if this libvirt has it; None where it shows all of its domains, and this is none.

        Raises:
            UncertainError: it cannot be read.
        """
        survey = self.tools.guest.survey()
        if reason := survey.unread.get(self.job.server_id):
            raise UncertainError(
                f"server {self.job.server_name} cannot be read: {reason}", resource=f"server {self.job.server_id}"
            )
        return next((server for server in survey.servers if server.uuid == self.job.server_id), None)

    def refuse_while_held(self) -> None:
        """Refuse to go on while the server has the disk, in either definition.

        A guest may have been started, or put back by a snapshot, between two steps: what it reaches the volume by
        is never taken away from under it (CVE-2023-2088 is what happens otherwise).

        Raises:
            OperatorNeeded: the server has it.
        """
        server = self.server_here() if self.job.kind in OTHER_END else self.see_server()
        for definition in (server.live, server.persistent) if server is not None else ():
            if definition is not None and definition.holds(self.job.volume_id):
                raise OperatorNeeded(
                    f"server {self.job.server_name} still has volume {self.job.volume_name}: its connection stays",
                    resource=f"server {self.job.server_id}",
                    hint=f"see: virsh domblklist {self.job.server_name}; detach the disk there, then: tether job resume"
                    f" {self.job.id}",
                )

    @property
    def handover(self) -> Handover | None:
        """The hand-over of the volume and the server, if one is under way."""
        return self.tools.ledger.handovers.find(self.job.volume_id, self.job.server_id)

    def attachment_id(self) -> str:
        """Return the attachment that the job is about: the mapping's, or that of the other end of its hand-over.

        Raises:
            OperatorNeeded: it is gone from the ledger.
        """
        row = self.handover if self.job.kind in OTHER_END else self.mapping()
        if row is None:
            raise OperatorNeeded(
                f"the hand-over of volume {self.job.volume_name} is gone from the ledger",
                resource=f"volume {self.job.volume_id}",
                hint=f"see: tether job show {self.job.id}",
            )
        return row.attachment_id

    def mapping(self) -> MappingRow:
        """Return the mapping that this job is about.

        Raises:
            OperatorNeeded: it is gone from the ledger.
        """
        row = self.tools.ledger.mapping(self.job.volume_id, self.job.server_id)
        if row is None:
            raise OperatorNeeded(
                f"the mapping of volume {self.job.volume_name} on server {self.job.server_name} is gone from the"
                " ledger",
                resource=f"volume {self.job.volume_id}",
                hint=f"see: tether job show {self.job.id}",
            )
        return row

    def remember(self, connection: Connection) -> None:
        """Keep the connection of this attach: in memory, and sealed before the next step's effect."""
        if self.tools.vault is not None:
            self.keep(CONNECTION, self.tools.vault.seal(wire.dump(connection)))
        self._connection = connection

    def connection(self, attachment_id: str, connector: Connector) -> Connection:
        """Return the connection: remembered, as the attach has sealed it, or read again from Cinder.

        Raises:
            FinalError: Cinder has no connection info for the attachment.
            OperatorNeeded: it is sealed with a key that is not here.
        """
        if self._connection is None:
            self._connection = self._sealed_connection()
        if self._connection is None:
            if self.job.params.dialect == "legacy":
                self._connection = self.tools.cinder.initialize_connection(self.job.volume_id, connector)
            else:
                self._connection = self.tools.cinder.show_attachment(attachment_id).connection
        if self._connection is None:
            raise FinalError(
                f"Cinder has no connection info for attachment {attachment_id} of volume {self.job.volume_name}",
                resource=f"volume {self.job.volume_id}",
                hint=f"roll the job back with: tether job abort {self.job.id}",
            )
        return self._connection

    def _sealed_connection(self) -> Connection | None:
        vault, ledger = self.tools.vault, self.tools.ledger
        attach = self.job.id
        if vault is None:
            return None
        if self.job.kind not in CONNECTS:
            pair = self.job.volume_id, self.job.server_id
            row = self.handover if self.job.kind in OTHER_END else ledger.mapping(*pair)
            if row is None:
                return None
            attach = row.job_id
        text = ledger.secret(attach, CONNECTION)
        if text is None:
            return None
        try:
            return wire.load(vault.open(text))
        except ConfigError as error:
            raise OperatorNeeded(
                error.message,
                resource=f"volume {self.job.volume_id}",
                hint=f"{error.hint}, then: tether job resume {self.job.id}",
            ) from error

    @contextmanager
    def server_lease(self) -> Iterator[None]:
        """Hold the server while its names and addresses are chosen or its disks change."""
        with self.tools.leases.held(f"server:{self.job.server_id}", wait=self.tools.settings.wait, job=self.job.id):
            yield

    def meet(self) -> None:
        """Wait until every volume of the same request has come as far; at once where there is no other.

        Raises:
            FinalError, OperatorNeeded: one of them does not come.
        """
        if self.siblings is not None:
            self.siblings.arrived(self.job.id)
            self._wait_for(self.siblings.is_complete)

    @contextmanager
    def in_turn(self, step: str) -> Iterator[None]:
        """Do a step after those before it of the same request.

        Raises:
            FinalError, OperatorNeeded: one of them does not come.
        """
        siblings, own = self.siblings, self.job.id
        if siblings is not None:
            self._wait_for(lambda: siblings.is_next(step, own))
        yield
        if siblings is not None:
            siblings.passed(step, own)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.cancelled and not self.pivoted:
                raise FinalError("cancelled", hint="nothing is left; run the command again when you want it")
            self.pause(SIBLING_PAUSE)

    @contextmanager
    def targets(self) -> Iterator[None]:
        """Hold this host's lock of the backend's targets, where the job needs it; until the run is over, in fact.

        Raises:
            HeldError: somebody else of this host holds it: another job, Nova or Cinder.
        """
        if not self.job.params.targets:
            yield
            return
        if self._lock is None:
            lock = TargetLock(Path(self.tools.settings.lock_path), self.job.params.targets)
            self._lock = lock if self.siblings is None else self.siblings.lock(lock)
        deadline = self.tools.clock.time() + self.tools.settings.wait
        while not self._lock.take():
            if self.tools.clock.time() >= deadline:
                raise HeldError(
                    f"volume {self.job.volume_name} shares its targets with another that is being attached or detached"
                    " on this host",
                    resource=f"volume {self.job.volume_id}",
                    hint=f"see who holds {self._lock.path} (lslocks), and try again after it",
                )
            self.pause(LOCK_PAUSE)
        with nullcontext() if self.siblings is None else self.siblings.turn:
            yield

    def let_targets_go(self) -> None:
        """Let the targets go: the run is over. What siblings hold, the last of them lets go."""
        if self._lock is not None and self.siblings is None:
            self._lock.release()

    @property
    def machine(self) -> HostIdentity:
        """This host."""
        return self.tools.host.identity()

    @property
    def cloud(self) -> CinderIdentity:
        """This Cinder."""
        return self.tools.cinder.identity()
