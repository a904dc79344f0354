"""Jobs that this and earlier releases have left behind at every step are resumed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.crash import judge, recorded
from tests.crash.world import DONE, SimWorld
from tether.flows.registry import CURRENT
from tether.matrix.journeys import BESIDE, PLAIN, Flow, Variant, flows
from tether.persistence.owner import Owner
from tether.runner.jobs import DONE as DONE_AS

ARCHIVES = sorted(recorded.DATA.glob("*.tar.xz"))


def names(file: Path) -> list[str]:
    """Return the names of the worlds in a record, but for the fresh one."""
    with tarfile.open(file) as source:
        return sorted({member.partition("/")[0] for member in source.getnames()} - {recorded.FRESH})


FLOWS = {flow.name: flow for flow in flows()}
CELLS = [(file, name) for file in ARCHIVES for name in names(file)]


def unpack(file: Path, name: str, directory: Path, variant: Variant = PLAIN) -> SimWorld:
    """Put a recorded world where it was recorded, as this machine's own."""
    with tarfile.open(file) as source:
        for member in source.getmembers():
            if member.name.partition("/")[0] == name:
                member.name = member.name.removeprefix(name).lstrip("/") or "."
                source.extract(member, directory, filter="data")
    sim = SimWorld(directory / "world", variant.data_path, variant.host)
    recorded.own(sim, Owner.current().machine_id, "earlier")
    return sim


def stay(sim: SimWorld, flow: Flow) -> None:
    """Bring the server back to where it was, or leave it there, with its volume; nothing is left on the second host."""
    moved = flow.start in {"arrived", "taken"}
    if flow.start == "arrived":
        sim.host = ""
        assert sim.tether(*flow.variant.migrate("complete")).code == DONE
    elif flow.kind == "migrate-prepare":
        assert sim.tether(*flow.variant.migrate("abort")).code == DONE
    sim.host = BESIDE if moved else ""
    if moved:
        assert sim.tether(*flow.variant.detach).code == DONE
        sim.host = ""
        assert (
            sim.tether("sim", "move", str(sim.directory / BESIDE), flow.variant.server, str(sim.directory)).code == DONE
        )
        assert sim.tether(*flow.variant.attach).code == DONE
    assert sim.books()[BESIDE] == {"host": {"crypt": {}, "devices": {}, "links": {}}, "guests": {}, "secrets": []}


@pytest.mark.parametrize("kind", CURRENT)
def test_the_present_versions_are_recorded(kind: str) -> None:
    """A change of a flow or of the schema needs a new version, and its record: python -m tests.crash.recorded."""
    assert recorded.archive(kind) in ARCHIVES
    assert set(names(recorded.archive(kind))) == set(recorded.stops(kind))


@pytest.mark.parametrize(("file", "name"), CELLS, ids=[f"{file.name.partition('.')[0]}-{name}" for file, name in CELLS])
def test_a_recorded_job_is_resumed(file: Path, name: str) -> None:
    flow = FLOWS[name.partition(" ")[0]]
    with recorded.place() as directory:
        before = unpack(file, recorded.FRESH, directory).books()
    with recorded.place() as directory:
        sim = unpack(file, name, directory, flow.variant)
        assert sim.tether("db", "upgrade").code == DONE
        done = sim.tether("job", "resume", "--last")
        assert done.code == DONE, done.err
        assert (flow.kind, DONE_AS[flow.kind]) in sim.jobs()
        if flow.kind.startswith("migrate-"):
            stay(sim, flow)
        for volume in ("vol1", "vol2") if flow.variant.several else (flow.variant.volume,):
            if DONE_AS[flow.kind] != "detached":
                done = sim.tether("detach", volume, flow.variant.server)
                assert done.code == DONE, done.err
        grown = [f"/cinder/{flow.variant.volume}/size: 1 -> 2"] if flow.kind == "extend" else []
        lines = judge.diff(before, {name: book for name, book in sim.books().items() if name != BESIDE})
        assert [line for line in lines if "/size: " in line] == grown
        lines = [line for line in lines if line not in grown]
        # The legacy dialect leaves the backend's export behind: listed residue.
        legacy = flow.variant.dialect == "legacy"
        assert [line for line in lines if not (legacy and line.endswith("False -> True"))] == []
