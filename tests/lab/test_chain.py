"""The whole chain: tether, Cinder's LVM driver, LIO, open-iscsi through os-brick, multipath, libvirt, the guest."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.report import counted
from tether.matrix.live_judge import diff

PORTALS = {"10.99.1.1:3260", "10.99.2.1:3260"}
SECTORS = 2 * 1024 * 1024  # of a volume of 1 GiB
PLACE = 4096  # the sector that the guest writes


#: The two that CI runs have every word once.
CASES = [("virtio", True), ("scsi", False), ("virtio", False), ("scsi", True)]


@pytest.mark.proves("iscsi", "attach", "detach", "multipath", "CHAP")
@pytest.mark.parametrize(("bus", "multipath"), CASES[: counted(2, 4)])
def test_what_the_guest_writes_is_on_the_logical_volume_and_a_detach_leaves_nothing(
    lab: LabHost, new_volume: Callable[..., str], multipath: bool, bus: str
) -> None:
    volume_id = new_volume()
    before = lab.books()

    attached = lab.tether("attach", volume_id, lab.guest, "--bus", bus, host__volume_use_multipath=multipath)
    assert attached.code == 0, attached.err

    disk = lab.wait_for_disk(volume_id)
    assert disk.sectors == SECTORS
    mark = uuid.uuid4().hex
    lab.write(disk, mark, PLACE)
    assert lab.on_volume(volume_id, PLACE) == mark

    held = lab.books()
    (target,) = set(held["targets"]) - set(before["targets"])
    assert volume_id in target
    paths = 2 if multipath else 1
    assert held["host"]["sessions"] == [target] * paths
    assert len(held["host"]["disks"]) == paths
    assert f"volumes/{volume_id}" in held["host"]["links"]
    assert held["cinder"]["volumes"][volume_id]["status"] == "in-use"
    assert f"/run/tether/volumes/{volume_id}" in str(held["libvirt"]["domains"][lab.guest]["live"])
    listed = lab.run("multipath -ll")
    if multipath:
        assert listed.count("active ready running") == paths
        assert len(held["host"]["maps"]) == 1
        assert set(lab.run("iscsiadm -m session -P 0").replace(",", " ").split()) >= PORTALS
    else:
        assert listed == ""
        assert held["host"]["maps"] == []

    detached = lab.tether("detach", volume_id, lab.guest, host__volume_use_multipath=multipath)
    assert detached.code == 0, detached.err

    assert diff(before, lab.books()) == []
    assert [found.serial for found in lab.disks()] == []
