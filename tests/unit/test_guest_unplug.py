"""How a live unplug is asked for, repeated and proven: what QEMU's guests seldom do on request."""

# ruff: noqa: N802 - the fakes have libvirt's own names
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from tether.adapters.guest.libvirt_guest import LibvirtGuest
from tether.adapters.guest.model import Power, Scope, Unplugged
from tether.errors import ConfigError, FinalError, NotFound, UncertainError
from tether.settings import Settings

UUID = "9e570000-0000-4000-8000-000000000001"
ALIAS = "ua-volume-1"
DISK = f"<disk type='block'><source dev='/x'/><target dev='vdb' bus='virtio'/><alias name='{ALIAS}'/></disk>"


def error(code: int, message: str) -> libvirt.libvirtError:
    raised = libvirt.libvirtError(message)
    raised.err = (code, 10, message, 2, None, None, None, -1, -1)
    return raised


class FakeDomain:
    """A domain whose guest answers as it is told: one answer for each request."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.requests = 0
        self.there = True
        self.status = libvirt.VIR_DOMAIN_RUNNING
        self.calls: list[str] = []
        self.listeners: dict[int, tuple[Callable[..., None], Any]] = {}

    def UUIDString(self) -> str:
        return UUID

    def name(self) -> str:
        return "guest1"

    def state(self) -> list[int]:
        return [self.status, 0]

    def isPersistent(self) -> int:
        return 0

    def hasManagedSaveImage(self) -> int:
        return 0

    def listAllSnapshots(self, flags: int) -> list[Any]:
        return []

    def jobStats(self) -> dict[str, Any]:
        self.calls.append("jobStats")
        return {"type": libvirt.VIR_DOMAIN_JOB_NONE}

    def XMLDesc(self, flags: int) -> str:
        self.calls.append("XMLDesc")
        number = " id='1'" if self.status != libvirt.VIR_DOMAIN_SHUTOFF else ""
        return f"<domain type='kvm'{number}><devices>{DISK if self.there else ''}</devices></domain>"

    def detachDeviceAlias(self, alias: str, flags: int) -> None:
        assert (alias, flags) == (ALIAS, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self.requests += 1
        answer = self.answers.pop(0)
        if answer == "removed":
            self.there = False
            self._tell(libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED)
        elif answer == "silently":
            self.there = False
        elif answer == "refused":
            self._tell(libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED)
        elif answer == "stops":
            self.status = libvirt.VIR_DOMAIN_SHUTOFF
        elif answer == "gone":
            self.there = False
            raise error(libvirt.VIR_ERR_INTERNAL_ERROR, f"internal error: no device found with alias {alias}")
        elif answer == "open":
            raise error(
                libvirt.VIR_ERR_INTERNAL_ERROR,
                "internal error: unable to execute QEMU command 'device_del': "
                "Device virtio-disk1 is already in the process of unplug",
            )
        elif answer == "error":
            raise error(libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: not now")
        elif answer == "lost":
            raise error(libvirt.VIR_ERR_RPC, "connection reset")

    def _tell(self, event: int) -> None:
        listener, opaque = self.listeners[event]
        threading.Thread(target=listener, args=(None, self, ALIAS, opaque)).start()


class FakeConnection:
    def __init__(self, domain: FakeDomain) -> None:
        self.domain = domain
        self.alive = 1

    def isAlive(self) -> int:
        return self.alive

    def setKeepAlive(self, interval: int, count: int) -> int:
        return 0

    def domainEventRegisterAny(self, domain: None, event: int, listener: Any, opaque: Any) -> int:
        self.domain.listeners[event] = (listener, opaque)
        return 1

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        if uuid != UUID:
            raise error(libvirt.VIR_ERR_NO_DOMAIN, "Domain not found")
        return self.domain


class FakeLibvirt:
    """The module, with another way to open a connection."""

    def __init__(self, domain: FakeDomain) -> None:
        self.connections = [FakeConnection(domain)]
        self.domain = domain

    def __getattr__(self, name: str) -> Any:
        return getattr(libvirt, name)

    def open(self, uri: str) -> FakeConnection:
        self.connections.append(FakeConnection(self.domain))
        return self.connections[-1]


def unplug(domain: FakeDomain, *, attempts: int = 3) -> Unplugged:
    settings = Settings(device_detach_attempts=attempts, device_detach_timeout=0.1, libvirt_timeout=5)
    return LibvirtGuest(FakeLibvirt(domain), settings).unplug(UUID, Scope.LIVE, ALIAS)


@pytest.mark.parametrize(
    ("answers", "outcome", "requests"),
    [
        (["removed"], Unplugged.REMOVED, 1),
        (["silently"], Unplugged.REMOVED, 1),
        (["gone"], Unplugged.REMOVED, 1),
        (["stops"], Unplugged.REMOVED, 1),
        (["nothing", "removed"], Unplugged.REMOVED, 2),
        (["refused", "removed"], Unplugged.REMOVED, 2),
        (["lost", "removed"], Unplugged.REMOVED, 2),
        (["open", "open", "removed"], Unplugged.REMOVED, 3),
        (["nothing", "nothing", "nothing"], Unplugged.PENDING, 3),
        (["nothing", "open", "open"], Unplugged.PENDING, 3),
        (["refused", "refused", "refused"], Unplugged.REFUSED, 3),
        (["nothing", "nothing", "refused"], Unplugged.REFUSED, 3),
        (["refused", "refused", "nothing"], Unplugged.PENDING, 3),
        (["nothing", "error"], Unplugged.PENDING, 2),
    ],
)
def test_what_comes_of_the_guests_answers(answers, outcome, requests):
    domain = FakeDomain(*answers)
    assert unplug(domain) is outcome
    assert domain.requests == requests


def test_a_first_request_that_is_refused_outright_is_final():
    domain = FakeDomain("error")
    with pytest.raises(FinalError):
        unplug(domain)
    assert domain.there


def test_a_disk_that_is_not_there_is_not_asked_for():
    domain = FakeDomain()
    domain.there = False
    assert unplug(domain) is Unplugged.REMOVED
    assert domain.requests == 0


def test_a_paused_guest_is_asked_once():
    domain = FakeDomain("nothing", "nothing", "nothing")
    domain.status = libvirt.VIR_DOMAIN_PAUSED
    assert unplug(domain) is Unplugged.PENDING
    assert domain.requests == 1


def test_absence_without_the_event_waits_for_the_job_that_tears_down():
    domain = FakeDomain("silently")
    assert unplug(domain) is Unplugged.REMOVED
    assert domain.calls[-1] == "jobStats"


def test_the_job_is_waited_for_before_the_xml_is_read():
    domain = FakeDomain()
    LibvirtGuest(FakeLibvirt(domain), Settings()).show_server(UUID)
    assert domain.calls[:2] == ["jobStats", "XMLDesc"]


def test_a_domain_that_is_between_two_states_is_read_again():
    domain = FakeDomain()
    states = iter([libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_RUNNING])
    domain.state = lambda: [next(states), 0]  # type: ignore[method-assign]
    shown = LibvirtGuest(FakeLibvirt(domain), Settings()).show_server(UUID)
    assert shown.power is Power.RUNNING
    assert shown.live is not None


def test_a_domain_that_never_agrees_with_its_state_is_uncertain():
    domain = FakeDomain()
    domain.state = lambda: [libvirt.VIR_DOMAIN_SHUTOFF, 5]  # type: ignore[method-assign]
    with pytest.raises(UncertainError):
        LibvirtGuest(FakeLibvirt(domain), Settings()).show_server(UUID)


@pytest.mark.parametrize(
    ("state", "reason", "job", "migrating"),
    [
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION, {}, True),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER, {}, False),
        (libvirt.VIR_DOMAIN_RUNNING, 1, {"type": 2, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT}, True),
        (libvirt.VIR_DOMAIN_RUNNING, 1, {"type": 2, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP}, False),
        (libvirt.VIR_DOMAIN_RUNNING, 1, {"type": 0}, False),
    ],
)
def test_a_migration_is_seen(state, reason, job, migrating):
    domain = FakeDomain()
    domain.state = lambda: [state, reason]  # type: ignore[method-assign]
    domain.jobStats = lambda: job  # type: ignore[method-assign]
    assert LibvirtGuest(FakeLibvirt(domain), Settings()).show_server(UUID).migrating is migrating


@pytest.mark.parametrize(
    ("memory", "found"),
    [("<memory snapshot='internal'/>", {"s1": ("vda", "vdb")}), ("<memory snapshot='no'/>", {}), ("", {})],
)
def test_only_snapshots_with_memory_count(memory, found):
    class Snapshot:
        def getXMLDesc(self, flags: int) -> str:
            disks = "<disk><target dev='vda'/></disk><disk><target dev='vdb'/></disk>"
            return (
                f"<domainsnapshot><name>s1</name>{memory}<domain><devices>{disks}</devices></domain></domainsnapshot>"
            )

    domain = FakeDomain()
    domain.listAllSnapshots = lambda flags: [Snapshot()]  # type: ignore[method-assign]
    assert LibvirtGuest(FakeLibvirt(domain), Settings()).show_server(UUID).memory_snapshots == found


def test_a_dead_connection_is_replaced_for_a_read_and_a_change_is_not_repeated():
    domain = FakeDomain()
    module = FakeLibvirt(domain)
    guest = LibvirtGuest(module, Settings())
    guest.show_server(UUID)
    first = module.connections[-1]
    broken = []

    def fail(uuid: str) -> None:
        first.alive = 0
        broken.append(uuid)
        raise error(libvirt.VIR_ERR_RPC, "connection reset")

    first.lookupByUUIDString = fail  # type: ignore[method-assign]
    assert guest.show_server(UUID).uuid == UUID
    assert module.connections[-1] is not first
    plugs = []

    def attach(xml: str, flags: int) -> None:
        plugs.append(xml)
        module.connections[-1].alive = 0
        raise error(libvirt.VIR_ERR_RPC, "connection reset")

    domain.attachDeviceFlags = attach  # type: ignore[attr-defined]
    with pytest.raises(UncertainError):
        guest.plug(UUID, Scope.LIVE, "<disk/>")
    assert plugs == ["<disk/>"]


def test_a_live_connection_that_fails_is_not_replaced():
    module = FakeLibvirt(FakeDomain())
    guest = LibvirtGuest(module, Settings())
    with pytest.raises(NotFound):
        guest.show_server("9e570000-0000-4000-8000-000000000002")
    assert len(module.connections) == 2


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("qemu:///system", "qemu:///system"),
        ("qemu+ssh://root:secret@host/system", "qemu+ssh://host/system"),
        ("qemu+unix:///system?socket=/run/a@b", "qemu+unix:///system?socket=/run/a@b"),
    ],
)
def test_the_identity_tells_no_credentials(uri, plain):
    module = FakeLibvirt(FakeDomain())
    guest = LibvirtGuest(module, Settings())
    connection: Any = module.open(uri)
    connection.getURI = lambda: uri
    connection.getCapabilities = lambda: "<capabilities><host><uuid>u-1</uuid></host></capabilities>"
    guest._daemon._connection = connection
    assert guest.identity().uri == plain
    assert guest.identity().host_uuid == "u-1"


def test_without_libvirt_python_the_way_out_is_told(monkeypatch):
    from tether.adapters.guest.libvirt_guest import open_guest

    monkeypatch.setitem(__import__("sys").modules, "libvirt", None)
    with pytest.raises(ConfigError) as caught:
        open_guest(Settings())
    assert caught.value.hint == "pip install tether[libvirt]"
