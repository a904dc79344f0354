"""``tether repair`` on a real Cinder and a real libvirt: what others do there is put right, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.live.commands import DONE
from tests.live.conftest import Live, wait_for
from tests.live.test_attach import GUEST, attached, detach, disk_of, place, write_in_guest
from tests.live.test_audit import DRIFT, audit

NewVolume = Callable[..., str]


def live_only(live: Live, _volume_id: str, target: str) -> None:
    live.virsh("detach-disk", GUEST, target, "--config")


def persistent_only(live: Live, volume_id: str, target: str) -> None:
    live.virsh("detach-disk", GUEST, target, "--live")
    wait_for(lambda: disk_of(live, GUEST, volume_id) is None)


def detaching(live: Live, volume_id: str, _target: str) -> None:
    live.cinder.volumes.begin_detaching(volume_id)


def unplugged(live: Live, volume_id: str, target: str) -> None:
    live.virsh("detach-disk", GUEST, target, "--live", "--config")
    wait_for(lambda: disk_of(live, GUEST, volume_id) is None)


def lost(live: Live, volume_id: str, _target: str) -> None:
    """As an administrator does who takes the volume for free; the target stays, and the guest goes on writing."""
    live.cinder.volumes.reset_state(volume_id, "available", attach_status="detached")
    wait_for(lambda: live.cinder.volumes.get(volume_id).status == "available")


@pytest.mark.parametrize(
    ("wreck", "kind", "job"),
    [
        (live_only, "live-only-disk", "repair-define"),
        (persistent_only, "persistent-only-disk", "repair-define"),
        (detaching, "cinder-contradiction", "repair-complete"),
        (unplugged, "attachment-without-disk", "repair-release"),
        (lost, "disk-without-attachment", "repair-attach"),
    ],
)
def test_a_drift_is_put_right(
    live: Live, new_volume: NewVolume, wreck: Callable[[Live, str, str], None], kind: str, job: str
) -> None:
    volume_id = new_volume()
    before = live.judge.snapshot()
    device = attached(live.tether("attach", volume_id, GUEST, "-f", "json"))["device"]
    places = [place(disk_of(live, GUEST, volume_id, persistent=each)) for each in (True, False)]
    wreck(live, volume_id, device)
    code, rows, err = audit(live, volume_id)
    server = "" if wreck is detaching else GUEST  # it is the volume's
    assert (code, rows) == (DRIFT, [(kind, server, "ours")]), err

    wrecked = live.judge.snapshot()
    plan = live.tether("repair", "--volume", volume_id, "-f", "json")
    assert plan.code == DRIFT, plan.err
    assert [row["action"] for row in json.loads(plan.out)] == [job]
    live.assert_books(wrecked)

    done = live.tether("repair", "--apply", "--volume", volume_id)
    assert done.code == DONE, done.err
    assert audit(live, volume_id)[:2] == (DONE, [])
    if job != "repair-release":
        assert [place(disk_of(live, GUEST, volume_id, persistent=each)) for each in (True, False)] == places
        write_in_guest(live, GUEST, volume_id)
        detach(live, volume_id, GUEST)
    live.consoles[GUEST].wait_until_gone(volume_id)
    live.assert_books(before)
