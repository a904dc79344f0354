"""Judges a run of kills by the journal and by the database, read with the plain driver.

The rules, for each job:

* it has a verdict, and after the verdict nothing of it happens;
* attached or detached: every step's effect is there, and none was undone; rolled back: each effect was undone;
* along every edge, a step does nothing more once what needs it has begun, and undoing goes the other way round;
* what another process has seen to be durably done, or durably undone, is not done again;
* a step's intent, or its undo's, is durable before it begins;
* what a step is given is what the step before it gave;
* one process at a time: a later generation of the lease ends the earlier ones. What those had on the wire, past the
  guard before the later one did anything, may still happen;
* an effect happens again only in a later run, and only where a step cannot look for it first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.crash.effects import SHAPES, Piece, ask, connect, read
from tests.crash.lives import Killing, complaints

VERDICTS = {"attach": "attached", "detach": "detached"}
INTENT = {"act": "RUNNING", "undo": "REVERTING"}
Line = Mapping[str, Any]
Seen = Mapping[tuple[str, str], float]


@dataclass
class Judgement:
    """What a run of kills has shown."""

    jobs: Counter[str] = field(default_factory=Counter)
    flows: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A job's row, as far as it matters here."""

    id: str
    kind: str
    version: int
    state: str
    runner: str | None
    open_volume: str | None


def judge(killing: Killing) -> Judgement:
    """Judge a run that has ended."""
    result = Judgement()
    connection = connect(killing.url)
    try:
        rows = ask(connection, "SELECT id, kind, version, state, runner, open_volume FROM tether_jobs")
        flows = ask(connection, "SELECT job_id, name, state, steps FROM tether_flows")
    finally:
        connection.close()
    result.violations += [f"a worker failed: {text}" for text in complaints(killing.directory)]
    stored: dict[str, dict[str, tuple[str, str]]] = {}
    for job_id, name, state, steps in flows:
        result.flows[str(state)] += 1
        stored.setdefault(job_id, {})[name] = (state, steps)
    for values in rows:
        row = Row(*values)
        result.jobs[row.state] += 1
        path = killing.directory / row.id
        lines = read(path) if path.exists() else []
        found, duplicates = judge_job(row, lines, killing.done, killing.undone)
        found += _stored_wrongly(row, stored.get(row.id, {}))
        result.duplicates += duplicates
        result.violations += [f"{row.kind} {row.version} {row.id} ({row.state}): {text}" for text in found]
    known = {str(values[0]) for values in rows}
    result.violations += [
        f"{path.name} did something and is no job"
        for path in killing.directory.iterdir()
        if path.name not in known and not path.name.startswith("!")
    ]
    return result


def judge_job(row: Row, lines: Sequence[Line], done: Seen, undone: Seen) -> tuple[list[str], int]:
    """Return what is wrong with one job, and how many of its effects happened again as they may."""
    case = _Case(row, lines, done, undone)
    case.judge()
    return case.wrong, case.duplicates


def _stored_wrongly(row: Row, flows: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return where the stored flows of a finished job say something else than its row."""
    wrong = []
    for name, (state, steps) in flows.items():
        states = {atom["state"] for atom in json.loads(steps)}
        if row.state == VERDICTS[row.kind]:
            expected, allowed = "SUCCESS", {"SUCCESS"}
        elif row.kind == "detach" and name == "second":
            wrong.append("it was rolled back past its pivot")
            continue
        else:
            expected, allowed = "REVERTED", {"REVERTED", "PENDING"}
        if state != expected or not states <= allowed:
            wrong.append(f"flow {name} is stored as {state} with steps {sorted(states)}")
    return wrong


class _Case:
    """One job on trial."""

    def __init__(self, row: Row, lines: Sequence[Line], done: Seen, undone: Seen) -> None:
        self.row = row
        self.done = done
        self.undone = undone
        self.wrong: list[str] = []
        self.duplicates = 0
        self.pieces: Sequence[Piece] = SHAPES[row.kind, row.version]
        self.left = [line for line in lines if line["what"] == "left"]
        did = [line for line in lines if line["what"] != "left"]
        self.stale, self.lines = _split(did)
        self.all = list(lines)

    def judge(self) -> None:
        self._verdict()
        self._one_at_a_time()
        self._intents()
        self._durable()
        for piece in self.pieces:
            self._edges(piece)
            self._tokens(piece)
        self._pivot()
        self._effects()
        self._repeats()

    def _of(self, step: str, phase: str = "", what: str = "") -> list[int]:
        """Return the places of lines in the sequence."""
        return [
            place
            for place, line in enumerate(self.lines)
            if line["step"] == step and phase in ("", line["phase"]) and what in ("", line["what"])
        ]

    @property
    def _steps(self) -> list[str]:
        return [name for piece in self.pieces for name in piece.needs]

    def _verdict(self) -> None:
        good = VERDICTS[self.row.kind]
        if self.row.state not in {good, "rolled-back"} or self.row.runner or self.row.open_volume:
            self.wrong.append("it has no verdict")
        ended = [place for place, line in enumerate(self.all) if line["what"] == "left" and line["state"] in _ENDS]
        stale = [id(line) for line in self.stale]
        for line in self.all[ended[0] :] if ended else []:
            if line["what"] != "left" and id(line) not in stale:
                self.wrong.append(f"it went on after its end: {line}")
            elif line["what"] == "left" and line["state"] != self.row.state:
                self.wrong.append(f"its end changed: {line}")
        for line in self.left:
            if line.get("aborted") and line["state"] == good:
                self.wrong.append("it was aborted, and went forward to its end")

    def _one_at_a_time(self) -> None:
        owners: dict[int, int] = {}
        for line in [*self.stale, *self.lines]:
            if owners.setdefault(line["gen"], line["life"]) != line["life"]:
                self.wrong.append(f"two processes had it under one generation: {line}")
        first: dict[int, float] = {}
        for line in self.lines:
            first.setdefault(line["gen"], line["t"])
        for line in self.stale:
            later = min(since for generation, since in first.items() if generation > line["gen"])
            if line["what"] == "call" and line["guard"] > later:
                self.wrong.append(f"it acted after another had taken it over at {later}: {line}")

    def _intents(self) -> None:
        for line in self.lines:
            if line["what"] == "begin" and line["seen"] != INTENT[line["phase"]]:
                self.wrong.append(f"its intent was not durable: {line}")

    def _durable(self) -> None:
        for line in self.lines:
            key = (self.row.id, line["step"])
            if line["phase"] == "act" and line["t"] > self.done.get(key, line["t"]):
                self.wrong.append(f"it was durably done before, and done again: {line}")
            if line["t"] > self.undone.get(key, line["t"]):
                self.wrong.append(f"it was durably undone before: {line}")

    def _edges(self, piece: Piece) -> None:
        for after, needs in piece.needs.items():
            for before in needs:
                acts, undoes = self._of(after, "act"), self._of(before, "undo")
                if acts and (not self._of(before, "act", "end") or self._of(before, "act")[-1] > acts[0]):
                    self.wrong.append(f"{after} began before {before} was done, or {before} was done again")
                if undoes and self._of(after) and self._of(after)[-1] > undoes[0]:
                    self.wrong.append(f"{before} was undone before {after}")
        for step in piece.needs:
            if (
                self._of(step, "undo")
                and self._of(step, "act")
                and self._of(step, "act")[-1] > self._of(step, "undo")[0]
            ):
                self.wrong.append(f"{step} was done again after its undo")

    def _tokens(self, piece: Piece) -> None:
        given: dict[str, str] = {}
        for line in self.lines:
            if line["what"] == "end" and line["phase"] == "act":
                given[line["step"]] = line["token"]
            if line["what"] == "begin" and line["phase"] == "act" and line["step"] in piece.needs:
                expected = {need.replace("-", "_"): given.get(need) for need in piece.needs[line["step"]]}
                if line["tokens"] != expected:
                    self.wrong.append(f"it was not given what was made, {expected}: {line}")

    def _pivot(self) -> None:
        for piece in self.pieces[1:]:
            begun = [place for step in piece.needs for place in self._of(step)]
            if not begun:
                continue
            for step in self.pieces[0].needs:
                if self._of(step) and self._of(step)[-1] > min(begun):
                    self.wrong.append(f"{step} went on past the pivot")
                if not self._of(step, "act", "end"):
                    self.wrong.append(f"{step} was not done before the pivot")

    def _effects(self) -> None:
        for step in self._steps:
            acts, undoes = self._of(step, "act", "effect"), self._of(step, "undo", "effect")
            if self.row.state == "rolled-back":
                if acts and (not undoes or undoes[-1] < acts[-1]):
                    self.wrong.append(f"the effect of {step} was left behind")
            else:
                late = any(line["step"] == step and line["what"] == "effect" for line in self.stale)
                if not acts and not late:
                    self.wrong.append(f"the effect of {step} is not there")
                if undoes:
                    self.wrong.append(f"{step} was undone")

    def _repeats(self) -> None:
        for step in self._steps:
            for phase in INTENT:
                places = self._of(step, phase, "effect")
                for earlier, later in pairwise(places):
                    self.duplicates += 1
                    if step.startswith("look"):
                        self.wrong.append(f"{step} could look first, and its effect was repeated: {self.lines[later]}")
                    if self.lines[earlier]["gen"] == self.lines[later]["gen"]:
                        self.wrong.append(f"the effect of {step} was repeated in one run: {self.lines[later]}")


_ENDS = {*VERDICTS.values(), "rolled-back"}


def _split(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Return the lines of runs that had been taken over by then, and the others."""
    stale, current, generation = [], [], 0
    for line in lines:
        generation = max(generation, line["gen"])
        (stale if line["gen"] < generation else current).append(line)
    return stale, current
