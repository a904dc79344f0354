"""The kinds of drift: each has its case, its words, and nothing is found where nothing was read."""

from __future__ import annotations

import pytest

from tests.integration.drifts import DRIFTS
from tests.tree import ROOT
from tether.audit.drift import Kind
from tether.audit.kinds import judge
from tether.audit.survey import Survey, seconds


def test_every_kind_has_a_case() -> None:
    assert set(DRIFTS) == set(Kind)


def test_every_kind_is_explained_in_the_documents() -> None:
    text = (ROOT / "docs/audit.md").read_text()
    assert [kind for kind in Kind if f"\n### {kind}\n" not in text] == []


def test_nothing_is_found_where_nothing_was_read() -> None:
    assert judge(Survey(0.0, None, None, None, None, None, "/run/tether")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("1970-01-01T00:01:00.000000", 60.0), ("1970-01-01T00:01:00", 60.0), ("", None), ("yesterday", None)],
)
def test_cinders_times(text: str, found: float | None) -> None:
    assert seconds(text) == found
