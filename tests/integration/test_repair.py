"""``tether repair``: each kind of drift and mixes of them; what stays, and why; and that nothing in use is touched."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, SimWorld
from tests.integration import drifts
from tests.integration.drifts import DRIFTS, Expected
from tether.audit.drift import Kind
from tether.matrix import wrecks

DRIFT = 7

#: What stays, and what is said of it. All else is repaired.
STAYS = {
    Kind.TWO_SERVERS: "left to them",
    Kind.TWO_DISKS: "cannot be told from here",
    Kind.WRONG_DEVICE: "the guest may be writing to it",
    Kind.SERIAL_MISMATCH: "cannot be changed while it is there",
    Kind.UNFINISHED_MIGRATION: "on its own host",
    Kind.PENDING_UNPLUG: "only the guest can answer it",
    Kind.FOREIGN_DISK: "left to them",
    Kind.CINDER_CONTRADICTION: "left to them",
    Kind.RESERVED_WITHOUT_JOB: "left to them",
    Kind.UNUSED_MAP: "left to them",
    Kind.UNUSED_DEVICE: "left to them",
    Kind.UNUSED_SESSION: "left to them",
}


def repair(sim: SimWorld, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    done = sim.tether("repair", "-f", "json", *words)
    return done.code, json.loads(done.out or "[]"), done.err


def audit(sim: SimWorld) -> list[tuple[str, str]]:
    done = sim.tether("audit", "-f", "json")
    return sorted((row["kind"], row["volume_id"]) for row in json.loads(done.out or "[]"))


def secrets_of_no_mapping(sim: SimWorld) -> list[Any]:
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        return connection.execute(
            "SELECT job_id FROM tether_secrets WHERE name = 'connection'"
            " AND job_id NOT IN (SELECT job_id FROM tether_mappings)"
            " AND job_id NOT IN (SELECT id FROM tether_jobs WHERE open_volume IS NOT NULL)"
        ).fetchall()


@pytest.mark.parametrize("kind", DRIFTS, ids=str)
def test_a_drift_is_repaired_or_stays_with_its_reason(sim: SimWorld, kind: Kind) -> None:
    expected = DRIFTS[kind](sim)
    before = sim.books()
    code, rows, err = repair(sim)
    assert code == DRIFT, err
    assert [row["action"] == "stays" for row in rows] == [kind in STAYS]
    assert sim.books() == before, "a plan changes nothing"
    code, rows, err = repair(sim, "--apply")
    if kind in STAYS:
        assert (code, [row["action"] for row in rows]) == (DRIFT, ["stays"]), err
        assert STAYS[kind] in rows[0]["result"]
        assert sim.books() == before
        return
    assert code == DONE, err
    assert rows
    assert audit(sim) == []
    assert secrets_of_no_mapping(sim) == []
    if sim.books()["ledger"]["mappings"]:
        done = sim.tether("detach", expected.volume_id, expected.server)
        assert done.code == DONE, done.err
        assert audit(sim) == []


@pytest.mark.parametrize("seed", range(5))
def test_mixes_are_repaired(sim: SimWorld, seed: int) -> None:
    chance = random.Random(seed)
    kinds = chance.sample(list(DRIFTS), chance.randint(6, 12))
    expected: dict[Kind, Expected] = {kind: DRIFTS[kind](sim) for kind in kinds}
    code, rows, err = repair(sim, "--apply")
    left = sorted((str(kind), expected[kind].volume_id) for kind in kinds if kind in STAYS)
    assert code == (DRIFT if left else DONE), err
    assert audit(sim) == left
    assert sorted((row["drift"], row["volume_id"]) for row in rows if row["action"] == "stays") == left


# -- what is tether's own in Cinder ------------------------------------------------------------------------------


def _status(status: str) -> Any:
    def put(sim: SimWorld) -> str:
        volume = drifts.attached(sim, f"is-{status}")
        with drifts.book(sim, "cinder") as cinder:
            cinder["volumes"][volume]["status"] = status
            if status == "attaching":
                for row in cinder["attachments"].values():
                    row["attach_status"] = status
        return volume

    return put


def _own_row(sim: SimWorld) -> str:
    """A reservation whose reply was lost came late: its job has ended."""
    sim.script("host.connect", "fail")
    volume = drifts.new_volume(sim, "own-row")
    assert sim.tether("attach", "--bus", "scsi", volume, "guest1").code == 3
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        ((job,),) = connection.execute("SELECT id FROM tether_jobs WHERE volume_id = ?", (volume,)).fetchall()
    from tether.persistence.ledger import owner_of

    drifts.row(sim, volume, "reserved", owner_of(job))
    return volume


OWN = {
    "detaching": _status("detaching"),
    "available": _status("available"),
    "attaching": _status("attaching"),
    "own row": _own_row,
}


@pytest.mark.parametrize("case", OWN)
def test_a_status_of_ours_is_put_right_by_cinders_own_operations(sim: SimWorld, case: str) -> None:
    volume = OWN[case](sim)
    assert audit(sim)
    code, rows, err = repair(sim, "--apply")
    assert code == DONE, err
    assert [row["action"] for row in rows] == ["repair-clean" if case == "own row" else "repair-complete"]
    assert audit(sim) == []
    if case != "own row":
        assert sim.tether("detach", volume, "guest1").code == DONE
        assert audit(sim) == []


def test_an_error_of_cinders_stays(sim: SimWorld) -> None:
    volume = _status("error_detaching")(sim)
    before = sim.books()
    code, rows, _err = repair(sim, "--apply")
    assert code == DRIFT
    assert {row["volume_id"] for row in rows} == {volume}
    assert "no operation of Cinder's puts right" in rows[-1]["result"]
    assert judge.diff(before, sim.books()) == []


def test_the_ledger_is_lost_and_repair_takes_it_back(sim: SimWorld) -> None:
    before = sim.books()
    for volume, server in (("vol1", "guest1"), ("secret1", "stopped1")):
        assert sim.tether("attach", volume, server).code == DONE
    whole = sim.books()
    for path in sim.directory.glob("tether.sqlite*"):
        path.unlink()
    code, rows, err = repair(sim, "--apply")
    assert code == DONE, err
    assert [row["action"] for row in rows] == ["adopt", "adopt"]
    assert judge.diff(whole, sim.books()) == []
    for volume, server in (("vol1", "guest1"), ("secret1", "stopped1")):
        assert sim.tether("detach", volume, server).code == DONE
    assert judge.diff(before, sim.books()) == []


# -- what may be in use ------------------------------------------------------------------------------------------


def _held_open(sim: SimWorld, volume: str) -> None:
    with drifts.book(sim, "host") as host:
        host["devices"][volume]["open_count"] = 1


def _in_another(scope: str) -> Any:
    def put(sim: SimWorld, volume: str) -> None:
        link = str(sim.directory / "run" / "volumes" / volume)
        drifts.add_disk(sim, "guest2", drifts.hand_made("sdz", link), scope)

    return put


def _as_its_device(sim: SimWorld, volume: str) -> None:
    with drifts.book(sim, "host") as host:
        path = host["devices"][volume]["path"]
    drifts.add_disk(sim, "guest2", drifts.hand_made("sdz", path), "persistent")


def _unreadable(sim: SimWorld, _volume: str) -> None:
    with drifts.domain(sim, "guest2", "live") as root:
        root.tag = "not-a-domain"


USERS = {
    "held open": _held_open,
    "a running guest has its link": _in_another("live"),
    "a defined guest has its link": _in_another("persistent"),
    "a defined guest has its device": _as_its_device,
    "a guest that cannot be read": _unreadable,
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", [Kind.ATTACHMENT_WITHOUT_DISK, Kind.UNUSED_DEVICE], ids=str)
def test_what_may_be_in_use_is_never_freed(sim: SimWorld, kind: Kind, user: str) -> None:
    volume = drifts.attached(sim, "in-use")
    wrecks.unplugged(sim.directory, volume)
    if kind is Kind.UNUSED_DEVICE:
        drifts.execute(sim, "DELETE FROM tether_mappings WHERE volume_id = ?", volume)
    USERS[user](sim, volume)
    before = sim.books()
    code, rows, err = repair(sim, "--apply")
    assert code == DRIFT, err
    assert rows or "unread" in err
    assert judge.diff(before, sim.books()) == []


def test_a_guest_that_gets_the_disk_before_the_job_frees_it_keeps_it(sim: SimWorld) -> None:
    """Between the proof and the effect: the job stands where it is, and says who has it."""
    volume = drifts.attached(sim, "in-use")
    wrecks.unplugged(sim.directory, volume)
    drifts.execute(sim, "DELETE FROM tether_mappings WHERE volume_id = ?", volume)
    assert sim.tether("--fault", "commit.clear-host.act.before=kill", "repair", "--apply").code == 137
    _in_another("persistent")(sim, volume)
    before = sim.books()
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert "server guest2 has a disk of it (persistent)" in done.err
    assert judge.diff(before, sim.books()) == []


def test_a_book_that_cannot_be_read_is_no_reason_to_free_anything(sim: SimWorld) -> None:
    for kind in (Kind.UNUSED_SECRET, Kind.ATTACHMENT_WITHOUT_DISK, Kind.UNUSED_LINK):
        DRIFTS[kind](sim)
    sim.script("guest.survey", "timeout", times=-1)
    before = sim.books()
    code, _rows, err = repair(sim, "--apply")
    assert code == DRIFT
    assert "unread: guest" in err
    assert judge.diff(before, sim.books()) == []


def test_one_volume_or_one_server_alone(sim: SimWorld) -> None:
    first, second = DRIFTS[Kind.LIVE_ONLY_DISK](sim), DRIFTS[Kind.PERSISTENT_ONLY_DISK](sim)
    code, rows, err = repair(sim, "--apply", "--volume", first.volume_id)
    assert (code, [row["volume_id"] for row in rows]) == (DONE, [first.volume_id]), err
    assert audit(sim) == [(str(second.kind), second.volume_id)]
    assert repair(sim, "--apply", "--server", "guest2")[0] == DONE
    assert audit(sim) == [(str(second.kind), second.volume_id)]
    assert repair(sim, "--apply", "--server", "guest1")[0] == DONE
    assert audit(sim) == []


def test_a_job_that_ends_blocked_is_told(sim: SimWorld) -> None:
    DRIFTS[Kind.ATTACHMENT_WITHOUT_DISK](sim)
    sim.script("cinder.delete_attachment", "fail", times=-1)
    code, rows, err = repair(sim, "--apply")
    assert code == BLOCKED, err
    assert rows[0]["result"].startswith("blocked: ")
    assert "tether job resume" in err
    sim.forgive()
    assert repair(sim, "--apply")[0] == DONE
    assert audit(sim) == []


@pytest.mark.parametrize(
    "kind",
    [
        Kind.STALE_CONNECTION,
        Kind.LIVE_ONLY_DISK,
        Kind.PERSISTENT_ONLY_DISK,
        Kind.DISK_WITHOUT_ATTACHMENT,
        Kind.ATTACHMENT_WITHOUT_DISK,
    ],
    ids=str,
)
def test_where_qemu_connects(sim: SimWorld, kind: Kind) -> None:
    world = SimWorld(sim.directory, "network")
    expected = DRIFTS[kind](world)
    code, _rows, err = repair(world, "--apply")
    assert code == DONE, err
    assert audit(world) == []
    if world.books()["ledger"]["mappings"]:
        assert world.tether("detach", expected.volume_id, "guest1").code == DONE
        assert audit(world) == []


def test_what_was_adopted_is_no_drift(sim: SimWorld) -> None:
    from tests.integration import byhand

    byhand.attached_by_hand(sim, serial="")
    assert sim.tether("adopt", "vol1", "guest1").code == DONE
    assert audit(sim) == []


# -- killed: the fault matrix does it at every point -----------------------------------------------------------


def killed(sim: SimWorld, volume: str, point: str) -> None:
    done = sim.tether("--fault", f"{point}=kill", "repair", "--apply", "--volume", volume)
    assert done.code == KILLED, done.err


def test_a_device_that_a_guest_may_have_opened_is_not_taken_back(sim: SimWorld) -> None:
    """A running guest has the disk: an abort leaves the connection, and says so."""
    volume = drifts.missing_device(sim).volume_id
    killed(sim, volume, "reconnect-host.act.after")
    done = sim.tether("job", "abort", "--last")
    assert done.code == BLOCKED, done.err
    assert "is open" in done.err
    assert volume in sim.books()["host"]["links"]


@pytest.mark.parametrize("point", ["reexport-volume.act.before", "complete-attachment.act.before"])
def test_past_its_pivot_a_repair_only_goes_forward(sim: SimWorld, point: str) -> None:
    volume = drifts.disk_without_attachment(sim).volume_id
    killed(sim, volume, point)
    done = sim.tether("job", "abort", "--last")
    assert done.code == 2, done.err
    assert "past its pivot" in done.err
    assert sim.tether("job", "resume", "--last").code == DONE
    assert audit(sim) == []


def test_a_kill_is_taken_up_by_the_next_repair(sim: SimWorld) -> None:
    assert sim.tether("attach", drifts.VOL1, "stopped1").code == DONE
    wrecks.rebooted(sim.directory, drifts.VOL1)
    killed(sim, drifts.VOL1, "reconnect-host.act.after")
    done = sim.tether("repair", "--apply", "-f", "json")
    assert done.code == DONE, done.err
    assert [row["action"] for row in json.loads(done.out)] == ["resume"]
