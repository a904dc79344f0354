"""``tether migrate``: the volumes of a server are handed over to the host that it moves to, or nothing has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import DONE, KILLED, ROLLED_BACK, Outcome, SimWorld
from tether.matrix import wrecks
from tether.matrix.journeys import BESIDE
from tether.sim.cinder.seed import SEEDED as VOLUMES
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.store import Store
from tether.sim.world import create

CONFLICT, HELD, NOT_FOUND, DRIFT = 2, 5, 6, 7
TO = f"sim-{BESIDE}"
EMPTY = {"host": {"crypt": {}, "devices": {}, "links": {}}, "guests": {}, "secrets": []}
CASES = {"host": ("host", "vol1"), "network": ("network", "vol1"), "dm-crypt": ("host", "secret1")}


class Pair:
    """Two hosts with one Cinder and one ledger; guest1 is on the first."""

    def __init__(self, directory: Path, data_path: str = "host") -> None:
        self.here = SimWorld(directory, data_path)
        assert self.here.tether("job", "list").code == DONE
        create(directory / BESIDE, directory)
        self.there = SimWorld(directory, data_path, BESIDE)

    def attach(self, *volumes: str, server: str = "guest1") -> None:
        for volume in volumes:
            assert self.here.tether("attach", volume, server).code == DONE

    def migrate(self, part: str, *, there: bool = True, server: str = "guest1", to: str = TO) -> Outcome:
        return (self.there if there else self.here).tether("migrate", part, server, "--to", to, "-f", "json")

    def prepare(self) -> None:
        done = self.migrate("prepare")
        assert done.code == DONE, done.err

    def move(self, *, back: bool = False) -> None:
        ends = [str(self.here.directory), str(self.here.directory / BESIDE)]
        origin, to = reversed(ends) if back else ends
        done = self.here.tether("sim", "move", origin, "guest1", to)
        assert done.code == DONE, done.err

    def books(self) -> dict[str, Any]:
        return self.here.books()

    def rows(self, volume: str) -> list[str]:
        """Return the states of Cinder's attachments of a volume."""
        book = Store(self.here.directory).read("cinder")
        return [row["attach_status"] for row in book["attachments"].values() if row["volume_id"] == VOLUMES[volume][0]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "world")


def states(done: Outcome) -> dict[str, str]:
    return {row["volume"]: row["state"] for row in json.loads(done.out)}


@pytest.mark.parametrize("case", CASES)
def test_the_server_moves_with_its_volume_which_is_detached_there_as_any_other(tmp_path: Path, case: str) -> None:
    data_path, volume = CASES[case]
    pair = Pair(tmp_path / "world", data_path)
    fresh = pair.books()
    pair.attach(volume)
    for _ in range(2):  # what is done is done
        pair.prepare()
    assert pair.rows(volume) == ["attached", "attached"]
    pair.move()
    for _ in range(2):
        done = pair.migrate("complete")
        assert done.code == DONE, done.err
    for _ in range(2):
        done = pair.migrate("complete", there=False)
        assert done.code == DONE, done.err
    assert pair.rows(volume) == ["attached"]
    books = pair.books()
    assert books["host"] == EMPTY["host"]
    assert books["secrets"] == []
    for side in (pair.here, pair.there):
        done = side.tether("audit")
        assert done.code == DONE, done.out
    done = pair.there.tether("detach", volume, "guest1")
    assert done.code == DONE, done.err
    assert pair.books()[BESIDE] | {"guests": {}} == EMPTY
    pair.move(back=True)
    assert judge.diff(fresh, pair.books()) == []


@pytest.mark.parametrize("case", CASES)
def test_what_is_given_up_has_changed_nothing(tmp_path: Path, case: str) -> None:
    data_path, volume = CASES[case]
    pair = Pair(tmp_path / "world", data_path)
    pair.attach(volume)
    before = pair.books()
    pair.prepare()
    for _ in range(2):
        done = pair.migrate("abort")
        assert done.code == DONE, done.err
    assert judge.diff(before, pair.books()) == []
    assert pair.here.tether("detach", volume, "guest1").code == DONE


def test_all_volumes_are_prepared_or_none(pair: Pair) -> None:
    pair.attach("vol1", "vol2")
    before = pair.books()
    pair.there.tether("sim", "script", "--skip", "1", str(pair.there.directory / BESIDE), "host.connect", "fail")
    done = pair.migrate("prepare")
    assert (done.code, states(done)) == (ROLLED_BACK, {"vol1": "prepared", "vol2": "rolled-back"}), done.err
    assert judge.diff(before, pair.books()) == []
    pair.prepare()


def test_one_that_is_refused_takes_back_what_was_prepared_before_it(pair: Pair) -> None:
    pair.attach("vol1", "vol2")
    killed = pair.here.tether("--fault", "commit.begin-detaching.act.before=kill", "detach", "vol2", "guest1")
    assert killed.code == KILLED
    before = pair.books()
    done = pair.migrate("prepare")
    assert done.code == HELD, done.err
    assert judge.diff(before, pair.books()) == []


def test_while_it_moves_a_volume_is_not_touched_otherwise(pair: Pair) -> None:
    pair.attach("vol1")
    pair.prepare()
    for words in (("detach", "vol1", "guest1"), ("extend", "vol1", "2")):
        done = pair.here.tether(*words)
        assert done.code == CONFLICT, done.err
        assert f"server guest1 is moving to host {TO}, and volume vol1 with it" in done.err
    assert pair.here.tether("attach", "vol1", "guest1").code == DONE  # it is attached
    assert pair.here.tether("attach", "vol2", "guest1").code == DONE  # another one is not concerned


def test_its_secrets_are_kept_and_sealed_anew(pair: Pair) -> None:
    pair.attach("vol1")
    pair.prepare()
    before = pair.books()
    assert pair.here.tether("db", "prune", "--older-than", "0s").code == DONE
    assert pair.here.tether("key", "rotate").code == DONE
    assert judge.diff(before, pair.books()) == []
    pair.prepare()  # it is done, by the job that did it
    pair.move()
    assert pair.migrate("complete").code == DONE
    assert pair.here.tether("db", "prune", "--older-than", "0s").code == DONE
    done = pair.migrate("complete", there=False)
    assert done.code == DONE, done.err
    assert pair.there.tether("detach", "vol1", "guest1").code == DONE


def test_a_volume_that_another_server_of_the_host_has_keeps_its_device_there(pair: Pair) -> None:
    pair.attach("shared1")
    host = Store(pair.here.directory / BESIDE)
    other = "9e570000-0000-4000-8000-000000000002"
    pair.here.tether("sim", "move", str(pair.here.directory), "guest2", str(host.directory))
    assert pair.there.tether("attach", "shared1", "guest2").code == DONE
    device = host.read("host")["devices"]
    pair.prepare()
    assert pair.migrate("abort").code == DONE
    assert host.read("host")["devices"] == device
    pair.prepare()
    assert pair.there.tether("detach", "shared1", "guest2").code == DONE  # the one that comes needs it
    assert host.read("host")["devices"] == device
    pair.move()
    assert pair.migrate("complete").code == DONE
    assert pair.migrate("complete", there=False).code == DONE
    assert pair.there.tether("detach", "shared1", "guest1").code == DONE
    assert host.read("host")["devices"] == {}
    assert SERVERS["guest2"] == other


def _legacy(pair: Pair) -> None:
    assert pair.here.tether("attach", "vol1", "guest1", "--dialect", "legacy").code == DONE


def _unowned(pair: Pair) -> None:
    config = pair.here.directory.parent / "unowned.conf"
    config.write_text("[cinder]\nowner_mark = off\n")
    assert pair.here.tether("attach", "vol1", "guest1", config=str(config)).code == DONE


def _known_there(pair: Pair) -> None:
    pair.attach("vol1")
    guest = Store(pair.here.directory / BESIDE).directory / "guests" / SERVERS["guest1"]
    guest.mkdir()
    for path in (pair.here.directory / "guests" / SERVERS["guest1"]).glob("*.[xj]*"):
        (guest / path.name).write_text(path.read_text())


def _in_another_status(pair: Pair) -> None:
    pair.attach("vol1")
    with Store(pair.here.directory).change("cinder") as book:
        book["volumes"][VOLUMES["vol1"][0]]["status"] = "detaching"


UNMOVABLE = {
    "legacy": (_legacy, "attached by the legacy dialect"),
    "no owner": (_unowned, "its attachment has no owner in Cinder"),
    "known there": (_known_there, "this host has a server of that UUID already"),
    "another status": (_in_another_status, "Cinder says that it is detaching"),
}


@pytest.mark.parametrize("case", UNMOVABLE)
def test_what_cannot_have_a_second_connection_is_refused(pair: Pair, case: str) -> None:
    spoil, text = UNMOVABLE[case]
    spoil(pair)
    before = pair.books()
    done = pair.migrate("prepare")
    assert (done.code, text in done.err) == (ROLLED_BACK, True), done.err
    assert judge.diff(before, pair.books()) == []


def test_each_part_is_refused_where_it_is_not_its_turn(pair: Pair) -> None:
    pair.attach("vol1")
    for part, there, to, code, text in (
        ("prepare", False, TO, CONFLICT, f"run this on host {TO}"),
        ("prepare", True, "elsewhere", CONFLICT, f"this host is {TO}"),
        ("complete", True, TO, DONE, "nothing is left to be done on this host"),
        ("abort", True, TO, DONE, "nothing is prepared"),
    ):
        done = pair.migrate(part, there=there, to=to)
        assert (done.code, text in done.err) == (code, True), done.err
    assert pair.migrate("prepare", server="guest9").code == NOT_FOUND
    pair.prepare()
    before = pair.books()
    for part, there, to, code, text in (
        ("prepare", True, "elsewhere", CONFLICT, f"is being moved to host {TO}"),
        ("complete", True, TO, ROLLED_BACK, "the server is not on this host"),
        ("complete", False, TO, CONFLICT, "has not taken server guest1 over yet"),
        ("abort", False, TO, CONFLICT, f"run this on host {TO}"),
    ):
        done = pair.migrate(part, there=there, to=to)
        assert (done.code, text in done.err) == (code, True), done.err
    assert judge.diff(before, pair.books()) == []


def test_after_the_move_only_the_right_part_is_done(pair: Pair) -> None:
    pair.attach("vol1")
    pair.prepare()
    left = (pair.here.directory / "guests" / SERVERS["guest1"] / "persistent.xml").read_text()
    pair.move()
    done = pair.migrate("abort")
    assert (done.code, "on this host has a disk of it" in done.err) == (ROLLED_BACK, True), done.err
    guest = Store(pair.here.directory / BESIDE).directory / "guests" / SERVERS["guest1"] / "state.json"
    arrived = guest.read_text()
    guest.write_text(arrived.replace('"migrating": false', '"migrating": true'))
    done = pair.migrate("complete")
    assert (done.code, "still on its way" in done.err) == (ROLLED_BACK, True), done.err
    guest.write_text(arrived)
    assert pair.migrate("complete").code == DONE
    done = pair.migrate("abort")
    assert (done.code, "there is nothing to take back" in done.err) == (CONFLICT, True), done.err
    # It was not undefined where it came from.
    known = pair.here.directory / "guests" / SERVERS["guest1"]
    known.mkdir()
    (known / "persistent.xml").write_text(left)
    (known / "state.json").write_text(arrived.replace('"running"', '"shutoff"'))
    done = pair.migrate("complete", there=False)
    assert (done.code, "virsh undefine guest1" in done.err) == (ROLLED_BACK, True), done.err
    for path in known.iterdir():
        path.unlink()
    known.rmdir()
    done = pair.migrate("complete", there=False)
    assert done.code == DONE, done.err


def test_a_prepare_that_was_killed_is_resumed_or_given_up(pair: Pair) -> None:
    pair.attach("vol1")
    before = pair.books()
    for verb, end in (("abort", "rolled-back"), ("resume", "prepared")):
        killed = pair.there.tether("--fault", "connect-host.act.after=kill", "migrate", "prepare", "guest1", "--to", TO)
        assert killed.code == KILLED
        done = pair.migrate("abort")
        assert (done.code, "is not ready for volume" in done.err) == (CONFLICT, True), done.err
        done = pair.here.tether("job", verb, "--last")
        assert (done.code, "was made where machine_id is" in done.err) == (CONFLICT, True), done.err
        done = pair.there.tether("job", verb, "--last", "-f", "value", "-c", "state")
        assert (done.code, done.out.strip()) == (DONE, end), done.err
        if verb == "abort":
            assert judge.diff(before, pair.books()) == []
    assert pair.migrate("abort").code == DONE


def test_a_host_that_was_rebooted_since_is_prepared_again(pair: Pair) -> None:
    pair.attach("vol1")
    before = pair.books()
    pair.prepare()
    wrecks.rebooted(pair.there.directory / BESIDE, VOLUMES["vol1"][0])
    done = pair.migrate("prepare")
    assert (done.code, "its device has gone from here since" in done.err) == (CONFLICT, True), done.err
    assert pair.migrate("abort").code == DONE
    assert judge.diff(before, pair.books()) == []
    pair.prepare()


def test_a_job_of_a_migration_is_not_settled_by_a_word(pair: Pair) -> None:
    pair.attach("vol1")
    killed = pair.there.tether("--fault", "connect-host.act.after=kill", "migrate", "prepare", "guest1", "--to", TO)
    assert killed.code == KILLED
    (job,) = [row for row in json.loads(pair.there.tether("job", "list", "-f", "json").out) if row["kind"] != "attach"]
    done = pair.there.tether("job", "settle", job["job"], "--as", "clean", "--reason", "x")
    assert (done.code, "a part of a migration" in done.err) == (CONFLICT, True), done.err


def test_the_xml_for_the_other_host_opens_the_other_connection(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "world", "network")
    pair.attach("vol1")
    xml = pair.here.directory / "guests" / SERVERS["guest1"] / "live.xml"
    initiators = [
        Store(place).read("host")["identity"]["initiator"] for place in (xml.parents[2], xml.parents[2] / BESIDE)
    ]
    words = ("migrate", "xml", "guest1", "--to", TO, "--file", str(xml))
    done = pair.here.tether(*words)
    assert (done.code, "is not prepared for volume" in done.err) == (CONFLICT, True), done.err
    pair.prepare()
    done = pair.here.tether(*words)
    assert done.code == DONE, done.err
    assert [done.out.count(name) for name in initiators] == [0, 1]
    assert done.out.replace(initiators[1], initiators[0]).split() == xml.read_text().split()


@pytest.mark.parametrize("content", ["", "<disk/>", "<domain/>", "<!DOCTYPE domain><domain/>", None])
def test_what_is_no_xml_of_the_server_is_refused(tmp_path: Path, content: str | None) -> None:
    pair = Pair(tmp_path / "world", "network")
    pair.attach("vol1")
    pair.prepare()
    file = tmp_path / "domain.xml"
    if content is not None:
        file.write_text(content)
    done = pair.here.tether("migrate", "xml", "guest1", "--to", TO, "--file", str(file))
    assert (done.code, "virsh dumpxml --migratable" in done.err) == (CONFLICT, True), done.err
