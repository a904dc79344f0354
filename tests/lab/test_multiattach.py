"""One volume for two guests of a host: a detach of one takes nothing away from the other."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.live.commands import DONE
from tests.report import counted
from tether.matrix.live_judge import diff

SETTINGS = {"host__volume_use_multipath": True}
ORDERS = ["idle-first", "guest1-first"]


def held(lab: LabHost) -> tuple[int, int]:
    """Return how many sessions this host has, and how many multipath maps."""
    host = lab.books()["host"]
    return len(host["sessions"]), len(host["maps"])


def let_go(lab: LabHost, volume_id: str, guest: str) -> None:
    """Detach the volume from a guest; the idle one would not hear of an unplug, and is powered off first."""
    if guest != lab.guest:
        lab.run(f"virsh destroy {guest}")
    done = lab.tether("detach", volume_id, guest, **SETTINGS)
    assert done.code == DONE, done.err


@pytest.mark.proves("iscsi", "multiattach", "multipath")
@pytest.mark.parametrize("order", ORDERS[: counted(1, 2)])
def test_the_device_stays_until_the_last_guest_has_let_it_go(
    lab: LabHost, new_volume: Callable[..., str], idle_guest: str, order: str
) -> None:
    volume_id = new_volume("multiattach")
    before = lab.books()
    for guest in (lab.guest, idle_guest):
        done = lab.tether("attach", volume_id, guest, **SETTINGS)
        assert done.code == DONE, done.err
    both = held(lab)
    mark = uuid.uuid4().hex
    disk = lab.wait_for_disk(volume_id)
    lab.write(disk, mark)

    first, last = (idle_guest, lab.guest) if order == "idle-first" else (lab.guest, idle_guest)
    let_go(lab, volume_id, first)
    assert held(lab) == both
    if last == lab.guest:
        assert lab.read(disk) == mark
    else:
        assert lab.run(f"dd if=/run/tether/volumes/{volume_id} bs=512 count=1 status=none").strip() == mark
    let_go(lab, volume_id, last)
    lab.run(f"virsh start {idle_guest}")
    assert diff(before, lab.books()) == []
