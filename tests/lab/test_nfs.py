"""Volumes that are files of a share: Cinder's NFS driver, the kernel's server and client, libvirt, the guest."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.lab.test_chain import PLACE, SECTORS
from tests.lab.world.inside.services import SHARE
from tests.live.commands import DONE
from tether.matrix.live_judge import diff


@pytest.mark.proves("nfs", "attach", "detach", "shared")
def test_what_the_guest_writes_is_in_the_file_and_the_share_is_unmounted_after_the_last(
    lab: LabHost, new_volume: Callable[..., str]
) -> None:
    first, second = new_volume("nfs"), new_volume("nfs")
    before = lab.books()

    for volume_id in (first, second):
        done = lab.tether("attach", volume_id, lab.guest)
        assert done.code == DONE, done.err
        disk = lab.wait_for_disk(volume_id)
        assert disk.sectors == SECTORS
        mark = uuid.uuid4().hex
        lab.write(disk, mark, PLACE)
        path = SHARE / f"volume-{volume_id}"
        assert lab.run(f"dd if={path} bs=512 skip={PLACE} count=1 status=none").strip() == mark

    held = lab.books()
    (ours,) = set(held["host"]["mounts"]) - set(before["host"]["mounts"])
    assert set(held["host"]["links"]) >= {f"volumes/{each}" for each in (first, second)}
    assert lab.run(f"readlink /run/tether/volumes/{first}").strip() == f"{ours}/volume-{first}"
    assert held["cinder"]["volumes"][first]["status"] == "in-use"
    audit = lab.tether("audit")
    assert audit.code == DONE, audit.out

    done = lab.tether("detach", first, lab.guest)
    assert done.code == DONE, done.err
    assert ours in lab.books()["host"]["mounts"], "the other volume is a file of it, too"
    done = lab.tether("detach", second, lab.guest)
    assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []
    assert lab.disks() == []
