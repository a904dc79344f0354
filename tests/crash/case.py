"""One variant of a flow in one embedded world, and the books of an undisturbed attach of it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.crash import judge
from tests.crash.world import DONE, SimWorld
from tether.matrix.journeys import Variant


class Case:
    """One variant in one world."""

    def __init__(self, sim: SimWorld, variant: Variant) -> None:
        self.sim = SimWorld(sim.directory, variant.data_path)
        self.variant = variant

    def run(self, kind: str, *options: str) -> Any:
        words = (kind, self.variant.volume, self.variant.server)
        dialect = ("--dialect", self.variant.dialect) if kind == "attach" else ()
        return self.sim.tether(*options, *words, *dialect)

    def job(self, verb: str, *options: str) -> Any:
        return self.sim.tether(*options, "job", verb, "--last")

    def differences(self, before: dict[str, Any]) -> list[str]:
        lines = judge.diff(before, self.sim.books())
        # The legacy dialect leaves the backend's export behind: listed residue.
        return [line for line in lines if self.variant.dialect != "legacy" or not line.endswith("False -> True")]


@functools.cache
def attached(variant: Variant, template: Path) -> dict[str, Any]:
    """Return the books after an attach that nothing disturbed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tether-test-") as scratch:
        shutil.copytree(template, Path(scratch) / "world")
        sim = SimWorld(Path(scratch) / "world")
        done = Case(sim, variant).run("attach")
        assert done.code == DONE, done.err
        return comparable(sim)


def comparable(sim: SimWorld) -> dict[str, Any]:
    """Return the books without the world's own place and its random CHAP name."""
    text = json.dumps(sim.books(), sort_keys=True).replace(str(sim.directory), "WORLD")
    text = re.sub(r'username=\\"\w+\\"', "username", text)
    return dict(json.loads(text))
