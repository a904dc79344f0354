"""Each spot where tether's books say what Nova's said: what they say there, and how it ends.

The spots are in :mod:`tests.crash.nova`, one a number of the measurement of Nova.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash import nova, nova_page
from tests.crash.beside import outcome
from tests.crash.nova import ATTACHED, CLEAN, ERRORS, HELD, KILLS, READ, SPOTS, NoSpot, SameAs
from tests.tree import ROOT

#: The legacy dialect tells nobody whose an *attaching* volume is.
MUST_BLOCK = {"K1-killed"}


@pytest.mark.parametrize("number", SPOTS)
def test_beside_nova(template: Path, number: str) -> None:
    found = outcome(number, template)
    assert found["books"] == " · ".join(nova.expected(number))
    if number in MUST_BLOCK:
        assert found["end"] == HELD
    else:
        assert found["end"] in {ATTACHED, CLEAN}
        assert found["resume"] != "blocked"
    assert found == nova.results().get(number), "run: python -m tests.crash.beside; bin/docs"


@pytest.mark.timeout(600)  # it plays what the tests above have not played yet
def test_nothing_is_inconsistent_where_nova_stays_so(
    template: Path, at_most: Callable[[str, float, str, float], None], record_property: Callable[[str, Any], None]
) -> None:
    found = {number: outcome(number, template) for number in SPOTS}
    record_property("beside_nova", nova_page.summary(found))
    kills, errors = nova_page.count(found, KILLS), nova_page.count(found, ERRORS)
    at_most("inconsistent of Nova's kill points", kills.inconsistent, f"of {kills.spots}", 0)
    at_most("blocked of Nova's kill points", kills.blocked, f"of {kills.spots}", 0)
    at_most("inconsistent of Nova's exceptions", errors.inconsistent, f"of {errors.spots}", 0)


def test_every_number_of_nova_has_a_spot_or_a_reason() -> None:
    tables = nova.tables()
    measured = [
        [nova.numbered(row)[0] for row in tables[f"{name}, measured"]] for name in ("Kill points", "Exceptions")
    ]
    assert [list(KILLS), list(ERRORS)] == measured
    read = [row[0] for name in ("Exceptions", "Nova Kilo", "Cinder") for row in tables[f"{name}, read in the code"]]
    known = {re.sub(r"[a-z]$|-.*", "", number) for number in {**ERRORS, **READ}}
    assert set(read) <= known
    crashes = [row[0] for row in tables["Crash points, read in the code"]]
    assert [name for row in crashes for name in nova.CRASHES if nova.crash(row) == name] == list(nova.CRASHES)
    for row in crashes:
        where = nova.CRASHES[nova.crash(row)]
        if isinstance(where, SameAs):
            assert set(where.numbers.split(", ")) <= set(KILLS)
        elif not isinstance(where, NoSpot):
            assert where in SPOTS


def test_the_counts_of_nova_are_those_of_its_measurement() -> None:
    assert nova_page.nova_counts() == {"kills": (20, 23), "kills after a hard reboot": (19, 23), "exceptions": (10, 15)}


def test_readme_says_the_counts() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    kills, errors = nova_page.count(nova.results(), KILLS), nova_page.count(nova.results(), ERRORS)
    stay, points = nova_page.nova_counts()["kills"]
    wrong, struck = nova_page.nova_counts()["exceptions"]
    assert f"at {stay} of {points} points at which it was killed, and after {wrong} of {struck} exceptions" in text
    assert f"at {kills.inconsistent} of {kills.spots}, with none blocked" in text
    assert f"and after {errors.inconsistent} of {errors.spots}, once" in text
    assert kills.blocked == 0


def test_an_end_that_is_neither_is_counted_as_inconsistent() -> None:
    found = {number: dict(each) for number, each in nova.results().items()}
    found["S9"]["end"] = "inconsistent: /host"
    found["D4"]["end"] = HELD
    assert nova_page.count(found, KILLS) == nova_page.Count(23, 1, 1)
    assert "tether 1 of 23, 1 blocked" in nova_page.summary(found)[0]
