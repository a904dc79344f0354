"""The power of a host is cut; it boots, what its guest had is connected again, and the guest starts and reads it."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost, bin_lab
from tests.live.commands import DONE, KILLED
from tests.report import counted
from tether.matrix.live_judge import diff

UNIT = "/mnt/checkout/etc/systemd/tether-reconnect.service"
CASES = [True, False]


def cut_and_boot(lab: LabHost) -> None:
    """Cut the power, and boot; what was not synced is gone, and the guest is not started."""
    for verb in ("cut", "up"):
        done = bin_lab(verb, "--name", lab.lab.name)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.proves("iscsi", "reconnect")
@pytest.mark.proves("nfs", "reconnect")
@pytest.mark.parametrize("multipath", CASES[: counted(1, 2)], ids=["multipath", "single"][: counted(1, 2)])
def test_after_a_power_cut_the_guest_starts_with_what_it_had(
    lab: LabHost, new_volume: Callable[..., str], multipath: bool
) -> None:
    volume_id, other, file = new_volume(), new_volume(), new_volume("nfs")
    before = lab.books()
    settings = {"host__volume_use_multipath": multipath}
    marks = {each: uuid.uuid4().hex for each in (volume_id, file)}
    for each, mark in marks.items():
        done = lab.tether("attach", each, lab.guest, **settings)
        assert done.code == DONE, done.err
        disk = lab.wait_for_disk(each)
        lab.write(disk, mark)
    done = lab.tether("--fault", "export-volume.act.after=kill", "attach", other, lab.guest, **settings)
    assert done.code == KILLED, done.err

    cut_and_boot(lab)
    assert lab.books()["host"]["links"] == []
    assert "No such file" in lab.run(f"virsh start {lab.guest} 2>&1 || true")

    lab.run(f"systemd-analyze verify {UNIT} && cp {UNIT} /etc/systemd/system/ && systemctl daemon-reload")
    words = " ".join(f"OS_{name.upper()}={value}" for name, value in settings.items())
    lab.run(
        f"mkdir -p /etc/systemd/system/tether-reconnect.service.d; printf '[Service]\\nEnvironment={words}\\n'"
        " > /etc/systemd/system/tether-reconnect.service.d/multipath.conf; systemctl daemon-reload"
    )
    lab.run("systemctl start tether-reconnect || { journalctl -u tether-reconnect --no-pager; exit 1; }")

    links = {f"volumes/{each}" for each in (volume_id, other, file)}
    after = lab.books()
    assert set(after["host"]["links"]) >= links
    for each in (volume_id, other):
        assert sum(each in target for target in after["host"]["sessions"]) == 1 + multipath
    assert len(after["host"]["maps"]) == len(before["host"]["maps"]) + 2 * multipath
    lab.inside("boot")
    for each, mark in marks.items():
        disk = lab.wait_for_disk(each)
        assert lab.read(disk) == mark
    assert lab.wait_for_disk(other)
    audit = lab.tether("audit", "-f", "json", **settings)
    assert audit.code == DONE, audit.out

    for each in (volume_id, other, file):
        done = lab.tether("detach", each, lab.guest, **settings)
        assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []
