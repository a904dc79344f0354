"""Faults that only a host with kernel iSCSI has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.conftest import LabHost
from tether.matrix.live_judge import diff

ROLLED_BACK = 3
LOST_ADDRESS = "10.99.2.1/24 dev portal2"


@pytest.fixture
def no_iscsid(lab: LabHost) -> Iterator[Callable[[], object]]:
    """End iscsid, and keep it from being started until the returned function is called, or the test ends."""
    units = "iscsid.socket iscsid.service"

    def back() -> None:
        lab.run(f"systemctl unmask --runtime {units}; systemctl start {units}")

    lab.run(f"systemctl stop {units}; systemctl mask --runtime {units}")
    yield back
    back()


@pytest.mark.proves("iscsi", "undo")
def test_an_attach_that_cannot_log_in_leaves_nothing(
    lab: LabHost, new_volume: Callable[..., str], no_iscsid: Callable[[], object]
) -> None:
    volume_id = new_volume()
    before = lab.books()
    done = lab.tether("attach", volume_id, lab.guest, host__num_volume_scan_tries=1)
    no_iscsid()
    assert done.code == ROLLED_BACK, done.err
    assert done.last_line.startswith("next: ")
    assert diff(before, lab.books()) == []


@pytest.mark.proves("iscsi", "multipath")
def test_a_guest_goes_on_over_the_path_that_is_left(lab: LabHost, new_volume: Callable[..., str]) -> None:
    volume_id = new_volume()
    before = lab.books()
    done = lab.tether("attach", volume_id, lab.guest, host__volume_use_multipath=True)
    assert done.code == 0, done.err
    disk = lab.wait_for_disk(volume_id)

    lab.run(f"ip addr del {LOST_ADDRESS}")
    try:
        lab.write(disk, "alive")
        _wait(lab, 'multipath -ll | grep -q "failed faulty"')
        assert lab.on_volume(volume_id) == "alive"
    finally:
        lab.run(f"ip addr add {LOST_ADDRESS}")
    _wait(lab, '[ "$(multipath -ll | grep -c "active ready running")" = 2 ]')

    done = lab.tether("detach", volume_id, lab.guest, host__volume_use_multipath=True)
    assert done.code == 0, done.err
    assert diff(before, lab.books()) == []


def _wait(lab: LabHost, check: str) -> None:
    """Look every second until a line of shell succeeds in the lab, for two minutes at most."""
    lab.run(f"for try in $(seq 120); do if {check}; then exit 0; fi; sleep 1; done; multipath -ll; exit 1")
