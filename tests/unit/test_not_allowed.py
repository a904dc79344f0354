"""Files that this user may not touch are a wrong setting, not a fault of tether."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tether import settings
from tether.errors import ConfigError
from tether.sim import script, world
from tether.sim.store import Store

NOBODY = 65534


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory with a world and a configuration file, that the test may not even look into."""
    directory = tmp_path / "closed"
    world.create(directory / "world")
    (directory / "tether.conf").touch()
    settings.load(str(directory / "tether.conf"))  # what it imports may lie where only root looks
    world.contents(directory / "world")
    directory.chmod(0)
    root = os.geteuid() == 0
    if root:  # to whom everything is allowed
        os.seteuid(NOBODY)
    yield directory
    if root:
        os.seteuid(0)
    directory.chmod(0o700)


ASKED: dict[str, Callable[[Path], object]] = {
    "show a world": lambda closed: world.contents(closed / "world"),
    "use a world": lambda closed: world.ensure(closed / "world"),
    "make a world": lambda closed: world.create(closed / "new"),
    "script a failure": lambda closed: script.add(Store(closed / "world"), script.Scripted("guest.mark", "fail")),
    "read the settings": lambda closed: settings.load(str(closed / "tether.conf")),
}


@pytest.mark.parametrize("what", ASKED)
def test_it_is_refused_with_a_hint(closed: Path, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ASKED[what](closed)
    assert str(closed) in refused.value.message
    assert refused.value.hint
