"""Reads all five books at once, so that they can be compared. Nothing is changed.

Cinder is asked by lists, in pages: how many calls that takes follows from the number of pages alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from tether.adapters.cinder import wire
from tether.adapters.cinder.model import Attachment, CinderIdentity, Connection, ListedVolume
from tether.adapters.guest.disk import network_source
from tether.adapters.guest.model import Definition, Disk, GuestSurvey, Scope, Server
from tether.adapters.host.model import Holding, HostIdentity, HostSurvey
from tether.adapters.host.probes import targets as targets_of
from tether.audit.drift import Owner, Unread
from tether.errors import ConfigError, TetherError
from tether.persistence.handovers import Handover
from tether.persistence.ledger import ConnectionRow, Job, MappingRow
from tether.persistence.overview import jobs_about, jobs_of, jobs_since
from tether.tasks.run import CONNECTION, Toolbox

T = TypeVar("T")

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Cloud:
    """What Cinder says of one project.

    Args:
        attachments: by volume.
    """

    identity: CinderIdentity
    volumes: Mapping[str, ListedVolume]
    attachments: Mapping[str, tuple[Attachment, ...]]

    def rows(self, volume_id: str) -> tuple[Attachment, ...]:
        """Return a volume's attachments."""
        return self.attachments.get(volume_id, ())


@dataclass(frozen=True)
class LedgerBook:
    """What the ledger says.

    Args:
        mappings: of every host.
        connections: of this host, by volume.
        open_jobs: those that have not ended, of every host.
        jobs: of mappings, of open jobs and of attachments that no mapping knows; by id.
        sealed: by the job of a mapping, or of a hand-over's end, how Cinder said that the volume is reached from there.
        busy: volumes that a runner worked on, or Cinder changed, while the books were read: they are in motion.
    """

    mappings: tuple[MappingRow, ...]
    handovers: tuple[Handover, ...]
    connections: Mapping[str, ConnectionRow]
    open_jobs: tuple[Job, ...]
    jobs: Mapping[str, Job]
    sealed: Mapping[str, Connection] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()

    @property
    def ends(self) -> tuple[MappingRow | Handover, ...]:
        """Mappings and the other ends of those that are being handed over: each is one host's."""
        return *self.mappings, *self.handovers


@dataclass(frozen=True)
class Seat:
    """A volume's disk in one server: in one of its definitions, or in both."""

    server: Server
    volume_id: str
    disks: Mapping[Scope, Disk]
    marked: bool

    @property
    def disk(self) -> Disk:
        """The disk; the live one where the two differ."""
        return self.disks.get(Scope.LIVE) or self.disks[Scope.PERSISTENT]


@dataclass(frozen=True)
class Survey:
    """The five books. A book that could not be read is None, and ``unread`` says why.

    Args:
        at: when the reading began; seconds since the epoch.
        run_dir: where tether's links are.
    """

    at: float
    machine: HostIdentity | None
    cloud: Cloud | None
    guest: GuestSurvey | None
    host: HostSurvey | None
    ledger: LedgerBook | None
    run_dir: str
    unread: tuple[Unread, ...] = ()

    # -- names -----------------------------------------------------------------------------------------------

    def volume_name(self, volume_id: str) -> str:
        """Return a volume's name; its id where it has none, or nothing knows it."""
        listed = self.cloud.volumes.get(volume_id) if self.cloud else None
        if listed is not None:
            return listed.volume.name or volume_id
        return self._job_names.get(volume_id) or volume_id

    def server_name(self, server_id: str) -> str:
        """Return a server's name; its id where nothing knows it."""
        if server_id in self.servers:
            return self.servers[server_id].name
        return self._job_names.get(server_id) or server_id

    @cached_property
    def _job_names(self) -> Mapping[str, str]:
        jobs = self.ledger.jobs.values() if self.ledger else ()
        return {job.volume_id: job.volume_name for job in jobs} | {job.server_id: job.server_name for job in jobs}

    def host_name(self, machine_id: str) -> str:
        """Return this host's name, or another's machine id."""
        return self.machine.name if self.machine and self.machine.machine_id == machine_id else machine_id

    # -- the ledger ------------------------------------------------------------------------------------------

    def is_here(self, machine_id: str) -> bool:
        """Return True if that is this host."""
        return self.machine is not None and self.machine.machine_id == machine_id

    @cached_property
    def mapping_of(self) -> Mapping[tuple[str, str], MappingRow]:
        """Mappings by volume and server."""
        return {(row.volume_id, row.server_id): row for row in self.ledger.mappings} if self.ledger else {}

    @cached_property
    def mappings_of(self) -> Mapping[str, list[MappingRow]]:
        """Mappings by volume."""
        found: dict[str, list[MappingRow]] = defaultdict(list)
        for row in self.ledger.mappings if self.ledger else ():
            found[row.volume_id].append(row)
        return dict(found)

    @cached_property
    def job_of(self) -> Mapping[str, Job]:
        """Open jobs by volume: a volume has one at most."""
        return {job.volume_id: job for job in self.ledger.open_jobs} if self.ledger else {}

    @cached_property
    def owners(self) -> Mapping[str, Job]:
        """The jobs of this ledger by the owner mark that their attachments carry."""
        return {job.owner: job for job in self.ledger.jobs.values()} if self.ledger else {}

    def is_busy(self, volume_id: str) -> bool:
        """Return True if a runner works on the volume, so that its books are on their way."""
        return self.ledger is None or volume_id in self.ledger.busy

    def is_explained(self, volume_id: str) -> bool:
        """Return True if a job holds the volume: what it has left is reported once, under the job."""
        return self.is_busy(volume_id) or volume_id in self.job_of

    def own_row(self, mapping: MappingRow) -> Attachment | None:
        """Return the attachment of a mapping, if Cinder has it."""
        rows = self.cloud.rows(mapping.volume_id) if self.cloud else ()
        mine = [row for row in rows if row.id == mapping.attachment_id]
        return next(iter(mine + [row for row in rows if mapping.owner_mark and row.owner == mapping.owner_mark]), None)

    def sees_project(self, mapping: MappingRow) -> bool:
        """Return True if the Cinder that was read is the one that a mapping's volume is of."""
        job = self.ledger.jobs.get(mapping.job_id) if self.ledger else None
        if self.cloud is None or job is None:
            return False
        return (job.place.endpoint, job.place.project_id) == (
            self.cloud.identity.endpoint,
            self.cloud.identity.project_id,
        )

    def unmapped_rows(self, volume_id: str) -> list[Attachment]:
        """Return the attachments of a volume that no mapping knows."""
        known = {row.id for item in self.mappings_of.get(volume_id, ()) if (row := self.own_row(item))}
        return [row for row in (self.cloud.rows(volume_id) if self.cloud else ()) if row.id not in known]

    def owner_of(self, row: Attachment) -> Owner:
        """Return whose an attachment is that no mapping knows."""
        if row.owner in self.owners:
            return Owner.OURS
        server = self.servers.get(row.owner)
        return Owner.NOVA if server is not None and is_nova(server) else Owner.FOREIGN

    # -- the guests ------------------------------------------------------------------------------------------

    @cached_property
    def servers(self) -> Mapping[str, Server]:
        """Servers by UUID: those that could be read."""
        return {server.uuid: server for server in self.guest.servers} if self.guest else {}

    @property
    def sees_all_guests(self) -> bool:
        """True if every domain of this libvirt could be read: only then no guest is proven to use something."""
        return self.guest is not None and not self.guest.unread

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """Every disk of a Cinder volume in every server, Nova's included."""
        return tuple(seat for server in self.servers.values() for seat in self._seats(server))

    @cached_property
    def seats_of(self) -> Mapping[str, list[Seat]]:
        """The servers that have a disk of a volume, by volume."""
        found: dict[str, list[Seat]] = defaultdict(list)
        for seat in self.seats:
            found[seat.volume_id].append(seat)
        return dict(found)

    def seat(self, volume_id: str, server_id: str) -> Seat | None:
        """Return a server's disk of a volume, if it has one."""
        return next((seat for seat in self.seats_of.get(volume_id, ()) if seat.server.uuid == server_id), None)

    def is_ours(self, seat: Seat) -> bool:
        """Return True if this ledger knows the disk."""
        return (seat.volume_id, seat.server.uuid) in self.mapping_of

    def seat_owner(self, seat: Seat) -> Owner:
        """Return whose a disk is."""
        if self.is_ours(seat):
            return Owner.OURS
        if seat.marked:
            return Owner.UNKNOWN
        return Owner.NOVA if is_nova(seat.server) else Owner.FOREIGN

    def link(self, volume_id: str) -> str:
        """Return where tether's link to a volume is, or would be."""
        return str(Path(self.run_dir) / "volumes" / volume_id)

    def _seats(self, server: Server) -> Iterator[Seat]:
        found: dict[str, dict[Scope, Disk]] = defaultdict(dict)
        marked: set[str] = set()
        for scope in Scope:
            definition = server.definition(scope)
            for disk in definition.disks if definition else ():
                volume_id = self._volume_of(disk, definition)
                if volume_id:
                    found[volume_id].setdefault(scope, disk)
            marked |= set(definition.marks) if definition else set()
        for volume_id, disks in found.items():
            yield Seat(server, volume_id, disks, volume_id in marked)

    def _volume_of(self, disk: Disk, definition: Definition | None) -> str:
        """Return the volume that a disk is, by its alias, tether's link or its serial; empty if it is none.

        Serials and user aliases are free: what looks like a volume's id is one only if some book knows it.
        """
        for name in definition.adopted if definition is not None else ():
            if definition is not None and definition.disk(name) is disk:
                return name
        alias = disk.alias.removeprefix("ua-") if disk.alias.startswith("ua-") else ""
        linked = disk.source.removeprefix(self.link(""))
        if UUID.fullmatch(linked.strip("/")):
            return alias if UUID.fullmatch(alias) else linked.strip("/")
        for name in (alias, disk.serial):
            if UUID.fullmatch(name) and (name in self._known_volumes or (definition and name in definition.marks)):
                return name
        return ""

    @cached_property
    def _known_volumes(self) -> frozenset[str]:
        known = set(self.cloud.volumes) if self.cloud else set()
        if self.ledger:
            known |= {row.volume_id for row in self.ledger.mappings} | {job.volume_id for job in self.ledger.open_jobs}
        return frozenset(known)

    def source_of(self, mapping: MappingRow, disk: Disk) -> str:
        """Return what a mapping's disk should open; empty where no book tells.

        What is adopted opens what it opened before.
        """
        server = self.servers.get(mapping.server_id)
        for definition in (server.live, server.persistent) if server is not None else ():
            if definition is not None and mapping.volume_id in definition.adopted:
                return definition.adopted[mapping.volume_id][1]
        if disk.source_type != "network":
            return self.link(mapping.volume_id) if mapping.data_path == "host" else ""
        sealed = self.ledger.sealed.get(mapping.job_id) if self.ledger else None
        return network_source(sealed) if sealed is not None else ""

    # -- the host --------------------------------------------------------------------------------------------

    @cached_property
    def holdings_of(self) -> Mapping[str, list[Holding]]:
        """What this host holds, by the volume it is of; what is no volume's is left out.

        The ledger's word comes first: after a migration of the volume its target is named after another id. A disk or a
        map that names no volume is known by what the device ledger says that the volume reports.
        """
        targets: dict[str, str] = {}
        for row in self.ledger.ends if self.ledger else ():
            sealed = self.ledger.sealed.get(row.job_id) if self.ledger else None
            if sealed is not None and self.is_here(row.machine_id):
                iscsi = sealed.protocol in {"iscsi", "iser"}
                names = {name for name, _lun in targets_of(sealed.data.open())} if iscsi else set()
                targets |= dict.fromkeys(names, row.volume_id)
        identities = {row.identity: row.volume_id for row in (self.ledger.connections.values() if self.ledger else ())}
        found: dict[str, list[Holding]] = defaultdict(list)
        for item in self.host.holdings if self.host else ():
            by_identity = identities.get(item.identity, "") if item.identity else ""
            volume_id = targets.get(item.target) or item.volume_id or by_identity
            if volume_id:
                found[volume_id].append(item)
        return dict(found)

    @cached_property
    def real_paths(self) -> Mapping[str, str]:
        """What each of tether's links leads to."""
        return {item.link: item.path for item in self.host.devices.values()} if self.host else {}

    @cached_property
    def used(self) -> frozenset[str]:
        """Whatever a guest, a mapping of this host or an open job may be using: volume ids, and sources of disks."""
        names: set[str] = set()
        for server in self.servers.values():
            for scope in Scope:
                definition = server.definition(scope)
                for disk in definition.disks if definition else ():
                    names |= {disk.source, *UUID.findall(f"{disk.alias} {disk.serial} {disk.source}")}
        if self.ledger:
            names |= {row.volume_id for row in self.ledger.ends if self.is_here(row.machine_id)}
            names |= {job.volume_id for job in self.ledger.open_jobs} | self.ledger.busy
        return frozenset(names - {""})


def is_nova(server: Server) -> bool:
    """Return True if Nova manages the server."""
    return any(definition is not None and definition.nova for definition in (server.live, server.persistent))


def seconds(text: str) -> float | None:
    """Return one of Cinder's times as seconds since the epoch; None where it says nothing."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def read_survey(tools: Toolbox) -> Survey:
    """Read the five books.

    Jobs are read first and once more at the end: what any of them was doing in between is not judged.

    Raises:
        TetherError: none of a book's own: a book that does not answer is *unread*.
    """
    reader = _Reader(tools)
    at = tools.clock.time()
    before = reader.part("ledger", "jobs", lambda: tools.ledger.list_jobs(open_only=True, limit=None))
    machine = reader.part("host", "this host's identity", tools.host.identity)
    cloud = reader.part("cinder", "volumes and attachments", reader.cloud)
    guest = reader.part("guest", "domains and secrets", tools.guest.survey)
    host = reader.part("host", "devices, links and maps", tools.host.survey)
    ledger = None
    if before is not None:
        ledger = reader.part("ledger", "jobs and mappings", lambda: reader.ledger(at, before, machine, cloud))
    survey = Survey(at, machine, cloud, guest, host, ledger, tools.settings.run_dir)
    return replace(survey, unread=(*reader.unread, *_out_of_sight(survey)))


class _Reader:
    """Reads book by book, and keeps what could not be read."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self.unread: list[Unread] = []

    def part(self, book: str, what: str, read: Callable[[], T]) -> T | None:
        """Return what a reader gives, or None and note why it gives nothing."""
        try:
            return read()
        except TetherError as error:
            self.unread.append(Unread(book, what, error.message, error.hint))
            return None

    def cloud(self) -> Cloud:
        """Read Cinder: the attachments first, so that a volume is there for each of them unless it was deleted."""
        cinder = self._tools.cinder
        identity = cinder.identity()
        rows: dict[str, list[Attachment]] = defaultdict(list)
        for row in cinder.list_project_attachments():
            rows[row.volume_id].append(row)
        volumes = {item.volume.id: item for item in cinder.list_volumes()}
        return Cloud(identity, volumes, {volume_id: tuple(found) for volume_id, found in rows.items()})

    def ledger(
        self, at: float, before: Collection[Job], machine: HostIdentity | None, cloud: Cloud | None
    ) -> LedgerBook:
        """Read the ledger, once the other books have been read."""
        ledger, now = self._tools.ledger, self._tools.clock.time()
        mappings, handovers = tuple(ledger.list_mappings()), tuple(ledger.handovers.list())
        after = ledger.list_jobs(open_only=True, limit=None)
        known = {row.attachment_id for row in mappings} | {row.owner_mark for row in mappings}
        volumes = cloud.volumes.values() if cloud else ()
        rows = [row for found in (cloud.attachments.values() if cloud else ()) for row in found]
        strange = {row.volume_id for row in rows if row.id not in known and row.owner not in known}
        jobs = jobs_of(ledger, {row.job_id for row in mappings} | {job.id for job in after})
        jobs |= {job.id: job for job in jobs_about(ledger, strange)}
        return LedgerBook(
            mappings=mappings,
            handovers=handovers,
            connections={row.volume_id: row for row in ledger.list_connections(machine.machine_id)} if machine else {},
            open_jobs=tuple(after),
            jobs=jobs,
            sealed=self._sealed({row.job_id for row in mappings} | {row.job_id for row in handovers}),
            busy=frozenset(
                _moving(before, after, at, now)
                | {job.volume_id for job in jobs_since(ledger, at)}
                | {item.volume.id for item in volumes if (seconds(item.updated_at) or 0.0) > at}
            ),
        )

    def _sealed(self, job_ids: Collection[str]) -> dict[str, Connection]:
        vault = self._tools.vault
        if vault is None:
            return {}
        found: dict[str, Connection] = {}
        for job_id, text in self._tools.ledger.secrets_named(CONNECTION).items():
            if job_id not in job_ids:
                continue
            try:
                found[job_id] = wire.load(vault.open(text))
            except ConfigError as error:  # the key is not here: one word about it is enough
                self.unread.append(Unread("ledger", "sealed connection info", error.message, error.hint))
                return {}
        return found


def _moving(before: Collection[Job], after: Collection[Job], at: float, now: float) -> set[str]:
    """Return the volumes of jobs that a runner worked on at some moment between two looks at them."""
    first, last = ({job.id: job for job in jobs} for jobs in (before, after))
    changed = {job_id for job_id in first.keys() | last.keys() if _stamp(first.get(job_id)) != _stamp(last.get(job_id))}
    both = first | last
    return {
        job.volume_id
        for job in both.values()
        if job.id in changed or job.is_live(now) or (job.id in first and first[job.id].is_live(at))
    }


def _stamp(job: Job | None) -> tuple[object, ...]:
    return () if job is None else (job.state, job.generation, job.updated_at)


def _out_of_sight(survey: Survey) -> Iterator[Unread]:
    """Yield what the ledger knows and the other books' readers cannot see from here."""
    guest, host = survey.guest, survey.host
    for uuid, reason in (guest.unread if guest else {}).items():
        yield Unread("guest", f"server {uuid}", reason, f"look at it with: virsh dumpxml {uuid}")
    mappings = survey.ledger.mappings if survey.ledger else ()
    lost = {row.server_id for row in mappings if survey.is_here(row.machine_id)} - set(survey.servers)
    for uuid in sorted(lost - set(guest.unread)) if guest else ():
        yield Unread(
            "guest",
            f"server {survey.server_name(uuid)}",
            "the ledger has a volume on it, and this libvirt does not know it; it may have migrated, or be undefined",
            "see: virsh list --all, here and on the other hosts",
        )
    if (
        host is not None
        and not host.sees_devices
        and any(row.data_path == "host" and survey.is_here(row.machine_id) for row in mappings)
    ):
        yield Unread(
            "host",
            "devices, sessions and maps",
            "data_path is 'network', and mappings of this host were made with data_path = host",
            "set data_path = host for the audit: --config-file",
        )
    elsewhere = {
        (job.place.endpoint, job.place.project_id)
        for row in mappings
        if survey.cloud and survey.ledger and (job := survey.ledger.jobs.get(row.job_id))
    }
    here = (survey.cloud.identity.endpoint, survey.cloud.identity.project_id) if survey.cloud else ("", "")
    for endpoint, project in sorted(elsewhere - {here}):
        yield Unread(
            "cinder",
            f"project {project} at {endpoint}",
            "the ledger has mappings of its volumes, and the credentials in use are another project's",
            "run the audit with that project's credentials too",
        )
