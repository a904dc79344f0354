"""What the host's steps ask of the guests before a connection is taken away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tether.adapters.cinder.model import Connection, Volume
from tether.adapters.guest.model import Power, Server
from tether.adapters.guest.xml import parse_definition
from tether.adapters.host.model import Device
from tether.errors import FinalError
from tether.sealed import Sealed
from tether.settings import Settings
from tether.tasks.host import GIB, LATE, VerifyDevice, sources_elsewhere

DOMAIN = "<domain><devices><disk type='file'><source file='{}'/><target dev='vda'/></disk></devices></domain>"


def definition(source: str) -> Any:
    return parse_definition(DOMAIN.format(source))


@pytest.mark.parametrize(("protocol", "sources"), [("nfs", {"/mnt/a/1", "/mnt/a/2", "/mnt/b/3"}), ("iscsi", set())])
def test_the_disks_of_every_server_are_asked_where_a_mount_is_shared(protocol: str, sources: set[str]) -> None:
    """One that runs may have been given other disks than its definition has; one that is shut off has that alone."""
    servers = [
        Server("u-1", "runs", Power.RUNNING, definition("/mnt/a/1"), definition("/mnt/a/2")),
        Server("u-2", "is-off", Power.SHUTOFF, None, definition("/mnt/b/3")),
    ]
    run = SimpleNamespace(tools=SimpleNamespace(guest=SimpleNamespace(list_servers=lambda: servers)))
    assert sources_elsewhere(cast(Any, run), Connection(protocol, Sealed({}))) == sources


class Storage:
    """A host whose volume's paths come one after another, a second apart, and the clock that tells."""

    def __init__(self, *paths: int) -> None:
        self.paths, self.now = paths, 0.0

    def find(self, volume_id: str) -> Device:
        return Device("link", "/dev/dm-1", size=GIB, paths=self.paths[min(int(self.now), len(self.paths) - 1)])

    def expected_paths(self, connection: Connection) -> int:
        return 2

    def expected_identity(self, connection: Connection) -> str:
        return ""

    def time(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def verify(storage: Storage, least: int) -> None:
    settings = Settings(volume_min_paths=least, retry_interval=1.0)
    volume = Volume("v-1", "data", "reserved", 1)
    run = SimpleNamespace(
        tools=SimpleNamespace(host=storage, clock=storage, settings=settings),
        job=SimpleNamespace(volume_id=volume.id, volume_name=volume.name),
        connection=lambda *_: Connection("iscsi", Sealed({})),
        pause=storage.pause,
    )
    step = VerifyDevice().bound(cast(Any, run))
    step.act(volume, "a-1", {}, cast(Any, None), storage.find(volume.id))


@pytest.mark.parametrize(
    ("paths", "least", "said", "waited"),
    [
        ((2,), 1, "", 0.0),
        ((2,), 4, "", 0.0),
        ((1, 1, 2), 2, "", 2.0),
        ((1,), 1, "volume data is connected over 1 of 2 paths: see multipath -ll", 0.0),
    ],
    ids=["all", "more asked for than the backend has", "late", "degraded"],
)
def test_a_volume_may_have_as_few_paths_as_the_settings_say(
    caplog: pytest.LogCaptureFixture, paths: tuple[int, ...], least: int, said: str, waited: float
) -> None:
    storage = Storage(*paths)
    verify(storage, least)
    assert caplog.text.count("\n") == bool(said)
    assert said in caplog.text
    assert storage.now == waited


def test_a_volume_over_fewer_paths_is_refused() -> None:
    storage = Storage(1)
    with pytest.raises(FinalError, match=r"over 1 of 2 paths, and .* volume_min_paths asks for 2"):
        verify(storage, 2)
    assert storage.now >= LATE
