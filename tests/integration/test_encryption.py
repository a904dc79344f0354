"""When an encrypted volume is formatted, and when it is not; what is refused leaves all books as they were."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crash import judge
from tests.crash.world import DONE, KILLED, PACE, ROLLED_BACK, SimWorld
from tests.integration.byhand import VOLUMES
from tether.sim.store import Store

SECRET = VOLUMES["secret1"]
ATTACH = ("attach", "secret1", "guest1")
DETACH = ("detach", "secret1", "guest1")
USAGE = 2


def volume(sim: SimWorld, **facts: Any) -> None:
    with Store(sim.directory).change("cinder") as book:
        book["volumes"][SECRET].update(facts)


def header(sim: SimWorld) -> str | None:
    found: str | None = Store(sim.directory).read("headers").get(SECRET)
    return found


def lose_header(sim: SimWorld, left: str | None = None) -> None:
    """Let the volume's device read as zeros, or as half a header."""
    with Store(sim.directory).change("headers") as written:
        written.pop(SECRET, None)
        if left:
            written[SECRET] = left


def used(sim: SimWorld) -> None:
    assert sim.tether(*ATTACH).code == DONE
    assert sim.tether(*DETACH).code == DONE


def refused(sim: SimWorld, says: str, *more: str, code: int = ROLLED_BACK) -> None:
    """Attach, and see that it is refused with these words, and that nothing is changed."""
    before, held = sim.books(), header(sim)
    done = sim.tether(*ATTACH, *more)
    assert done.code == code, done.err
    assert says in done.err
    assert "secret1" in done.err
    assert done.err.splitlines()[-1].startswith("next: "), done.err
    assert judge.diff(before, sim.books()) == []
    assert header(sim) == held


def test_a_new_volume_is_formatted_once(sim: SimWorld) -> None:
    before = sim.books()
    used(sim)
    assert header(sim) == "luks"
    assert judge.diff(before, sim.books()) == []
    sim.script("host.format_encryption", "fail", times=-1)
    used(sim)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"bootable": True}, "made from an image"),
        ({"image": "cirros"}, "made from an image"),
        ({"snapshot_id": "s-1"}, "made from snapshot s-1"),
        ({"source_volid": "v-1"}, "made from volume v-1"),
        ({"content": "other"}, "neither LUKS nor blank"),
        ({"content": "half"}, "without a key"),
    ],
)
def test_what_is_not_provably_new_is_formatted_only_on_demand(sim: SimWorld, facts: dict[str, Any], says: str) -> None:
    volume(sim, **facts)
    refused(sim, says)
    assert sim.tether(*ATTACH, "--format-luks").code == DONE
    assert header(sim) == "luks"


@pytest.mark.parametrize("how", ["at once", "after a prune", "after two attaches and a prune"])
def test_a_volume_that_was_attached_once_is_never_new_again(sim: SimWorld, how: str) -> None:
    used(sim)
    if "two" in how:
        used(sim)
    if "prune" in how:
        assert sim.tether("db", "prune", "--older-than", "0s").code == DONE
        assert len(sim.jobs()) == 1
    lose_header(sim)
    refused(sim, "attached before")
    if "prune" in how:
        assert sim.tether("db", "prune", "--older-than", "0s").code == DONE
    refused(sim, "attached before")
    assert sim.tether(*ATTACH, "--format-luks").code == DONE


def test_an_attach_that_never_came_to_it_is_no_earlier_use(sim: SimWorld) -> None:
    sim.script("host.connect", "fail")
    assert sim.tether(*ATTACH).code == ROLLED_BACK
    assert header(sim) is None
    assert sim.tether(*ATTACH).code == DONE


@pytest.mark.parametrize("more", [(), ("--format-luks",)])
def test_what_cannot_be_read_is_never_formatted(sim: SimWorld, tmp_path: Path, more: tuple[str, ...]) -> None:
    volume(sim, content="unreadable")
    before = sim.books()
    config = tmp_path / "impatient.conf"
    config.write_text(PACE.format(data_path="host\nstep_retry_time = 0.2"))
    done = sim.tether(*ATTACH, *more, config=str(config))
    assert done.code == ROLLED_BACK, done.err
    assert "cannot be read" in done.err
    assert header(sim) is None
    assert judge.diff(before, sim.books()) == []


def test_a_header_is_kept_although_a_format_is_asked_for(sim: SimWorld) -> None:
    volume(sim, content="luks")
    done = sim.tether(*ATTACH, "--format-luks")
    assert done.code == DONE, done.err
    assert "ignored" in done.err
    assert header(sim) is None
    done = sim.tether(*ATTACH, "--format-luks")
    assert done.code == DONE, done.err
    assert "ignored" in done.err


def test_there_is_nothing_to_format_on_another_volume(sim: SimWorld) -> None:
    before = sim.books()
    done = sim.tether("attach", "vol1", "guest1", "--format-luks")
    assert done.code == USAGE
    assert "vol1 is not encrypted" in done.err
    assert judge.diff(before, sim.books()) == []
    assert sim.jobs() == []


def test_a_request_id_belongs_to_one_answer_about_the_format(sim: SimWorld) -> None:
    assert sim.tether(*ATTACH, "--request-id", "K").code == DONE
    done = sim.tether(*ATTACH, "--request-id", "K", "--format-luks")
    assert done.code == USAGE, done.err
    assert "format_luks no, not yes" in done.err


@pytest.mark.parametrize(
    "fault", ["commit.header.format.before=kill", "commit.header.format.after=kill", "host.format_encryption=cut-off"]
)
@pytest.mark.parametrize("end", ["resume", "abort"])
def test_a_format_that_was_killed_is_taken_up_again(sim: SimWorld, fault: str, end: str) -> None:
    before = sim.books()
    assert sim.tether("--fault", fault, *ATTACH).code == KILLED
    if "after" in fault:
        lose_header(sim, "half")
    assert sim.tether("job", end, "--last").code == DONE
    if end == "abort":
        assert judge.diff(before, sim.books()) == []
        assert sim.tether(*ATTACH).code == DONE
    assert header(sim) == "luks"


def test_only_an_intent_in_the_ledger_makes_half_a_header_ours(sim: SimWorld) -> None:
    assert sim.tether("--fault", "commit.header.format.after=kill", *ATTACH).code == KILLED
    lose_header(sim, "half")
    assert sim.tether("job", "abort", "--last").code == DONE
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        connection.execute("UPDATE tether_jobs SET params = replace(params, '\"format\"', '\"none\"')")
        connection.commit()
    refused(sim, "which no job in the ledger has left")
