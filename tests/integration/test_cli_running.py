"""Commands while they run: signals, the same request twice, readers that go away."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tests.crash import judge
from tests.crash.world import DONE, KILLED, SimWorld
from tests.integration.commands import Command, run
from tests.tree import ROOT

# -- signals -------------------------------------------------------------------------------------------------


def slow(sim: SimWorld, call: str, *words: str, seconds: float = 1.0) -> Command:
    """Start a command, and return it inside a call that takes its time."""
    sim.script(call, "slow", seconds=seconds)
    return Command(sim, *words).reaches(call)


ATTACH = ("attach", "vol1", "guest1")


def test_ctrl_c_before_the_pivot_rolls_back(sim: SimWorld) -> None:
    before = sim.books()
    done = slow(sim, "host.connect", *ATTACH).signal(2).end()
    assert done.code == 3, done.err
    assert "cancelled" in done.err
    assert sim.jobs() == [("attach", "rolled-back")]
    assert judge.diff(before, sim.books()) == []


def test_ctrl_c_after_the_pivot_lets_the_job_finish(sim: SimWorld) -> None:
    done = slow(sim, "cinder.complete_attachment", *ATTACH).signal(2).end()
    assert done.code == DONE, done.err
    assert sim.jobs() == [("attach", "attached")]


@pytest.mark.parametrize(("signals", "code"), [((2, 2), 130), ((15,), 143), ((2, 15), 143)])
def test_a_second_ctrl_c_or_sigterm_leaves_it_to_be_resumed(sim: SimWorld, signals: tuple[int, ...], code: int) -> None:
    command = slow(sim, "host.connect", *ATTACH)
    for number, more in zip(signals, [*signals[1:], None], strict=True):
        command.signal(number).says("rolling back" if more else "can be resumed")
    done = command.end()
    assert done.code == code, done.err
    assert "tether job resume" in done.err.splitlines()[-1]
    listed = json.loads(run(sim, "job", "list", "-f", "json").out)
    assert [job["state"] for job in listed] == ["interrupted"]
    assert run(sim, "job", "resume", "--last").code == DONE
    assert sim.jobs() == [("attach", "attached")]


def test_an_interrupted_job_can_be_aborted(sim: SimWorld) -> None:
    before = sim.books()
    assert slow(sim, "host.connect", *ATTACH).signal(15).end().code == 143
    assert run(sim, *ATTACH).code == 5, "it keeps its volume"
    assert run(sim, "job", "abort", "--last").code == DONE
    assert judge.diff(before, sim.books()) == []


# -- twice the same ------------------------------------------------------------------------------------------


def test_the_same_attach_joins_the_one_that_runs(sim: SimWorld) -> None:
    first = slow(sim, "host.connect", *ATTACH)
    assert run(sim, *ATTACH, "--no-wait").code == 5
    second = Command(sim, *ATTACH, "-f", "json").end()
    assert (second.code, first.end().code) == (DONE, DONE), second.err
    assert json.loads(second.out)["state"] == "attached"
    assert sim.jobs() == [("attach", "attached")], "one job"


def test_who_joins_gets_the_code_of_a_failure(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    first = slow(sim, "host.connect", *ATTACH)
    second = run(sim, *ATTACH)
    assert (first.end().code, second.code) == (3, 3), second.err
    assert sim.jobs() == [("attach", "rolled-back")]


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_who_waits_can_leave_without_harm(sim: SimWorld, number: int, code: int) -> None:
    first = Command(sim, "--fault", "export-volume.act.before=stop", *ATTACH).stands()
    second = Command(sim, "-v", *ATTACH).says("find volume")  # next it finds the job, and waits
    assert second.signal(number).end().code == code
    assert first.signal(signal.SIGCONT).end().code == DONE


def test_a_job_whose_runner_died_before_it_began_is_not_waited_for(sim: SimWorld) -> None:
    assert run(sim, "--fault", "commit.job.begin.after=kill", *ATTACH).code == KILLED
    for words in (ATTACH, (*ATTACH, "--no-wait")):
        done = run(sim, *words)
        assert done.code == 5, done.err
        assert "interrupted" in done.err
        assert "tether job resume" in done.err.splitlines()[-1]
    assert run(sim, "job", "resume", "--last").code == DONE


def test_another_way_of_attaching_is_a_conflict(attached: SimWorld) -> None:
    assert run(attached, *ATTACH).code == DONE, "attached already is a success"
    for words in (["--bus", "scsi"], ["--mode", "ro"], ["--dialect", "legacy"], ["--device", "vdz"]):
        done = run(attached, *ATTACH, *words)
        assert done.code == 2, done.err
        assert "detach it first" in done.err
    assert attached.jobs() == [("attach", "attached")]


def test_one_request_id_is_one_job(sim: SimWorld) -> None:
    words = (*ATTACH, "--request-id", "ключ 1", "-f", "json")
    jobs = [json.loads(run(sim, *words).out)["job"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    assert run(sim, "detach", "vol1", "guest1").code == DONE
    again = run(sim, *words)
    assert json.loads(again.out)["job"] == jobs[0], "also when it is long over"
    other = run(sim, "attach", "vol2", "guest1", "--request-id", "ключ 1")
    assert other.code == 2, other.err
    assert jobs[0] in other.err


def test_a_failed_request_is_not_tried_again_under_its_id(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    codes = [run(sim, *ATTACH, "--request-id", "k").code for _ in range(2)]
    assert codes == [3, 3]
    assert run(sim, *ATTACH).code == DONE


# -- pipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["job", "list"], ["attach", "vol1", "guest1"]])
def test_a_reader_that_has_gone(sim: SimWorld, words: list[str]) -> None:
    """Nobody reads stdout: the job is done all the same, and nothing is said about pipes."""
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", "import sys; from tether.cli.main import main; sys.exit(main())"]
    ended = subprocess.run(
        [*program, "--sim", str(sim.directory), *words],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(writer)
    assert ended.returncode in {0, 141}, ended.stderr
    assert ended.stderr == ""
    if words[0] == "attach":
        assert sim.jobs() == [("attach", "attached")]


def test_jobs_of_one_process_write_one_database(sim: SimWorld) -> None:
    """Two attaches of two volumes at a time: both done, nothing lost."""
    commands = [Command(sim, "attach", volume, server) for volume, server in (("vol1", "guest1"), ("vol2", "guest1"))]
    assert [command.end().code for command in commands] == [DONE, DONE]
    with closing(sqlite3.connect(sim.directory / "tether.sqlite")) as connection:
        rows = connection.execute("SELECT target, state FROM tether_mappings ORDER BY 1").fetchall()
    assert rows == [("vdb", "attached"), ("vdc", "attached")]
