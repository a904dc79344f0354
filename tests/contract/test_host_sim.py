"""The host contract on the embedded world, and what only that world can do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from tether.adapters.cinder.model import Connection, Encryption
from tether.adapters.host.model import Header
from tether.errors import FinalError, NotFound, TetherError, UncertainError
from tether.sealed import Sealed
from tether.sim import script
from tether.sim.host import SimHost, seed_host
from tether.sim.keys import SimKeys
from tether.sim.store import Store

from .host_contract import GIB, LUKS, PASSPHRASE, Exported, Grow, HostContract, NoFlush, Unexport

PASSWORD = "chap-Secret-12"


class ManualClock:
    """A clock that only moves when told, and by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.now += seconds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    seed_host(made)
    with made.change("cinder") as book:
        book.update(volumes={}, exports={}, keys={LUKS.key_id: PASSPHRASE.open()})
    return made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def host(store: Store, clock: ManualClock) -> SimHost:
    return SimHost(store, clock)


@pytest.fixture
def exported(store: Store) -> Exported:
    def make(**extra: Any) -> tuple[str, Connection]:
        volume_id = str(uuid.uuid4())
        iqn = f"iqn.2010-10.org.openstack:volume-{volume_id}"
        login = {"auth_username": "user", "auth_password": PASSWORD}
        with store.change("cinder") as book:
            book["volumes"][volume_id] = {"size": 1, **extra}
            book["exports"][volume_id] = {"target_iqn": iqn, **login}
        data = {"target_iqn": iqn, "target_portal": "127.0.0.1:3260", "target_lun": 1, "auth_method": "CHAP", **login}
        return volume_id, Connection(protocol="iscsi", data=Sealed(data), auth=True)

    return make


@pytest.fixture
def grow(store: Store) -> Grow:
    def make(volume_id: str, size: int) -> None:
        with store.change("cinder") as book:
            book["volumes"][volume_id]["size"] = size // GIB

    return make


@pytest.fixture
def blank(exported: Any) -> Exported:
    return lambda: exported(content="blank")


@pytest.fixture
def unexport(store: Store) -> Unexport:
    def remove(volume_id: str) -> None:
        with store.change("cinder") as book:
            del book["exports"][volume_id]

    return remove


@pytest.fixture
def no_flush(store: Store) -> NoFlush:
    return lambda: scripted(store, "disconnect", "no-flush", times=-1)


class TestSimHost(HostContract):
    """The contract."""


def scripted(store: Store, verb: str, action: str, **extra: Any) -> None:
    script.add(store, script.Scripted(f"host.{verb}", action, **extra))


def test_wrong_chap_password_is_final(host: SimHost, exported: Exported) -> None:
    volume_id, connection = exported()
    wrong = Connection(protocol="iscsi", data=Sealed({**connection.data.open(), "auth_password": "wrong-one"}))
    with pytest.raises(FinalError, match="authorization") as caught:
        host.connect(volume_id, wrong)
    assert "wrong-one" not in str(caught.value)
    assert host.residue(volume_id, connection) == []


def test_a_wrong_device_is_shown_as_it_is(host: SimHost, exported: Any) -> None:
    volume_id, connection = exported(device_size=512, identity="naa.6001405ABC", identities_differ=True)
    device = host.connect(volume_id, connection)
    assert (device.size, device.identity, device.identities_differ) == (512, "6001405abc", True)


def test_the_data_of_another_volume_give_its_device(host: SimHost, exported: Any) -> None:
    volume_id, _ = exported()
    other_id, other = exported(device_size=2 * GIB)
    assert host.connect(volume_id, other).size == 2 * GIB
    assert host.connect(volume_id, other).identity == host.connect(other_id, other).identity


def test_a_running_guest_holds_the_device_open(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    link = host.connect(volume_id, connection).link
    guest = store.directory / "guests" / "9d1c"
    guest.mkdir(parents=True)
    (guest / "live.xml").write_text(f"<domain><source dev='{link}'/></domain>")
    device = host.find(volume_id)
    assert device is not None
    assert device.open_count == 1
    scripted(store, "disconnect", "no-flush", times=2, skip=1)
    for force in (False, False, True):
        with pytest.raises(FinalError, match="open"):
            host.disconnect(volume_id, connection, force=force)
        assert host.find(volume_id) == device
    (guest / "live.xml").unlink()
    host.disconnect(volume_id, connection)
    assert host.residue(volume_id, connection) == []


def test_fail_has_no_effect(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "fail")
    with pytest.raises(FinalError, match=volume_id):
        host.connect(volume_id, connection)
    assert host.residue(volume_id, connection) == []
    assert host.connect(volume_id, connection)


def test_timeout_has_no_effect(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "timeout")
    with pytest.raises(UncertainError):
        host.connect(volume_id, connection)
    assert host.find(volume_id) is None


def test_lost_reply_has_the_effect(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "lost-reply")
    with pytest.raises(UncertainError):
        host.connect(volume_id, connection)
    assert host.find(volume_id) is not None


def test_find_can_fail(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, _ = exported()
    scripted(store, "find", "timeout")
    with pytest.raises(UncertainError):
        host.find(volume_id)


def test_late_connect_comes_when_it_is_due(host: SimHost, exported: Exported, store: Store, clock: ManualClock) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "late", seconds=5.0)
    with pytest.raises(UncertainError):
        host.connect(volume_id, connection)
    assert host.find(volume_id) is None
    assert PASSWORD not in (store.directory / "host.json").read_text()
    clock.now += 5.0
    assert SimHost(store, clock).find(volume_id) is not None
    assert store.read("host")["pending"] == []


def test_late_connect_to_a_target_that_is_gone_by_then(
    host: SimHost, exported: Exported, unexport: Unexport, store: Store, clock: ManualClock
) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "late", seconds=5.0)
    with pytest.raises(UncertainError):
        host.connect(volume_id, connection)
    unexport(volume_id)
    clock.now += 5.0
    assert host.residue(volume_id, connection) == []


def test_late_connect_with_a_wrong_password_never_comes(
    host: SimHost, exported: Exported, store: Store, clock: ManualClock
) -> None:
    volume_id, connection = exported()
    wrong = Connection(protocol="iscsi", data=Sealed({**connection.data.open(), "auth_password": "wrong-one"}))
    scripted(store, "connect", "late", seconds=5.0)
    with pytest.raises(UncertainError):
        host.connect(volume_id, wrong)
    clock.now += 5.0
    assert host.residue(volume_id, connection) == []


@pytest.mark.parametrize("verb", ["disconnect", "open_encryption", "close_encryption"])
def test_late_effects_come_when_they_are_due(
    verb: str, host: SimHost, exported: Exported, store: Store, clock: ManualClock
) -> None:
    volume_id, connection = exported()
    host.connect(volume_id, connection)
    if verb == "close_encryption":
        host.open_encryption(volume_id, LUKS, PASSPHRASE)
    before = host.find(volume_id)
    scripted(store, verb, "late", seconds=5.0)
    call = {
        "disconnect": lambda: host.disconnect(volume_id, connection),
        "open_encryption": lambda: host.open_encryption(volume_id, LUKS, PASSPHRASE),
        "close_encryption": lambda: host.close_encryption(volume_id),
    }[verb]
    with pytest.raises(UncertainError):
        call()
    assert host.find(volume_id) == before
    assert PASSPHRASE.open() not in (store.directory / "host.json").read_text()
    clock.now += 5.0
    assert host.find(volume_id) != before
    assert host.encryption_open(volume_id) == (verb == "open_encryption")


def test_slow_takes_its_time(host: SimHost, exported: Exported, store: Store, clock: ManualClock) -> None:
    volume_id, connection = exported()
    scripted(store, "connect", "slow", seconds=7.0)
    assert host.connect(volume_id, connection)
    assert clock.now == 1007.0


def test_no_secret_reaches_the_book(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    host.connect(volume_id, connection)
    host.open_encryption(volume_id, LUKS, PASSPHRASE)
    text = (store.directory / "host.json").read_text()
    assert PASSWORD not in text
    assert PASSPHRASE.open() not in text


def test_seed_keeps_what_is_there(store: Store, host: SimHost, exported: Exported) -> None:
    volume_id, connection = exported()
    host.connect(volume_id, connection)
    before = store.read("host")
    seed_host(store, name="other")
    assert store.read("host") == before


def test_keys(store: Store) -> None:
    assert SimKeys(store).passphrase(LUKS) == PASSPHRASE
    with pytest.raises(NotFound) as caught:
        SimKeys(store).passphrase(Encryption(provider="luks", key_id="none"))
    assert isinstance(caught.value, TetherError)
    assert caught.value.hint


CHURN = """
import sys
from pathlib import Path
from tether.adapters.cinder.model import Connection
from tether.sealed import Sealed
from tether.sim.host import SimHost
from tether.sim.store import Store
host = SimHost(Store(Path(sys.argv[1])))
connection = Connection(protocol="iscsi", data=Sealed({
    "target_iqn": sys.argv[3], "target_portal": "127.0.0.1:3260", "auth_username": "user", "auth_password": sys.argv[4],
}))
while True:
    host.connect(sys.argv[2], connection)
    print("connected", flush=True)
    host.disconnect(sys.argv[2], connection)
"""


def test_a_killed_runner_leaves_whole_books(host: SimHost, exported: Exported, store: Store) -> None:
    volume_id, connection = exported()
    iqn = str(connection.data.open()["target_iqn"])
    for cycles in range(1, 9):
        with subprocess.Popen(
            [sys.executable, "-c", CHURN, str(store.directory), volume_id, iqn, PASSWORD],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ) as child:
            assert child.stdout is not None
            assert [child.stdout.readline() for _ in range(cycles)] == [b"connected\n"] * cycles
            child.stdout.close()
            child.send_signal(signal.SIGKILL)
        left = host.residue(volume_id, connection)
        assert len(left) in (0, 4)  # all of it or nothing: session, node record, disk, link
        assert (host.find(volume_id) is None) == (left == [])


def test_a_device_that_cannot_be_read_is_neither_blank_nor_luks(host: SimHost, exported: Any) -> None:
    volume_id, connection = exported(content="unreadable")
    host.connect(volume_id, connection)
    calls = (
        lambda: host.read_header(volume_id),
        lambda: host.format_encryption(volume_id, LUKS, PASSPHRASE),
        lambda: host.open_encryption(volume_id, LUKS, PASSPHRASE),
    )
    for call in calls:
        with pytest.raises(UncertainError, match="cannot be read"):
            call()
    assert not host.encryption_open(volume_id)


def test_a_helper_that_is_killed_amid_a_format_leaves_half_a_header(
    host: SimHost, exported: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume_id, connection = exported(content="blank")
    host.connect(volume_id, connection)
    killed = script.Scripted("host.format_encryption", "kill-helper")
    monkeypatch.setattr(script, "take", lambda _store, call: killed if call == killed.call else None)
    with pytest.raises(UncertainError):
        host.format_encryption(volume_id, LUKS, PASSPHRASE)
    monkeypatch.undo()
    assert host.read_header(volume_id) is Header.HALF
    host.format_encryption(volume_id, LUKS, PASSPHRASE)
    assert host.open_encryption(volume_id, LUKS, PASSPHRASE)


def test_a_late_format_comes_when_it_is_due(host: SimHost, exported: Any, store: Store, clock: ManualClock) -> None:
    volume_id, connection = exported(content="blank")
    host.connect(volume_id, connection)
    scripted(store, "format_encryption", "late", seconds=5.0)
    with pytest.raises(UncertainError):
        host.format_encryption(volume_id, LUKS, PASSPHRASE)
    assert host.read_header(volume_id) is Header.BLANK
    clock.now += 5.0
    assert host.read_header(volume_id) is Header.LUKS
