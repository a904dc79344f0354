"""What was attached by hand on real parts is adopted and detached: the guest's own view, and equal books."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.commands import DONE, KILLED, ROLLED_BACK
from tests.live.conftest import Live
from tests.live.test_attach import GUEST, marks, write_in_guest
from tests.live.world.layout import INITIATOR

NewVolume = Callable[..., str]
SECRET = """<secret ephemeral='no' private='yes'><uuid>{uuid}</uuid>
<usage type='iscsi'><target>by hand {volume}</target></usage></secret>"""
DISK = """<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>
<source protocol='iscsi' name='{iqn}/{lun}'><host name='{host}' port='{port}'/>
<initiator><iqn name='{initiator}'/></initiator>
<auth username='{user}'><secret type='iscsi' usage='by hand {volume}'/></auth></source>
<target dev='vdq' bus='virtio'/>{serial}</disk>"""
UUID = "5ec4e700-0000-4000-8000-000000000001"


class ByHand:
    """Attaches with Cinder's client and virsh."""

    def __init__(self, live: Live, volume_id: str, tmp_path: Any) -> None:
        self.live, self.volume_id, self.directory = live, volume_id, tmp_path

    def in_cinder(self) -> dict[str, Any]:
        """Attach it to this host; return how it is reached."""
        attachments = self.live.cinder.attachments
        row = attachments.create(self.volume_id, None)["id"]
        connector = {"host": "byhand", "ip": "127.0.0.1", "initiator": INITIATOR, "multipath": False}
        info = attachments.update(row, connector).to_dict()["connection_info"]
        attachments.complete(row)
        return dict(info)

    def plug(self, info: dict[str, Any], *options: str, serial: bool = True) -> None:
        host, port = info["target_portal"].rsplit(":", 1)
        element = DISK.format(
            iqn=info["target_iqn"],
            lun=info["target_lun"],
            host=host,
            port=port,
            initiator=INITIATOR,
            user=info["auth_username"],
            volume=self.volume_id,
            serial=f"<serial>{self.volume_id}</serial>" if serial else "",
        )
        (self.directory / "secret.xml").write_text(SECRET.format(uuid=UUID, volume=self.volume_id))
        (self.directory / "disk.xml").write_text(element)
        (self.directory / "password").write_text(info["auth_password"])
        self.live.virsh("secret-define", str(self.directory / "secret.xml"))
        self.live.virsh("secret-set-value", UUID, "--file", str(self.directory / "password"), "--plain")
        for option in options:
            self.live.virsh("attach-device", GUEST, str(self.directory / "disk.xml"), option)

    def tidy(self) -> None:
        for option in ("--live", "--config"):
            if re.search(r"\bvdq\b", self.live.virsh("domblklist", GUEST, *(["--inactive"] * (option == "--config")))):
                self.live.virsh("detach-disk", GUEST, "vdq", option)
        if UUID in self.live.virsh("secret-list"):
            self.live.virsh("secret-undefine", UUID)


@pytest.fixture
def by_hand(live: Live, new_volume: NewVolume, tmp_path: Any):
    hand = ByHand(live, new_volume(), tmp_path)
    yield hand
    hand.tidy()


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "no-serial"])
def test_what_was_attached_by_hand(live: Live, by_hand: ByHand, serial: bool) -> None:
    volume_id = by_hand.volume_id
    before = live.judge.snapshot()
    by_hand.plug(by_hand.in_cinder(), "--live", "--config", serial=serial)
    hand = live.judge.snapshot()
    done = live.tether("adopt", volume_id, GUEST, "-f", "json")
    assert done.code == DONE, done.err
    job = json.loads(done.out)
    assert (job["state"], job["device"]) == ("attached", "vdq")
    adopted = live.judge.snapshot()
    for book in ("cinder", "tgt"):
        assert adopted[book] == hand[book]
    for persistent in (False, True):
        assert job["job"] in marks(live, GUEST, persistent=persistent)
        assert 'target="vdq"' in marks(live, GUEST, persistent=persistent)
    if serial:
        write_in_guest(live, GUEST, volume_id)
    done = live.tether("detach", volume_id, GUEST)
    assert done.code == DONE, done.err
    live.consoles[GUEST].wait_until_gone(volume_id)
    live.virsh("secret-undefine", UUID)  # it was made by hand, and is left to the hand
    live.assert_books(before)


def test_half_of_it_is_refused(live: Live, by_hand: ByHand) -> None:
    by_hand.plug(by_hand.in_cinder(), "--config")
    before = live.judge.snapshot()
    done = live.tether("adopt", by_hand.volume_id, GUEST)
    assert done.code == ROLLED_BACK
    assert "vdq of server guest1 is in its persistent definition alone: a persistent-only disk" in done.err
    live.assert_books(before)


def test_an_adoption_that_was_killed_is_resumed(live: Live, by_hand: ByHand) -> None:
    before = live.judge.snapshot()
    by_hand.plug(by_hand.in_cinder(), "--live", "--config")
    killed = live.tether("--fault", "adopt-disk.act.after=kill", "adopt", by_hand.volume_id, GUEST)
    assert killed.code == KILLED
    assert live.tether("job", "resume", "--last").code == DONE
    assert live.tether("detach", by_hand.volume_id, GUEST).code == DONE
    live.virsh("secret-undefine", UUID)
    live.assert_books(before)


def test_the_ledger_is_lost(live: Live, new_volume: NewVolume, tmp_path: Any) -> None:
    """What tether has attached under a ledger that is gone is taken back by another."""
    volume_id = new_volume()
    before = live.judge.snapshot()
    lost = {"DEFAULT__database": f"sqlite:///{tmp_path / 'lost.sqlite'}"}
    assert live.tether("db", "upgrade", **lost).code == DONE
    assert live.tether("attach", volume_id, GUEST, **lost).code == DONE
    done = live.tether("adopt", volume_id, GUEST)
    assert done.code == DONE, done.err
    write_in_guest(live, GUEST, volume_id)
    done = live.tether("detach", volume_id, GUEST)
    assert done.code == DONE, done.err
    live.assert_books(before)
