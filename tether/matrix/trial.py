"""One case: a fault at one point, the recovery, and the verdict."""

from __future__ import annotations

import math
import os
import re
import signal
import sqlite3
import time
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tether.matrix import judge
from tether.matrix.bench import SHORT_LEASE, Bench, Child, Outcome, World
from tether.matrix.journeys import ABORT, KILLED, RESUME, Journey

#: How the newest job may end.
ENDS = {"attached": 0, "detached": 0, "prepared": 0, "released": 0, "rolled-back": 3, "blocked": 4}
CONFLICT = 2
#: After these what was done is there to be found.
FOUND = ("kill", "stop", "lost-reply", "late", "cut-off", "kill-helper", "disk-full", "database-gone", "clock-jump")
#: After these something may still be on the wire, or asleep, when the job has long ended.
LINGERING = ("stop", "late", "cut-off", "hang")
#: Points of an effect's intent, and of the effect itself.
EFFECT = re.compile(r"commit\..+\.act\.")
#: What has no owner in Cinder is after some faults nobody's: these words are in what such a job says then.
NOBODYS = ("cannot be known", "may be this job's or a stranger's")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix.

    Args:
        journey: its name.
        fault: ``POINT=ACTION``.
        second: a fault in the recovery from the first; empty for none.
    """

    journey: str
    fault: str
    second: str = ""

    @property
    def name(self) -> str:
        """The case's name, of which there is one."""
        return " ".join(filter(None, (self.journey, self.fault, self.second and f"then {self.second}")))

    @property
    def points(self) -> list[str]:
        """The points of its faults, in order."""
        return [each.partition("=")[0] for each in (self.fault, self.second) if each]


@dataclass
class Verdict:
    """What came of a case.

    Args:
        end: the job's state, ``nothing`` if there is none, or ``repeated`` for a command that has no job.
        violations: what is wrong, a line each; empty if nothing is.
        resumes: how many commands it took after the broken one.
        recovery: the points that the recovery passed.
        log: what each command said.
    """

    case: str
    end: str = ""
    violations: list[str] = field(default_factory=list)
    resumes: int = 0
    seconds: float = 0.0
    recovery: list[str] = field(default_factory=list)
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


class Trial:
    """One case in a world of its own."""

    def __init__(self, bench: Bench, journey: Journey, case: Case) -> None:
        self.bench = bench
        self.journey = journey
        self.case = case
        self.verdict = Verdict(case.name)
        self.world: World
        self._effect_begun = False
        self._again, self._ended = "", math.inf

    def run(self) -> Verdict:
        """Break, recover, judge."""
        begun = time.monotonic()
        self.world = self.bench.world(f"case-{os.getpid()}", self.journey.start, self.journey.variant)
        self._begun = time.time()
        try:
            self._break()
            self._judge()
        finally:
            self.world.remove()
        self.verdict.seconds = round(time.monotonic() - begun, 3)
        return self.verdict

    # -- the fault, and the recovery -------------------------------------------------------------------------

    def _break(self) -> None:
        point, _, action = self.case.fault.partition("=")
        stopping = action == "stop"
        # Half of those that are stopped are of a host that nobody here can look into: then the operator says that it
        # is fenced off, and it wakes up later. The others are ended by the one who takes over.
        unseen = stopping and zlib.crc32(self.case.name.encode()) % 2 == 0
        if stopping:
            self.world.lease, self.world.away = SHORT_LEASE, unseen
        for command in self.journey.before:
            done = self._say(command.words, command.faults, self.world.run(command.words, command.faults))
            if done.code != command.ends:
                self._wrong(f"it did not begin as it should: {' '.join(command.words)} ended with {done.code}")
                return
        broken = self.journey.broken
        armed = (*broken.faults, self.case.fault)
        child = self.world.begin(broken.words, armed)
        done = self._stopped(child) if stopping else self.world.wait(child)
        self._say(broken.words, armed, done)
        if point not in done.passed:
            self._wrong(f"{point} was not passed")
        else:
            until = done.passed[: done.passed.index(point) + 1]
            self._effect_begun = any(map(EFFECT.match, until))
        self._look()
        stopped = stopping and done.code is None
        if stopped:
            time.sleep(SHORT_LEASE)
        self.world.away = False
        if self.case.second:
            self._recover(self.case.second, fenced=unseen)
            self._look()
        self._recover(fenced=unseen)
        if action in LINGERING and not point.startswith("commit.job"):
            self._use_again()
        if stopped:
            self._wake(child, unseen=unseen)

    def _wake(self, child: Child, *, unseen: bool) -> None:
        """Let what was stopped go on."""
        taken = self.verdict.resumes > 0 and self._job()[0] != "nothing" and "commit.job" not in self.case.fault
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)
        done = self._say(self.journey.broken.words, ("woken",), self.world.wait(child))
        if taken and not unseen and done.code != KILLED:
            self._wrong(f"the runner that was taken over from was not ended: {done.code}")

    def _use_again(self) -> None:
        """Detach what is attached, attach what is not: nothing that comes late, or wakes up, may spoil that."""
        variant = self.journey.variant
        now = self._end_of(self._job()[0])
        if now in ("attached", "adopted") and variant.server != "paused1":  # a paused guest lets nothing go
            words, self._again = variant.detach, "fresh"
        elif now == "fresh":
            words, self._again = variant.attach, "attached"
        else:
            return
        self._ended = time.time()
        done = self._say(words, (), self.world.run(words))
        if done.code != 0:
            self._wrong(f"the volume cannot be used again: {words[0]} ended with {done.code}")

    def _end_of(self, state: str) -> str:
        """Return the kind of world that a job leaves when it ends so; empty if it is blocked."""
        if state == "blocked":
            return ""
        return self.journey.start if state in ("rolled-back", "nothing") else self.journey.done

    def _stopped(self, child: Child) -> Outcome:
        done = self.world.wait_stopped(child)
        return done or Outcome(None, "", tuple(child.passed.read_text().split()))

    def _recover(self, second: str = "", *, fenced: bool = False) -> None:
        """Bring what is open to its end, by one command."""
        armed = (second,) if second else ()
        words = self.journey.broken.words
        if self.journey.kind:
            state, code = self._job()
            if state in ENDS:
                self._fits(state, code)
            if state in ENDS and state != "blocked":
                return
            if state != "nothing":
                words = (*self.journey.recovery, *(("--fenced",) if fenced else ()))
                done = self.world.run(words, armed)
                if done.code == CONFLICT and self.journey.recovery == ABORT:  # past its pivot
                    self._say(words, armed, done)
                    words = RESUME
                    done = self.world.run(words, armed)
            else:
                done = self.world.run(words, armed)
        else:
            done = self.world.run(words, armed)
        self.verdict.resumes += 1
        self.verdict.recovery += done.passed
        self._say(words, armed, done)
        if not second and done.code not in ((0, 3, 4) if self.journey.kind else (0,)):
            self._wrong(f"the recovery ended with {done.code}")

    def _job(self) -> tuple[str, int | None]:
        """Return state and exit code of the job; of two, since one was stopped before it had its own, the done one."""
        path = self.world.ledger
        if not path.exists():
            return "nothing", None
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            if not database.execute("SELECT name FROM sqlite_master WHERE name = 'tether_jobs'").fetchall():
                return "nothing", None
            rows = database.execute(
                "SELECT state, exit_code FROM tether_jobs WHERE kind = ? AND created_at BETWEEN ? AND ?"
                " ORDER BY exit_code = 0, created_at",
                (self.journey.kind, self._begun, self._ended),
            ).fetchall()
        return (str(rows[-1][0]), rows[-1][1]) if rows else ("nothing", None)

    def _fits(self, state: str, code: int | None) -> None:
        if code != ENDS[state]:
            self._wrong(f"a job that is {state} has exit code {code}")

    # -- the verdict -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See that at this moment nothing is cut off below one who may use it."""
        known = self.bench.danger(self.journey.start, self.journey.variant)
        self.verdict.violations += [line for line in self.world.danger() if line not in known]

    def _judge(self) -> None:
        self.world.settle()
        self._look()
        if not self.journey.kind:
            self.verdict.end = "repeated"
            self._compare(self.journey.done)
            return
        state, code = self._job()
        self.verdict.end = state
        if state not in (*ENDS, "nothing"):
            self._wrong(f"the job is {state}")
        elif state == "blocked":
            if self.journey.variant.has_owner or not any(each in self.verdict.log for each in NOBODYS):
                self._wrong("it is blocked, although everything answers")
        else:
            if state != "nothing":
                self._fits(state, code)
            if state == "rolled-back" and self._goes_forward():
                self._wrong("it was rolled back, although what it had done could be found")
            self._compare(self._again or self._end_of(state))
            back = not self._again and state in ("rolled-back", "nothing")
            if back and self.world.identities() != self.bench.identities(self.journey.start, self.journey.variant):
                self._wrong("the mapping names another job, attachment or owner than before")

    def _goes_forward(self) -> bool:
        """Return True if nothing was refused: what was cut off or lost is then looked for, and gone on from.

        Not where only reads came before: then there is nothing to find, and a job may as well end.
        """
        point, _, action = self.case.fault.partition("=")
        if not self._effect_begun:
            return False
        if self.journey.variant.several and "attach-all" not in point:
            return False  # what lasts befalls the other part too, and may be a refusal where that one is
        forward = self.journey.phase in ("execute", "resume") and not self.journey.undoing and ".undo." not in point
        return forward and action in FOUND and not self.case.second

    def _compare(self, kind: str) -> None:
        """Hold the books against those of a world in which nothing went wrong."""
        variant = self.journey.variant
        expected = self.bench.books("fresh" if kind == "bare" else kind, variant)
        found = self.world.books()
        self.verdict.violations += [
            line for line in judge.diff(expected, found) if not self.world.is_residue(line, self.verdict.end)
        ]

    def _wrong(self, text: str) -> None:
        self.verdict.violations.append(text)

    def _say(self, words: Sequence[str], armed: Sequence[str], done: Outcome) -> Outcome:
        with_faults = "".join(f" --fault {each}" for each in armed)
        self.verdict.log += f"$ tether{with_faults} {' '.join(words)}\n{done.said}[exit code {done.code}]\n"
        return done
