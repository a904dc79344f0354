"""Who may work on a job or a server, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.integration.books import Books, a_job, kill, opened, other_process
from tether.clock import SystemClock
from tether.errors import HeldError, LostLease
from tether.persistence.journal import Entry, Lease
from tether.persistence.leases import Leases
from tether.persistence.owner import Owner
from tether.persistence.schema import jobs

FAR = {"machine_id": "another", "pid": 2**22 + 1}
EARLIER = {"boot_id": "earlier"}


def take(books: Books, job_id: str, leases: Leases | None = None, **how: Any) -> Lease:
    lease = (leases or books.leases).take(books.ledger.job(job_id), {"attempts": 2}, **how)
    assert lease is not None
    return lease


def write(books: Books, lease: Lease) -> None:
    books.logbook.journal.write(Entry(lease, {"step": "x"}))


def hold_elsewhere(books: Books, ttl: float = 30.0, then: Any = None) -> Any:
    """Return the context of another process that holds job ``j``."""

    def work() -> None:
        with opened(books.url, ready=False) as theirs:
            theirs.held_job(Leases(theirs.database, SystemClock(), ttl, Owner.current()), id="j")
        if then is not None:
            then()

    books.database.close()  # no connection may be shared with the child
    return other_process(work)


# -- jobs ----------------------------------------------------------------------------------------------------


def test_a_living_process_keeps_its_job(books: Books) -> None:
    with hold_elsewhere(books) as pid:
        with pytest.raises(HeldError, match=f"process {pid} ") as caught:
            take(books, "j")
        assert "tether job show j" in caught.value.hint
        assert books.ledger.job("j").is_live(time.time())


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_process_on_this_host_loses_its_job(books: Books, *, reaped: bool) -> None:
    with hold_elsewhere(books) as pid:
        theirs = Lease("j", books.ledger.job("j").generation, 30.0)
        if reaped:
            kill(pid)
        else:
            os.kill(pid, 9)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not books.ledger.job("j").is_live(time.time())
        mine = take(books, "j")
    assert mine.generation == theirs.generation + 1
    with pytest.raises(LostLease, match="taken over"):
        write(books, theirs)
    assert books.ledger.job("j").step == ""
    write(books, mine)
    assert books.ledger.job("j").step == "x"


def test_a_job_that_is_taken_up_weeks_later_can_be_read_at_once(books: Books) -> None:
    """The new lease ends long after the row was last written, which is not what a damaged row looks like."""
    books.held_job(books.another(**EARLIER), id="j")
    with books.database.write() as connection:
        weeks_ago = time.time() - 20 * 86_400
        connection.execute(sa.update(jobs).values(created_at=weeks_ago, updated_at=weeks_ago, expires_at=weeks_ago))
    take(books, "j")
    assert books.ledger.job("j").is_live(time.time())


def test_the_ledger_of_a_run_is_fenced_too(books: Books) -> None:
    _job, old = books.held_job(books.another(**EARLIER), id="j")
    fenced = books.ledger.fenced(old)
    fenced.delete_mapping("v", "s")
    take(books, "j")
    with pytest.raises(LostLease):
        fenced.delete_mapping("v", "s")


def test_a_process_of_another_host_is_never_taken_for_dead_but_may_be_fenced(books: Books) -> None:
    books.held_job(books.another(**FAR), id="j")
    with pytest.raises(HeldError):
        take(books, "j")
    with pytest.raises(HeldError):
        take(books, "j", fenced=True)  # its lease has not lapsed yet
    books.held_job(Leases(books.database, SystemClock(), -1.0, replace(Owner.current(), **FAR)), id="k")
    with pytest.raises(HeldError):
        take(books, "k")
    assert take(books, "k", fenced=True).generation == 2


@pytest.mark.parametrize("crash", ["", "journal"])
def test_the_server_of_a_fenced_runner_is_free_although_who_takes_over_is_killed(books: Books, crash: str) -> None:
    """Nobody could say any more whose it was, once the job is another's."""
    theirs = Leases(books.database, SystemClock(), -1.0, replace(Owner.current(), **FAR))
    books.held_job(theirs, id="j")
    theirs._take_server("server:s", "j")
    mine = books.another(**EARLIER)
    if crash:
        mine._free_servers = _killed  # type: ignore[assignment,method-assign]
        with pytest.raises(Killed):
            take(books, "j", mine, fenced=True)
    take(books, "j", fenced=True)
    with books.leases.held("server:s", wait=0.0):
        pass


class Killed(BaseException):
    pass


def _killed(_token: str) -> None:
    raise Killed


@pytest.mark.parametrize("who", [EARLIER, {"start_time": 1}], ids=["of an earlier boot", "whose pid was used again"])
def test_a_process_that_cannot_run_any_more_is_dead(books: Books, who: dict[str, Any]) -> None:
    books.held_job(books.another(**who), id="j")
    assert take(books, "j").generation == 2


def test_two_runs_of_one_process_exclude_each_other(books: Books) -> None:
    books.held_job(id="j")
    with pytest.raises(HeldError):
        take(books, "j", books.another())


def test_who_was_quicker_has_it(books: Books) -> None:
    job, _lease = books.held_job(books.another(**EARLIER), id="j")
    assert books.another().take(job, {}) is not None
    assert books.leases.take(job, {}) is None, "the row was read before that"


@pytest.mark.parametrize("went_on", [{"step": "next/1"}, {"state": "attached", "open_volume": None, "runner": None}])
def test_a_job_whose_owner_went_on_before_it_died_is_read_again(books: Books, went_on: dict[str, Any]) -> None:
    """It may be past its pivot by then, or at its end: what was decided before holds no more."""
    job, lease = books.held_job(books.another(**EARLIER), id="j")
    books.logbook.backend(lease).get_connection().write(went_on)
    assert books.leases.take(job, {"state": "running"}) is None
    assert {
        name: getattr(books.ledger.job("j"), name) for name in ("generation", *went_on) if name != "open_volume"
    } == {
        "generation": 1,
        **{name: value for name, value in went_on.items() if name != "open_volume"},
    }


@pytest.mark.parametrize("stopped", [False, True])
def test_who_takes_over_ends_the_old_runner_and_its_children_first(
    books: Books, tmp_path: Path, *, stopped: bool
) -> None:
    """Its lease has lapsed, but it lives: what it has started could still act."""
    child = tmp_path / "child"

    def helper() -> None:
        child.write_text(str(subprocess.Popen(["sleep", "600"]).pid))

    with hold_elsewhere(books, ttl=0.2, then=helper) as pid:
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        helper_pid = int(child.read_text())
        deadline = time.monotonic() + 20
        while True:
            try:
                lease = take(books, "j")
                break
            except HeldError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert lease.generation == 2
        for gone in (pid, helper_pid):
            stat = Path(f"/proc/{gone}/stat")
            assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_an_owner_of_another_user_cannot_be_ended(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    with hold_elsewhere(books, ttl=0.01) as pid:
        time.sleep(0.02)
        monkeypatch.setattr(signal, "pidfd_send_signal", refused)
        with pytest.raises(HeldError, match=f"process {pid} "):
            take(books, "j")


def test_what_others_ask_is_heard(books: Books) -> None:
    _job, lease = books.held_job(id="j")
    _other, second = books.held_job(books.another(**EARLIER), id="k")
    books.ledger.ask("j", "stop")
    take(books, "k")
    assert books.leases.asked([lease, second]) == ({"j"}, {"k"})
    books.ledger.add_job(a_job(id="l"))
    books.ledger.ask("l", "stop")
    assert books.ledger.job("l").asked is None, "nobody works on it"


def test_a_renewal_keeps_what_is_ours_alone(books: Books) -> None:
    _job, lease = books.held_job(Leases(books.database, SystemClock(), -5.0, books.leases.me), id="j")
    assert not books.ledger.job("j").is_live(time.time())
    books.leases.renew([lease])
    assert books.ledger.job("j").is_live(time.time())
    books.leases.renew([replace(lease, generation=0)])


# -- servers -------------------------------------------------------------------------------------------------


def test_a_server_is_waited_for_and_given_back(books: Books) -> None:
    with books.leases.held("server:x", wait=0):
        with pytest.raises(HeldError), books.another().held("server:x", wait=0.2):
            pytest.fail("both hold it")
        with books.leases.held("server:x", wait=0):
            pass  # one's own may be taken again: a release that failed must not lock the run out
    with pytest.raises(RuntimeError), books.another().held("server:x", wait=0):
        raise RuntimeError
    assert books.leases.holder("server:x") is None


def test_a_server_of_a_dead_process_is_free(books: Books) -> None:
    holding = books.another(**EARLIER).held("server:x", wait=0)
    holding.__enter__()
    with books.leases.held("server:x", wait=0):
        assert books.leases.holder("server:x") == books.leases.me
    far = books.another(**FAR).held("server:y", wait=0)
    far.__enter__()
    with pytest.raises(HeldError), books.leases.held("server:y", wait=0):
        pytest.fail("a process of another host is not known to be dead")


@pytest.mark.parametrize("dead", [False, True], ids=["free", "of-a-dead-owner"])
def test_many_who_want_one_server_and_one_who_gets_it(books: Books, *, dead: bool) -> None:
    for turn in range(5):
        name = f"server:{turn}"
        if dead:
            books.another(**EARLIER).held(name, wait=0).__enter__()
        start, done = threading.Barrier(6, timeout=20), threading.Barrier(6, timeout=20)

        def want(name: str, start: threading.Barrier, done: threading.Barrier) -> bool:
            with opened(books.url, ready=False) as theirs:
                theirs.database.version()  # connected
                start.wait()
                try:
                    with theirs.leases.held(name, wait=0):
                        done.wait()
                        return True
                except HeldError:
                    done.wait()
                    return False

        with ThreadPoolExecutor(6) as pool:
            got = [future.result(60) for future in [pool.submit(want, name, start, done) for _ in range(6)]]
        assert sum(got) == 1, got
