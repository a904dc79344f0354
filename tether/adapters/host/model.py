"""What tether asks of the host: the types and the protocol."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tether.adapters.cinder.model import Connection, Connector, Encryption
from tether.sealed import Sealed


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Which machine this is; a job keeps it, and is only resumed on the same one.

    Args:
        machine_id: ``/etc/machine-id``.
        boot_id: ``/proc/sys/kernel/random/boot_id``; changes with every boot.
        initiator: the iSCSI initiator name (IQN), or empty.
        nqn: the NVMe host name, or empty.
    """

    name: str
    machine_id: str
    boot_id: str
    initiator: str = ""
    nqn: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A volume's device on this host.

    Args:
        link: tether's own link, ``/run/tether/volumes/<volume id>``: the only path a guest's XML names.
        path: what the link points to now: ``/dev/sda``, ``/dev/dm-2``, a file of an NFS mount.
        kind: ``block`` or ``file``.
        size: in bytes.
        identity: WWID, NGUID or the like as the device itself reports it, equal on all its paths; empty
            where the device has none.
        identities_differ: True if its paths do not all report the same identity.
        open_count: how many processes and maps besides tether's own hold it open.
        paths: how many disks its multipath map has; 1 where it has none.
    """

    link: str
    path: str
    kind: str = "block"
    size: int = 0
    identity: str = ""
    identities_differ: bool = False
    open_count: int = 0
    paths: int = 1


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing that this host holds of a volume.

    Args:
        kind: ``link`` (tether's own), ``device``, ``session`` (with its node record), ``map`` (multipath) or ``crypt``
            (dm-crypt).
        name: what the host calls it: a path, ``session1``, the map's name.
        volume_id: whose it is, as it says itself: by tether's name, or by a target that is named after the volume;
            empty where it says nothing.
        target: the iSCSI target of a session.
        identity: what a device or a map reports, normalised.
        in_use: True if a process, a mount, or a map other than its multipath map holds it open.
    """

    kind: str
    name: str
    volume_id: str = ""
    target: str = ""
    identity: str = ""
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class HostSurvey:
    """All that this host holds, as far as its reader looks.

    Args:
        devices: volume id -> the device behind tether's link, where there is one.
        sees_devices: False where the reader looks at tether's links alone.
    """

    holdings: tuple[Holding, ...] = ()
    devices: Mapping[str, Device] = field(default_factory=dict)
    sees_devices: bool = True


class Header(StrEnum):
    """What the first 16 MiB of an encrypted volume's own device hold."""

    LUKS = "luks"
    #: Every byte was read, and is zero.
    BLANK = "blank"
    #: A LUKS header that names the volume and has no key: what a format of tether's leaves that was cut off.
    HALF = "half"
    OTHER = "other"


class Host(Protocol):
    """The verbs tether needs.

    Every method may raise ``UncertainError`` (time limit, a killed helper), ``FinalError`` (refused, and
    nothing is left of the attempt) or ``ConfigError`` (the host lacks what it needs).
    """

    def identity(self) -> HostIdentity:
        """Return which machine this is."""

    def connector(self) -> Connector:
        """Return the connector properties that Cinder exports the volume to."""

    def scans_manually(self) -> bool:
        """Return True if no device of a shared target appears here unless a connect asks for it."""

    def connect(self, volume_id: str, connection: Connection) -> Device:
        """Log in, find the device, and make tether's link. Repeatable: connecting again is harmless."""

    def find(self, volume_id: str) -> Device | None:
        """Return the device behind tether's link, or None if there is no link, or nothing behind it."""

    def device_at(self, volume_id: str, path: str, connection: Connection) -> Device | None:
        """Return the device at a path, below any dm-crypt, if the connection leads to it here; otherwise None."""

    def link(self, volume_id: str, path: str) -> Device:
        """Make tether's link to a device that is connected already, through its dm-crypt if that is open. Repeatable.

        Args:
            path: the device, below any dm-crypt.
        """

    def unlink(self, volume_id: str) -> None:
        """Remove tether's link, and nothing else. Repeatable."""

    def disconnect(
        self, volume_id: str, connection: Connection, others: Collection[str] = (), *, force: bool = False
    ) -> list[str]:
        """Log out and remove tether's link. Repeatable; works without the result of :meth:`connect`.

        Args:
            others: sources of other disks of this host: a share that one of them is a file of stays mounted.
            force: go on where the device cannot be flushed: what was not written is lost. A device that is open is
                left alone all the same.

        Returns:
            With ``force``, what failed on the way and was passed over, a line each; otherwise nothing.
        """

    def residue(self, volume_id: str, connection: Connection) -> list[str]:
        """Return what of the volume is left here, a line each: session, node record, disk, map, dm-crypt, mount, link.

        An empty list is the proof that the host is clean: the reader has looked at every place.
        """

    def survey(self) -> HostSurvey:
        """Return all that this host holds of any volume: links, iSCSI sessions and their disks, maps, dm-crypt.

        NVMe controllers and Fibre Channel ports name no volume, so of these the links alone tell.
        """

    def expected_identity(self, connection: Connection) -> str:
        """Return the WWID or NGUID that the connection info itself names, or empty where it names none."""

    def expected_paths(self, connection: Connection) -> int:
        """Return over how many paths the volume is to be connected: 1, or by dm-multipath as many as there are portals.

        Known of iSCSI and iSER alone: Fibre Channel's fabric decides for itself, and NVMe has its own multipath.
        """

    def extend(self, volume_id: str, connection: Connection) -> Device:
        """Have the host take notice that the volume has grown: its paths, then their multipath map. Repeatable.

        dm-crypt over it keeps its size: see :meth:`resize_encryption`.
        """

    def usable_size(self, volume_id: str) -> int:
        """Return the bytes of what tether's link leads to: with dm-crypt open, less than the volume by the LUKS header.

        Raises:
            FinalError: there is nothing behind the link.
        """

    def resize_encryption(self, volume_id: str, passphrase: Sealed[str]) -> None:
        """Let the open dm-crypt mapping take up all of its device (``cryptsetup resize``). Repeatable.

        Args:
            passphrase: LUKS2 asks for it where the volume key is in the kernel's keyring.

        Raises:
            FinalError: it is not open.
        """

    def read_header(self, volume_id: str) -> Header:
        """Return what the beginning of the volume's own device holds.

        Raises:
            UncertainError: it cannot be read whole; that says nothing about what it holds.
        """

    def format_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> None:
        """Write a LUKS header that names the volume. What was there is lost: the caller has decided that it may be.

        Raises:
            FinalError: refused, and the device is as it was; also for a device that is LUKS already.
        """

    def open_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> Device:
        """Open dm-crypt over the volume's device, re-point tether's link at it. Repeatable. It never formats."""

    def encryption_open(self, volume_id: str) -> bool:
        """Return True if this volume's dm-crypt mapping (by name and UUID) is there."""

    def close_encryption(self, volume_id: str) -> None:
        """Close the mapping and point the link back at the plain device. Repeatable."""


class Keys(Protocol):
    """Where passphrases of encrypted volumes come from: castellan, or the simulated world."""

    def passphrase(self, encryption: Encryption) -> Sealed[str]:
        """Return the passphrase for the volume's key; ``NotFound`` or ``UncertainError`` otherwise."""


def as_json(device: Device) -> dict[str, Any]:
    """Return the device as JSON-ready data."""
    return {name: getattr(device, name) for name in Device.__slots__}


def survey_as_json(survey: HostSurvey) -> dict[str, Any]:
    """Return a survey as JSON-ready data."""
    return asdict(survey)


def survey_from_json(data: Mapping[str, Any]) -> HostSurvey:
    """Return the survey that :func:`survey_as_json` wrote."""
    return HostSurvey(
        holdings=tuple(Holding(**item) for item in data["holdings"]),
        devices={volume_id: Device(**item) for volume_id, item in data["devices"].items()},
        sees_devices=data["sees_devices"],
    )


def from_json(data: Mapping[str, Any]) -> Device:
    """Return the device that :func:`as_json` wrote."""
    return Device(**data)
