"""What is no drift: a job at work, what Nova has, what is another host's, and what is no Cinder volume at all."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from tests.crash.world import DONE, SimWorld
from tests.integration import drifts
from tests.integration.commands import Command
from tests.integration.drifts import DRIFTS, VOL1, Expected
from tests.integration.test_audit import DRIFT, audit, named
from tether.audit.drift import Kind
from tether.audit.kinds import judge
from tether.audit.survey import Survey, read_survey
from tether.runner.world import open_world
from tether.settings import Settings
from tether.sim.domains import add_server
from tether.sim.store import Store
from tether.sim.world import fit

CALLS = (
    "cinder.create_attachment",
    "cinder.update_attachment",
    "cinder.complete_attachment",
    "host.connect",
    "guest.plug_persistent",
    "guest.plug_live",
)


# -- a job at work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_a_running_job_explains_what_it_has_done_so_far(sim: SimWorld, call: str) -> None:
    sim.script(call, "slow", seconds=3.0)
    attach = Command(sim, "attach", "vol1", "guest1").reaches(call)
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err
    assert "1 volume in motion: not judged" in err
    assert "all books agree" in err
    assert attach.end().code == DONE


@pytest.mark.parametrize("seed", range(10))
def test_ten_moments_of_an_attach_and_a_detach(sim: SimWorld, seed: int) -> None:
    """The audit begins, and ends, at any moment: before the job is there, in its middle, after its end."""
    chance = random.Random(seed)
    for call in chance.sample(CALLS, 3):
        sim.script(call, "slow", seconds=chance.random())
    for words in (("attach", "vol1", "guest1"), ("detach", "vol1", "guest1")):
        job = Command(sim, *words)
        time.sleep(chance.random())
        code, rows, err = audit(sim)
        assert (code, rows) == (DONE, []), err
        assert job.end().code == DONE
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err
    assert "motion" not in err


def test_a_job_at_work_hides_only_its_own_volume(sim: SimWorld) -> None:
    expected = DRIFTS[Kind.LIVE_ONLY_DISK](sim)
    sim.script("guest.plug_live", "slow", seconds=3.0)
    attach = Command(sim, "attach", "vol1", "guest1").reaches("guest.plug_live")
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, [expected]), err
    assert attach.end().code == DONE


# -- Nova's --------------------------------------------------------------------------------------------------


def nova_server(sim: SimWorld) -> str:
    server = add_server(Store(sim.directory), "nova1", nova=True)
    drifts.NAMES["nova1"] = server
    return server


def nova_disk(volume: str, target: str = "vdq") -> str:
    return (
        f"<disk type='block' device='disk'><source dev='/dev/sdq'/><target dev='{target}' bus='virtio'/>"
        f"<serial>{volume}</serial><alias name='ua-{volume}'/></disk>"
    )


def nova_session(sim: SimWorld, volume: str) -> None:
    drifts.hold(sim, "sessions", volume, [f"192.0.2.10:3260 iqn.2010-10.org.openstack:volume-{volume}"])


@pytest.mark.parametrize("scopes", [("live", "persistent"), ("live",)], ids="+".join)
def test_what_nova_manages_is_novas(sim: SimWorld, scopes: tuple[str, ...]) -> None:
    server = nova_server(sim)
    volume = drifts.new_volume(sim, "nova-volume")
    drifts.row(sim, volume, "attached", server)
    drifts.add_disk(sim, "nova1", nova_disk(volume), *scopes)
    nova_session(sim, volume)
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_what_nova_has_left_is_novas(sim: SimWorld) -> None:
    server = nova_server(sim)
    volume = drifts.new_volume(sim, "nova-volume")
    drifts.row(sim, volume, "attached", server)
    nova_session(sim, volume)
    code, rows, err = audit(sim)
    wanted = [
        Expected(Kind.ATTACHMENT_WITHOUT_DISK, volume, "nova1", "nova"),
        Expected(Kind.UNUSED_SESSION, volume, "", "foreign"),
    ]
    assert (code, named(rows)) == (DRIFT, wanted), err
    assert not [item["next"] for item in rows if item["next"].startswith("tether")]


# -- others' -------------------------------------------------------------------------------------------------


def test_what_others_have_elsewhere_is_no_drift(sim: SimWorld) -> None:
    """An attachment to a server that this libvirt does not know may have its disk on another host."""
    volume = drifts.new_volume(sim, "elsewhere")
    drifts.row(sim, volume, "attached", str(uuid.uuid4()), attached_host="another-host")
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_an_attachment_to_this_host_without_a_disk_is_named_though_nobody_owns_it(sim: SimWorld) -> None:
    volume = drifts.new_volume(sim, "left-here")
    drifts.row(sim, volume, "attached", str(uuid.uuid4()), attached_host="sim-host")
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, [Expected(Kind.ATTACHMENT_WITHOUT_DISK, volume, "", "foreign")]), err


def test_disks_that_are_no_volumes_are_no_drift(sim: SimWorld) -> None:
    """Serials and user aliases are free: what looks like an id is one only if a book knows it."""
    stranger = str(uuid.uuid4())
    drifts.add_disk(sim, "guest1", nova_disk(stranger), "live")
    drifts.add_disk(sim, "guest1", drifts.hand_made("sdy", "/dev/sdr", str(uuid.uuid4())), "persistent")
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_a_cd_and_a_read_only_disk_may_be_opened_twice(sim: SimWorld) -> None:
    volume = drifts.attached(sim, "read-only")
    link = str(sim.directory / "run" / "volumes" / volume)
    disk = drifts.hand_made("sdy", link).replace("</disk>", "<readonly/></disk>")
    drifts.add_disk(sim, "guest1", disk)
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_a_multiattach_volume_may_have_two_servers(sim: SimWorld) -> None:
    for server in ("guest1", "guest2"):
        assert sim.tether("attach", "shared1", server).code == DONE
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_an_encrypted_volume_and_one_on_the_network_are_clean(sim: SimWorld) -> None:
    assert sim.tether("attach", "secret1", "guest1").code == DONE
    sim._config.write_text(sim._config.read_text().replace("data_path = host", "data_path = network"))
    assert sim.tether("attach", "vol1", "guest2").code == DONE
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err
    with drifts.book(sim, "host") as host:
        host["crypt"] = {}
    with drifts.book(sim, "cinder") as cinder:
        (item,) = (found for found in cinder["attachments"].values() if found["volume_id"] == VOL1)
        item["connection_info"]["target_lun"] = 9
    code, rows, err = audit(sim)
    assert [item["kind"] for item in rows] == ["missing-device", "stale-connection"], err
    for scope in drifts.SCOPES:
        with drifts.domain(sim, "guest2", scope) as root:
            source = drifts.disk_of(root, VOL1).find("source")
            assert source is not None
            source.set("name", "iqn.2010-10.org.openstack:volume-other/1")
    code, rows, err = audit(sim)
    assert [item["kind"] for item in rows] == ["wrong-device", "missing-device", "stale-connection"], err


def test_after_a_clean_job_nothing_is_left_to_find(sim: SimWorld) -> None:
    expected = DRIFTS[Kind.INTERRUPTED_JOB](sim)
    for code in (DRIFT, DONE):
        found, rows, err = audit(sim)
        assert found == code, (rows, err)
        if code == DRIFT:
            assert named(rows) == [expected]
            assert sim.tether(*rows[0]["next"].split()[1:]).code == DONE


def test_with_a_lost_ledger_tethers_own_disks_are_known_by_their_mark(sim: SimWorld) -> None:
    volume = drifts.attached(sim, "lost")
    for table in ("mappings", "connections", "jobs", "flows"):
        drifts.execute(sim, f"DELETE FROM tether_{table}")
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, [Expected(Kind.FOREIGN_DISK, volume, "guest1", "unknown")]), err
    assert rows[0]["next"] == "tether adopt lost guest1"


def test_a_disk_past_the_link_is_a_second_one_on_the_source(sim: SimWorld) -> None:
    volume = drifts.attached(sim, "past-the-link")
    path = json.loads((sim.directory / "host.json").read_text())["devices"][volume]["path"]
    drifts.add_disk(sim, "guest2", drifts.hand_made("sdz", path))
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, [Expected(Kind.TWO_DISKS, volume, "guest1")]), err


# -- unread is never absent ----------------------------------------------------------------------------------

BOOKS = ("cloud", "guest", "host", "ledger", "machine")


@pytest.fixture
def survey(sim: SimWorld) -> Iterator[Survey]:
    """A survey of a world with all kinds of drift."""
    for put in DRIFTS.values():
        put(sim)
    with open_world(fit(Settings(), sim.directory), sim=sim.directory) as world:
        yield read_survey(world.tools)


def test_a_book_less_never_makes_a_drift_more(survey: Survey) -> None:
    def found(survey: Survey) -> set[tuple[Any, ...]]:
        return {(drift.kind, drift.volume_id, drift.server_id, drift.about) for drift in judge(survey)}

    everything = found(survey)
    assert {kind for kind, *_ in everything} == set(Kind)
    for count in range(1, len(BOOKS) + 1):
        for books in combinations(BOOKS, count):
            fewer = found(replace(survey, **dict.fromkeys(books)))
            assert fewer <= everything, (books, fewer - everything)
    assert found(replace(survey, ledger=None)) == set(), "what a job explains cannot be told without the ledger"


def test_evidence_says_what_each_book_says_and_no_secret(survey: Survey) -> None:
    for drift in judge(survey):
        assert {"cinder", "ledger", "host", "live", "persistent"} <= drift.evidence.keys()
    assert "changed-secret" not in json.dumps([dict(drift.evidence) for drift in judge(survey)])


def test_what_somebody_holds_open_is_not_unused(sim: SimWorld) -> None:
    expected = DRIFTS[Kind.UNUSED_DEVICE](sim)
    assert named(audit(sim)[1]) == [expected]
    with drifts.book(sim, "host") as host:
        host["devices"][expected.volume_id]["open_count"] = 1
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err


def test_a_target_that_is_named_after_another_id_is_its_volumes(sim: SimWorld) -> None:
    """As after a migration in Cinder: the volume keeps its id, and its target has the name of the new place."""
    volume = drifts.attached(sim, "migrated")
    other = str(uuid.uuid4())
    with drifts.book(sim, "host") as host:
        (session,) = host["devices"][volume]["sessions"]
        host["devices"][volume]["sessions"] = []
        host["sessions"] = {other: [session]}
    code, rows, err = audit(sim)
    assert (code, rows) == (DONE, []), err
