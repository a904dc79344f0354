"""``tether adopt``: what others have attached is taken over, and then detached; what is not proven is refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import DONE, KILLED, ROLLED_BACK, SimWorld
from tests.integration import byhand
from tests.integration.byhand import VOLUMES, attached_by_hand, connected, disk, exported, plugged
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.guest import SimGuest
from tether.sim.host import SimHost
from tether.sim.store import Store


def same_guests(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Compare two snapshots but for tether's marks."""
    for books in (first, second):
        for guest in books["guests"].values():
            for scope in ("live", "persistent"):
                (guest[scope] or {}).pop("marks", None)
    return judge.diff(first["guests"], second["guests"])


def row_of(sim: SimWorld) -> dict[str, Any]:
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute("SELECT * FROM tether_mappings").fetchone())


CASES = {
    "as virsh has it": {},
    "without a serial": {"serial": ""},
    "with an alias of its own": {"alias": "ua-my-disk"},
    "with Nova's alias": {"alias": f"ua-{VOLUMES['vol1']}"},
    "by the legacy dialect": {"dialect": "legacy"},
    "without an instance": {"owner": ""},
    "with the server as instance": {"owner": "SERVER"},
}


@pytest.mark.parametrize("server", ["guest1", "stopped1", "paused1"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_attached_by_hand_is_adopted_and_detached(sim: SimWorld, case: str, server: str) -> None:
    before = sim.books()
    attached_by_hand(
        sim,
        server=server,
        **{key: SERVERS[server] if value == "SERVER" else value for key, value in CASES[case].items()},
    )
    by_hand = sim.books()
    done = sim.tether("adopt", "vol1", server, "-f", "json")
    assert done.code == DONE, done.err
    assert json.loads(done.out)["device"] == "vdq"
    adopted = sim.books()
    assert judge.diff(by_hand["cinder"], adopted["cinder"]) == []
    assert by_hand["host"]["devices"] == adopted["host"]["devices"]
    assert adopted["host"]["links"] == {VOLUMES["vol1"]: "/dev/sda"}
    row = row_of(sim)
    (attachment,) = Store(sim.directory).read("cinder")["attachments"].values()
    assert (row["state"], row["target"], row["attachment_id"]) == ("attached", "vdq", attachment["id"])
    assert row["owner_mark"] == (attachment["instance_uuid"] or "")
    assert row["dialect"] == CASES[case].get("dialect", "attachments")
    for scope in ("live", "persistent"):
        if adopted["guests"][SERVERS[server]][scope]:
            assert adopted["guests"][SERVERS[server]][scope]["marks"] == [VOLUMES["vol1"]]
    assert same_guests(by_hand, adopted) == []
    assert sim.tether("adopt", "vol1", server).code == DONE  # once more is the same
    if server == "paused1":
        SimGuest(Store(sim.directory)).resume(SERVERS[server])
    done = sim.tether("detach", "vol1", server)
    assert done.code == DONE, done.err
    if server == "paused1":
        SimGuest(Store(sim.directory)).pause(SERVERS[server])
    assert judge.diff(before, sim.books()) == []


def test_the_connection_of_what_is_adopted_is_sealed(sim: SimWorld) -> None:
    """Cinder may forget it: the host is disconnected all the same."""
    attached_by_hand(sim)
    assert sim.tether("adopt", "vol1", "guest1").code == DONE
    with Store(sim.directory).change("cinder") as book:
        for row in book["attachments"].values():
            row["connection_info"] = {}
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == DONE, done.err
    assert sim.books()["host"]["devices"] == {}


def test_a_guest_that_refuses_keeps_the_adopted_disk_and_its_mark(sim: SimWorld) -> None:
    attached_by_hand(sim)
    assert sim.tether("adopt", "vol1", "guest1").code == DONE
    adopted = sim.books()
    sim.script("guest.unplug_live", "refuse", times=-1)
    assert sim.tether("detach", "vol1", "guest1").code == ROLLED_BACK
    assert judge.diff(adopted, sim.books()) == []
    sim.forgive()
    assert sim.tether("detach", "vol1", "guest1").code == DONE


def test_an_adopted_disk_is_found_after_the_guest_was_started_anew(sim: SimWorld) -> None:
    before = sim.books()
    attached_by_hand(sim)
    assert sim.tether("adopt", "vol1", "guest1").code == DONE
    guest = SimGuest(Store(sim.directory))
    guest.stop(SERVERS["guest1"])
    guest.start(SERVERS["guest1"])
    assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_another_disk_in_the_place_of_an_adopted_one_is_not_touched(sim: SimWorld) -> None:
    attached_by_hand(sim)
    assert sim.tether("adopt", "vol1", "guest1").code == DONE
    for scope in byhand.SCOPES:
        path = sim.directory / "guests" / SERVERS["guest1"] / f"{scope}.xml"
        path.write_text(path.read_text().replace(VOLUMES["vol1"] + "</serial>", "other</serial>"))
    before = sim.books()
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == ROLLED_BACK
    assert "vdq of server guest1 is no longer the disk that was adopted" in done.err
    assert judge.diff(before, sim.books()) == []


def test_a_multiattach_volume_is_adopted_on_each_server(sim: SimWorld) -> None:
    before = sim.books()
    for server in ("guest1", "guest2"):
        path = connected(sim, exported(sim, "shared1", owner=SERVERS[server]), "shared1")
        plugged(sim, disk("shared1", source=path), server)
    for server in ("guest1", "guest2"):
        done = sim.tether("adopt", "shared1", server)
        assert done.code == DONE, done.err
    for server in ("guest1", "guest2"):
        assert sim.tether("detach", "shared1", server).code == DONE
    assert judge.diff(before, sim.books()) == []


# -- what is refused ---------------------------------------------------------------------------------------


def _cinder(part: str, **facts: Any) -> Callable[[SimWorld], None]:
    def change(sim: SimWorld) -> None:
        attached_by_hand(sim)
        with Store(sim.directory).change("cinder") as book:
            for row in book[part].values():
                if part == "attachments" or row["id"] == VOLUMES["vol1"]:
                    row.update(facts)

    return change


def _one_scope(scope: str) -> Callable[[SimWorld], None]:
    return lambda sim: plugged(sim, disk(source=connected(sim, exported(sim))), scopes=(scope,))


def _twice(sim: SimWorld) -> None:
    attached_by_hand(sim)
    plugged(sim, disk(source="/dev/sda", slot=8).replace("vdq", "vdr"))


def _two_servers(sim: SimWorld) -> None:
    attached_by_hand(sim)
    plugged(sim, disk(serial="", source="/dev/sda"), "guest2")


def _different_places(sim: SimWorld) -> None:
    path = connected(sim, exported(sim))
    plugged(sim, disk(source=path), scopes=("live",))
    plugged(sim, disk(source=path).replace("vdq", "vdr"), scopes=("persistent",))


def _not_connected(sim: SimWorld) -> None:
    exported(sim)
    plugged(sim, disk())


def _wrong_device(sim: SimWorld) -> None:
    connected(sim, exported(sim))
    plugged(sim, disk(source="/dev/sdz"))


def _wrong_size(sim: SimWorld) -> None:
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOLUMES["vol1"]]["device_size"] = 5 * 1024**3
    attached_by_hand(sim)


def _held(sim: SimWorld) -> None:
    assert sim.tether("--fault", "plug-live.act.before=kill", "attach", "vol1", "guest1").code == KILLED


def _saved(sim: SimWorld) -> None:
    attached_by_hand(sim)
    SimGuest(Store(sim.directory)).managed_save(SERVERS["guest1"])


def _two_rows(sim: SimWorld) -> None:
    attached_by_hand(sim)
    with Store(sim.directory).change("cinder") as book:
        (row,) = book["attachments"].values()
        book["attachments"]["second"] = row | {"id": "a0000000-0000-4000-8000-000000000002", "serial": 99}


REFUSED: dict[str, tuple[Callable[[SimWorld], None] | None, int, str]] = {
    "nothing is attached": (None, ROLLED_BACK, "Cinder says that it is available"),
    "no attachment row": (_cinder("volumes", status="available"), ROLLED_BACK, "it is available, not in-use"),
    "the row is attaching": (_cinder("attachments", attach_status="attaching"), ROLLED_BACK, "as attaching"),
    "two rows": (_two_rows, ROLLED_BACK, "exactly one attachment"),
    "no connection info": (_cinder("attachments", connection_info={}), ROLLED_BACK, "has no connection info"),
    "the row is another server's": (
        _cinder("attachments", instance_uuid=SERVERS["guest2"]),
        ROLLED_BACK,
        "is that of server guest2",
    ),
    "no disk": (lambda sim: exported(sim) and None, ROLLED_BACK, "an attachment without a disk"),
    "live only": (_one_scope("live"), ROLLED_BACK, "in its live definition alone: a live-only disk"),
    "persistent only": (_one_scope("persistent"), ROLLED_BACK, "a persistent-only disk"),
    "two disks": (_twice, ROLLED_BACK, "two disks on one volume"),
    "two servers": (_two_servers, ROLLED_BACK, "two servers on one plain volume"),
    "two places": (_different_places, ROLLED_BACK, "not one disk in both definitions"),
    "another serial": (
        lambda sim: attached_by_hand(sim, serial=VOLUMES["vol2"]),
        ROLLED_BACK,
        f"with the serial {VOLUMES['vol2']}",
    ),
    "not connected": (_not_connected, ROLLED_BACK, "to which the volume's connection does not lead"),
    "another device": (_wrong_device, ROLLED_BACK, "/dev/sdz, to which the volume's connection does not lead"),
    "a device of another size": (_wrong_size, ROLLED_BACK, "/dev/sda is not the volume"),
    "a job has it": (_held, 5, "is held by job"),
    "a managed-save image": (_saved, ROLLED_BACK, "managed-save"),
    "an encrypted one that tether did not open": (
        lambda sim: attached_by_hand(sim, "secret1"),
        ROLLED_BACK,
        "dm-crypt mapping of tether's name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_proven_is_refused_with_the_evidence(sim: SimWorld, case: str) -> None:
    prepare, code, says = REFUSED[case]
    if prepare is not None:
        prepare(sim)
    before = sim.books()
    done = sim.tether("adopt", "secret1" if "encrypted" in case else "vol1", "guest1")
    assert done.code == code, done.err
    assert says in done.err
    assert done.err.splitlines()[-1].startswith("next: ")
    assert judge.diff(before, sim.books()) == []


# -- undone ---------------------------------------------------------------------------------------------------


def test_a_failed_adoption_leaves_the_former_marks(sim: SimWorld) -> None:
    """The ledger is lost: the marks in the server are those of the lost jobs, and an undo leaves them so."""
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    _lose(sim)
    before = _marks(sim)
    assert sim.tether("--fault", "finish-adoption.act.before=kill", "adopt", "vol1", "guest1").code == KILLED
    assert _marks(sim) != before
    assert sim.tether("job", "abort", "--last").code == DONE
    assert _marks(sim) == before
    assert SimHost(Store(sim.directory)).find(VOLUMES["vol1"]) is not None  # its link was there before


# -- the ledger is lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_the_ledger_is_lost(sim: SimWorld, dialect: str) -> None:
    before = sim.books()
    for volume, server in (("vol1", "guest1"), ("secret1", "stopped1")):
        assert sim.tether("attach", volume, server, "--dialect", dialect).code == DONE
    whole = sim.books()
    _lose(sim)
    assert sim.books()["ledger"]["mappings"] == []
    for volume, server in (("vol1", "guest1"), ("secret1", "stopped1")):
        done = sim.tether("adopt", volume, server)
        assert done.code == DONE, done.err
    assert judge.diff(whole, sim.books()) == []
    for volume, server in (("vol1", "guest1"), ("secret1", "stopped1")):
        done = sim.tether("detach", volume, server)
        assert done.code == DONE, done.err
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("volume", ["vol1", "secret1"])
def test_the_ledger_is_lost_where_qemu_connects(sim: SimWorld, volume: str) -> None:
    world = SimWorld(sim.directory, "network")
    before = world.books()
    assert world.tether("attach", volume, "guest1").code == DONE
    whole = world.books()
    _lose(world)
    done = world.tether("adopt", volume, "guest1")
    assert done.code == DONE, done.err
    assert judge.diff(whole, world.books()) == []
    assert world.tether("detach", volume, "guest1").code == DONE
    assert judge.diff(before, world.books()) == []


def _lose(sim: SimWorld) -> None:
    for path in sim.directory.glob("tether.sqlite*"):
        path.unlink()


def _marks(sim: SimWorld) -> list[tuple[str, str]]:
    guest = SimGuest(Store(sim.directory)).show_server(SERVERS["guest1"])
    assert guest.live
    assert guest.persistent
    return [*guest.live.marks.items(), *guest.persistent.marks.items()]


def _secrets(database: Path) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT job_id FROM tether_secrets WHERE name = 'connection'").fetchall()


# -- Nova's servers ------------------------------------------------------------------------------------------


def test_a_server_of_novas_is_refused_unless_it_is_wanted(sim: SimWorld) -> None:
    before = sim.books()
    for words in (("attach", "vol1", "nova1"), ("plan", "attach", "vol1", "nova1")):
        done = sim.tether(*words)
        assert done.code == ROLLED_BACK
        assert "server nova1 is managed by Nova, which drops disks and deletes attachments that it does not" in done.err
        assert "--allow-nova" in done.err.splitlines()[-1]
    assert judge.diff(before, sim.books()) == []
    assert sim.tether("attach", "vol1", "nova1", "--allow-nova").code == DONE
    attached = sim.books()
    assert sim.tether("detach", "vol1", "nova1").code == ROLLED_BACK
    assert judge.diff(attached, sim.books()) == []
    _lose(sim)
    assert sim.tether("adopt", "vol1", "nova1").code == ROLLED_BACK
    assert sim.tether("adopt", "vol1", "nova1", "--allow-nova").code == DONE
    assert sim.tether("detach", "vol1", "nova1", "--allow-nova").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_job_on_a_server_of_novas_remembers_that_it_may(sim: SimWorld) -> None:
    before = sim.books()
    killed = sim.tether("--fault", "commit.create-mapping.act.before=kill", "attach", "vol1", "nova1", "--allow-nova")
    assert killed.code == KILLED
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.tether("detach", "vol1", "nova1", "--allow-nova").code == DONE
    assert judge.diff(before, sim.books()) == []
