"""``tether explain``: the story of a volume, a server or a job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.crash.world import DONE, SimWorld
from tests.integration import drifts
from tests.integration.commands import Command
from tests.integration.drifts import DRIFTS, GUEST1, VOL1
from tether.audit.drift import Kind

NOT_FOUND, USAGE, DRIFT = 6, 2, 7


def explain(sim: SimWorld, word: str) -> dict[str, Any]:
    done = sim.tether("explain", word, "-f", "json")
    assert done.code == DONE, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("word", ["vol1", VOL1])
def test_an_attached_volume(sim: SimWorld, word: str) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    story = explain(sim, word)
    assert story["about"] == f"volume vol1 ({VOL1})"
    assert story["cinder"][0].startswith("volume: in-use; attachments: attached ")
    assert story["ledger"][0].startswith("guest1: mapping: attached as vdb")
    assert story["live"][0].startswith("guest1: disk: vdb ")
    assert story["since"].endswith("Z")
    assert "attach of vol1 to guest1: attached" in story["history"][0]
    assert (story["drift"], story["next"]) == ([], "nothing")


def test_a_volume_that_tether_knows_nothing_about(sim: SimWorld) -> None:
    story = explain(sim, "vol3")
    assert story["cinder"] == ["volume: available; attachments: none"]
    assert (story["history"], story["next"]) == ([], "nothing")
    shown = sim.tether("explain", "vol3", "-f", "value").out.splitlines()
    assert "no job that is open, or that anything here is from" in shown


@pytest.mark.parametrize("kind", DRIFTS, ids=str)
def test_every_drift_is_told_with_its_next_command(sim: SimWorld, kind: Kind) -> None:
    expected = DRIFTS[kind](sim)
    story = explain(sim, expected.volume_id)
    assert story["drift"][0].startswith(f"{kind}: ")
    assert story["next"] == json.loads(sim.tether("audit", "-f", "json").out)[0]["next"]


def test_a_server(sim: SimWorld) -> None:
    drifts.attached(sim, "one")
    DRIFTS[Kind.LIVE_ONLY_DISK](sim)
    DRIFTS[Kind.RESERVED_WITHOUT_JOB](sim)
    story = explain(sim, "guest1")
    assert story["about"] == f"server guest1 ({GUEST1})"
    assert story["guest"] == ["running"]
    assert [line.partition(":")[0] for line in story["volumes"]] == ["live-only", "one"]
    assert [line.partition(":")[0] for line in story["drift"]] == ["live-only-disk"]


def test_a_job_with_its_steps(sim: SimWorld) -> None:
    DRIFTS[Kind.INTERRUPTED_JOB](sim)
    job = json.loads(sim.tether("job", "list", "-f", "json").out)[0]["job"]
    story = explain(sim, job[:8])
    assert job in story["about"]
    lines = story["history"]
    assert "interrupted" in lines[0]
    assert "plug-persistent: running" in lines[-1]
    assert story["next"] == f"tether job resume {job}"
    assert sim.tether(*story["next"].split()[1:]).code == DONE
    assert explain(sim, job)["next"] == "nothing"


def test_a_running_job_is_to_be_waited_for(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "slow", seconds=3.0)
    attach = Command(sim, "attach", "vol1", "guest1").reaches("guest.plug_live")
    story = explain(sim, "vol1")
    assert "a runner works on it" in story["verdict"]
    assert story["next"].startswith("tether job show ")
    assert attach.end().code == DONE


def test_what_is_foreign_is_never_to_be_touched(sim: SimWorld) -> None:
    expected = DRIFTS[Kind.FOREIGN_DISK](sim)
    story = explain(sim, expected.volume_id)
    assert "not tether's to change (foreign)" in story["verdict"]
    assert story["next"] == "tether adopt foreign-disk guest2"


def test_an_ambiguous_word_is_refused_with_the_choices(sim: SimWorld) -> None:
    first, second = (drifts.new_volume(sim, name) for name in ("a", "b"))
    with drifts.book(sim, "cinder") as cinder:
        for volume in (first, second):
            cinder["volumes"][volume]["name"] = "guest1"
    done = sim.tether("explain", "guest1")
    assert done.code == USAGE
    for choice in (f"volume {first}", f"volume {second}", f"server {GUEST1}"):
        assert choice in done.err
    done = sim.tether("audit", "--volume", "guest1")
    assert (done.code, first in done.err, second in done.err) == (USAGE, True, True)


@pytest.mark.parametrize("word", ["nothing", "", "ffffffff", "guest 1", "x" * 10_000, "ü\x1b[31m"])
def test_an_unknown_word(sim: SimWorld, word: str) -> None:
    for words in (("explain", word), ("audit", "--volume", word), ("audit", "--server", word)):
        done = sim.tether(*words)
        assert done.code == NOT_FOUND, done.err
        assert "\x1b" not in done.err


def test_an_unknown_word_is_not_unknown_while_a_book_is_unread(sim: SimWorld) -> None:
    sim.script("cinder.list_volumes", "timeout", times=-1)
    done = sim.tether("explain", "vol1")
    assert done.code not in {DONE, NOT_FOUND}
    assert "no book that could be read knows" in done.err


def test_unread_books_are_said_and_the_rest_is_told(sim: SimWorld) -> None:
    drifts.attached(sim, "one")
    sim.script("guest.survey", "timeout", times=-1)
    done = sim.tether("explain", "one", "-f", "json")
    assert done.code == DONE, done.err
    assert "unread: guest" in done.err
    story = json.loads(done.out)
    assert "nothing is known" in story["live"][0]
    assert story["next"] != "nothing"


def test_a_server_tells_of_the_jobs_that_its_disks_are_from_in_lines_of_a_table(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("attach", "vol2", "guest1").code == DONE
    history = explain(sim, "guest1")["history"]
    assert [line for line in history if " of vol" in line] == [history[0], history[-1]]
    assert "attach of vol2 to guest1: attached" in history[0]
    shown = sim.tether("explain", "guest1").out
    assert "\\n" not in shown
    assert shown.count("attach of vol") == 2
