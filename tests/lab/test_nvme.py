"""NVMe over TCP: Cinder's nvmet driver, the kernel's target and initiator, native multipath, libvirt, the guest.

User-mode Linux has no NVMe: this lab is emulated (``LAB_ENGINE=tcg``), and slow.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.lab.conftest import LabHost, running, volumes
from tests.lab.test_chain import PLACE, SECTORS
from tests.live.commands import DONE, KILLED
from tether.matrix.live_judge import diff

pytestmark = [pytest.mark.full, pytest.mark.timeout(3000, func_only=True)]


@pytest.fixture(scope="module")
def emulated() -> Iterator[LabHost]:
    """A lab whose kernel has NVMe."""
    yield from running("nvme", LAB_ENGINE="tcg")


@pytest.fixture
def new_volume(emulated: LabHost) -> Iterator[Callable[..., str]]:
    """Make volumes there; they are gone after the test."""
    yield from volumes(emulated)


def write_and_read(lab: LabHost, volume_id: str) -> None:
    """Write a mark in the guest, and read it from the logical volume."""
    disk = lab.wait_for_disk(volume_id)
    assert disk.sectors == SECTORS
    mark = uuid.uuid4().hex
    lab.write(disk, mark, PLACE)
    assert lab.on_volume(volume_id, PLACE) == mark


@pytest.mark.proves("nvmeof", "attach", "detach", "multipath", "shared")
@pytest.mark.parametrize(("kind", "multipath"), [("nvme-shared", True), ("nvme", False), ("nvme", True)])
def test_what_the_guest_writes_is_on_the_logical_volume_and_the_connection_goes_with_the_last(
    emulated: LabHost, new_volume: Callable[..., str], kind: str, multipath: bool
) -> None:
    settings = {"host__volume_use_multipath": multipath}
    first, second = new_volume(kind), new_volume(kind)
    before = emulated.books()
    for volume_id in (first, second):
        done = emulated.tether("attach", volume_id, emulated.guest, **settings)
        assert done.code == DONE, done.err
        write_and_read(emulated, volume_id)

    held = emulated.books()
    shared = kind == "nvme-shared"
    assert sorted(held["subsystems"].values()) == ([2] if shared else [1, 1])
    paths = 2 if multipath else 1
    assert held["host"]["controllers"] == sorted([*held["subsystems"]] * paths)
    assert set(held["host"]["links"]) >= {f"volumes/{each}" for each in (first, second)}
    audit = emulated.tether("audit", **settings)
    assert audit.code == DONE, audit.out

    done = emulated.tether("detach", first, emulated.guest, **settings)
    assert done.code == DONE, done.err
    write_and_read(emulated, second)
    done = emulated.tether("detach", second, emulated.guest, **settings)
    assert done.code == DONE, done.err
    assert diff(before, emulated.books()) == []
    assert emulated.disks() == []


@pytest.mark.proves("nvmeof", "undo")
@pytest.mark.parametrize("kind", ["nvme", "nvme-shared"])
def test_a_connect_that_was_killed_is_taken_back(emulated: LabHost, new_volume: Callable[..., str], kind: str) -> None:
    volume_id = new_volume(kind)
    before = emulated.books()
    done = emulated.tether("--fault", "connect-host.act.after=kill", "attach", volume_id, emulated.guest)
    assert done.code == KILLED, done.err
    assert emulated.books()["host"]["controllers"]
    done = emulated.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    assert diff(before, emulated.books()) == []
