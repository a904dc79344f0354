"""What every tier shares: the report by tier, a PostgreSQL server, and measured bars."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests.postgresql import Server
from tests.report import TierReport, counted, read_checks
from tether.matrix.figures import bar

# As tether's main does: oslo.utils imports eventlet only to ask whether it has patched anything, and it warns.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # None makes the import fail

# A small run tries the same examples each time; the full one goes looking.
hypothesis.settings.register_profile("tether", derandomize=bool(counted(1, 0)), deadline=None)
hypothesis.settings.load_profile("tether")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tether")
    group.addoption("--checks", metavar="FILE", help="the outcome of the checks that ran before, for the table")
    group.addoption("--kills", metavar="N", type=int, help="how many random kills in all")
    group.addoption("--cuts", metavar="N", type=int, help="how many power cuts")
    group.addoption("--seed", metavar="S", type=int, help="what the random kills are drawn from")
    group.addoption("--report", metavar="FILE", help="write the figures there, as one line of JSON")


def pytest_configure(config: pytest.Config) -> None:
    plugin = TierReport(read_checks(config.getoption("--checks")), config.getoption("--report"))
    config.pluginmanager.register(plugin, "tether-tiers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the full counts have time for; pytest tells how many those are."""
    left_out = [item for item in items if counted(1, 0) and item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def kill_seed(request: pytest.FixtureRequest) -> int:
    """What the random kills are drawn from: the given seed, or a new one that the summary tells."""
    given = request.config.getoption("--seed")
    return random.SystemRandom().randrange(10**6) if given is None else int(given)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A PostgreSQL server of this session's own, on a unix socket only."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_url(postgresql_server: Server) -> str:
    """The SQLAlchemy URL of that server's maintenance database."""
    return postgresql_server.url("postgres")


@pytest.fixture
def postgresql(postgresql_server: Server) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that is this test's alone."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture
def at_most(record_property: Callable[[str, object], None]) -> Callable[[str, float, str, float], None]:
    """Assert that a measured figure keeps its limit, and report it: ``at_most(name, value, unit, limit)``."""

    def judge(name: str, value: float, unit: str, limit: float) -> None:
        record_property("bar", bar(name, round(value, 3), unit, limit, holds=value <= limit))
        assert value <= limit, f"{name}: {value:.3f} {unit}, at most {limit}"

    return judge
