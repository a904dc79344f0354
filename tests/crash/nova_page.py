"""What the spots of :mod:`tests.crash.nova` have shown: the counts beside Nova's, and ``docs/beside-nova.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.crash import nova
from tests.crash.judge import Books
from tests.crash.nova import ATTACHED, CLEAN, CRASHES, ERRORS, HELD, KILLS, READ, SPOTS, NoSpot, SameAs, Spot
from tests.live.points import attach_points, detach_points

HEAD = """# Beside Nova

What is left after a failure in the middle of an attach or a detach, number by number: Nova as it was measured and \
read, tether as it was run. `bin/docs` writes this page from `tests/crash/nova.py` and from a run of its spots \
(`python -m tests.crash.beside`). Each spot is a test of `tests/crash/test_beside_nova.py` by its number; it fails if \
the books at the spot, or its end, are not those of this page.
"""

ERRORS_NOTE = """Nova's state is what its own handlers leave; tether's is what the books say when the exception \
strikes. What fails once fails once in both.
"""

READING = """*Consistent*: Cinder, mapping, host, live and persistent XML all say attached, or all say nothing. States \
are written as Cinder's volume [attachments] · mapping (Nova: BDM) · host · disk in the live/persistent definition. A \
spot is a fault point, STEP.PHASE.MOMENT, or a call that fails. *Real parts*: the same kill is run on a real Cinder, \
libvirt and QEMU, on the network data path (`tests/live/test_kill.py`); *full*: in the full count only.
"""

METHOD = """## What was measured of Nova, and how

Nova master at commit 00a0304 (2026-08-21), on 2026-11-22: its own API, conductor, compute manager, block-device \
code, libvirt driver and iSCSI volume driver, with os-brick 7.1.1, on Python 3.11 and sqlite, with a fake RPC, a \
Cinder with states, a libvirt with separate live and persistent disks, and a host that is a set of connected volumes. \
At the chosen line the thread stops for good, so that no handler of Nova runs; a new service starts on the same \
database; its 16 periodic tasks run once each; then the user's retry, the opposite call, and a hard reboot are tried. \
The same 23 points with an exception raised that nothing catches end the same. *For good* means that neither the \
restart with its periodic tasks nor a retry repairs it.

Its limits: no real SIGKILL (one Python process; no child commands); kills between steps, never inside one; libvirtd \
and Cinder never die; a fake RPC, where a broker that still holds a lost message (S4, D1) would deliver it; S2a with a \
shortened time-out; *retry works* of E1, E2, E5a and E7 rests on a connect that finds the same LUN; periodic tasks \
once, by hand, and no hour-long time-outs; a service token assumed; what an administrator can do by hand was not \
tried; one volume, one server, one host, iSCSI, not multiattach.

*Read in the code* means that nobody has run it: of Nova master and Kilo (2015.1.4), Cinder ab09bc3 and os-brick \
46ca08f. There *(code)* is what follows from the code, *(guess)* what was not verified; man, drv and api are \
nova/compute/manager.py, nova/virt/libvirt/driver.py and nova/compute/api.py.

The comparison has limits too. Tether's spots are played in the [simulated world](sim.md), by a SIGKILL of the real \
process on its real database. A restart with all periodic tasks is compared with one `tether job resume`, which \
somebody must run. Tether has neither a conductor, an API service nor messages: where Nova's row is about those, the \
spot is the one with the same books (S4 has that of S3b). A job may be blocked where a guest does not answer, or where \
attachments carry no owner mark.
"""


def nova_counts() -> dict[str, tuple[int, int]]:
    """Return how many of Nova's kills, of those after a hard reboot, and of its exceptions stay inconsistent."""
    kills, errors = nova.tables()["Kill points, measured"], nova.tables()["Exceptions, measured"]
    return {
        "kills": (sum(row[6].startswith("no") and row[7].startswith("no") for row in kills), len(kills)),
        "kills after a hard reboot": (sum(row[9].startswith("no") for row in kills), len(kills)),
        "exceptions": (sum(row[6].startswith("no") and not row[7].startswith("yes") for row in errors), len(errors)),
    }


@dataclass(frozen=True)
class Count:
    """How some spots ended."""

    spots: int
    inconsistent: int
    blocked: int


def count(found: dict[str, Any], spots: dict[str, Spot]) -> Count:
    """Count how spots ended."""
    ends = [found[number]["end"] for number in spots]
    held = ends.count(HELD)
    return Count(len(ends), len(ends) - ends.count(ATTACHED) - ends.count(CLEAN) - held, held)


def summary(found: dict[str, Any]) -> list[str]:
    """Return the bar: Nova's counts beside tether's."""
    theirs = nova_counts()
    kills, errors = count(found, KILLS), count(found, ERRORS)
    legacy = {number: spot for number, spot in SPOTS.items() if spot.dialect == "legacy"}
    others = {number: spot for number, spot in READ.items() if isinstance(spot, Spot) and number not in legacy}
    alone = sum(not found[number]["resume"] for number in ERRORS)
    stay, points = theirs["kills"]
    wrong, struck = theirs["exceptions"]
    rebooted = theirs["kills after a hard reboot"][0]
    lines = [
        (
            f"kill spots: Nova {stay} of {points} inconsistent for good ({rebooted} after a hard reboot); tether"
            f" {kills.inconsistent} of {kills.spots}, {kills.blocked} blocked, after one job resume"
        ),
        (
            f"exceptions: Nova {wrong} of {struck} inconsistent for good; tether {errors.inconsistent} of"
            f" {errors.spots} ({alone} ended by the command itself, {errors.spots - alone} by one job resume)"
        ),
    ]
    for name, spots in (("read in Nova's and Cinder's code", others), ("legacy dialect, as Nova Kilo", legacy)):
        some = count(found, spots)
        lines += [f"{name}: tether {some.inconsistent} of {some.spots} inconsistent, {some.blocked} blocked"]
    return lines


def page() -> str:
    """Return the page."""
    found, tables = nova.results(), nova.tables()
    kills, errors = tables["Kill points, measured"], tables["Exceptions, measured"]
    parts = [
        HEAD,
        "\n".join(f"* {line}" for line in summary(found)) + "\n",
        READING,
        "## Kill points, measured\n",
        _table(
            "number, killed after|Nova after restart and periodic tasks|consistent?|retry works?|hard reboot repairs?"
            "|tether killed at|its books there|after one `job resume`|books|real parts",
            [[_title(row), " · ".join(row[2:6]), *_nova(row), *_killed(_number(row), found)] for row in kills],
        ),
        "## Ordinary exceptions, measured\n",
        ERRORS_NOTE,
        _table(
            "number, what fails|Nova after restart and periodic tasks|consistent?|retry works?|hard reboot repairs?"
            "|what fails in tether|its books then|the command|one `job resume`|books",
            [[_title(row), " · ".join(row[2:6]), *_nova(row), *_failed(_number(row), found)] for row in errors],
        ),
    ]
    for heading, name in (
        ("Exceptions of Nova, read in its code", "Exceptions"),
        ("Exceptions of Nova Kilo, read in its code", "Nova Kilo"),
        ("Failures inside Cinder, read in its code", "Cinder"),
    ):
        parts += [f"## {heading}\n"]
        if name == "Nova Kilo":
            parts += ["Played in the legacy dialect, whose calls are Kilo's; not part of the counts of kills above.\n"]
        rows = [line for row in tables[f"{name}, read in the code"] for line in _read(row, found)]
        parts += [_table("number|what happens|what it leaves|tether|its books then|the command|then|books", rows)]
    rows = [_crash(row, found) for row in tables["Crash points, read in the code"]]
    parts += [
        "## Crash points, read in Nova's code\n",
        _table("killed after|Cinder · BDM · host · libvirt|repair that exists|tether", rows),
        METHOD,
    ]
    return "\n".join(parts)


def _table(heads: str, rows: Iterable[list[str]]) -> str:
    names = heads.split("|")
    lines = [f"| {' | '.join(row)} |" for row in [names, *rows]]
    lines.insert(1, "|" + "---|" * len(names))
    return "\n".join(lines) + "\n"


def _number(row: list[str]) -> str:
    return nova.numbered(row)[0]


def _title(row: list[str]) -> str:
    number, happens = nova.numbered(row)
    return f"**{number}** {happens}" + (f" ({row[1]})" if row[1] != "none" else "")


def _nova(row: list[str]) -> list[str]:
    return [row[6], row[7], row[9].partition(":")[0]]


def _killed(number: str, found: dict[str, Any]) -> list[str]:
    spot, ended = KILLS[number], found[number]
    return [_spot(spot), _difference(number), ended["resume"], _books(ended), _live(spot)]


def _failed(number: str, found: dict[str, Any]) -> list[str]:
    ended = found[number]
    return [_spot(SPOTS[number]), ended["books"], ended["command"], ended["resume"] or "not needed", _books(ended)]


def _books(ended: dict[str, str]) -> str:
    return "held: a person decides" if ended["end"] == HELD else f"consistent: {ended['end']}"


def _spot(spot: Spot) -> str:
    """Return what is done to tether."""
    what = [f"`{call} {action}`{' for good' * (times < 0)}" for call, action, times in spot.calls]
    if spot.fault == "kill":
        what.insert(0, f"`{spot.point}`")
    elif spot.fault:
        what.insert(0, f"`{spot.point}` fails")
    extra = [spot.dialect] * (spot.dialect == "legacy") + ["encrypted"] * (spot.volume == "secret1")
    extra += [f"{spot.data_path} data path"] * (spot.data_path != "host")
    text = " and ".join(what) or "detach"
    return text + f" ({', '.join(extra)})" * bool(extra) + f"; {spot.note}" * bool(spot.note)


def _difference(number: str) -> str:
    """Return where the books say something else than Nova's row."""
    theirs, ours = nova.measured(number), nova.expected(number)
    names = dict(zip(Books._fields, ("Cinder", "mapping", "host", "XML"), strict=True))
    other = [f"{names[name]}: {getattr(ours, name)}" for name in names if getattr(ours, name) != getattr(theirs, name)]
    return "; ".join(other) or "the same"


def _live(spot: Spot) -> str:
    if spot.volume != "vol1":
        return "no"
    which = attach_points if spot.kind == "attach" else detach_points
    if spot.point in which(spot.dialect, commits=False):
        return "yes"
    return "full" if spot.point in which(spot.dialect, commits=True) else "no"


def _read(row: list[str], found: dict[str, Any]) -> list[list[str]]:
    """Return a row of what was read, once for each of its spots."""
    number, happens, leaves = row[:3]
    mine = [each for each in {**ERRORS, **READ} if re.fullmatch(rf"{number}([a-z]|-\w+)?", each)]
    if set(mine) <= set(ERRORS):
        return [[f"**{number}**", happens, leaves, f"measured: {', '.join(mine)}", "", "", "", ""]]
    return [[f"**{each}**", happens, leaves, *_played(each, found)] for each in mine]


def _played(number: str, found: dict[str, Any]) -> list[str]:
    where = READ[number]
    if isinstance(where, NoSpot):
        return [f"*no such spot*: {where.because}", "", "", "", ""]
    ended = found[number]
    then = f"`job {where.verb}`: {ended['resume']}" if ended["resume"] else "nothing needed"
    return [_spot(where), ended["books"], ended["command"], then, _books(ended)]


def _crash(row: list[str], found: dict[str, Any]) -> list[str]:
    where = CRASHES[nova.crash(row[0])]
    if isinstance(where, SameAs):
        text = f"as {where.numbers}"
    elif isinstance(where, NoSpot):
        text = f"*no such spot*: {where.because}"
    else:
        ended = found[where]
        text = (
            f"**{where}**: {_spot(SPOTS[where])}; {ended['books']}; {ended['command']}, `job resume`:"
            f" {ended['resume']}; {_books(ended)}"
        )
    return [row[0], " · ".join(row[1:5]), row[5], text]
