"""What the host's steps ask of the guests before a connection is taken away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tether.adapters.cinder.model import Connection
from tether.adapters.guest.model import Power, Server
from tether.adapters.guest.xml import parse_definition
from tether.sealed import Sealed
from tether.tasks.host import sources_elsewhere

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
