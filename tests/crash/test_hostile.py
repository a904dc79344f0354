"""Sequences of crashes, late calls and foreign changes that once broke the guarantee."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from tests.crash import judge
from tests.crash.outsider import Outsider
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tests.integration import drifts
from tether.matrix import wrecks
from tether.sim.cinder.seed import add_volume
from tether.sim.guest import SimGuest
from tether.sim.store import Store

VOL1 = "11111111-1111-4111-8111-111111111111"
GUEST1 = "9e570000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "point",
    [
        "connect-host.act.before",
        "plug-persistent.act.after",
        "reserve-volume.act.after",
        "complete-attachment.act.after",
    ],
)
def test_an_abort_goes_backward(sim: SimWorld, point: str) -> None:
    before = sim.books()
    assert sim.tether("--fault", f"{point}=kill", "attach", "vol1", "guest1").code == KILLED
    done = sim.tether("job", "abort", "--last")
    assert done.code == DONE, done.err
    assert sim.jobs()[0] == ("attach", "rolled-back")
    assert judge.diff(before, sim.books()) == []


def test_an_abort_that_is_killed_goes_on_backward(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("--fault", "plug-persistent.act.after=kill", "attach", "vol1", "guest1").code == KILLED
    assert sim.tether("--fault", "connect-host.undo.before=kill", "job", "abort", "--last").code == KILLED
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_database_that_does_not_answer_at_an_intent_leaves_the_job_to_resume(sim: SimWorld, moment: str) -> None:
    done = sim.tether("--fault", f"commit.connect-host.act.{moment}=uncertain", "attach", "vol1", "guest1")
    assert done.code == 1, done.err
    assert "next: tether job resume" in done.err
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.jobs()[0] == ("attach", "attached")


@pytest.mark.parametrize("case", ["legacy", "owner_mark off"])
def test_a_reserve_without_an_owner_is_not_forgotten_by_an_abort(sim: SimWorld, case: str, tmp_path: Path) -> None:
    """The settle time is over when the abort comes: what was cut off is still in doubt."""
    config = tmp_path / "tether.conf"
    config.write_text("[DEFAULT]\nlease_ttl = 0.3\n[cinder]\nowner_mark = off\n")
    dialect, step = ("legacy", "reserve-volume-legacy") if case == "legacy" else ("attachments", "reserve-volume")
    before = sim.books()
    words = ("--fault", f"{step}.act.after=kill", "attach", "vol1", "guest1", "--dialect", dialect)
    assert sim.tether(*words, config=str(config)).code == KILLED
    time.sleep(1.6)  # the settle time of the embedded world is 1.2 s
    done = sim.tether("job", "abort", "--last", config=str(config))
    assert done.code == BLOCKED, done.err
    with Store(sim.directory).change("cinder") as book:  # what the hint says
        book["volumes"][VOL1]["status"] = "available"
        book["attachments"] = {}
    assert sim.tether("job", "resume", "--last", config=str(config)).code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


def test_a_late_export_is_not_forgotten_by_a_kill(sim: SimWorld, tmp_path: Path) -> None:
    config = tmp_path / "tether.conf"
    config.write_text("[DEFAULT]\nlease_ttl = 0.3\n[cinder]\nrpc_response_timeout = 6\n")
    before = sim.books()
    sim.script("cinder.update_attachment", "late", seconds=6)
    words = ("--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1")
    assert sim.tether(*words, config=str(config)).code == KILLED
    assert sim.tether("job", "abort", "--last", config=str(config)).code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_refused_begin_detaching_rolls_nothing_back(sim: SimWorld) -> None:
    """The volume is *detaching* by a stranger's hand: the status is not ours to roll back."""
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    sim.script("cinder.begin_detaching", "slow", seconds=1.5)

    stranger = os.fork()  # no thread: a fork beside one may inherit a lock that nobody will open
    if stranger == 0:
        while sim.step_of("detach") != "begin-detaching/1":
            time.sleep(0.02)
        with Store(sim.directory).change("cinder") as book:
            book["volumes"][VOL1]["status"] = "detaching"
        os._exit(0)
    assert sim.tether("detach", "vol1", "guest1").code == ROLLED_BACK
    assert os.waitpid(stranger, 0)[1] == 0
    assert sim.books()["cinder"]["vol1"]["status"] == "detaching"


def test_what_a_guest_was_started_with_is_taken_out_of_it_too(sim: SimWorld, tmp_path: Path) -> None:
    """Started between plug-persistent and plug-live, on the data path without host steps to stop the undo."""
    config = tmp_path / "tether.conf"
    config.write_text("[DEFAULT]\ndata_path = network\n")
    guest = SimGuest(Store(sim.directory))
    guest.stop(GUEST1)
    words = ("--fault", "plug-persistent.act.after=kill", "attach", "vol1", "guest1")
    assert sim.tether(*words, config=str(config)).code == KILLED
    guest.start(GUEST1)
    assert sim.tether("job", "abort", "--last", config=str(config)).code == DONE
    books = sim.books()
    assert "ua-" + VOL1 not in str(books["guests"])
    assert books["cinder"]["vol1"]["status"] == "available"
    assert books["secrets"] == []


@pytest.mark.parametrize("data_path", ["host", "network"])
def test_nothing_is_released_under_a_disk_that_came_back(sim: SimWorld, tmp_path: Path, data_path: str) -> None:
    """The guest is put back, disk and all, after detach-guest has ended."""
    config = tmp_path / "tether.conf"
    config.write_text(f"[DEFAULT]\ndata_path = {data_path}\n")
    assert sim.tether("attach", "vol1", "guest1", config=str(config)).code == DONE
    live = sim.directory / "guests" / GUEST1 / "live.xml"
    with_disk = live.read_text()
    words = ("--fault", "undefine-secret.act.before=kill", "detach", "vol1", "guest1")
    assert sim.tether(*words, config=str(config)).code == KILLED
    without_disk = live.read_text()
    live.write_text(with_disk)
    before = sim.books()
    assert sim.tether("job", "resume", "--last", config=str(config)).code == BLOCKED
    assert [line for line in judge.diff(before, sim.books()) if not line.startswith("/ledger/leases")] == []
    live.write_text(without_disk)
    assert sim.tether("job", "resume", "--last", config=str(config)).code == DONE
    assert sim.books()["cinder"]["vol1"] == {
        "id": "11111111-1111-4111-8111-111111111111",
        "status": "available",
        "attach_status": "detached",
        "attachments": [],
        "exported": False,
        "size": 1,
    }


def test_a_rbd_volume_is_decrypted_by_qemu_on_the_host_data_path_too(sim: SimWorld) -> None:
    store = Store(sim.directory)
    add_volume(store, name="ceph1", protocol="rbd", encrypted=True, passphrase="open sesame")
    done = sim.tether("attach", "ceph1", "guest1")
    assert done.code == DONE, done.err
    assert "<encryption" in (sim.directory / "guests" / GUEST1 / "live.xml").read_text()
    assert sim.tether("detach", "ceph1", "guest1").code == DONE


def drop(sim: SimWorld) -> None:
    """Let an administrator reset vol1: cinder reset-state --state available --attach-status detached."""
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOL1] |= {"status": "available", "attach_status": "detached"}
        book["attachments"] = {}
        book["exports"] = {}


def test_a_detach_of_what_cinder_has_dropped_disconnects_the_host(sim: SimWorld) -> None:
    """How it is connected is sealed in the ledger."""
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    drop(sim)
    assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_detach_of_what_everybody_has_forgotten_ends(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    drop(sim)
    (sim.directory / "keys").unlink()
    assert sim.tether("key", "forget").code == DONE
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == BLOCKED, done.err
    assert "iscsiadm" in done.err
    with Store(sim.directory).change("host") as book:  # what the hint says
        book["devices"], book["links"] = {}, {}
    assert sim.tether("job", "resume", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
@pytest.mark.parametrize("point", ["", "begin-detaching.act.before", "begin-detaching.act.after"])
@pytest.mark.parametrize("verb", ["resume", "abort"])
def test_a_status_that_is_somebody_elses_by_now_is_left_alone(
    sim: SimWorld, point: str, dialect: str, verb: str
) -> None:
    """An administrator has reset the volume, and another tool has attached it: only what is ours is taken away."""
    assert sim.tether("attach", "vol1", "guest1", "--dialect", dialect).code == DONE
    wrecks.lost(sim.directory, VOL1)
    theirs = drifts.row(sim, VOL1, "attached", str(uuid.uuid4()))
    if point:
        assert sim.tether("--fault", f"{point}=kill", "detach", "vol1", "guest1").code == KILLED
        with drifts.book(sim, "cinder") as cinder:
            cinder["volumes"][VOL1]["status"] = "detaching"  # they detach it
        done = sim.tether("job", verb, "--last")
    else:
        done = sim.tether("detach", "vol1", "guest1")
    assert done.code == DONE, done.err
    with drifts.book(sim, "cinder") as cinder:
        found = (
            cinder["volumes"][VOL1]["status"],
            {key for key, row in cinder["attachments"].items() if not row.get("deleted")},
        )
    assert found == ("detaching" if point else "in-use", {theirs})
    assert (VOL1 in str(sim.books()["guests"])) == (point != "" and verb == "abort")


def test_a_stranger_who_reserves_after_the_undo_keeps_the_volume(sim: SimWorld) -> None:
    sim.script("host.connect", "fail")
    words = ("--fault", "reserve-volume-legacy.undo.before=kill", "attach", "vol1", "guest1", "--dialect", "legacy")
    assert sim.tether(*words).code == KILLED
    with Store(sim.directory).change("cinder") as book:
        assert book["volumes"][VOL1]["status"] == "available"
        book["volumes"][VOL1]["status"] = "attaching"
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert sim.books()["cinder"]["vol1"]["status"] == "attaching"


def test_the_error_of_a_rolled_back_job_is_why_it_was_rolled_back(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    sim.script("host.disconnect", "fail", times=-1)
    done = sim.tether("attach", "vol1", "guest1")
    assert done.code == BLOCKED
    assert "host.disconnect" in done.err
    sim.forgive()
    resumed = sim.tether("job", "resume", "--last")
    assert resumed.code == ROLLED_BACK
    assert "plug_live" in resumed.err


def test_what_blocked_a_job_is_not_the_error_of_its_later_end(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    sim.script("guest.unplug_live", "ignore")
    assert sim.tether("detach", "vol1", "guest1").code == BLOCKED
    sim.script("guest.unplug_live", "refuse")
    resumed = sim.tether("job", "resume", "--last")
    assert resumed.code == ROLLED_BACK
    assert "refused" in resumed.err


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_database_that_does_not_answer_at_the_end_is_no_roll_back(sim: SimWorld, moment: str) -> None:
    done = sim.tether("--fault", f"commit.job.end.{moment}=uncertain", "attach", "vol1", "guest1")
    assert done.code == 1, done.err
    assert "next: once the database answers: tether job resume" in done.err
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.jobs()[0] == ("attach", "attached")


@pytest.mark.parametrize("what", ["row", "live", "persistent"])
def test_an_attach_of_what_an_outsider_took_is_no_success(sim: SimWorld, what: str) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    outsider = Outsider(sim.directory)
    if what == "row":
        drop(sim)
    else:
        outsider.detach_disk("guest1", "vol1", what)
    before = sim.books()
    for words in (("attach",), ("plan", "attach")):
        done = sim.tether(*words, "vol1", "guest1")
        assert done.code == BLOCKED, done.err
        assert {"row": "attachment", "live": "live", "persistent": "persistent"}[what] in done.err
        assert "tether detach" in done.err
    assert judge.diff(before, sim.books()) == []
    assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert sim.tether("attach", "vol1", "guest1").code == DONE


@pytest.mark.parametrize("point", ["plug-live.act.after", "complete-attachment.act.after"])
def test_an_attach_that_is_undone_does_not_pull_a_disk_from_under_a_saved_guest(sim: SimWorld, point: str) -> None:
    before = sim.books()
    assert sim.tether("--fault", f"{point}=kill", "attach", "vol1", "guest1").code == KILLED
    outsider = Outsider(sim.directory)
    outsider.save("guest1")
    done = sim.tether("job", "abort", "--last")
    assert done.code == BLOCKED, done.err
    assert "managed-save" in done.err
    assert sim.books()["host"]["links"]
    outsider.start("guest1")
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("point", ["unplug-persistent.act.before", "unplug-live.act.before", "unplug-live.act.after"])
def test_a_detach_waits_for_the_image_of_a_saved_guest(sim: SimWorld, point: str) -> None:
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", f"{point}=kill", "detach", "vol1", "guest1").code == KILLED
    outsider = Outsider(sim.directory)
    outsider.save("guest1")
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert "managed-save" in done.err
    assert sim.books()["host"]["links"]
    outsider.start("guest1")
    assert sim.tether("job", "resume", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_an_attach_into_a_guest_that_was_saved_is_not_finished_without_its_live_disk(sim: SimWorld) -> None:
    assert sim.tether("--fault", "plug-live.act.before=kill", "attach", "vol1", "guest1").code == KILLED
    outsider = Outsider(sim.directory)
    outsider.save("guest1")
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert "managed-save" in done.err
    outsider.start("guest1")
    assert sim.tether("job", "resume", "--last").code == DONE
    assert "ua-" + VOL1 in (sim.directory / "guests" / GUEST1 / "live.xml").read_text()


@pytest.mark.parametrize("last", ["guest1", "guest2"])
def test_a_device_goes_although_another_server_uses_the_volume_by_network(sim: SimWorld, last: str) -> None:
    """The setting data_path was changed between the two attaches."""
    network, before = SimWorld(sim.directory, "network"), sim.books()
    assert network.tether("attach", "shared1", "guest1").code == DONE
    one = sim.books()
    host = SimWorld(sim.directory, "host")
    host.script("guest.plug_live", "fail")
    assert host.tether("attach", "shared1", "guest2").code == ROLLED_BACK
    assert judge.diff(one, sim.books()) == []
    assert host.tether("attach", "shared1", "guest2").code == DONE
    for server in sorted(["guest1", "guest2"], key=lambda name: name == last):
        assert host.tether("detach", "shared1", server).code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_guest_that_keeps_the_half_that_a_repair_gave_it_keeps_its_mark(sim: SimWorld) -> None:
    volume = drifts.persistent_only_disk(sim).volume_id
    assert sim.tether("--fault", "plug-half.act.after=kill", "repair", "--apply", "--volume", volume).code == KILLED
    given = sim.books()
    sim.script("guest.unplug_live", "refuse")
    aborted = sim.tether("job", "abort", "--last")
    assert aborted.code == BLOCKED, aborted.err
    assert "does not let volume persistent-only go" in aborted.err
    assert sim.books()["guests"] == given["guests"]
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK


def test_a_completion_that_was_believed_and_not_done_is_repeated_by_a_repair(sim: SimWorld) -> None:
    volume = drifts.attached(sim, "half-complete")
    with drifts.book(sim, "cinder") as cinder:
        cinder["volumes"][volume]["status"] = "attaching"
        for row in cinder["attachments"].values():
            row["attach_status"] = "attaching"
    done = sim.tether("--fault", "cinder.complete_attachment=not-done", "repair", "--apply", "--volume", volume)
    assert done.code == DONE, done.err
    assert status(sim, volume) == "in-use"


def test_a_legacy_attach_that_was_believed_and_not_done_is_repeated(sim: SimWorld) -> None:
    done = sim.tether("--fault", "cinder.attach=not-done", "attach", "vol1", "guest1", "--dialect", "legacy")
    assert done.code == DONE, done.err
    assert status(sim, VOL1) == "in-use"


def test_a_legacy_export_undone_before_a_kill_is_not_undone_again_under_a_stranger(sim: SimWorld) -> None:
    sim.script("host.connect", "fail")
    words = ("--fault", "export-volume-legacy.undo.after=kill", "attach", "vol1", "guest1", "--dialect", "legacy")
    assert sim.tether(*words).code == KILLED
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOL1]["status"] = "attaching"  # os-reserve of somebody else's
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert status(sim, VOL1) == "attaching"


def status(sim: SimWorld, volume_id: str) -> str:
    """Return what Cinder's own book says of a volume."""
    return str(Store(sim.directory).read("cinder")["volumes"][volume_id]["status"])
