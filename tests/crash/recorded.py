"""Records jobs that were stopped at every step, so that later releases can be shown to resume them.

``python -m tests.crash.recorded`` writes ``tests/data/SCHEMA-KIND-VERSION.tar.xz`` for each kind of job at the present
schema and flow version. A file that is there already is never changed: it is what that release has written.
"""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.crash.world import DONE, KILLED, SimWorld
from tests.tree import ROOT
from tether.flows.registry import CURRENT, parts
from tether.matrix.bench import RECIPES, volume_id
from tether.matrix.journeys import Flow, Variant, flows
from tether.persistence import schema
from tether.persistence.params import Params

DATA = ROOT / "tests/data"
#: Recorded worlds hold paths, so that each lies where it was recorded.
PLACE = Path("/tmp/tether-recorded")
FRESH = "fresh"


def archive(kind: str) -> Path:
    """Return the file of a kind of job at the present schema and version."""
    return DATA / f"{schema.HEAD}-{kind}-{CURRENT[kind]}.tar.xz"


@contextmanager
def place() -> Iterator[Path]:
    """Have the place to oneself, empty; it is gone afterwards."""
    with PLACE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir()
        try:
            yield PLACE
        finally:
            shutil.rmtree(PLACE)


def stops(kind: str) -> dict[str, tuple[Flow, str]]:
    """Return by its name everything that is recorded of a kind: a flow, and each of its steps that has an effect.

    A step of one dialect is recorded in the first flow that has it. A forced detach has the steps of any other.
    """
    found: dict[str, tuple[Flow, str]] = {}
    seen = set()
    for flow in flows():
        params = Params(
            dialect=flow.variant.dialect, data_path=flow.variant.data_path, encrypted=flow.variant.volume == "secret1"
        )
        wanted = flow.kind == kind and not flow.variant.force
        built = [part.build(params) for part in parts(kind, CURRENT[kind])] if wanted else []
        for step in (step for part in built for step, _data in part.iter_nodes()):
            key = (flow.start, params.dialect, step.label)
            if step.book and key not in seen:
                seen.add(key)
                found[f"{flow.name} {step.label}"] = flow, step.label
    return found


def own(sim: SimWorld, machine_id: str, boot_id: str) -> None:
    """Make the runner that died one of this machine and boot."""
    with closing(sqlite3.connect(sim.directory / "tether.sqlite", isolation_level=None)) as connection:
        connection.execute(
            "UPDATE tether_jobs SET runner = json_set(runner, '$.machine_id', ?, '$.boot_id', ?, '$.host', 'host')"
            " WHERE runner IS NOT NULL",
            (machine_id, boot_id),
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def begin(directory: Path, flow: Flow) -> SimWorld:
    """Make the world in which a flow begins."""
    make(directory / "world", flow.start, flow.variant)
    return SimWorld(directory / "world", flow.variant.data_path, flow.variant.host)


def make(world: Path, kind: str, variant: Variant) -> None:
    """Make a world of this kind, from nothing or from a fresh one."""
    recipe = RECIPES[kind]
    if kind != FRESH:
        make(world, recipe.of, variant)
    if recipe.wreck is not None:
        recipe.wreck(world, volume_id(world, variant.volume))
    else:
        assert SimWorld(world, variant.data_path, recipe.host).tether(*recipe.words(variant)).code == DONE


def record(file: Path, kind: str) -> int:
    """Record a kind of job into a file; return how many jobs there are in it."""
    with tarfile.open(file, "w:xz") as out:
        with place() as directory:
            assert SimWorld(directory / "world").tether("job", "list").code == DONE
            out.add(directory, arcname=FRESH)
        for name, (flow, step) in stops(kind).items():
            with place() as directory:
                sim = begin(directory, flow)
                done = sim.tether("--fault", f"{step}.act.before=kill", *flow.words)
                assert done.code == KILLED, done.err
                own(sim, "recorded", "recorded")
                out.add(directory, arcname=name)
    return len(stops(kind))


def main() -> None:
    """Record what is not there yet."""
    for kind in CURRENT:
        if archive(kind).exists():
            print(f"{archive(kind).name}: there already")
            continue
        unfinished = archive(kind).with_suffix(".new")
        count = record(unfinished, kind)
        unfinished.rename(archive(kind))
        print(f"{archive(kind).name}: {count} jobs")


if __name__ == "__main__":
    main()
