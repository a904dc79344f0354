"""What befalls a host in the middle of an attach or a detach: its storage, its daemons, its guest, its ledger's disk.

The command stands still at a fault point while it happens, then goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.conftest import LabHost
from tests.live.commands import BLOCKED, DONE, FAILED, ROLLED_BACK
from tests.live.test_failures import HOT_PLUG_EVENT
from tests.report import counted
from tether.matrix.live_judge import diff

PORTAL1, PORTAL2 = "10.99.1.1/24 dev portal1", "10.99.2.1/24 dev portal2"
DOWN = f"ip addr del {PORTAL1}; ip addr del {PORTAL2}"
UP = f"ip addr add {PORTAL1}; ip addr add {PORTAL2}"
TARGET = "/sys/kernel/config/target/iscsi/iqn.2010-10.org.openstack:volume-{id}/tpgt_1"
LOGGING_IN = "until ls -d /etc/iscsi/nodes/*{id}*/* >/dev/null 2>&1; do sleep .02; done"
ONE_TRY = {"host__num_volume_scan_tries": 1}
MULTIPATH = {**ONE_TRY, "host__volume_use_multipath": True}


@dataclass(frozen=True)
class Trouble:
    """Something that happens while a command stands still.

    Args:
        verb: the command.
        point: the fault point where it stands.
        line: what happens, a line of shell in the lab; ``{id}`` is the volume's id, ``{lv}`` its logical volume's name
            to device-mapper.
        code: how the command ends.
        says: what it says then.
        after: what makes it good again, a line of shell.
        settings: of tether.
        boots: whether the guest is to be started then.
        volume_type: the volume's type.
    """

    verb: str
    point: str
    line: str
    code: int = DONE
    says: str = ""
    after: str = "true"
    settings: dict[str, object] = field(default_factory=dict)
    boots: bool = False
    volume_type: str = "lvm"


def attach(line: str, code: int = DONE, says: str = "", after: str = "true", **settings: object) -> Trouble:
    """Something that happens before the log-in."""
    return Trouble("attach", "connect-host.act.before", line, code, says, after, settings)


KILL_LIBVIRTD = "kill -KILL $(pidof libvirtd)"
KILL_QEMU = "kill -KILL $(pgrep qemu-system); until virsh domstate guest1 | grep -q shut; do sleep .2; done"
NOT_FOUND = "Volume device not found"

TROUBLES = {
    "target-down-before": attach(DOWN, ROLLED_BACK, NOT_FOUND, UP, **ONE_TRY),
    "target-down-during": attach(
        f"({LOGGING_IN}; {DOWN}) >/dev/null 2>&1 &", ROLLED_BACK, NOT_FOUND, UP, **ONE_TRY
    ),
    "wrong-chap": attach(
        f"for acl in {TARGET}/acls/*; do echo wrong > $acl/auth/password; done", ROLLED_BACK, NOT_FOUND, **ONE_TRY
    ),
    "lun-missing": attach(
        "targetcli /iscsi/iqn.2010-10.org.openstack:volume-{id}/tpg1/luns delete lun0 >/dev/null 2>&1",
        ROLLED_BACK, NOT_FOUND, **ONE_TRY,
    ),
    "portal-down": attach(f"ip addr del {PORTAL2}", DONE, "over 1 of 2 paths", f"ip addr add {PORTAL2}", **MULTIPATH),
    "portal-down-refused": attach(
        f"ip addr del {PORTAL2}", ROLLED_BACK, "volume_min_paths asks for 2", f"ip addr add {PORTAL2}",
        **MULTIPATH, host__volume_min_paths=2,
    ),
    "multipathd-stopped": attach(
        "systemctl stop multipathd.socket multipathd", DONE, "over 1 of 2 paths",
        "systemctl start multipathd.socket multipathd; until multipath -ll | grep -q running; do sleep .5; done",
        **MULTIPATH,
    ),
    "iscsid-restarted": attach(f"({LOGGING_IN}; systemctl restart iscsid) >/dev/null 2>&1 &", **MULTIPATH),
    "libvirtd-killed": Trouble("attach", "plug-live.act.before", KILL_LIBVIRTD),
    "libvirtd-killed-detach": Trouble("detach", "unplug-persistent.act.before", KILL_LIBVIRTD),
    "qemu-killed": Trouble("attach", "plug-live.act.before", KILL_QEMU, boots=True),
    "qemu-killed-detach": Trouble("detach", "unplug-live.act.before", KILL_QEMU, boots=True),
    "target-gone-detach": Trouble(
        "detach", "begin-detaching.act.before", DOWN,
        # libvirt 9.0 does not forget the owner of a device that it could not give back, and refuses the next one.
        after=f"{UP}; virsh destroy guest1", boots=True,
    ),
    # Not for longer: a Cinder that gave up in the middle of taking a target away fails at it ever after.
    "device-hangs": Trouble(
        "attach", "open-encryption.act.before",
        "dmsetup suspend {lv}; (sleep 60; dmsetup resume {lv}) >/dev/null 2>&1 &", ROLLED_BACK,
        "did not answer within 20 s", settings={"host__host_timeout": 20}, volume_type="luks",
    ),
    "saved-and-started": Trouble(
        "detach", "disconnect-host.act.before", "virsh managedsave guest1 && virsh start guest1"
    ),
}  # fmt: skip

#: Those that CI runs come first.
FEW = ("multipathd-stopped",)
NAMES = [*FEW, *sorted(TROUBLES.keys() - set(FEW))][: counted(len(FEW), len(TROUBLES))]


@pytest.mark.parametrize("trouble", [TROUBLES[name] for name in NAMES], ids=NAMES)
def test_it_ends_done_or_with_nothing_left(lab: LabHost, new_volume: Callable[..., str], trouble: Trouble) -> None:
    volume_id = new_volume(trouble.volume_type)
    before = lab.books()
    if trouble.verb == "detach":
        done = lab.tether("attach", volume_id, lab.guest, **trouble.settings)
        assert done.code == DONE, done.err

    names = {"{id}": volume_id, "{lv}": f"cinder--volumes-volume--{volume_id.replace('-', '--')}"}
    line = trouble.line
    for word, name in names.items():
        line = line.replace(word, name)
    try:
        done = lab.tether_halted(trouble.point, line, trouble.verb, volume_id, lab.guest, **trouble.settings)
    finally:
        lab.run(trouble.after)
        if trouble.boots:
            lab.inside("boot")
    assert done.code == trouble.code, done.err
    assert trouble.says in done.err
    if trouble.verb == "attach" and trouble.code == DONE:
        assert lab.wait_for_disk(volume_id)
        done = lab.tether("detach", volume_id, lab.guest, **trouble.settings)
        assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []


@pytest.fixture
def deaf(lab: LabHost) -> Iterator[Callable[[], object]]:
    """A guest that does not hear of a hot-unplug, until the returned function is called, or the test ends."""

    def hear() -> None:
        lab.in_guest(f"grep -q disabled {HOT_PLUG_EVENT} && echo enable > {HOT_PLUG_EVENT}; true")

    lab.in_guest(f"echo disable > {HOT_PLUG_EVENT}")
    yield hear
    hear()


def test_a_guest_that_does_not_let_go_keeps_its_disk_until_it_hears(
    lab: LabHost, new_volume: Callable[..., str], deaf: Callable[[], object]
) -> None:
    volume_id = new_volume()
    before = lab.books()
    patience = {"libvirt__device_detach_attempts": 1, "libvirt__device_detach_timeout": 2}
    done = lab.tether("attach", volume_id, lab.guest, **MULTIPATH)
    assert done.code == DONE, done.err
    done = lab.tether("detach", volume_id, lab.guest, **MULTIPATH, **patience)
    assert done.code == BLOCKED, done.err
    assert "waiting for the guest" in done.err
    assert lab.run("multipath -ll").count("active ready running") == 2

    deaf()
    done = lab.tether("job", "resume", "--last", **MULTIPATH)
    assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []


@pytest.fixture
def small_disk(lab: LabHost) -> Iterator[str]:
    """A file system of 4 MiB in the lab."""
    folder = "/mnt/small"
    lab.run(f"mkdir -p {folder} && mount -t tmpfs -o size=4m tmpfs {folder}")
    yield folder
    lab.run(f"umount {folder}")


def test_a_full_disk_below_the_ledger_ends_a_job_that_goes_on_once_there_is_room(
    lab: LabHost, new_volume: Callable[..., str], small_disk: str
) -> None:
    volume_id = new_volume()
    before = lab.books()
    settings = {"default__database": f"sqlite:///{small_disk}/ledger.sqlite"}
    made = lab.tether("db", "upgrade", **settings)
    assert made.code == DONE, made.err
    fill = f"cat /dev/zero > {small_disk}/fill 2>/dev/null"
    full = lab.tether_halted("connect-host.act.after", fill, "attach", volume_id, lab.guest, **settings)
    assert full.code == FAILED, full.err
    assert "database or disk is full" in full.err

    lab.run(f"rm {small_disk}/fill")
    resumed = lab.tether("job", "resume", "--last", **settings)
    assert resumed.code == DONE, resumed.err
    assert lab.wait_for_disk(volume_id)
    done = lab.tether("detach", volume_id, lab.guest, **settings)
    assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []
