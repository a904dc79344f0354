"""A real libvirt keeps the guest's contract. The disks are plain files."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.contract.guest_contract import GuestContract
from tests.live.conftest import Live
from tether.adapters.guest.disk import render
from tether.adapters.guest.libvirt_guest import LibvirtGuest, open_guest
from tether.adapters.guest.model import Power, Scope, SecretUse, Unplugged, alias_of
from tether.errors import FinalError, UncertainError
from tether.sealed import Sealed
from tether.settings import Settings


@pytest.fixture(scope="module")
def settings(live: Live) -> Settings:
    return Settings(
        libvirt_uri=live.libvirt_uri,
        libvirt_timeout=20,
        device_detach_attempts=3,
        device_detach_timeout=5,
    )


@pytest.fixture(scope="module")
def guest(settings: Settings) -> LibvirtGuest:
    return open_guest(settings)


@pytest.fixture(scope="module")
def plain(guest: LibvirtGuest, settings: Settings) -> Iterator[Any]:
    """A second connection, which is not the adapter's: the operator's hands."""
    import libvirt

    guest.identity()  # the event loop runs before any connection is made
    connection = libvirt.open(settings.libvirt_uri)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def server(live: Live, plain: Any) -> str:
    return str(plain.lookupByName(live.guests[0]).UUIDString())


@pytest.fixture(scope="module")
def stopped(live: Live, plain: Any) -> str:
    return str(plain.lookupByName(live.stopped).UUIDString())


@pytest.fixture
def image(tmp_path) -> Callable[[], str]:
    numbers = count()

    def make() -> str:
        path = tmp_path / f"disk{next(numbers)}.img"
        path.touch()
        os.truncate(path, 16 << 20)
        return str(path)

    return make


class Hands:
    """Does to a domain what an operator would."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def pause(self, uuid: str) -> None:
        self._connection.lookupByUUIDString(uuid).suspend()

    def resume(self, uuid: str) -> None:
        self._connection.lookupByUUIDString(uuid).resume()


@pytest.fixture(scope="module")
def operator(plain: Any) -> Hands:
    return Hands(plain)


class TestContract(GuestContract):
    """The whole contract."""


class TestReal:
    new_disk = GuestContract.new_disk

    def test_a_call_without_an_answer_is_uncertain(self, settings, plain):
        guest = open_guest(settings.but(libvirt_timeout=0.05))
        released = threading.Event()
        daemon = guest._daemon
        with pytest.raises(UncertainError, match="did not answer attachDeviceFlags within"):
            daemon.call("attachDeviceFlags", released.wait, 10)
        released.set()

    def test_a_dead_connection_is_replaced(self, guest, server):
        guest.show_server(server)
        before = guest._daemon.connection()
        before.close()
        assert guest.show_server(server).uuid == server
        assert guest._daemon.connection() is not before

    def test_an_unreachable_libvirtd_is_uncertain(self, settings, server):
        guest = open_guest(settings.but(libvirt_uri="qemu+unix:///system?socket=/nonexistent/libvirt-sock"))
        with pytest.raises(UncertainError) as caught:
            guest.show_server(server)
        assert "libvirtd" in caught.value.hint

    def test_several_threads_unplug_at_once(self, guest, server, new_disk):
        specs = []
        for _ in range(3):
            specs.append(new_disk(server, "virtio", taken=[vars(spec.slot) for spec in specs]))
            guest.plug(server, Scope.LIVE, render(specs[-1]))
        results = []
        threads = [
            threading.Thread(
                target=lambda spec=spec: results.append(guest.unplug(server, Scope.LIVE, alias_of(spec.volume_id)))
            )
            for spec in specs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [Unplugged.REMOVED] * 3

    def test_the_image_is_closed_when_the_disk_is_said_to_be_removed(self, guest, server, new_disk):
        spec = new_disk(server)
        guest.plug(server, Scope.LIVE, render(spec))
        assert spec.source in open_files()
        assert guest.unplug(server, Scope.LIVE, alias_of(spec.volume_id)) is Unplugged.REMOVED
        assert spec.source not in open_files()

    def test_a_missing_image_is_refused(self, guest, server, new_disk):
        spec = new_disk(server, source="/nonexistent/image")
        with pytest.raises(FinalError) as caught:
            guest.plug(server, Scope.LIVE, render(spec))
        assert "connect the volume" in caught.value.hint
        assert guest.show_server(server).live.disk(spec.volume_id) is None

    def test_an_unreachable_target_is_refused(self, guest, server, new_disk):
        use = SecretUse("iscsi", f"tether-contract-{uuid.uuid4()}")
        guest.define_secret(use, Sealed("chapsecret12"))
        spec = new_disk(
            server,
            type="network",
            protocol="iscsi",
            source="iqn.2010-10.org.openstack:volume-none/1",
            hosts=(("127.0.0.1", "1"),),
            io="",
            auth_type="iscsi",
            auth_user="user",
            auth_usage=use.usage,
        )
        try:
            with pytest.raises(FinalError) as caught:
                guest.plug(server, Scope.LIVE, render(spec))
            assert "storage network" in caught.value.hint
            assert "chapsecret12" not in str(caught.value)
        finally:
            guest.undefine_secret(use)

    def test_a_managed_save_is_seen(self, guest, plain, server):
        domain = plain.lookupByUUIDString(server)
        before = guest.show_server(server)
        assert before.power is Power.RUNNING
        domain.managedSave()
        try:
            saved = guest.show_server(server)
            assert saved.managed_save
            assert saved.live is None
            assert saved.power is Power.SHUTOFF
        finally:
            domain.create()
        deadline = time.monotonic() + 30
        while guest.show_server(server).power is not Power.RUNNING:
            assert time.monotonic() < deadline
        assert not guest.show_server(server).managed_save


def open_files() -> set[str]:
    """Return every file that a QEMU process has open."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if (process / "comm").read_text().startswith("qemu"):
                found |= {str(link.readlink()) for link in (process / "fd").iterdir()}
        except OSError:
            continue  # it has ended meanwhile, or is no process
    return found
