"""Volumes that are images of a Ceph pool: Cinder's RBD driver, QEMU's librbd, libvirt's secret, the guest.

The host has no part in it: no device, no link. The cluster is in the lab itself, started for these tests. Cinder's
driver writes the LUKS header of an encrypted image; QEMU opens it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.lab.conftest import LabHost, running, volumes
from tests.lab.test_chain import PLACE, SECTORS
from tests.lab.test_reconnect import cut_and_boot
from tests.lab.world.inside.ceph import POOL
from tests.live.commands import DONE, KILLED
from tether.matrix.live_judge import diff

pytestmark = pytest.mark.full
KINDS = [
    pytest.param("ceph", marks=pytest.mark.proves("rbd", "attach", "detach")),
    pytest.param("ceph-luks", marks=pytest.mark.proves("rbd", "attach", "detach", "encryption")),
]


def write(lab: LabHost, volume_id: str) -> str:
    """Write a mark in the guest, and return it."""
    mark = uuid.uuid4().hex
    lab.write(lab.wait_for_disk(volume_id), mark, PLACE)
    return mark


def read(lab: LabHost, volume_id: str) -> str:
    """Return what the guest reads there."""
    return lab.read(lab.wait_for_disk(volume_id), PLACE)


def times_in_image(lab: LabHost, volume_id: str, text: str) -> int:
    """Return how many lines of what Ceph keeps have a text."""
    export = f"rbd export --no-progress {POOL}/volume-{volume_id} -"
    return int(lab.run(f"set -o pipefail; {export} | {{ grep -ac {text} || true; }}"))


def watchers(lab: LabHost, volume_id: str) -> int:
    """Return how many have the image open."""
    return lab.run(f"rbd status {POOL}/volume-{volume_id}").count("watcher=")


@pytest.fixture(scope="module")
def lab() -> Iterator[LabHost]:
    """A lab of its own, with a Ceph cluster: its daemons would slow the others' tests."""
    for each in running("ceph"):
        each.inside("ceph")
        yield each


@pytest.fixture
def new_volume(lab: LabHost) -> Iterator[Callable[..., str]]:
    """Make volumes there; they are gone after the test."""
    yield from volumes(lab)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_guest_writes_is_in_the_image_and_a_detach_leaves_nothing(
    lab: LabHost, new_volume: Callable[..., str], kind: str
) -> None:
    volume_id = new_volume(kind)
    before = lab.books()
    done = lab.tether("attach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    assert lab.wait_for_disk(volume_id).sectors == SECTORS
    mark = write(lab, volume_id)
    assert bool(times_in_image(lab, volume_id, mark)) == (kind == "ceph")

    held = lab.books()
    assert held["host"] == before["host"]
    assert held["cinder"]["volumes"][volume_id]["status"] == "in-use"
    assert watchers(lab, volume_id) == 1
    audit = lab.tether("audit")
    assert audit.code == DONE, audit.out

    done = lab.tether("detach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    assert watchers(lab, volume_id) == 0
    assert diff(before, lab.books()) == []
    assert lab.disks() == []


@pytest.mark.parametrize("point", ["define-secret.act.after", "plug-live.act.after"])
def test_an_attach_that_was_killed_is_resumed_and_one_that_is_aborted_leaves_nothing(
    lab: LabHost, new_volume: Callable[..., str], point: str
) -> None:
    volume_id = new_volume("ceph-luks")
    before = lab.books()
    for verb in ("abort", "resume"):
        done = lab.tether("--fault", f"{point}=kill", "attach", volume_id, lab.guest)
        assert done.code == KILLED, done.err
        done = lab.tether("job", verb, "--last")
        assert done.code == DONE, done.err
        if verb == "abort":
            assert diff(before, lab.books()) == []
            assert watchers(lab, volume_id) == 0
    assert write(lab, volume_id) == read(lab, volume_id)
    done = lab.tether("detach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []


@pytest.mark.proves("rbd", "extend")
@pytest.mark.parametrize("kind", ["ceph", "ceph-luks"])
def test_the_guest_sees_what_was_added(lab: LabHost, new_volume: Callable[..., str], kind: str) -> None:
    volume_id = new_volume(kind)
    before = lab.books()
    done = lab.tether("attach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    done = lab.tether("extend", volume_id, "2")
    assert done.code == DONE, done.err
    disk = lab.wait_for_disk(volume_id)
    assert disk.sectors == 2 * SECTORS
    lab.write(disk, "end", disk.sectors - 1)
    assert lab.read(disk, disk.sectors - 1) == "end"
    done = lab.tether("detach", volume_id, lab.guest)
    assert done.code == DONE, done.err
    grown = f"/cinder/volumes/{volume_id}/size"
    assert [line for line in diff(before, lab.books()) if not line.startswith(grown)] == []


@pytest.mark.proves("rbd", "reconnect")
def test_after_a_power_cut_the_guest_starts_with_what_it_had(lab: LabHost, new_volume: Callable[..., str]) -> None:
    volume_ids = [new_volume("ceph"), new_volume("ceph-luks")]
    before = lab.books()
    marks = {}
    for each in volume_ids:
        done = lab.tether("attach", each, lab.guest)
        assert done.code == DONE, done.err
        marks[each] = write(lab, each)
    cut_and_boot(lab)
    done = lab.tether("reconnect", "--all")
    assert done.code == DONE, done.err
    lab.inside("boot")
    assert {each: read(lab, each) for each in volume_ids} == marks
    audit = lab.tether("audit")
    assert audit.code == DONE, audit.out
    for each in volume_ids:
        done = lab.tether("detach", each, lab.guest)
        assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []
