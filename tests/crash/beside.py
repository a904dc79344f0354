"""Plays the spots of :mod:`tests.crash.nova` on the embedded world.

``python -m tests.crash.beside`` plays them all and keeps how they ended in ``tests/data/beside-nova.json``; then
``bin/docs`` writes ``docs/beside-nova.md``.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.crash import judge, recorded
from tests.crash.case import Case, attached, comparable
from tests.crash.nova import ATTACHED, CLEAN, HELD, RESULTS, SPOTS, Spot
from tests.crash.nova_page import summary
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tether.matrix.journeys import Flow, Variant, flows
from tether.sim.cinder import backend
from tether.sim.store import Store

VOL1 = "11111111-1111-4111-8111-111111111111"
WORDS = {
    DONE: "done",
    ROLLED_BACK: "rolled back",
    BLOCKED: "blocked",
    KILLED: "killed",
    1: "stopped (1)",
    128 + signal.SIGTERM: "stopped (143)",
}


FLOWS = {flow.name: flow for flow in flows()}
#: A late call comes before it can no longer be carried out; a slow one lasts until it is noticed.
SECONDS = {"late": 0.2, "slow": 2.0}
LIMIT = 30.0


def variant_of(spot: Spot) -> Variant:
    return Variant("beside", volume=spot.volume, dialect=spot.dialect, data_path=spot.data_path)


@contextmanager
def copy_of(template: Path) -> Iterator[SimWorld]:
    """A world of one's own, in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tether-beside-") as scratch:
        directory = Path(scratch) / "world"
        shutil.copytree(template, directory)
        yield SimWorld(directory)


@functools.cache
def outcome(number: str, template: Path) -> dict[str, str]:
    """Play one spot.

    Returns:
        ``books``: what they said at the spot; ``command`` and ``resume``: how each ended (``resume`` is empty where
        the command came to its end); ``end``: what the books say then.
    """
    spot = SPOTS[number]
    if spot.flow:
        return _outcome_of_flow(spot, template)
    with copy_of(template) as sim:
        case = Case(sim, variant_of(spot))
        before = sim.books()
        if spot.kind == "detach":
            assert case.run("attach").code == DONE
        if spot.fault != "kill" and spot.point:
            seen = _seen(spot, template)
        hand: Callable[[SimWorld], int | None] = HANDS[spot.hand]
        watcher = hand(sim) if spot.fault != "kill" else None
        if not spot.point:
            seen = judge.books_of(sim.directory, spot.volume)
        for call, action, times in spot.calls:
            sim.script(call, action, times=times, seconds=SECONDS.get(action, 0))
        done = case.run(spot.kind, *(["--fault", f"{spot.point}={spot.fault}"] if spot.fault else []))
        assert done.code in WORDS, done.err
        if spot.fault == "kill":
            hand(sim)
            seen = judge.books_of(sim.directory, spot.volume)
        if watcher:
            assert os.waitpid(watcher, 0)[1] == 0
        unused = {item["call"] for item in Store(sim.directory).read("script").get("failures", []) if item["times"] > 0}
        assert not spot.calls or spot.calls[0][0] not in unused, f"{number}: {spot.calls[0][0]} was never called"
        sim.forgive()
        resumed = None if done.code in {DONE, ROLLED_BACK} else case.job(spot.verb)
        return {
            "books": " · ".join(seen),
            "command": WORDS[done.code],
            "resume": "" if resumed is None else _word(resumed.code, spot),
            "end": HELD if resumed and resumed.code == BLOCKED else _end(case, spot, before, template),
        }


def _outcome_of_flow(spot: Spot, template: Path) -> dict[str, str]:
    """Play a spot of another kind of job."""
    flow = FLOWS[spot.flow]
    ends = [_made(kind, flow, template) for kind in (flow.start, flow.done)]
    with _world_of(flow.start, flow, template) as sim:
        armed = ["--fault", f"{spot.point}={spot.fault or 'kill'}"]
        if not spot.fault:  # what the books say there, by a kill in a world of its own
            with _world_of(flow.start, flow, template) as other:
                assert other.tether(*armed, *flow.words).code == KILLED
                seen = judge.books_of(other.directory / other.host, spot.volume)
            armed = []
        for call, action, times in spot.calls:
            sim.script(call, action, times=times, seconds=SECONDS.get(action, 0))
        done = sim.tether(*armed, *flow.words)
        assert done.code in WORDS, done.err
        if spot.fault:
            seen = judge.books_of(sim.directory / sim.host, spot.volume)
        else:
            left = Store(sim.directory / sim.host).read("script").get("failures", [])
            assert not left, f"{left} was never called"
        resumed = None if done.code in {DONE, ROLLED_BACK} else sim.tether("job", spot.verb, "--last")
        agree = comparable(sim) in ends
        return {
            "books": " · ".join(seen),
            "command": WORDS[done.code],
            "resume": "" if resumed is None else _word(resumed.code, spot),
            "end": HELD if resumed and resumed.code == BLOCKED else ATTACHED if agree else "inconsistent",
        }


@contextmanager
def _world_of(kind: str, flow: Flow, template: Path) -> Iterator[SimWorld]:
    with copy_of(template) as sim:
        recorded.make(sim.directory, kind, flow.variant)
        yield SimWorld(sim.directory, flow.variant.data_path, flow.variant.host)


def _made(kind: str, flow: Flow, template: Path) -> dict[str, Any]:
    """Return the books of a world in which nothing went wrong."""
    with _world_of(kind, flow, template) as sim:
        return comparable(sim)


def _word(code: int, spot: Spot) -> str:
    return "rolled back" if spot.verb == "abort" and code == DONE else WORDS[code]


def _seen(spot: Spot, template: Path) -> judge.Books:
    """Return what the books say at a point, by a kill there in a world of its own."""
    with copy_of(template) as sim:
        case = Case(sim, variant_of(spot))
        if spot.kind == "detach":
            assert case.run("attach").code == DONE
        assert case.run(spot.kind, "--fault", f"{spot.point}=kill").code == KILLED
        return judge.books_of(sim.directory, spot.volume)


def _end(case: Case, spot: Spot, before: dict[str, Any], template: Path) -> str:
    """Judge all five books: equal to those before, to those of an undisturbed attach, or to neither."""
    changed = judge.diff(before, case.sim.books())
    if all(spot.export_stays and line.endswith("exported: False -> True") for line in changed):
        return CLEAN
    wrong = judge.diff(attached(case.variant, template), comparable(case.sim))
    return f"inconsistent: {'; '.join(changed)}" if wrong else ATTACHED


# -- what something else does -----------------------------------------------------------------------------------


def export_without_row(sim: SimWorld) -> None:
    """Let cinder-volume have made the export, and die before it has written so."""
    with Store(sim.directory).change("cinder") as book:
        backend.create_export(book, book["volumes"][VOL1])


def unreadable(sim: SimWorld) -> None:
    """Let the encrypted volume's device fail to be read."""
    with Store(sim.directory).change("cinder") as book:
        for volume in book["volumes"].values():
            volume.update({"content": "unreadable"} if volume.get("encryption") else {})


def half_deleted(sim: SimWorld) -> None:
    """Let Cinder's API die between the removal of the connection and that of the row."""
    with Store(sim.directory).change("cinder") as book:
        backend.remove_export(book, book["volumes"][VOL1])
        for row in book["attachments"].values():
            row |= {"connector": None, "connection_info": {}}


def reset_in_cinder(sim: SimWorld) -> None:
    """Let an administrator run ``cinder reset-state --state available --attach-status detached``."""
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOL1] |= {"status": "available", "attach_status": "detached"}
        book["attachments"] = {}


def child_finishes(sim: SimWorld) -> None:
    """Let the host's connect, which had begun, be carried out a little later."""
    export = json.loads((sim.directory / "cinder.json").read_text())["exports"][VOL1]
    with Store(sim.directory).change("host") as book:
        book["pending"].append(
            {
                "verb": "connect",
                "volume_id": VOL1,
                "iqn": export["target_iqn"],
                "portals": [export["target_portal"]],
                "due": time.time() + 0.1,
            }
        )


def terminate(sim: SimWorld) -> int:
    """Send SIGTERM to the command that comes next, once it connects the host; return the process that waits for it."""
    watcher = os.fork()
    if watcher:
        return watcher
    code = 1
    try:
        deadline = time.monotonic() + LIMIT
        while sim.step_of("attach") != "connect-host/1" and time.monotonic() < deadline:
            time.sleep(0.01)
        with sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True) as connection:
            (runner,) = connection.execute("SELECT runner FROM tether_jobs").fetchone()
        os.kill(json.loads(runner)["pid"], signal.SIGTERM)
        code = 0
    finally:
        os._exit(code)


def nothing(_sim: SimWorld) -> None:
    """Nobody does anything meanwhile."""


HANDS: dict[str, Callable[[SimWorld], int | None]] = {
    "": nothing,
    **{
        each.__name__: each
        for each in (export_without_row, half_deleted, reset_in_cinder, child_finishes, terminate, unreadable)
    },
}


def main() -> None:
    """Play every spot, and keep how it ended."""
    with tempfile.TemporaryDirectory(prefix="tether-beside-") as scratch:
        world = SimWorld(Path(scratch) / "world")
        assert world.tether("job", "list").code == DONE
        found = {number: outcome(number, world.directory) for number in SPOTS}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
