"""Every refusal names the object, its state and what to do, has its exit code, and leaves all books as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import SimWorld
from tether.sim.cinder import add_volume
from tether.sim.domains import add_server
from tether.sim.guest import SimGuest
from tether.sim.store import Store

VOL1 = "11111111-1111-4111-8111-111111111111"
GUEST1 = "9e570000-0000-4000-8000-000000000001"

Prepare = Callable[[SimWorld], None]


def volume(**facts: Any) -> Prepare:
    """Change the row of vol1."""

    def prepare(sim: SimWorld) -> None:
        with Store(sim.directory).change("cinder") as book:
            book["volumes"][VOL1].update(facts)

    return prepare


def guest(verb: str, *args: object, **options: object) -> Prepare:
    """Do something to guest1."""
    return lambda sim: getattr(SimGuest(Store(sim.directory)), verb)(GUEST1, *args, **options)


def elsewhere(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest2").code == 0


def reset(sim: SimWorld) -> None:
    """An administrator resets the state of a volume that guest2 has."""
    elsewhere(sim)
    with Store(sim.directory).change("cinder") as book:
        book["attachments"].clear()
        book["volumes"][VOL1].update(status="available", attach_status="detached")


def crashed(sim: SimWorld) -> None:
    path = sim.directory / "guests" / GUEST1 / "state.json"
    path.write_text(path.read_text().replace('"running"', '"crashed"'))
    path.with_name("live.xml").unlink()


def full(sim: SimWorld) -> None:
    add_server(Store(sim.directory), "full1", root_ports=4, scsi=False)
    assert sim.tether("attach", "vol2", "full1").code == 0


def transient(sim: SimWorld) -> None:
    add_server(Store(sim.directory), "transient1", transient=True)


def twin(sim: SimWorld) -> None:
    add_volume(Store(sim.directory), name="twin")
    add_volume(Store(sim.directory), name="twin")


def foreign_disk(sim: SimWorld) -> None:
    """Put vol1 into guest1 as another tool would: with Nova's alias, and without tether's mark."""
    for name in ("live", "persistent"):
        path = sim.directory / "guests" / GUEST1 / f"{name}.xml"
        disk = (
            '<disk type="block" device="disk"><source dev="/dev/sdq"/><target dev="vdq" bus="virtio"/>'
            f'<serial>{VOL1}</serial><alias name="ua-{VOL1}"/></disk>'
        )
        path.write_text(path.read_text().replace("<devices>", f"<devices>{disk}"))


def attached(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == 0


@dataclass(frozen=True)
class Refusal:
    """One refusal: what is wrong, what is asked for, and what must come of it."""

    prepare: Prepare | None
    words: str
    code: int
    says: tuple[str, ...]


REFUSALS = {
    "volume missing": Refusal(None, "attach nothing guest1", 6, ("nothing",)),
    "two volumes of this name": Refusal(twin, "attach twin guest1", 2, ("2 volumes are named twin",)),
    "volume in error": Refusal(volume(status="error"), "attach vol1 guest1", 3, ("vol1", "error")),
    "volume in maintenance": Refusal(volume(status="maintenance"), "attach vol1 guest1", 3, ("vol1", "maintenance")),
    "volume in use elsewhere": Refusal(
        volume(status="in-use", attach_status="attached"), "attach vol1 guest1", 3, ("vol1", "in use")
    ),
    "volume attached to another server": Refusal(
        elsewhere, "attach vol1 guest1", 3, ("vol1", "in use", "server guest2", "tether detach vol1 guest2")
    ),
    "volume attached to another server, and reset in Cinder": Refusal(
        reset, "attach vol1 guest1", 3, ("server guest2", "two servers", "tether detach vol1 guest2", "tether repair")
    ),
    "volume reserved by somebody": Refusal(volume(status="reserved"), "attach vol1 guest1", 3, ("vol1", "reserved")),
    "volume attaching elsewhere": Refusal(volume(status="attaching"), "attach vol1 guest1", 3, ("vol1", "attaching")),
    "multiattach and encrypted": Refusal(
        volume(multiattach=True, encryption={"encryption_key_id": "k", "provider": "luks"}),
        "attach vol1 guest1",
        3,
        ("vol1", "encrypted"),
    ),
    "multiattach in the legacy dialect": Refusal(
        None, "attach shared1 guest1 --dialect legacy", 3, ("shared1", "multiattach")
    ),
    "volume of a protocol that nothing here handles": Refusal(
        volume(protocol="smbfs"), "attach vol1 guest1", 3, ("reached by smbfs", "volume type of another backend")
    ),
    "server missing": Refusal(None, "attach vol1 nowhere", 6, ("nowhere",)),
    "server crashed": Refusal(crashed, "attach vol1 guest1", 3, ("guest1", "crashed")),
    "server with a managed-save image": Refusal(
        guest("managed_save"), "attach vol1 guest1", 3, ("guest1", "managed-save")
    ),
    "server migrating": Refusal(guest("migrating", on=True), "attach vol1 guest1", 3, ("guest1", "migrating")),
    "server transient": Refusal(transient, "attach vol1 transient1", 3, ("transient1", "transient")),
    "no free slot": Refusal(full, "attach vol1 full1", 3, ("full1", "port")),
    "no such controller": Refusal(full, "attach vol1 full1 --bus scsi", 3, ("full1", "controller")),
    "sata on a running server": Refusal(None, "attach vol1 guest1 --bus sata", 3, ("guest1", "SATA")),
    "target taken by a disk": Refusal(None, "attach vol1 guest1 --device vda", 3, ("vda",)),
    "target of another bus": Refusal(None, "attach vol1 guest1 --device sdb", 2, ("sdb", "virtio")),
    "target taken in the ledger": Refusal(attached, "attach vol2 guest1 --device vdb", 2, ("vdb",)),
    "disk of another tool": Refusal(foreign_disk, "attach vol1 guest1", 3, ("guest1", "vdq")),
    "attached in another mode": Refusal(attached, "attach vol1 guest1 --mode ro", 2, ("mode", "rw", "ro")),
    "attached on another bus": Refusal(attached, "attach vol1 guest1 --bus scsi", 2, ("bus", "virtio", "scsi")),
    "detach of what tether did not attach": Refusal(None, "detach vol1 guest1", 6, ("vol1", "guest1")),
    "detach from a server with a managed-save image": Refusal(
        lambda sim: (attached(sim), guest("managed_save")(sim))[0], "detach vol1 guest1", 3, ("managed-save",)
    ),
    "detach while a memory snapshot holds the disk": Refusal(
        lambda sim: (attached(sim), guest("memory_snapshot", "before")(sim))[0],
        "detach vol1 guest1",
        3,
        ("snapshot before", "vdb"),
    ),
    "detach from a paused server": Refusal(
        lambda sim: (attached(sim), guest("pause")(sim))[0], "detach vol1 guest1", 3, ("paused", "virsh resume")
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(sim: SimWorld, name: str) -> None:
    refusal = REFUSALS[name]
    if refusal.prepare is not None:
        refusal.prepare(sim)
    before = sim.books()
    done = sim.tether(*refusal.words.split())
    assert done.code == refusal.code, done.err
    for words in refusal.says:
        assert words in done.err
    assert done.err.splitlines()[-1].startswith("next: "), done.err
    assert "Traceback" not in done.err
    assert judge.diff(before, sim.books()) == []


def test_what_is_attached_here_already_is_a_success(sim: SimWorld) -> None:
    attached(sim)
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == 0
    assert judge.diff(before, sim.books()) == []
    assert len(sim.jobs()) == 1


@pytest.mark.parametrize("newest", ["3.44", "3.53", "3.54"])
def test_cinder_hears_of_read_only_at_every_microversion(
    sim: SimWorld, monkeypatch: pytest.MonkeyPatch, newest: str
) -> None:
    monkeypatch.setattr("tether.adapters.cinder.client.HIGHEST_MICROVERSION", newest)
    before = sim.books()
    done = sim.tether("attach", "vol1", "guest1", "--mode", "ro")
    assert done.code == 0, done.err
    (row,) = Store(sim.directory).read("cinder")["attachments"].values()
    assert row["attach_mode"] == "ro"
    assert sim.tether("detach", "vol1", "guest1").code == 0
    assert judge.diff(before, sim.books()) == []
