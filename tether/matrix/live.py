"""The matrix on a live world: the real Cinder, libvirt, QEMU and iSCSI target that ``bin/live`` starts."""

from __future__ import annotations

import configparser
import json
import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether.errors import UsageError
from tether.matrix.bench import PATIENCE, Bench, Program, World
from tether.matrix.journeys import RESUME, Variant
from tether.matrix.live_judge import Judge

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Waits in proportion to a Cinder that answers at once.
PACE = {
    "OS_CINDER__SETTLE_MARGIN": "1",
    "OS_LIBVIRT__LIBVIRT_SETTLE": "1",
    "OS_DEFAULT__RETRY_INTERVAL": "0.2",
    "OS_DEFAULT__STEP_RETRY_TIME": "20",
}


@dataclass(frozen=True)
class Place:
    """Where a live world keeps what the judge reads, as ``bin/live`` lays it out.

    Args:
        directory: the world's.
    """

    directory: Path

    @property
    def cinder_database(self) -> Path:
        return self.directory / "cinder" / "cinder.sqlite"

    @property
    def ledger(self) -> Path:
        return self.directory / "tether.sqlite"

    @property
    def configuration(self) -> Path:
        return self.directory / "tether.conf"

    @property
    def rpc_response_timeout(self) -> float:
        """Cinder's, in seconds, as the configuration of tether has it."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.configuration)
        return parser.getfloat("cinder", "rpc_response_timeout")

    @property
    def libvirt_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.directory}/libvirt/run/libvirt-sock"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"TGT_IPC_SOCKET": str(self.directory / "tgt")}


class LiveBench(Bench):
    """One live world, in which one case after the other is tried.

    Args:
        directory: scratch; private to this run.
        place: the world's own directory.

    Raises:
        UsageError: there is no live world.
    """

    def __init__(self, directory: Path, program: Program, place: Path) -> None:
        super().__init__(directory, program)
        if not (place / "world.json").exists():
            raise UsageError(f"there is no live world in {place}", hint="start one: bin/live up")
        self.place = Place(place)
        self.judge = Judge(self.place)
        self._known: dict[tuple[str, Variant], Any] = {}

    def world(self, name: str, kind: str, variant: Variant) -> LiveWorld:
        """Return the world, brought to where a case begins."""
        world = LiveWorld(self, self.directory / name, variant)
        self.books("fresh", variant)
        if kind == "attached":
            self._must(world, variant.attach)
        return world

    def books(self, kind: str, variant: Variant) -> dict[str, Any]:
        """Return the books of a world in which nothing went wrong."""
        if (kind, variant) not in self._known:
            world = LiveWorld(self, self.directory / "undisturbed", variant)
            for known in ("fresh", "attached"):  # Cinder makes the CHAP account at the first export
                self._must(world, variant.attach)
                if known == "attached":
                    self._known[known, variant] = world.books()
                self._must(world, variant.detach)
                if known == "fresh":
                    self._known[known, variant] = world.books()
        return dict(self._known[kind, variant])

    def volume_id(self, name: str) -> str:
        """Return a volume's id, from Cinder's database."""
        with closing(sqlite3.connect(f"file:{self.place.cinder_database}?mode=ro", uri=True, timeout=30)) as database:
            query = "SELECT id FROM volumes WHERE display_name = ? AND NOT deleted"
            row = database.execute(query, (name,)).fetchone()
        return str(row[0])

    def identities(self, kind: str, variant: Variant) -> list[list[str]]:
        """Return nothing: a case begins with a new attachment, not with a copy of one."""
        return []

    @staticmethod
    def _must(world: World, words: Sequence[str]) -> None:
        done = world.run(words)
        if done.code != 0:
            raise UsageError(
                f"the live world cannot be used: {' '.join(words)} ended with {done.code}: {done.said}",
                hint="begin with a fresh one: bin/live down, bin/live up",
            )


class LiveWorld(World):
    """The live world, for one case."""

    bench: LiveBench

    @property
    def ledger(self) -> Path:
        return self.bench.place.ledger

    @property
    def patience(self) -> float:
        """As long as three calls of one command may be cut off, each of which Cinder may still finish by itself."""
        return PATIENCE + 3 * (self.bench.place.rpc_response_timeout + float(PACE["OS_CINDER__SETTLE_MARGIN"]))

    def books(self) -> dict[str, Any]:
        """Return what the books say of the volume; a UUID that nobody knows beforehand is its number of appearance."""
        numbers: dict[str, str] = {}
        volume = self.bench.volume_id(self.variant.volume)
        text = json.dumps(self.bench.judge.snapshot(volume), sort_keys=True)

        def number(found: re.Match[str]) -> str:
            uuid = found.group()
            return uuid if uuid == volume else numbers.setdefault(uuid, f"<{len(numbers)}>")

        return dict(json.loads(UUID.sub(number, text)))

    def identities(self) -> list[list[str]]:
        return []

    def danger(self) -> list[str]:
        found = self.bench.judge.snapshot()
        disks = json.dumps(found["libvirt"]["domains"])
        lines = []
        for volume, row in found["cinder"]["volumes"].items():
            if volume in disks and row["status"] == "available":
                lines.append(f"a guest has volume {volume}, and Cinder calls it available")
            if volume in disks and not any(volume in target for target in found["tgt"]["targets"]):
                lines.append(f"a guest has volume {volume}, which is not exported")
        return lines

    def _is_export(self, line: str) -> bool:
        return line.startswith(("/tgt/targets/", "/tgt/accounts"))

    def options(self, config: Path, words: Sequence[str]) -> list[str]:
        return ["--config-file", str(self.bench.place.configuration)]

    @property
    def environment(self) -> dict[str, str]:
        return PACE | {"OS_DEFAULT__LEASE_TTL": str(self.lease)}

    def settle(self) -> None:
        """Nothing is made to happen late here."""

    def remove(self) -> None:
        """Free the volume of what the case has left, so that the next one is judged by itself."""
        if self.books() != self.bench.books("fresh", self.variant):
            self.run((*RESUME, "--fenced"))
            self.run(self.variant.detach)
        for path in self.directory.parent.glob(f"{self.directory.name}.*"):
            path.unlink()
