"""SIGKILL at random moments of attaches and detaches on a whole compute host, then ``job resume``, then the books.

``bin/test lab --kills N --seed S`` says how many, and repeats a run's decisions (not the machine's timing). One test is
one volume's way there and back, killed once on each, at a moment between its first effect and its end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.conftest import LabHost
from tests.live.commands import DONE, KILLED, ROLLED_BACK, Outcome
from tests.report import counted
from tether.matrix.live_judge import diff

SMALL, FULL = 2, 200
#: What a way is tried with, in turn: whether over both portals, and the volume's type.
KINDS = [(True, "lvm"), (False, "lvm"), (True, "luks2"), (False, "luks")]
#: The first points of an attach and of a detach after which there is something to take up.
BEGUN = {"attach": "create-mapping.act.before", "detach": "begin-detaching.act.before"}
ENDS = {"attached": DONE, "detached": DONE, "rolled-back": ROLLED_BACK}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Go through the kinds until there are enough ways for the kills."""
    total = metafunc.config.getoption("--kills")
    ways = -(-(counted(SMALL, FULL) if total is None else total) // 2)
    cases = [(number, KINDS[number % len(KINDS)]) for number in range(ways)]
    names = [
        f"{number}-{'multipath' if multipath else 'single'}-{volume_type}" for number, (multipath, volume_type) in cases
    ]
    metafunc.parametrize(("number", "kind"), cases, ids=names)


class Subject:
    """One volume, what is there without it, and how long an undisturbed attach and detach take.

    Args:
        multipath: whether it is attached over both portals.
    """

    def __init__(self, lab: LabHost, volume_id: str, *, multipath: bool) -> None:
        self.lab, self.volume_id, self.paths = lab, volume_id, 2 if multipath else 1
        self.before = lab.books()
        self.seconds = {verb: self._seconds(verb) for verb in ("attach", "detach")}
        self.assert_nothing_left()

    def _seconds(self, verb: str) -> float:
        """Run a command undisturbed; return the seconds from its first effect to its end."""
        told = "/run/tether-halted-at"
        done = self._halted(verb, f"date +%s.%N > {told}")
        assert done.code == DONE, done.err
        return float(self.lab.run(f'awk "BEGIN {{ print $(date +%s.%N) - $(cat {told}) }}"'))

    def tether(self, *words: str) -> Outcome:
        """Run a command."""
        return self.lab.tether(*words, host__volume_use_multipath=self.paths == 2)

    def _halted(self, verb: str, line: str) -> Outcome:
        """Run a command, and a line of shell right before its first effect."""
        words = (verb, self.volume_id, self.lab.guest)
        return self.lab.tether_halted(BEGUN[verb], line, *words, host__volume_use_multipath=self.paths == 2)

    def newest(self) -> dict[str, str]:
        """Return the newest job; empty if there is none."""
        jobs = json.loads(self.tether("job", "list", "-f", "json").out)
        return dict(jobs[0]) if jobs else {}

    def break_and_resume(self, verb: str, moment: float) -> str:
        """Kill a command at a moment, from 0 to 1 of its time, and bring its job to its end; return the end."""
        # The command alone, not its children; and only if it has not ended by then.
        kill = "grep -q tether /proc/$pid/comm && kill -KILL $pid"
        done = self._halted(verb, f"(sleep {moment * self.seconds[verb]:.3f}; {kill}) >/dev/null 2>&1 &")
        assert done.code in (DONE, KILLED), done.err
        job = self.newest()
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
def volume_of(lab: LabHost) -> Iterator[Callable[[tuple[bool, str]], Subject]]:
    """Return the volume for ways of a kind."""
    made: dict[tuple[bool, str], Subject] = {}

    def make(kind: tuple[bool, str]) -> Subject:
        if kind not in made:
            multipath, volume_type = kind
            volume_id = lab.inside("create", f"kills-{multipath}", "--type", volume_type).strip()
            made[kind] = Subject(lab, volume_id, multipath=multipath)
        return made[kind]

    yield make
    for subject in made.values():
        lab.inside("delete", subject.volume_id)


@pytest.fixture
def subject(volume_of: Callable[[tuple[bool, str]], Subject], kind: tuple[bool, str]) -> Iterator[Subject]:
    found = volume_of(kind)
    yield found
    found.put_right()


def test_what_was_killed_is_resumed_and_nothing_is_left(
    subject: Subject, number: int, kill_seed: int, record_property: Callable[[str, object], None]
) -> None:
    moments = random.Random(f"{kill_seed}/{number}")
    told: dict[str, Any] = {"seed": kill_seed, "ends": []}
    record_property("lab_kills", told)

    def killed(verb: str) -> str:
        end = subject.break_and_resume(verb, moments.random())
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
