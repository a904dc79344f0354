"""The limits of a volume's type, changed while the guest has the volume: Cinder, libvirt, QEMU."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.live.commands import DONE
from tether.matrix.live_judge import diff


@pytest.mark.proves("iscsi", "QoS")
def test_limits_that_change_in_cinder_reach_the_attached_disk(lab: LabHost, new_volume: Callable[..., str]) -> None:
    lab.inside("limit", "total_iops_sec=500")
    volume_id = new_volume("qos")
    before = lab.books()
    done = lab.tether("attach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    device = lab.wait_for_disk(volume_id).name
    assert limits(lab, device) == {"total_iops_sec": "500"}

    lab.inside("limit", "write_iops_sec_per_gb=70", "read_bytes_sec=4096000")
    assert limits(lab, device) == {"total_iops_sec": "500"}
    done = lab.tether("qos", volume_id, lab.guest)
    assert done.code == DONE, done.err
    assert limits(lab, device) == {"write_iops_sec": "70", "read_bytes_sec": "4096000"}

    done = lab.tether("detach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []


def limits(lab: LabHost, device: str) -> dict[str, str]:
    """Return what QEMU goes by, which the persistent definition says too."""
    live, persistent = (
        {
            name: value
            for name, value in re.findall(
                r"(\w+)\s*: (\d+)", lab.run(f"virsh blkdeviotune {lab.guest} {device} --{scope}")
            )
            if value != "0" and not name.endswith("_max_length")
        }
        for scope in ("live", "config")
    )
    assert live == persistent
    return live
