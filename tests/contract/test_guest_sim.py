"""The simulated libvirt keeps the contract, and does what a test scripts."""

from __future__ import annotations

import json
import threading
from itertools import count
from pathlib import Path

import pytest

from tests.contract.guest_contract import BOTH, GuestContract
from tether.adapters.guest.disk import render
from tether.adapters.guest.model import Power, Scope, SecretUse, Unplugged, alias_of
from tether.errors import FinalError, NotFound, UncertainError
from tether.sealed import Sealed
from tether.sim.domains import SEEDED, add_server, seed_guests
from tether.sim.guest import SimGuest
from tether.sim.script import Scripted, add
from tether.sim.store import Store


class ManualClock:
    """Time that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.now += seconds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    seed_guests(store)
    return store


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def guest(store: Store, clock: ManualClock) -> SimGuest:
    return SimGuest(store, clock)


@pytest.fixture
def operator(guest: SimGuest) -> SimGuest:
    return guest


@pytest.fixture
def server() -> str:
    return SEEDED["guest1"]


@pytest.fixture
def stopped() -> str:
    return SEEDED["stopped1"]


@pytest.fixture
def image():
    numbers = count()
    return lambda: f"/run/tether/volumes/image{next(numbers)}"


class TestContract(GuestContract):
    """The whole contract."""


class TestScripted:
    new_disk = GuestContract.new_disk

    @pytest.fixture
    def disk(self, server, new_disk):
        return new_disk(server, "virtio")

    def test_fail_does_nothing(self, store, guest, server, disk):
        add(store, Scripted("guest.plug_live", "fail"))
        with pytest.raises(FinalError):
            guest.plug(server, Scope.LIVE, render(disk))
        assert guest.show_server(server).live.disk(disk.volume_id) is None

    @pytest.mark.parametrize(("action", "happened"), [("timeout", False), ("lost-reply", True)])
    def test_an_uncertain_call_happens_or_not(self, store, guest, server, *, disk, action, happened):
        add(store, Scripted("guest.plug_persistent", action))
        with pytest.raises(UncertainError):
            guest.plug(server, Scope.PERSISTENT, render(disk))
        assert (guest.show_server(server).persistent.disk(disk.volume_id) is not None) is happened

    def test_late_happens_after_its_time_and_once(self, store, guest, server, disk, clock):
        add(store, Scripted("guest.plug_live", "late", seconds=5))
        with pytest.raises(UncertainError):
            guest.plug(server, Scope.LIVE, render(disk))
        assert guest.show_server(server).live.disk(disk.volume_id) is None
        clock.now += 4
        assert guest.show_server(server).live.disk(disk.volume_id) is None
        clock.now += 1
        assert guest.show_server(server).live.disk(disk.volume_id) is not None
        guest.unplug(server, Scope.LIVE, alias_of(disk.volume_id))
        assert guest.show_server(server).live.disk(disk.volume_id) is None

    def test_a_late_secret_comes_after_its_time(self, store, guest, clock):
        use = SecretUse("iscsi", "volume-1")
        add(store, Scripted("guest.define_secret", "late", seconds=5))
        with pytest.raises(UncertainError):
            guest.define_secret(use, Sealed("one"))
        assert not guest.has_secret(use)
        clock.now += 5
        assert guest.has_secret(use)

    def test_slow_takes_its_time(self, store, guest, server, clock):
        add(store, Scripted("guest.mark", "slow", seconds=7))
        guest.mark(server, Scope.LIVE, "volume-1", "job-1")
        assert clock.now == 1007
        assert guest.show_server(server).live.marks == {"volume-1": "job-1"}

    def test_a_refusal_leaves_nothing_pending(self, store, guest, server, disk):
        guest.plug(server, Scope.LIVE, render(disk))
        add(store, Scripted("guest.unplug_live", "refuse"))
        assert guest.unplug(server, Scope.LIVE, alias_of(disk.volume_id)) is Unplugged.REFUSED
        guest.reset(server)
        assert guest.show_server(server).live.disk(disk.volume_id) is not None

    def test_an_ignored_request_is_carried_out_at_the_reset(self, store, guest, server, disk):
        for scope in BOTH:
            guest.plug(server, scope, render(disk))
        add(store, Scripted("guest.unplug_live", "ignore"))
        assert guest.unplug(server, Scope.LIVE, alias_of(disk.volume_id)) is Unplugged.PENDING
        assert guest.show_server(server).live.disk(disk.volume_id) is not None
        SimGuest(store).reset(server)
        shown = guest.show_server(server)
        assert shown.live.disk(disk.volume_id) is None
        assert shown.persistent.disk(disk.volume_id) is not None

    def test_a_stop_ends_a_pending_request(self, store, guest, server, disk):
        for scope in BOTH:
            guest.plug(server, scope, render(disk))
        add(store, Scripted("guest.unplug_live", "ignore"))
        guest.unplug(server, Scope.LIVE, alias_of(disk.volume_id))
        guest.stop(server)
        assert guest.show_server(server).live is None
        guest.start(server)
        guest.reset(server)
        assert guest.show_server(server).live.disk(disk.volume_id) is not None

    @pytest.mark.parametrize(("action", "error"), [("fail", FinalError), ("timeout", UncertainError)])
    def test_reading_can_fail_too(self, store, guest, server, action, error):
        add(store, Scripted("guest.show_server", action))
        with pytest.raises(error):
            guest.show_server(server)
        assert guest.show_server(server).uuid == server


class TestDomains:
    new_disk = GuestContract.new_disk

    def test_the_seeded_servers(self, guest):
        assert {item.name: item.power for item in guest.list_servers()} == {
            "guest1": Power.RUNNING,
            "guest2": Power.RUNNING,
            "stopped1": Power.SHUTOFF,
            "paused1": Power.PAUSED,
            "nova1": Power.RUNNING,
        }

    def test_a_managed_save_brings_its_own_disks_back(self, guest, server, new_disk):
        disk = new_disk(server)
        for scope in BOTH:
            guest.plug(server, scope, render(disk))
        guest.managed_save(server)
        assert guest.show_server(server).managed_save
        assert guest.show_server(server).power is Power.SHUTOFF
        guest.unplug(server, Scope.PERSISTENT, alias_of(disk.volume_id))
        guest.start(server)
        shown = guest.show_server(server)
        assert shown.live.disk(disk.volume_id) is not None
        assert shown.persistent.disk(disk.volume_id) is None
        assert not shown.managed_save

    def test_a_start_needs_the_disks_secrets(self, guest, stopped, new_disk):
        use = SecretUse("iscsi", "volume-1")
        disk = new_disk(stopped, type="network", protocol="iscsi", auth_type="iscsi", auth_usage=use.usage, io="")
        guest.plug(stopped, Scope.PERSISTENT, render(disk))
        guest.define_secret(use, Sealed("one"))
        guest.restart_libvirtd()
        with pytest.raises(FinalError):
            guest.start(stopped)
        guest.define_secret(use, Sealed("one"))
        guest.start(stopped)
        assert guest.show_server(stopped).live.disk(disk.volume_id) is not None

    def test_a_transient_domain_ends_with_its_power(self, store, guest):
        uuid = add_server(store, "fleeting", transient=True)
        assert guest.show_server(uuid).persistent is None
        with pytest.raises(FinalError):
            guest.mark(uuid, Scope.PERSISTENT, "volume-1", "job-1")
        guest.stop(uuid)
        with pytest.raises(NotFound):
            guest.show_server(uuid)

    def test_what_others_do_is_seen(self, store, guest, server):
        nova = add_server(store, "novas", nova=True)
        assert guest.show_server(nova).live.nova
        assert not guest.show_server(server).live.nova
        guest.migrating(server, on=True)
        guest.memory_snapshot(server, "before-upgrade")
        shown = guest.show_server(server)
        assert shown.migrating
        assert shown.memory_snapshots == {"before-upgrade": ("vda", "sda")}

    def test_nothing_half_written_counts(self, store, guest, server):
        """A process killed between the XML and the state leaves a stopped domain stopped."""
        guest.stop(server)
        directory = store.directory / "guests" / server
        (directory / "live.xml").write_text("<domain/>")
        assert guest.show_server(server).live is None
        assert json.loads((directory / "state.json").read_text())["power"] == "shutoff"

    def test_reading_writes_nothing(self, store, guest, server):
        guest.show_server(server)
        directory = store.directory / "guests" / server
        before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir() if path.name != ".lock"}
        guest.show_server(server)
        guest.list_servers()
        assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir() if path.name != ".lock"} == before
