"""Where tether is when its books say what Nova's said: the mapping behind ``docs/beside-nova.md``.

``tests/data/nova.md`` has what was measured and read of Nova, number by number; :data:`SPOTS` has for each number the
spot in tether, or why there is none. :mod:`tests.crash.beside` plays the spots, and this module writes the page from
both and from ``tests/data/beside-nova.json``, which keeps how they ended.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.crash.judge import NOTHING, Books
from tests.tree import ROOT

DATA = ROOT / "tests/data/nova.md"
RESULTS = ROOT / "tests/data/beside-nova.json"

# -- what the books say ------------------------------------------------------------------------------------------

AVAILABLE, RESERVED, ATTACHING = "available [no att.]", "reserved [reserved no connector]", "attaching [attaching]"
IN_USE, DETACHING, LEGACY_ATTACHING = "in-use [attached]", "detaching [attached]", "attaching [no att.]"
NO_ID, ID, ALL = "no att. id, no conn info", "att. id, no conn info", "att. id, conn info"
INFO = "no att. id, conn info"
DEVICE, DM_CRYPT = "device", "device+dm-crypt"

#: How they may end; HELD: blocked, a person decides.
ATTACHED, CLEAN, HELD = "all say attached", "all say nothing", "held"


# -- the spots ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A moment of a tether command, and what happens then.

    Args:
        point: the fault point at which the books are as ``books`` says; empty: before the command.
        books: what each book says there; for a kill point only what it says differently from Nova's row.
        fault: ``kill`` (then one ``verb`` follows), or how the point itself fails; empty if only ``calls`` do.
        calls: adapter calls that fail: call, action, times (-1: until the command has ended).
        hand: what something else does meanwhile, by its name in :mod:`tests.crash.beside`.
        note: what is not plain from the point.
        flow: of another kind of job than an attach or a detach, by its name in :mod:`tether.matrix.journeys`; the books
            are then those of the host where its command runs.
    """

    point: str
    books: dict[str, str] = field(default_factory=dict)
    fault: str = "kill"
    calls: tuple[tuple[str, str, int], ...] = ()
    kind: str = "attach"
    volume: str = "vol1"
    data_path: str = "host"
    dialect: str = "attachments"
    verb: str = "resume"
    hand: str = ""
    note: str = ""
    flow: str = ""

    @property
    def export_stays(self) -> bool:
        """The backend's export outlives its last attachment: listed residue, or Cinder has lost it."""
        return self.dialect == "legacy" or self.hand == "reset_in_cinder"


@dataclass(frozen=True)
class NoSpot:
    """Why there is no such spot in tether."""

    because: str


@dataclass(frozen=True)
class SameAs:
    """The row says in other words what the measured numbers say."""

    numbers: str


def _kill(point: str, note: str = "", kind: str = "attach", **differs: str) -> Spot:
    return Spot(point, differs, kind=kind, note=note)


def _detach(point: str, note: str = "", **differs: str) -> Spot:
    return _kill(point, note, "detach", **differs)


def _books(cinder: str, ledger: str, host: str = NOTHING, guest: str = "no/no") -> dict[str, str]:
    return dict(zip(Books._fields, (cinder, ledger, host, guest), strict=True))


def _error(
    point: str, fault: str, books: dict[str, str], *calls: tuple[str, str, int], kind: str = "attach", note: str = ""
) -> Spot:
    return Spot(point, books, fault, calls, kind, note=note)


_NO_MESSAGE = "tether sends no message; what a lost one leaves is what a kill here leaves"
_SEALED = "the connection info is stored before the host is touched"
_CONNECTED = _books(ATTACHING, ALL, DEVICE)
_PLUGGED = _books(ATTACHING, ALL, DEVICE, "yes/yes")
_ATTACHED = _books(DETACHING, ALL, DEVICE, "yes/yes")
_SWAP = NoSpot("tether does not swap volumes")
_BOTH_ENDS = "in-use [attached, attached]"
_EXPORTED = "meanwhile Cinder has made the export, and died"
_BY_HAND = NoSpot("what an administrator can do in Cinder, no state that a failure leaves")

#: The 23 measured kill points.
KILLS: dict[str, Spot] = {
    "S2a": _kill("create-mapping.act.after", ledger=NO_ID, note="Nova's row is gone once the conductor has noticed"),
    "S2b": _kill("commit.reserve-volume.act.after"),
    "S3a": _kill("reserve-volume.act.after"),
    "S3b": _kill("commit.export-volume.act.after"),
    "S4": _kill("commit.export-volume.act.after", _NO_MESSAGE),
    "S6": _kill("export-volume.act.before", "the connector was read before anything else"),
    "S7": _kill("export-volume.act.after"),
    "S9": _kill("connect-host.act.after", _SEALED, ledger=ALL),
    "S10n": Spot(
        "define-secret.act.after",
        {"ledger": ALL, "host": "secret"},
        volume="secret1",
        data_path="network",
        note="QEMU logs in by itself: there is no device on the host",
    ),
    "S10d": Spot("open-encryption.act.after", {"ledger": ALL}, volume="secret1", note=_SEALED),
    "S12": _kill("plug-live.act.after", _SEALED, ledger=ALL),
    "S13": _kill("commit.complete-attachment.act.after", _SEALED, ledger=ALL),
    "S14": _kill("complete-attachment.act.before"),
    "S15": _kill("complete-attachment.act.after"),
    "D0": _detach("begin-detaching.act.after"),
    "D1": _detach("commit.unplug-persistent.act.after", _NO_MESSAGE),
    "D2": _detach("unplug-persistent.act.before"),
    "D3": _detach("unplug-persistent.act.after"),
    "D4": _detach("unplug-live.act.after"),
    "D4n": Spot(
        "undefine-secret.act.after",
        {"host": NOTHING},
        kind="detach",
        volume="secret1",
        data_path="network",
        note="QEMU has logged out by itself: there was no device on the host",
    ),
    "D5": _detach("disconnect-host.act.after"),
    "D6": _detach("release-attachment.act.after"),
    "D7": _detach("delete-mapping.act.after"),
}

#: The 15 measured exceptions; ``books`` is what they say when it strikes.
ERRORS: dict[str, Spot] = {
    "E0a": _error(
        "commit.export-volume.act.before", "uncertain", _books(RESERVED, NO_ID), note="the database does not answer"
    ),
    "E0b": _error("export-volume.act.before", "fail", _books(RESERVED, ID)),
    "E0c": _error(
        "export-volume.act.before",
        "",
        _books(RESERVED, ID),
        ("cinder.update_attachment", "fail", 1),
        note="tether sends no message: the next call fails",
    ),
    "E1": _error("plug-persistent.act.before", "fail", _CONNECTED),
    "E2": _error(
        "plug-persistent.act.before",
        "",
        _CONNECTED,
        ("guest.plug_persistent", "fail", 1),
        ("host.disconnect", "fail", 1),
    ),
    "E3": _error("plug-live.act.after", "fail", _PLUGGED),
    "E4": _error("commit.complete-attachment.act.before", "uncertain", _PLUGGED, note="the database does not answer"),
    "E5a": _error(
        "complete-attachment.act.before",
        "",
        _PLUGGED,
        ("cinder.complete_attachment", "fail", 1),
        ("host.disconnect", "fail", 1),
    ),
    "E5b": _error(
        "complete-attachment.act.before",
        "",
        _PLUGGED,
        ("cinder.complete_attachment", "fail", 1),
        ("guest.unplug_live", "refuse", 1),
    ),
    "E6": _error(
        "reserve-volume.act.after", "", _books(RESERVED, NO_ID), ("cinder.create_attachment", "lost-reply", 1)
    ),
    "E7": _error("connect-host.act.after", "fail", _CONNECTED),
    "E8": _error("unplug-persistent.act.before", "fail", _ATTACHED, kind="detach"),
    "E9": _error(
        "commit.unplug-persistent.act.before",
        "uncertain",
        _ATTACHED,
        kind="detach",
        note="the database does not answer",
    ),
    "E10": _error(
        "release-attachment.act.before",
        "",
        _books(DETACHING, ALL),
        ("cinder.delete_attachment", "fail", -1),
        kind="detach",
        note="also after all of tether's own tries",
    ),
    "E11": _error(
        "disconnect-host.act.before",
        "",
        _books(DETACHING, ALL, DEVICE),
        ("host.disconnect", "fail", 1),
        kind="detach",
    ),
}

_ENCRYPTED = {"volume": "secret1"}
_LEGACY = {"dialect": "legacy"}

#: What was read in the code of Nova, of its seed and of Cinder, and not measured.
READ: dict[str, Spot | NoSpot] = {
    "E12": _SWAP,
    "E13": Spot(
        "extend-device.act.before",
        _books(IN_USE, ALL, DEVICE, "yes/yes"),
        "",
        (("host.extend", "fail", 1),),
        flow="extend",
    ),
    "E14": Spot(
        "release-attachment.act.before",
        _books(_BOTH_ENDS, ALL),
        "",
        (("cinder.delete_attachment", "fail", 1),),
        flow="migrate-release-left",
        note="the host that the server has left; its own attachment is the other one by now",
    ),
    "E15": Spot(
        "release-attachment.act.before",
        _books(_BOTH_ENDS, ALL),
        "",
        (("cinder.delete_attachment", "fail", 1),),
        flow="migrate-release",
        note="the host that was prepared in vain",
    ),
    "E16": NoSpot("booting from a volume is not tether's: it makes no server"),
    "E17": NoSpot("tether deletes and shelves no server, and its mapping goes last; Cinder's error in a detach is E10"),
    "E18": Spot(
        "open-encryption.act.before",
        _books(ATTACHING, ALL, DEVICE),
        "",
        hand="unreadable",
        **_ENCRYPTED,
        note="what cannot be read is not formatted",
    ),
    "E19": Spot(
        "open-encryption.act.after",
        _books(ATTACHING, ALL, DM_CRYPT),
        "",
        (("host.open_encryption", "lost-reply", 1),),
        **_ENCRYPTED,
        note="it is opened again over the mapping that is there",
    ),
    "E20": Spot(
        "define-secret.act.after",
        _books(ATTACHING, ALL, "secret"),
        "",
        (("guest.define_secret", "lost-reply", 2),),
        **_ENCRYPTED,
        data_path="network",
        note="its value is set anew each time",
    ),
    "E21": NoSpot("nothing but the job itself deletes its attachment; a guest's reboot asks nothing of Cinder"),
    "K1": Spot("export-volume-legacy.act.before", _books(LEGACY_ATTACHING, NO_ID), "fail", **_LEGACY),
    "K1-killed": Spot(
        "reserve-volume-legacy.act.after",
        _books(LEGACY_ATTACHING, NO_ID),
        **_LEGACY,
        note="must block: the volume's *attaching* has no owner in this dialect, and may be a stranger's",
    ),
    "K2": Spot("connect-host.act.after", _books(LEGACY_ATTACHING, INFO, DEVICE), "fail", **_LEGACY),
    "K3": Spot("plug-persistent.act.before", _books(LEGACY_ATTACHING, INFO, DEVICE), "fail", **_LEGACY),
    "K4": Spot(
        "plug-persistent.act.before",
        _books(LEGACY_ATTACHING, INFO, DM_CRYPT),
        "",
        (("guest.plug_persistent", "fail", 1),),
        **_LEGACY,
        **_ENCRYPTED,
    ),
    "K5": Spot(
        "open-encryption.act.before",
        _books(LEGACY_ATTACHING, INFO, DEVICE),
        "",
        (("cinder.show_encryption", "fail", 1),),
        **_LEGACY,
        **_ENCRYPTED,
    ),
    "K6a": Spot(
        "commit.complete-attachment-legacy.act.before",
        _books(LEGACY_ATTACHING, INFO, DEVICE, "yes/yes"),
        "uncertain",
        **_LEGACY,
        note="the database does not answer",
    ),
    "K6b": Spot(
        "complete-attachment-legacy.act.before",
        _books(LEGACY_ATTACHING, INFO, DEVICE, "yes/yes"),
        "",
        (("cinder.attach", "fail", 1),),
        **_LEGACY,
        note="os-attach fails",
    ),
    "K7a": Spot(
        "release-attachment-legacy.act.before",
        _books("detaching [attached no connector]", ALL),
        "",
        (("cinder.terminate_connection", "fail", 1),),
        "detach",
        **_LEGACY,
        note="os-terminate_connection fails",
    ),
    "K7b": Spot(
        "release-attachment-legacy.act.before",
        _books("detaching [attached no connector]", ALL),
        "",
        (("cinder.detach", "fail", 1),),
        "detach",
        **_LEGACY,
        note="os-detach fails",
    ),
    "K8": NoSpot("a race is no state of the books; leases in the database keep one runner on a job and on a server"),
    "K9": _SWAP,
    "C1": Spot("export-volume.act.before", _books(RESERVED, ID), hand="export_without_row", note=_EXPORTED),
    "C2": Spot(
        "export-volume.act.before",
        _books(RESERVED, ID),
        verb="abort",
        hand="export_without_row",
        note=f"{_EXPORTED}; it is asked for again before the attachment is deleted, so that Cinder does terminate it",
    ),
    "C3": NoSpot("it happens inside Cinder, which tells nobody"),
    "C4": Spot(
        "release-attachment.act.before",
        _books("detaching [attached no connector]", ALL),
        kind="detach",
        hand="half_deleted",
        note="meanwhile Cinder has removed the connection, and died",
    ),
    "C5": Spot(
        "complete-attachment.act.before",
        _PLUGGED,
        "",
        (("cinder.complete_attachment", "late", 1),),
        note="it comes after the repeated call",
    ),
    "C6": _BY_HAND,
    "C7": Spot(
        "",
        _books(AVAILABLE, "att. id (gone), conn info", DEVICE, "yes/yes"),
        "",
        kind="detach",
        hand="reset_in_cinder",
        note="the backend's export stays: Cinder has lost it",
    ),
    "C8": NoSpot("Cinder's restart; what it leaves as it is are the states of S3 to S14 and D0 to D5"),
    "SIGTERM": Spot(
        "connect-host.act.after",
        _books(ATTACHING, ALL, DEVICE),
        "",
        (("host.connect", "slow", 1),),
        hand="terminate",
        note="SIGTERM while the host connects; 143, and the job can be resumed",
    ),
    "LM-destination": Spot(
        "connect-host.act.after",
        _books("attaching [attached, attaching]", ALL, DEVICE),
        flow="migrate-prepare",
        verb="abort",
        note="the host that the server was to move to",
    ),
    "LM-source": Spot(
        "commit.job.end.after",
        _books(_BOTH_ENDS, ALL, DEVICE),
        flow="migrate-prepare",
        note="what the source's host has to do with it is nothing; that host is ready, or gives up",
    ),
    "LM-post": Spot(
        "disconnect-host.act.after",
        _books(_BOTH_ENDS, ALL),
        flow="migrate-release-left",
        note="the host that the server has left",
    ),
    "extend": Spot("extend-device.act.after", _books(IN_USE, ALL, DEVICE, "yes/yes"), flow="extend"),
    "child": Spot(
        "connect-host.act.before",
        _books(ATTACHING, ALL),
        hand="child_finishes",
        note="the connect is carried out after its runner is dead",
    ),
}

#: The table of crash points: its first column, as far as it names the row.
CRASHES: dict[str, SameAs | NoSpot | str] = {
    "S2": SameAs("S2a, S2b"),
    "S3": SameAs("S3a"),
    "S4..S6": SameAs("S3b, S4, S6"),
    "S7": SameAs("S7"),
    "S9": SameAs("S9"),
    "S10 dm-crypt": SameAs("S10d"),
    "S10 native": SameAs("S10n"),
    "S12": SameAs("S12, S13"),
    "between live and persistent": NoSpot(
        "the two definitions are two steps, the persistent one first: a kill between them leaves no disk live only"
    ),
    "S14": SameAs("S14"),
    "S15": SameAs("S15"),
    "D0/D1": SameAs("D0, D1, D2"),
    "D3": SameAs("D3"),
    "D4": SameAs("D4, D4n"),
    "D5": SameAs("D5"),
    "D6": SameAs("D6"),
    "swap: after undefine": _SWAP,
    "swap: after pivot": _SWAP,
    "live migration: dest": "LM-destination",
    "live migration: SOURCE": "LM-source",
    "post_live_migration": "LM-post",
    "extend": "extend",
    "graceful SIGTERM": "SIGTERM",
    "child commands": "child",
}

#: Every spot that is played, by its number.
SPOTS: dict[str, Spot] = {
    **KILLS,
    **ERRORS,
    **{number: spot for number, spot in READ.items() if isinstance(spot, Spot)},
}


def expected(number: str) -> Books:
    """Return what the books must say at a spot."""
    spot = SPOTS[number]
    return measured(number)._replace(**spot.books) if number in KILLS else Books(**spot.books)


# -- what is known of Nova ---------------------------------------------------------------------------------------


def tables() -> dict[str, list[list[str]]]:
    """Return the tables of ``tests/data/nova.md`` by their heading: rows of cells, without the heads."""
    found: dict[str, list[list[str]]] = {}
    for part in DATA.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
        found[heading] = [[cell.strip() for cell in row] for row in rows[2:]]
    return found


def numbered(row: list[str]) -> tuple[str, str]:
    """Return a measured row's number and what happened."""
    found = re.fullmatch(r"\*\*(\w+)\*\* (.+)", row[0])
    assert found is not None, row
    return found.group(1), found.group(2)


def measured(number: str) -> Books:
    """Return what Nova's books say after a kill, a restart and every periodic task."""
    row = next(row for row in tables()["Kill points, measured"] if numbered(row)[0] == number)
    return Books(*row[2:6])


def crash(row: str) -> str:
    """Return the name under which a row of the table of crash points is known here."""
    return max((name for name in CRASHES if row.startswith(name)), key=len)


def results() -> dict[str, Any]:
    """Return how the spots ended when they were last played, by number."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))
