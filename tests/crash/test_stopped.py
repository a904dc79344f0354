"""A runner that is stopped past its lease, and wakes up after another has taken its job over."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.crash.world import DONE, ROLLED_BACK, SimWorld
from tether.cli.demo import PROGRAM

TTL = 1.0
LIMIT = 60.0


@pytest.fixture
def config(sim: SimWorld, tmp_path: Path) -> str:
    """Settings with a lease that lapses soon."""
    path = tmp_path / "tether.conf"
    path.write_text(sim._config.read_text().replace("[DEFAULT]", f"[DEFAULT]\nlease_ttl = {TTL}"))
    return str(path)


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


@contextmanager
def stopped_in(sim: SimWorld, config: str, call: str, *, unseen: bool) -> Iterator[subprocess.Popen[str]]:
    """Yield an attach that was stopped inside a call, past its lease.

    Args:
        unseen: it runs in a pid namespace of its own, as in a container: nobody here can see or end it.
    """
    sim.script(call, "slow", seconds=0.3)
    cell = ["unshare", "--pid", "--fork", "--kill-child"] if unseen else []
    words = [*PROGRAM, "--config-file", config, "--sim", str(sim.directory), "attach", "vol1", "guest1"]
    with subprocess.Popen([*cell, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        try:
            script = sim.directory / "script.json"
            wait_until(lambda: call not in script.read_text(), f"{call} is under way")
            os.kill(inner(runner.pid) if unseen else runner.pid, signal.SIGSTOP)
            wait_until(lambda: lapsed(sim), "the lease has lapsed")
            yield runner
        finally:
            runner.kill()


def inner(pid: int) -> int:
    """Return the one child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def ask(sim: SimWorld, statement: str) -> list[Any]:
    with sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True, timeout=10) as connection:
        return connection.execute(statement).fetchall()


def lapsed(sim: SimWorld) -> bool:
    return ask(sim, "SELECT expires_at FROM tether_jobs")[0][0] < time.time()


@pytest.mark.parametrize("call", ["cinder.update_attachment", "host.connect", "guest.plug_live"])
@pytest.mark.parametrize("verb", ["resume", "abort"])
def test_who_takes_over_ends_the_stopped_runner_first(sim: SimWorld, config: str, call: str, verb: str) -> None:
    before = sim.books()
    with stopped_in(sim, config, call, unseen=False) as runner:
        done = sim.tether("job", verb, "--last", config=config)
        assert done.code == DONE, done.err
        assert runner.wait(LIMIT) == -signal.SIGKILL
    assert sim.jobs() == [("attach", "attached" if verb == "resume" else "rolled-back")]
    if verb == "resume":
        assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert sim.books() == before


@pytest.mark.parametrize("call", ["host.connect", "guest.mark", "guest.plug_persistent"])
def test_a_runner_that_could_not_be_ended_wakes_up_and_does_nothing(sim: SimWorld, config: str, call: str) -> None:
    with stopped_in(sim, config, call, unseen=True) as runner:
        refused = sim.tether("job", "resume", "--last", config=config)
        assert refused.code == 5, refused.err
        assert "is held by process " in refused.err
        done = sim.tether("job", "resume", "--last", "--fenced", config=config)
        assert done.code == DONE, done.err
        books, rows = sim.books(), ask(sim, "SELECT * FROM tether_jobs, tether_flows")
        os.kill(inner(runner.pid), signal.SIGCONT)
        _out, err = runner.communicate(timeout=LIMIT)
        assert runner.returncode == 5, err
        assert "taken over by another runner" in err
    # The call that was on the wire is one that changes nothing if it is made twice; after it nothing was called and
    # nothing was stored. (A call that does change something is why --fenced is the operator's word, and no default.)
    assert sim.books() == books
    assert ask(sim, "SELECT * FROM tether_jobs, tether_flows") == rows
    assert sim.jobs() == [("attach", "attached")]


def test_a_stopped_runner_whose_job_nobody_took_goes_on(sim: SimWorld, config: str) -> None:
    with stopped_in(sim, config, "host.connect", unseen=False) as runner:
        os.kill(runner.pid, signal.SIGCONT)
        _out, err = runner.communicate(timeout=LIMIT)
        assert runner.returncode == DONE, err
    assert sim.jobs() == [("attach", "attached")]


def test_a_failing_job_that_was_taken_over_is_rolled_back_once(sim: SimWorld, config: str) -> None:
    before = sim.books()
    sim.script("guest.plug_live", "fail", times=2)
    with stopped_in(sim, config, "host.connect", unseen=True) as runner:
        done = sim.tether("job", "resume", "--last", "--fenced", config=config)
        assert done.code == ROLLED_BACK, done.err
        runner.kill()
    assert sim.books() == before
