"""What one request is, and databases that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, SimWorld
from tests.integration.books import forked
from tests.integration.commands import Command, run
from tests.integration.test_cli_running import ATTACH, slow
from tether.errors import ConfigError
from tether.persistence.database import Database

KEYED = (*ATTACH, "--request-id", "K")


@pytest.mark.parametrize(
    "more",
    [("--mode", "ro"), ("--bus", "scsi"), ("--device", "vdz"), ("--dialect", "legacy")],
    ids=lambda more: more[0],
)
def test_a_request_id_belongs_to_one_way_of_attaching(sim: SimWorld, more: tuple[str, str]) -> None:
    assert run(sim, *KEYED).code == DONE
    assert run(sim, *KEYED).code == DONE, "the same request is one job"
    held = sim.books()
    done = run(sim, *KEYED, *more)
    assert done.code == 2, done.err
    assert "the request id 'K' belongs to job" in done.err
    assert f"not {more[1]}" in done.err
    assert judge.diff(held, sim.books()) == []
    assert sim.jobs() == [("attach", "attached")]


def test_a_request_whose_job_was_interrupted_is_held_by_it(sim: SimWorld) -> None:
    assert run(sim, "--fault", "connect-host.act.before=kill", *KEYED).code == KILLED
    done = run(sim, *KEYED)
    assert done.code == 5, done.err
    assert "tether job resume" in done.err.splitlines()[-1]
    assert run(sim, "job", "resume", "--last").code == DONE
    assert run(sim, *KEYED).code == DONE


def test_a_request_that_is_under_way_is_joined_or_not(sim: SimWorld) -> None:
    first = slow(sim, "host.connect", *KEYED)
    assert run(sim, *KEYED, "--no-wait").code == 5
    second = Command(sim, *KEYED).end()
    assert (first.end().code, second.code) == (DONE, DONE)
    assert sim.jobs() == [("attach", "attached")]


def test_an_ended_job_is_not_aborted(sim: SimWorld) -> None:
    assert run(sim, *ATTACH).code == DONE
    done = run(sim, "job", "abort", "--last")
    assert done.code == 2, done.err
    assert "has ended: attached" in done.err


def test_an_abort_that_succeeds_says_nothing_is_wrong(sim: SimWorld) -> None:
    assert run(sim, "--fault", "connect-host.act.before=kill", *ATTACH).code == KILLED
    done = run(sim, "job", "abort", "--last", "-f", "value", "-c", "state")
    assert (done.code, done.out, done.err) == (DONE, "rolled-back\n", "")


def test_a_wrong_column_is_refused_before_anything_is_done(sim: SimWorld) -> None:
    assert run(sim, "--fault", "connect-host.act.before=kill", *ATTACH).code == KILLED
    for words in (("resume", "--last"), ("abort", "--last"), ("settle", "--last", "--as", "clean", "--reason", "x")):
        assert run(sim, "job", *words, "-c", "nope").code == 2
    assert json.loads(run(sim, "job", "list", "-f", "json").out)[0]["state"] == "interrupted"


def test_a_blocked_job_shows_why_it_was_being_undone(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    sim.script("host.disconnect", "fail", times=-1)
    assert run(sim, *ATTACH).code == BLOCKED
    shown = json.loads(run(sim, "job", "show", "--last", "-f", "json").out)
    assert "host.disconnect" in shown["error"]
    assert "plug_live" in shown["because"]


@pytest.mark.parametrize("limit", ["0", "-3", "x"])
def test_a_limit_is_a_positive_number(sim: SimWorld, limit: str) -> None:
    done = run(sim, "job", "list", f"--limit={limit}")
    assert (done.code, done.out) == (2, "")


# -- databases -----------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database(sim: SimWorld, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("not a database, but a text that is long enough to be looked at" * 20)
    for words in (("job", "list"), ("db", "upgrade"), ATTACH):
        done = run(sim, "--database", f"sqlite:///{junk}", *words)
        assert done.code == 2, done.err
        assert "file is not a database" in done.err
    done = run(sim, "--database", f"sqlite:///{tmp_path}", "job", "list")
    assert done.code == 2, done.err


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(sim: SimWorld, url: str) -> None:
    done = run(sim, "--database", url, "db", "upgrade")
    assert done.code == 2, done.err
    assert "in memory" in done.err


def test_a_database_that_may_only_be_read(sim: SimWorld) -> None:
    """As another user; this one may do anything."""
    assert run(sim, "job", "list").code == DONE
    for path in [sim.directory, *sim.directory.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    sim.directory.parent.chmod(0o755)
    database = Database(f"sqlite:///{sim.directory / 'tether.sqlite'}")

    def write_as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(ConfigError, match=r"readonly|unable to open"), database.write() as connection:
            connection.execute(sa.text("DELETE FROM tether_leases"))

    assert os.waitstatus_to_exitcode(os.waitpid(forked(write_as_nobody), 0)[1]) == 0
    database.close()
