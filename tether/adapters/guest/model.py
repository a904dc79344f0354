"""What tether asks of libvirt: the types and the protocol.

Names are libvirt's own: domain, alias, target, bus, address, managed save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tether.sealed import Sealed


class Scope(StrEnum):
    """Which of a domain's two definitions a verb works on."""

    PERSISTENT = "persistent"
    LIVE = "live"


class Power(StrEnum):
    """A domain's state, as far as it matters here."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"


class Unplugged(StrEnum):
    """How a live unplug ended.

    REMOVED: the disk is proven to have left the live definition.
    REFUSED: DEVICE_REMOVAL_FAILED arrived; the disk stays and no request is pending.
    PENDING: no answer within the limits; the request stays in QEMU and may be carried out at the next reset.
    """

    REMOVED = "removed"
    REFUSED = "refused"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    """Which libvirt this is; a job keeps it, and is only resumed under the same one.

    Args:
        uri: the connection's URI, without credentials.
        host_uuid: the UUID in the host capabilities.
    """

    uri: str
    host_uuid: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One ``<disk>`` of one definition.

    Args:
        target: ``vda``, ``sdb``, …
        source: what is opened: a path, ``iqn…/1`` or ``pool/image``; empty for an empty CD-ROM drive.
        source_type: the disk's ``type``: block, file, network, volume, …
        address: the ``<address>`` element's attributes, or empty if libvirt has not given one.
        xml: the element itself as text; holds no secret.
    """

    target: str
    bus: str
    alias: str = ""
    serial: str = ""
    source: str = ""
    source_type: str = ""
    device: str = "disk"
    readonly: bool = False
    shareable: bool = False
    address: Mapping[str, str] = field(default_factory=dict)
    xml: str = ""

    @property
    def handle(self) -> str:
        """What names it to :meth:`Guest.unplug`: its alias, or its target where libvirt shows no alias."""
        return self.alias or self.target


@dataclass(frozen=True, slots=True)
class Controller:
    """One ``<controller>``: type ``pci``, ``scsi``, ``sata``, …; model ``pcie-root-port``, ``virtio-scsi``.

    Args:
        hotplug: False for a root port whose ``<target>`` says ``hotplug='off'``.
    """

    type: str
    model: str
    index: int
    address: Mapping[str, str] = field(default_factory=dict)
    hotplug: bool = True


@dataclass(frozen=True, slots=True)
class Definition:
    """One of a domain's two definitions, read from its XML.

    Args:
        machine: the machine type, such as ``pc-q35-7.2``.
        addresses: every ``<address>`` in it, controllers' and other devices' included.
        marks: volume id -> job id of tether's marks in the domain's metadata.
        adopted: volume id -> target and source of the disks that another tool plugged and tether has taken over.
        nova: True if Nova's metadata element is there: Nova manages this server.
    """

    machine: str
    disks: tuple[Disk, ...]
    controllers: tuple[Controller, ...]
    addresses: tuple[Mapping[str, str], ...]
    marks: Mapping[str, str] = field(default_factory=dict)
    adopted: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nova: bool = False

    def disk(self, volume_id: str) -> Disk | None:
        """Return the volume's disk, or None: by tether's alias, or, of an adopted one, by what its mark says.

        An adopted disk is the one at the mark's target that has the volume's serial; without any serial, the mark's
        source.
        """
        own = next((disk for disk in self.disks if disk.alias == alias_of(volume_id)), None)
        if own is not None or volume_id not in self.adopted:
            return own
        target, source = self.adopted[volume_id]
        return next(
            (
                disk
                for disk in self.disks
                if disk.target == target and (disk.serial == volume_id or (not disk.serial and disk.source == source))
            ),
            None,
        )

    def holds(self, volume_id: str) -> bool:
        """Return True if a disk of it is, or says that it is, the volume, whoever plugged it."""
        return self.disk(volume_id) is not None or any(disk.serial == volume_id for disk in self.disks)


@dataclass(frozen=True, slots=True)
class Server:
    """A domain as it was a moment ago.

    Args:
        live: None unless the domain runs, is paused or has crashed with its process kept.
        persistent: None for a transient domain.
        managed_save: a saved memory image exists, which would bring its own disks back at the next start.
        migrating: a migration job runs.
        memory_snapshots: names of snapshots with memory, each with the targets of the disks it holds.
    """

    uuid: str
    name: str
    power: Power
    live: Definition | None
    persistent: Definition | None
    managed_save: bool = False
    migrating: bool = False
    memory_snapshots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def definition(self, scope: Scope) -> Definition | None:
        """Return the definition of one scope."""
        return self.live if scope is Scope.LIVE else self.persistent

    @property
    def nova(self) -> bool:
        """True if Nova manages the server."""
        return any(definition is not None and definition.nova for definition in (self.live, self.persistent))


@dataclass(frozen=True, slots=True)
class SecretUse:
    """What a libvirt secret is for.

    Args:
        kind: ``iscsi`` (CHAP; usage target) or ``volume`` (a LUKS passphrase).
        usage: the volume id.
    """

    kind: str
    usage: str


@dataclass(frozen=True, slots=True)
class GuestSurvey:
    """All that one libvirt has, as far as it could be read.

    Args:
        secrets: those that tether has defined.
        unread: of domains that could not be read, their UUID and why.
    """

    servers: tuple[Server, ...]
    secrets: frozenset[SecretUse] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)


class Guest(Protocol):
    """The verbs tether needs.

    Every method may raise ``UncertainError`` (libvirtd or QEMU unreachable, time-out, monitor lost),
    ``NotFound`` (no such domain), ``FinalError`` (refused: it surely did not happen).
    """

    def identity(self) -> GuestIdentity:
        """Return which libvirt this is."""

    def find_server(self, name_or_uuid: str) -> Server:
        """Return the domain with this UUID, or with this name."""

    def show_server(self, uuid: str) -> Server:
        """Return the domain."""

    def list_servers(self) -> list[Server]:
        """Return every domain of this libvirt."""

    def survey(self) -> GuestSurvey:
        """Return every domain and all of tether's secrets.

        A domain that cannot be read is in ``unread``; it does not keep the others from being read.
        """

    def mark(self, uuid: str, scope: Scope, volume_id: str, job_id: str, adopted: Disk | None = None) -> None:
        """Put tether's mark for the volume into one definition's metadata.

        It is read-modify-write of one element: hold the server's lease.

        Args:
            adopted: the volume's disk, where that is not one of tether's own: the mark says which it is.
        """

    def unmark(self, uuid: str, scope: Scope, volume_id: str) -> None:
        """Take the mark out; the last one takes the element with it. Repeatable."""

    def plug(self, uuid: str, scope: Scope, disk_xml: str) -> None:
        """Attach the disk to one definition (attachDeviceFlags)."""

    def unplug(self, uuid: str, scope: Scope, handle: str) -> Unplugged:
        """Detach the disk with this :attr:`Disk.handle` from one definition and wait for the proof.

        Live: detachDeviceAlias, then DEVICE_REMOVED or DEVICE_REMOVAL_FAILED, then the XML, repeated up to
        the configured attempts and time-out (Nova's ``device_detach_attempts`` and ``device_detach_timeout``).
        A disk that is not there, or a domain that no longer runs, is REMOVED. ``UncertainError`` is raised only
        where nothing can be read back.
        """

    def capacity(self, uuid: str, target: str) -> int:
        """Return the bytes that the running guest's disk has (virDomainGetBlockInfo).

        Args:
            target: the device name in the live definition: ``vdb``.

        Raises:
            FinalError: the domain does not run, or has no such disk.
        """

    def resize(self, uuid: str, target: str, size: int) -> None:
        """Have QEMU and the running guest take notice of the disk's new size (virDomainBlockResize). Repeatable.

        Args:
            size: in bytes: what QEMU's guest sees of the disk, at most what its source has.

        Raises:
            FinalError: the domain does not run, has no such disk, or its source is smaller.
        """

    def limit(self, uuid: str, scope: Scope, target: str, limits: Mapping[str, int]) -> None:
        """Give a disk of one definition these limits, and no other (virDomainSetBlockIoTune). Repeatable.

        Args:
            target: the device name in that definition: ``vdb``.
            limits: libvirt's names of ``<iotune>``, with bytes or operations a second; empty for none.

        Raises:
            FinalError: that definition is not there or has no such disk, or libvirt does not take these limits
                together.
        """

    def define_secret(self, use: SecretUse, value: Sealed[str]) -> None:
        """Define the secret if it is absent, and set its value anew."""

    def has_secret(self, use: SecretUse) -> bool:
        """Return True if the secret is defined."""

    def undefine_secret(self, use: SecretUse) -> None:
        """Remove the secret. Repeatable."""


def alias_of(volume_id: str) -> str:
    """Return the user alias of the volume's disk: ``ua-`` and the id, as Nova has it since 2023.2."""
    return f"ua-{volume_id}"
