"""``job settle``, ``job resume`` of several jobs, ``job abort`` of a running one, and ``db prune``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tests.integration.books import Books, a_job, a_mapping
from tests.integration.commands import Command, run
from tests.integration.test_cli_running import ATTACH, slow
from tether import faults
from tether.errors import UncertainError
from tether.persistence.ledger import job_columns
from tether.persistence.prune import prune
from tether.sim.store import Store

VOL1 = "11111111-1111-4111-8111-111111111111"


def settle(sim: SimWorld, end: str) -> Any:
    return run(sim, "job", "settle", "--last", "--as", end, "--reason", "seen by hand")


def shown(sim: SimWorld) -> dict[str, Any]:
    return dict(json.loads(run(sim, "job", "show", "--last", "-f", "json").out))


# -- settle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["reserve-volume", "connect-host", "plug-persistent", "plug-live"])
@pytest.mark.parametrize("end", ["attached", "clean"])
def test_what_a_book_contradicts_is_not_settled(sim: SimWorld, point: str, end: str) -> None:
    assert run(sim, "--fault", f"{point}.act.after=kill", *ATTACH).code == KILLED
    held = sim.books()
    done = settle(sim, end)
    assert done.code == BLOCKED, done.err
    assert f"cannot be settled as {end}: " in done.err
    assert judge.diff(held, sim.books()) == []
    assert shown(sim)["state"] == "interrupted"
    assert run(sim, "job", "resume", "--last").code == DONE


def test_a_job_is_settled_as_attached_once_all_books_say_so(sim: SimWorld) -> None:
    assert run(sim, "--fault", "finish-mapping.act.before=kill", *ATTACH).code == KILLED
    assert settle(sim, "attached").code == DONE
    job = shown(sim)
    assert (job["state"], job["exit_code"]) == ("attached", DONE)
    assert "seen by hand" in job["settled"]
    assert " by " in job["settled"]
    before = sim.books()["ledger"]["mappings"]
    assert [row[2] for row in before] == ["attached"]
    assert run(sim, "detach", "vol1", "guest1").code == DONE
    again = settle(sim, "clean")
    assert again.code == 2, again.err


def test_a_job_is_settled_as_clean_once_an_operator_has_cleaned_up(sim: SimWorld) -> None:
    before = sim.books()
    sim.script("cinder.delete_attachment", "fail", times=-1)
    sim.script("guest.plug_live", "fail")
    assert run(sim, *ATTACH).code == BLOCKED
    assert settle(sim, "clean").code == BLOCKED
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][VOL1] |= {"status": "available", "attach_status": "detached"}
        book["attachments"], book["exports"] = {}, {}
    done = settle(sim, "clean")
    assert done.code == DONE, done.err
    assert (shown(sim)["state"], shown(sim)["exit_code"]) == ("rolled-back", ROLLED_BACK)
    assert judge.diff(before, sim.books()) == []
    sim.forgive()
    assert run(sim, *ATTACH).code == DONE, "the volume is free again"


@pytest.mark.parametrize(
    ("point", "end", "state"),
    [
        ("begin-detaching.undo.before", "attached", "rolled-back"),
        ("delete-mapping.act.before", "clean", "detached"),
    ],
)
def test_a_detach_is_settled_too(attached: SimWorld, point: str, end: str, state: str) -> None:
    if end == "attached":
        attached.script("guest.unplug_persistent", "fail")
    assert run(attached, "--fault", f"{point}=kill", "detach", "vol1", "guest1").code == KILLED
    if end == "attached":
        assert settle(attached, end).code == BLOCKED  # it is still detaching
        with Store(attached.directory).change("cinder") as book:
            book["volumes"][VOL1]["status"] = "in-use"
    done = settle(attached, end)
    assert done.code == DONE, done.err
    assert shown(attached)["state"] == state
    assert len(attached.books()["ledger"]["mappings"]) == (end == "attached")


def test_a_running_job_is_not_settled(sim: SimWorld) -> None:
    first = slow(sim, "host.connect", *ATTACH)
    done = settle(sim, "clean")
    assert done.code == 5, done.err
    assert first.end().code == DONE


# -- several jobs --------------------------------------------------------------------------------------------

VOLUMES = ("vol1", "vol2", "secret1")


def interrupted(sim: SimWorld) -> None:
    """Leave three attaches behind, each killed at another step."""
    for volume, point in zip(VOLUMES, ("export-volume", "connect-host", "plug-live"), strict=True):
        assert run(sim, "--fault", f"{point}.act.after=kill", "attach", volume, "guest1").code == KILLED


@pytest.mark.parametrize("words", [("--all",), ("--all", "--parallel", "1")], ids=["side by side", "one by one"])
def test_all_interrupted_jobs_are_resumed(sim: SimWorld, words: tuple[str, ...]) -> None:
    interrupted(sim)
    done = run(sim, "job", "resume", *words, "-f", "json")
    assert done.code == DONE, done.err
    rows = json.loads(done.out)
    assert [(row["volume"], row["state"], row["exit_code"]) for row in rows] == [
        (name, "attached", 0) for name in VOLUMES
    ]
    assert {row["status"] for row in list(sim.books()["cinder"].values())[:2]} == {"in-use"}
    again = run(sim, "job", "resume", "--all")
    assert (again.code, "nothing to resume" in again.err) == (DONE, True)


def test_several_are_named_and_the_gravest_code_is_the_commands(sim: SimWorld) -> None:
    interrupted(sim)
    ids = [row["job"] for row in json.loads(run(sim, "job", "list", "-f", "json").out)]
    sim.script("cinder.complete_attachment", "fail", times=-1)
    done = run(sim, "job", "resume", ids[0][:12], ids[2], "-f", "json")
    assert done.code == BLOCKED, done.err
    assert {row["job"]: row["state"] for row in json.loads(done.out)} == {ids[0]: "blocked", ids[2]: "blocked"}
    assert done.err.count("next: ") == 2
    sim.forgive()
    assert run(sim, "job", "resume", "--all").code == DONE
    assert {state for _kind, state in sim.jobs()} == {"attached"}


@pytest.mark.parametrize("words", [(), ("--all", "--last"), ("x", "--last"), ("--all", "--parallel", "0")])
def test_wrong_words_name_no_jobs(sim: SimWorld, words: tuple[str, ...]) -> None:
    done = run(sim, "job", "resume", *words)
    assert (done.code, done.out) == (2, "")


def test_two_who_resume_one_job(sim: SimWorld) -> None:
    """One works, the other ends with 5 and says who holds it."""
    assert run(sim, "--fault", "export-volume.act.after=kill", *ATTACH).code == KILLED
    first = slow(sim, "host.connect", "job", "resume", "--last")
    second = run(sim, "job", "resume", "--last")
    assert second.code == 5, second.err
    assert f"held by process {first.pid} " in second.err
    assert first.end().code == DONE


# -- abort of a running job ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["host.connect", "cinder.complete_attachment"], ids=["before", "past the pivot"])
def test_an_abort_asks_the_runner_to_stop_first(sim: SimWorld, call: str) -> None:
    before = sim.books()
    first = slow(sim, call, *ATTACH, seconds=1.5)
    done = run(sim, "job", "abort", "--last")
    assert done.code == DONE, done.err
    ended = first.end()
    assert ended.code == 1, ended.err
    assert "interrupted" in ended.err or "rolled" in ended.err
    assert sim.jobs() == [("attach", "rolled-back")]
    assert judge.diff(before, sim.books()) == []


def test_an_abort_does_not_wait_for_ever(sim: SimWorld, tmp_path: Any) -> None:
    config = tmp_path / "quick.conf"
    config.write_text("[DEFAULT]\nwait = 0.3\n")
    first = slow(sim, "host.connect", *ATTACH, seconds=3)
    done = sim.tether("job", "abort", "--last", config=str(config))
    assert done.code == 5, done.err
    assert f"held by process {first.pid} " in done.err
    first.end()
    assert run(sim, "job", "abort", "--last").code == DONE


def test_an_unknown_version_is_left_as_it_is(sim: SimWorld) -> None:
    import sqlite3

    assert run(sim, "--fault", "export-volume.act.after=kill", *ATTACH).code == KILLED
    held = sim.books()
    with sqlite3.connect(sim.directory / "tether.sqlite") as connection:
        connection.execute("UPDATE tether_jobs SET version = 99")
    for verb in ("resume", "abort"):
        done = run(sim, "job", verb, "--last")
        assert done.code == 2, done.err
        assert "does not know attach version 99" in done.err
    assert (shown(sim)["state"], shown(sim)["attempts"]) == ("interrupted", 1)
    assert judge.diff(held, sim.books()) == []


# -- prune ---------------------------------------------------------------------------------------------------


def ended(books: Books, seconds_ago: float, **changes: Any) -> str:
    """Store a job that ended so long ago, with a flow and a secret."""
    job, lease = books.held_job(**changes)
    connection = books.logbook.backend(lease).get_connection()
    connection.keep_secret("connection", "sealed")
    connection.write(job_columns(state="attached", finished_at=job.created_at - seconds_ago))
    books.database_execute(
        "UPDATE tether_jobs SET created_at = created_at - :s WHERE id = :id", s=seconds_ago + 1, id=job.id
    )
    return job.id


def test_what_ended_long_ago_is_forgotten_and_nothing_else(books: Books) -> None:
    old = [ended(books, 1000 + number) for number in range(7)]
    young = ended(books, 10)
    mapped = ended(books, 1000)
    books.ledger.add_mapping(a_mapping(job_id=mapped))
    still_open = books.ledger.add_job(a_job()).id
    books.database_execute("UPDATE tether_jobs SET created_at = 1 WHERE id = :id", id=still_open)
    now = books.ledger.job(young).updated_at
    assert [*prune(books.database, now - 100, batch=3)] == [3, 3, 1]
    assert {job.id for job in books.ledger.list_jobs()} == {young, mapped, still_open}
    assert {row[0] for row in books.rows("SELECT job_id FROM tether_secrets")} == {young, mapped}
    assert [*prune(books.database, now - 100)] == []
    assert len(old) == 7


def test_a_prune_may_be_cut_off_and_repeated(books: Books) -> None:
    for number in range(5):
        ended(books, 1000 + number)
    faults.arm("commit.prune.after=uncertain")
    try:
        with pytest.raises(UncertainError):
            [*prune(books.database, 1e12, batch=2)]
    finally:
        faults.disarm()
    assert sum(prune(books.database, 1e12, batch=2)) == 3


def test_prune_beside_a_running_job(sim: SimWorld) -> None:
    for _ in range(2):
        assert run(sim, *ATTACH).code == DONE
        assert run(sim, "detach", "vol1", "guest1").code == DONE
    first = slow(sim, "host.connect", *ATTACH)
    done = run(sim, "db", "prune", "--older-than", "0s")
    assert (done.code, done.err.strip()) == (DONE, "forgotten: 4 jobs")
    assert first.end().code == DONE
    assert sim.jobs() == [("attach", "attached")]
    assert Command(sim, "db", "prune", "--older-than", "0s").end().err.strip() == "forgotten: 0 jobs"
    for words in ("90", "d", "-1d", "1.5d", "1y"):
        assert run(sim, "db", "prune", "--older-than", words).code == 2
