"""The judge of the random kills is not blind: each rule is broken once, and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.crash.effects import SHAPES
from tests.crash.oracle import Row, judge_job

ROW = Row("j", "attach", 1, "attached", None, None)
TWO = Row("j", "detach", 1, "detached", None, None)
BACK = replace(ROW, state="rolled-back")
NAMES = [name for piece in SHAPES["attach", 1] for name in piece.needs]
Lines = list[dict[str, Any]]


def did(step: str, phase: str, *, gen: int = 1, life: int = 1, needs: str = "", token: str = "") -> Lines:
    """Return the lines of one call of a step."""
    token = token or f"{step}-made"
    given = {needs.replace("-", "_"): f"{needs}-made"} if needs else {}
    base = {"step": step, "phase": phase, "gen": gen, "life": life, "t": 0.0}
    intent = {"act": "RUNNING", "undo": "REVERTING"}[phase]
    return [
        base | {"what": "begin", "seen": intent, "tokens": given},
        base | {"what": "call", "guard": 0.0},
        base | {"what": "effect", "token": token},
        base | {"what": "end", "token": token},
    ]


def left(state: str, **more: Any) -> Lines:
    return [{"what": "left", "state": state, "gen": 1, "life": 1, "t": 0.0, **more}]


def timed(lines: Lines) -> Lines:
    return [
        line | {"t": float(number), "guard": line.get("guard") or number - 0.5} for number, line in enumerate(lines)
    ]


def forward(names: list[str] = NAMES) -> Lines:
    """Return the lines of a chain that was done."""
    return [
        line
        for number, name in enumerate(names)
        for line in did(name, "act", needs=names[number - 1] if number else "")
    ]


def back(count: int = 3) -> Lines:
    """Return the lines of a chain that was rolled back after some steps."""
    names = NAMES[:count]
    return forward(names) + [line for name in reversed(names) for line in did(name, "undo")]


def found(lines: Lines, row: Row = ROW, done: Any = None, undone: Any = None) -> list[str]:
    return judge_job(row, timed(lines), done or {}, undone or {})[0]


def test_what_went_well_is_no_violation() -> None:
    assert found(forward() + left("attached")) == []
    assert found(back() + left("rolled-back"), BACK) == []
    first, second = (list(piece.needs) for piece in SHAPES["detach", 1])
    assert found(forward(first) + forward(second), TWO) == []


def test_an_effect_may_be_repeated_in_flight_where_nothing_can_look() -> None:
    again = forward(NAMES[:1]) + did("blind-b", "act", needs="look-a")[:3]
    rest = [line | {"gen": 2, "life": 2} for line in forward()[4:]]
    assert judge_job(ROW, timed(again + rest), {}, {}) == ([], 1)


def test_what_was_on_the_wire_may_still_happen_after_a_takeover() -> None:
    cut = forward()[:6]
    rest = [line | {"gen": 2, "life": 2} for line in forward()[4:]]
    late = timed([*cut, *rest])
    late.insert(9, forward()[6] | {"t": 8.5})
    assert judge_job(ROW, late, {}, {})[0] == []


def second_run(lines: Lines) -> Lines:
    return [line | {"gen": 2, "life": 2} for line in lines]


BROKEN: dict[str, tuple[Callable[[], Lines], Row, str]] = {
    "no verdict": (forward, replace(ROW, state="running"), "no verdict"),
    "still held": (forward, replace(ROW, runner="{}"), "no verdict"),
    "on after the end": (lambda: forward() + left("attached") + did("look-g", "undo"), ROW, "went on after its end"),
    "another end": (lambda: back() + left("attached"), BACK, "its end changed"),
    "aborted forward": (lambda: forward() + left("attached", aborted=True), ROW, "it was aborted"),
    "two processes": (lambda: [*forward()[:-1], forward()[-1] | {"life": 2}], ROW, "two processes"),
    "intent late": (lambda: [forward()[0] | {"seen": "PENDING"}, *forward()[1:]], ROW, "intent was not durable"),
    "done again": (lambda: forward() + second_run(did("blind-b", "act", needs="look-a")), ROW, "was done again"),
    "from the start": (lambda: back() + second_run(forward()), ROW, "done again after its undo"),
    "undone out of order": (
        lambda: forward(NAMES[:2]) + did("look-a", "undo") + did("blind-b", "undo"),
        BACK,
        "look-a was undone before blind-b",
    ),
    "left behind": (lambda: back()[:-4], BACK, "the effect of look-a was left behind"),
    "lost": (lambda: forward()[:-4], ROW, "the effect of look-g is not there"),
    "undone though attached": (lambda: forward() + did("look-g", "undo"), ROW, "look-g was undone"),
    "another token": (
        lambda: did("look-a", "act", token="other") + forward()[4:],
        ROW,
        "not given what was made",
    ),
    "looked and repeated": (lambda: forward()[:3] + second_run(forward()), ROW, "could look first"),
    "repeated in one run": (
        lambda: forward()[:7] + forward()[4:],
        ROW,
        "repeated in one run",
    ),
    "past the pivot": (
        lambda: forward(["blind-a", "look-b"]) + forward(list(SHAPES["detach", 1][1].needs)),
        TWO,
        "blind-c was not done before the pivot",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule: str) -> None:
    lines, row, text = BROKEN[rule]
    assert any(text in wrong for wrong in found(lines(), row)), found(lines(), row)


def test_what_others_saw_done_is_not_done_again() -> None:
    assert found(forward(), done={("j", "blind-b"): 3.5})[0].startswith("it was durably done before")
    assert found(back(), BACK, undone={("j", "look-a"): 3.5})[0].startswith("it was durably undone before")


def test_who_acts_after_a_takeover_is_found() -> None:
    late = timed([*forward()[:6], *second_run(forward()[4:])])
    late.insert(9, forward()[5] | {"t": 8.5, "guard": 8.4})
    assert any("acted after another had taken it over" in wrong for wrong in judge_job(ROW, late, {}, {})[0])
