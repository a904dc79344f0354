"""Several volumes as one, on a real host: two logins at once, and a power switch that is a SIGKILL."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.report import counted
from tether.matrix.live_judge import diff

KILLED = 137
#: Where it is killed, and what it ends as.
CASES = [("plug-live.act.after", "resume"), ("finish-mapping.act.after", "abort"), ("connect-host.act.after", "abort")]


@pytest.mark.parametrize(("point", "way"), CASES[: counted(1, 3)])
def test_all_of_them_or_none(lab: LabHost, new_volume: Callable[..., str], point: str, way: str) -> None:
    volumes = [new_volume(), new_volume()]
    before = lab.books()
    words = ("--fault", f"{point}=kill", "attach", "--all", *volumes, lab.guest)
    killed = lab.tether(*words, host__volume_use_multipath=True)
    assert killed.code == KILLED, killed.err

    ended = lab.tether("job", way, "--last", host__volume_use_multipath=True)
    assert ended.code == 0, ended.err
    if way == "resume":
        disks = [lab.wait_for_disk(volume_id) for volume_id in volumes]
        assert [disk.name for disk in disks] == sorted(disk.name for disk in disks)
        for volume_id, disk in zip(volumes, disks, strict=True):
            mark = uuid.uuid4().hex
            lab.write(disk, mark)
            assert lab.on_volume(volume_id) == mark
        assert lab.run("multipath -ll").count("active ready running") == 2 * len(volumes)
        for volume_id in volumes:
            done = lab.tether("detach", volume_id, lab.guest, host__volume_use_multipath=True)
            assert done.code == 0, done.err
    assert diff(before, lab.books()) == []
    assert lab.disks() == []
