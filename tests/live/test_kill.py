"""SIGKILL at each step of an attach and of a detach on real parts, then ``job resume``, then the books.

The points before and after each step's effect are the distinct states of the world at a kill; ``bin/test full`` adds
those around each durable commit, and the legacy dialect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.commands import BLOCKED, CONFLICT, DONE, KILLED, ROLLED_BACK
from tests.live.conftest import Live
from tests.live.points import attach_points, detach_points, label, params
from tests.report import counted
from tether.flows import attach as attach_flow
from tether.flows import detach as detach_flow

NewVolume = Callable[..., str]
GUEST = "guest1"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DIALECTS = ("attachments", "legacy")
#: The legacy dialect's reservation has no owner: killed in it, a job cannot know whose it is, and is blocked.
NOBODYS = {"reserve-volume-legacy.act.after", "commit.reserve-volume-legacy.act.after"}


def cells(which: Callable[..., list[str]]) -> list[Any]:
    return [
        pytest.param(dialect, point, id=f"{dialect}-{point}")
        for dialect in DIALECTS[: counted(1, 2)]
        for point in which(dialect, commits=bool(counted(0, 1)))
    ]


ATTACHES, DETACHES = cells(attach_points), cells(detach_points)


def comparable(snapshot: dict[str, Any], known: set[str]) -> str:
    """Return a snapshot as text in which every UUID that is not known stands as its number of appearance."""
    numbers: dict[str, str] = {}

    def replaced(found: re.Match[str]) -> str:
        text = found.group()
        return text if text in known else numbers.setdefault(text, f"<{len(numbers)}>")

    return UUID.sub(replaced, json.dumps(snapshot, sort_keys=True, indent=1))


class Subject:
    """One volume, the books without it, and those with it attached as an undisturbed run leaves them."""

    def __init__(self, live: Live, dialect: str) -> None:
        self.live, self.dialect = live, dialect
        self.volume = live.new_volume()
        self.run(DONE, *self.attach_words)  # Cinder makes the CHAP account at the first export
        self.run(DONE, "detach", self.volume, GUEST)
        self.before = live.judge.snapshot()
        self.known = set(UUID.findall(json.dumps(self.before)))
        self.run(DONE, *self.attach_words)
        self.attached = comparable(live.judge.snapshot(), self.known)
        self.run(DONE, "detach", self.volume, GUEST)
        live.assert_books(self.before)

    @property
    def attach_words(self) -> tuple[str, ...]:
        return ("attach", self.volume, GUEST, "--dialect", self.dialect)

    def run(self, code: int, *words: str) -> None:
        done = self.live.tether(*words)
        assert done.code == code, f"{' '.join(words)}: {done.code}\n{done.err}"

    def assert_attached(self, *, pending: bool = False) -> None:
        """Compare; ``pending`` if the guest may still have an unplug request to answer, which the ledger keeps."""
        expected = self.attached.replace('"pending_unplug": 0', '"pending_unplug": 1') if pending else self.attached
        assert comparable(self.live.judge.snapshot(), self.known) == expected

    def put_right(self) -> None:
        """Free the volume of what a failed test has left, so that the next one is judged by itself."""
        if self.live.judge.snapshot() == self.before:
            return
        self.live.tether("job", "resume", "--last")
        self.live.tether("detach", self.volume, GUEST)


@pytest.fixture(scope="module")
def subjects(live: Live) -> Iterator[dict[str, Subject]]:
    made: dict[str, Subject] = {}
    yield made
    for subject in made.values():
        live.remove(subject.volume)


@pytest.fixture
def subject(live: Live, subjects: dict[str, Subject], request: pytest.FixtureRequest) -> Iterator[Subject]:
    case = getattr(request.node, "callspec", None)
    dialect = case.params.get("dialect", DIALECTS[0]) if case else DIALECTS[0]
    if dialect not in subjects:
        subjects[dialect] = Subject(live, dialect)
    found = subjects[dialect]
    found.live.assert_books(found.before)
    yield found
    found.put_right()


@pytest.mark.parametrize(("dialect", "point"), ATTACHES)
def test_an_attach_that_was_killed_is_resumed(subject: Subject, dialect: str, point: str) -> None:
    subject.run(KILLED, "--fault", f"{point}=kill", *subject.attach_words)
    if point in NOBODYS:
        subject.run(BLOCKED, "job", "resume", "--last")
        subject.live.cinder.volumes.reset_state(subject.volume, "available")  # as its hint says
    subject.run(DONE, "job", "resume", "--last")
    subject.assert_attached()
    subject.run(DONE, "detach", subject.volume, GUEST)
    subject.live.assert_books(subject.before)


@pytest.mark.parametrize(("dialect", "point"), DETACHES)
def test_a_detach_that_was_killed_is_resumed(subject: Subject, dialect: str, point: str) -> None:
    subject.run(DONE, *subject.attach_words)
    subject.run(KILLED, "--fault", f"{point}=kill", "detach", subject.volume, GUEST)
    subject.run(DONE, "job", "resume", "--last")
    subject.live.assert_books(subject.before)


@pytest.mark.parametrize(
    "point",
    [
        "create-mapping.act.after",
        "reserve-volume.act.after",
        "export-volume.act.after",
        "define-secret.act.after",
        "plug-persistent.act.after",
        "plug-live.act.after",
        "complete-attachment.act.after",
    ],
)
def test_an_attach_that_was_killed_is_aborted(subject: Subject, point: str) -> None:
    subject.run(KILLED, "--fault", f"{point}=kill", *subject.attach_words)
    subject.run(DONE, "job", "abort", "--last")
    subject.live.assert_books(subject.before)


@pytest.mark.parametrize(
    "point", ["begin-detaching.act.after", "unplug-persistent.act.after", "unplug-live.act.before"]
)
def test_a_detach_that_was_killed_is_aborted(subject: Subject, point: str) -> None:
    subject.run(DONE, *subject.attach_words)
    subject.run(KILLED, "--fault", f"{point}=kill", "detach", subject.volume, GUEST)
    subject.run(DONE, "job", "abort", "--last")
    subject.assert_attached(pending=point.startswith("unplug-live"))
    subject.run(DONE, "detach", subject.volume, GUEST)
    subject.live.assert_books(subject.before)


def test_a_detach_past_its_pivot_only_goes_forward(subject: Subject) -> None:
    subject.run(DONE, *subject.attach_words)
    subject.run(KILLED, "--fault", "undefine-secret.act.after=kill", "detach", subject.volume, GUEST)
    subject.run(CONFLICT, "job", "abort", "--last")
    subject.run(DONE, "job", "resume", "--last")
    subject.live.assert_books(subject.before)


@pytest.mark.parametrize(
    "point", ["plug-persistent.undo.before", "export-volume.undo.after", "create-mapping.undo.after"]
)
def test_a_rollback_that_was_killed_is_resumed(subject: Subject, point: str) -> None:
    faults = ("--fault", "plug-live.act.before=fail", "--fault", f"{point}=kill")
    subject.run(KILLED, *faults, *subject.attach_words)
    subject.run(ROLLED_BACK, "job", "resume", "--last")
    subject.live.assert_books(subject.before)


def test_the_number_of_kills(subjects: dict[str, Subject], record_property: Callable[[str, object], None]) -> None:
    """Each step of each flow is hit; the count is printed."""
    print(f"kill points: attach {len(ATTACHES)}, detach {len(DETACHES)}")
    record_property("kill_points", len(ATTACHES) + len(DETACHES))
    reads, chain = attach_flow.steps(params("attachments"))
    hit = {point.values[1].partition(".")[0] for point in (*ATTACHES, *DETACHES)}
    assert {label(each) for each in (*reads, *chain, *detach_flow.guest_steps())} <= hit
