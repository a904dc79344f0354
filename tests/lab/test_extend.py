"""A volume grows while the guest has it: the logical volume, every path, the map, and what the guest sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.lab.test_chain import SECTORS
from tests.live.commands import DONE
from tests.report import counted
from tether.matrix.live_judge import diff

MULTIPATH = [True, False]
NEW_SIZE = 2  # GiB


@pytest.mark.proves("iscsi", "extend")
@pytest.mark.parametrize("multipath", MULTIPATH[: counted(1, 2)])
def test_the_guest_sees_and_writes_what_was_added(
    lab: LabHost, new_volume: Callable[..., str], multipath: bool
) -> None:
    volume_id = new_volume()
    before = lab.books()
    settings = {"host__volume_use_multipath": multipath}
    done = lab.tether("attach", volume_id, lab.guest, **settings)
    assert done.code == DONE, done.err
    assert lab.wait_for_disk(volume_id).sectors == SECTORS

    done = lab.tether("extend", volume_id, str(NEW_SIZE), **settings)
    assert done.code == DONE, done.err

    disk = lab.wait_for_disk(volume_id)
    assert disk.sectors == NEW_SIZE * SECTORS
    last = disk.sectors - 1
    lab.write(disk, "last", last)
    assert lab.on_volume(volume_id, last) == "last"
    again = lab.tether("extend", volume_id, str(NEW_SIZE), **settings)
    assert again.code == DONE, again.err

    done = lab.tether("detach", volume_id, lab.guest, **settings)
    assert done.code == DONE, done.err
    assert [
        line for line in diff(before, lab.books()) if not line.startswith(f"/cinder/volumes/{volume_id}/size")
    ] == []
