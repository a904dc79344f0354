"""The integration tier's fixtures: worlds for the command line."""

import importlib
import sys

import pytest

from tests.crash.world import sim, template

__all__ = ["sim", "template"]

#: What commands load only when they need it; loaded here once, the forked commands need not.
LATE = (
    "cinderclient.v3.client",
    "tether.adapters.cinder.session",
    "tether.cli.plan",
    "tether.cli.work",
    "tether.runner.preview",
    "tether.runner.world",
    "tether.sim.cinder.transport",
    "tether.sim.guest",
    "tether.sim.host",
)


@pytest.fixture(scope="session", autouse=True)
def loaded() -> None:
    """Load what commands need, as ``main`` does it: without eventlet."""
    sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # None makes the import fail
    for name in LATE:
        importlib.import_module(name)
