"""What an audit finds: the kinds of drift, and one drift as people, programs and a repair read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of drift, the gravest first: what may destroy data, what stands in the way, what is left over."""

    TWO_SERVERS = "two-servers-on-one-volume"
    TWO_DISKS = "two-disks-on-one-source"
    WRONG_DEVICE = "wrong-device"
    SERIAL_MISMATCH = "serial-mismatch"
    BLOCKED_JOB = "blocked-job"
    INTERRUPTED_JOB = "interrupted-job"
    UNFINISHED_MIGRATION = "unfinished-migration"
    DISK_WITHOUT_ATTACHMENT = "disk-without-attachment"
    MISSING_DEVICE = "missing-device"
    STALE_CONNECTION = "stale-connection"
    LIVE_ONLY_DISK = "live-only-disk"
    PERSISTENT_ONLY_DISK = "persistent-only-disk"
    PENDING_UNPLUG = "pending-unplug"
    FOREIGN_DISK = "foreign-disk"
    ATTACHMENT_WITHOUT_DISK = "attachment-without-disk"
    MAPPING_WITHOUT_ANYTHING = "mapping-without-anything"
    CINDER_CONTRADICTION = "cinder-contradiction"
    RESERVED_WITHOUT_JOB = "reserved-without-job"
    UNUSED_CRYPT = "unused-crypt"
    UNUSED_MAP = "unused-map"
    UNUSED_DEVICE = "unused-device"
    UNUSED_SESSION = "unused-session"
    UNUSED_LINK = "unused-link"
    UNUSED_SECRET = "unused-secret"  # noqa: S105 - a kind's name


class Owner(StrEnum):
    """Whose it is.

    OURS: this ledger knows it. FOREIGN: another tool's or a person's. NOVA: of a server that Nova manages.
    UNKNOWN: it carries tether's mark or name, and this ledger does not know it.
    """

    OURS = "ours"
    FOREIGN = "foreign"
    NOVA = "nova"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing on which the books do not agree.

    Args:
        volume: the volume's name, or its id where it has none.
        host: the name of this host, or the machine id of another one; empty for what only Cinder has.
        text: what is the matter, in plain words.
        about: the thing itself, where it has a name of its own: an attachment, a job, a session, a device, a link.
        evidence: book -> what it says.
        since: its age in seconds, at least, where some book knows it.
        safe: the next command, one that cannot make it worse; empty where there is none.
    """

    kind: Kind
    text: str
    owner: Owner
    volume_id: str = ""
    volume: str = ""
    server_id: str = ""
    server: str = ""
    host: str = ""
    about: str = ""
    evidence: Mapping[str, str] = field(default_factory=dict)
    since: float | None = None
    safe: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """What could not be read: a book, or a part of one. Nothing is said to be absent from it.

    Args:
        book: cinder, ledger, host or guest.
        what: which part of it.
        reason: why.
        hint: what to do about it.
    """

    book: str
    what: str
    reason: str
    hint: str = ""
