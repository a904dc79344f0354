"""The integration tier's fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.world import DONE, SimWorld, sim, template
from tests.integration.books import Books, opened
from tests.integration.commands import run

__all__ = ["sim", "template"]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tether.sqlite'}"
    found: str = request.getfixturevalue("postgresql")
    return found


@pytest.fixture
def books(url: str) -> Iterator[Books]:
    """A database with tether's schema."""
    with opened(url) as found:
        yield found


@pytest.fixture
def attached(sim: SimWorld) -> SimWorld:
    """A world in which vol1 is attached to guest1."""
    done = run(sim, "attach", "vol1", "guest1")
    assert done.code == DONE, done.err
    return sim
