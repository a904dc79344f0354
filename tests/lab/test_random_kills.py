"""SIGKILL at random moments of attaches and detaches on a whole compute host, then ``job resume``, then the books.

``bin/test lab --kills N --seed S`` says how many, and repeats a run's decisions (not the machine's timing). One test is
one volume's way there and back, killed once on each.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.conftest import LabHost
from tests.live.commands import DONE, KILLED, ROLLED_BACK, Outcome
from tests.report import counted
from tether.matrix.live_judge import diff

SMALL, FULL = 2, 200
ENDS = {"attached": DONE, "detached": DONE, "rolled-back": ROLLED_BACK}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Half of the ways are over two portals."""
    total = metafunc.config.getoption("--kills")
    ways = -(-(counted(SMALL, FULL) if total is None else total) // 2)
    cases = [(number, multipath) for number in range(ways) for multipath in (number % 2 == 0,)]
    names = [f"{number}-{'multipath' if multipath else 'single'}" for number, multipath in cases]
    metafunc.parametrize(("number", "multipath"), cases, ids=names)


class Subject:
    """One volume, what is there without it, and how long an undisturbed attach and detach take.

    Args:
        multipath: whether it is attached over both portals.
    """

    def __init__(self, lab: LabHost, volume_id: str, *, multipath: bool) -> None:
        self.lab, self.volume_id, self.paths = lab, volume_id, 2 if multipath else 1
        self.before = lab.books()
        self.seconds = {}
        for verb in ("attach", "detach"):
            begun = time.monotonic()
            done = self.tether(verb, volume_id, lab.guest)
            self.seconds[verb] = time.monotonic() - begun
            assert done.code == DONE, done.err
        self.assert_nothing_left()

    def tether(self, *words: str, kill_after: float | None = None) -> Outcome:
        """Run a command; ``kill_after`` so many seconds it gets SIGKILL, and nothing but it."""
        settings = {"host__volume_use_multipath": self.paths == 2}
        return self.lab.tether(*words, kill_after=kill_after, **settings)

    def newest(self) -> dict[str, str]:
        """Return the newest job; empty if there is none."""
        jobs = json.loads(self.tether("job", "list", "-f", "json").out)
        return dict(jobs[0]) if jobs else {}

    def break_and_resume(self, verb: str, moment: float) -> str:
        """Kill a command at a moment, from 0 to 1 of its time, and bring its job to its end; return the end."""
        earlier = self.newest()
        done = self.tether(verb, self.volume_id, self.lab.guest, kill_after=moment * self.seconds[verb])
        assert done.code in (DONE, KILLED), done.err
        job = self.newest()
        if job.get("job") == earlier.get("job"):
            return "nothing"
        if job["state"] not in ENDS:
            done = self.tether("job", "resume", job["job"])
            job = self.newest()
            assert job["state"] in ENDS, f"{verb} killed at {moment:.3f}: {job}\n{done.err}"
            assert done.code == ENDS[job["state"]], done.err
        return job["state"]

    def assert_nothing_left(self) -> None:
        assert diff(self.before, self.lab.books()) == []

    def assert_attached(self) -> None:
        """The guest has the disk, and every book says so."""
        assert self.lab.wait_for_disk(self.volume_id)
        held = self.lab.books()
        (target,) = set(held["targets"]) - set(self.before["targets"])
        assert held["host"]["sessions"].count(target) == self.paths
        assert f"volumes/{self.volume_id}" in held["host"]["links"]
        assert held["cinder"]["volumes"][self.volume_id]["status"] == "in-use"
        for definition in ("live", "persistent"):
            assert self.volume_id in str(held["libvirt"]["domains"][self.lab.guest][definition]), definition

    def put_right(self) -> None:
        """Free the volume of what a failed test has left, so that the next one is judged by itself."""
        if diff(self.before, self.lab.books()):
            self.tether("job", "resume", "--last")
            self.tether("detach", self.volume_id, self.lab.guest)


@pytest.fixture(scope="module")
def volume_of(lab: LabHost) -> Iterator[Callable[[bool], Subject]]:
    """Return the volume for ways over one portal, or over two."""
    made: dict[bool, Subject] = {}

    def make(multipath: bool) -> Subject:
        if multipath not in made:
            volume_id = lab.inside("create", f"kills-{multipath}", "--type", "lvm").strip()
            made[multipath] = Subject(lab, volume_id, multipath=multipath)
        return made[multipath]

    yield make
    for subject in made.values():
        lab.inside("delete", subject.volume_id)


@pytest.fixture
def subject(volume_of: Callable[[bool], Subject], multipath: bool) -> Iterator[Subject]:
    found = volume_of(multipath)
    yield found
    found.put_right()


def test_what_was_killed_is_resumed_and_nothing_is_left(
    subject: Subject, number: int, kill_seed: int, record_property: Callable[[str, object], None]
) -> None:
    moments = random.Random(f"{kill_seed}/{number}")
    told = {"seed": kill_seed, "kills": 0, "ends": []}
    record_property("lab_kills", told)

    def killed(verb: str) -> str:
        end = subject.break_and_resume(verb, moments.random())
        told["kills"] += 1
        told["ends"].append(f"{verb} {end}")
        return end

    if killed("attach") != "attached":
        subject.assert_nothing_left()
        assert subject.tether("attach", subject.volume_id, subject.lab.guest).code == DONE
    subject.assert_attached()
    if killed("detach") != "detached":
        subject.assert_attached()
        assert subject.tether("detach", subject.volume_id, subject.lab.guest).code == DONE
    subject.assert_nothing_left()
