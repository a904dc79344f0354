"""The judge sees what it is there to see, and calls equal only what is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.live.conftest import Live
from tests.live.world.layout import World
from tether.matrix.live_judge import Judge, diff, parse_accounts, parse_targets

pytestmark = pytest.mark.live

# what tgt 1.0.85 prints
TARGETS = """\
Target 3: iqn.2010-10.org.openstack:volume-a
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.2024-01.org.tether.live:host alias: guest1
            Connection: 0
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            Backing store path: None
        LUN: 1
            Type: disk
            Backing store path: /files/volume-a
    Account information:
        user
    ACL information:
        ALL
        iqn.2024-01.org.tether.live:host
"""


def test_targets_and_accounts_as_tgtadm_prints_them() -> None:
    assert parse_targets(TARGETS) == {
        "iqn.2010-10.org.openstack:volume-a": {
            "luns": {1: "/files/volume-a"},
            "acls": ["ALL", "iqn.2024-01.org.tether.live:host"],
            "accounts": ["user"],
            "initiators": ["iqn.2024-01.org.tether.live:host"],
        }
    }
    assert parse_targets("") == {}
    assert parse_accounts("Account list:\n    two\n    one\n") == ["one", "two"]
    with pytest.raises(ValueError, match="before any target"):
        parse_targets("something else")


def test_differences_in_readable_lines() -> None:
    before = {"a": {"b": 1, "gone": 2}, "list": ["x", "x"], "same": [1]}
    after = {"a": {"b": 3, "new": 4}, "list": ["x", "y"], "same": [1]}
    assert diff(before, after) == [
        "a.b: 1 became 3",
        "a.gone: gone: 2",
        "a.new: new: 4",
        "list: gone: 'x'",
        "list: new: 'y'",
    ]
    assert diff(before, before) == []


def test_the_ledger_without_times(tmp_path: Path) -> None:
    world = World(tmp_path)
    judge = Judge(world)
    assert judge.ledger() == []
    database = sqlite3.connect(world.ledger)
    database.execute("CREATE TABLE other (id)")
    assert judge.ledger() == []
    database.execute("CREATE TABLE tether_mappings (volume_id, state, created_at)")
    database.executemany("INSERT INTO tether_mappings VALUES (?, 'attached', 1)", [("a",), ("b",)])
    database.commit()
    database.close()
    assert judge.ledger() == [{"volume_id": "a", "state": "attached"}, {"volume_id": "b", "state": "attached"}]
    assert judge.ledger("b") == [{"volume_id": "b", "state": "attached"}]


def test_a_book_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        Judge(World(tmp_path)).cinder()


def test_marks_states_and_controllers_of_domains(live: Live) -> None:
    before = live.judge.snapshot()
    uri = "https://tether.example/jobs"
    live.virsh("metadata", "guest2", uri, "--key", "tether", "--set", "<job id='1'/>", "--live", "--config")
    live.virsh("suspend", "guest2")
    lines = [line.split(": ")[0] for line in diff(before, live.judge.snapshot())]
    assert lines == [
        "libvirt.domains.guest2.live.marks",
        "libvirt.domains.guest2.persistent.marks",
        "libvirt.domains.guest2.state",
    ]
    live.virsh("resume", "guest2")
    live.virsh("metadata", "guest2", uri, "--remove", "--live", "--config")
    assert diff(before, live.judge.snapshot()) == []
