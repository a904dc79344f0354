"""The origin of the helpers: started once, forked from, killed, stopped, and gone with tether."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.host import Hanging, PretendHost, pids, runs, started, the_origin, until
from tests.tree import ROOT
from tether.adapters.host.brick import BrickHost, prepare
from tether.errors import ConfigError, UncertainError
from tether.settings import Settings


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendHost:
    return PretendHost(tmp_path, monkeypatch)


def test_one_origin_loads_os_brick_once(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    pretend.host().connector()
    found = the_origin(pretend)
    pretend.host().connect(volume_id, connection)
    pretend.host().disconnect(volume_id, connection)
    assert pretend.loads() == 1
    assert the_origin(pretend) == found


def test_what_does_without_os_brick_does_not_load_it(pretend: PretendHost) -> None:
    assert pretend.host().find("v1") is None
    assert pretend.loads() == 0


def test_os_brick_is_loaded_before_it_is_asked_for(pretend: PretendHost) -> None:
    prepare(pretend.settings.but(data_path="network"))
    assert started(pretend) == []
    prepare(pretend.settings)
    until(lambda: pretend.loads() == 1, "os-brick")


COMMAND = """
import sys
from tether.adapters.host import process
from tether.cli.main import main
process.prepare = lambda _environment: print("prepared", "taskflow" in sys.modules)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("attach", "vol1", "guest1"), "prepared False\n"),
        (("mapping", "show", "vol1"), ""),
        (("--sim", "world", "attach", "vol1", "guest1", "-f", "value", "-c", "state"), "attached\n"),
    ],
)
def test_a_command_that_connects_has_os_brick_loaded_while_it_imports(
    words: Sequence[str], printed: str, tmp_path: Path
) -> None:
    (tmp_path / "conf").write_text(
        f"[DEFAULT]\ndatabase = sqlite:///{tmp_path}/db\n[cinder]\nendpoint_override = http://127.0.0.1:9/v3\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, "--config-file", str(tmp_path / "conf"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == printed, done.stderr


def test_many_helpers_at_a_time(pretend: PretendHost) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = [found["host"] for found in pool.map(lambda _: pretend.host().connector(), range(16))]
    assert names == ["pretend"] * 16
    assert pretend.loads() == 1


def test_an_origin_that_was_killed_is_started_anew(pretend: PretendHost) -> None:
    pretend.host().connector()
    found = the_origin(pretend)
    os.kill(found, signal.SIGKILL)
    assert pretend.host().connector()["host"] == "pretend"
    assert the_origin(pretend) != found


def test_a_helper_outlives_its_origin(pretend: PretendHost) -> None:
    pretend.behave(properties=["gate"])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pretend.host().connector)
        until(lambda: bool(pids(pretend)), "the helper")
        os.kill(the_origin(pretend), signal.SIGKILL)
        (pretend.root / "open").touch()
        assert answer.result()["host"] == "pretend"
    assert not Path(f"/proc/{pids(pretend)[0]}").exists()


def test_an_origin_that_does_not_answer_is_replaced(pretend: PretendHost) -> None:
    pretend.host().connector()
    found = the_origin(pretend)
    os.kill(found, signal.SIGSTOP)
    with pytest.raises(UncertainError, match="did not answer within 1 s"):
        pretend.host(host_timeout=1.0).connector()
    assert pretend.host().connector()["host"] == "pretend"
    assert the_origin(pretend) != found
    assert len([line for line in pretend.calls() if line.startswith("properties")]) == 2


def test_an_origin_that_cannot_start_is_told(
    pretend: PretendHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/gc.py").write_text("")
    (tmp_path / "broken/select.py").write_text("")
    (tmp_path / "broken/selectors.py").write_text("raise SystemExit('nothing can be selected')")
    (tmp_path / "broken/socket.py").write_text("raise SystemExit('there are no sockets')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(UncertainError, match="ended with status 1 before it answered"):
        pretend.host().connector()
    assert "there are no sockets" in caplog.text


def test_a_missing_os_brick_is_told(pretend: PretendHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without/os_brick").mkdir(parents=True)
    (tmp_path / "without/os_brick/__init__.py").write_text("raise ImportError('no os-brick')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    with pytest.raises(ConfigError, match="no os-brick"):
        pretend.host().connector()


def test_a_changed_environment_reaches_the_helper(
    pretend: PretendHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend.host().connector()
    found = the_origin(pretend)
    (tmp_path / "other/etc/iscsi").mkdir(parents=True)
    (tmp_path / "other/etc/iscsi/initiatorname.iscsi").write_text("InitiatorName=iqn.other\n")
    monkeypatch.setenv("FAKE_BRICK_DIR", str(tmp_path / "other"))
    assert pretend.host().connector()["initiator"] == "iqn.other"
    assert not runs(found)


def test_a_fork_of_tether_has_an_origin_of_its_own(pretend: PretendHost) -> None:
    pretend.host().connector()
    found = the_origin(pretend)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            pretend.host().connector()
            code = 0 if len(started(pretend)) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until(lambda: started(pretend) == [found], "the end of the other")
    assert pretend.host().connector()["host"] == "pretend"
    assert the_origin(pretend) == found


def test_no_file_of_tether_or_of_the_origin_reaches_a_command(pretend: PretendHost) -> None:
    # Above all numbers that the origin uses itself.
    number = fcntl.fcntl(0, fcntl.F_DUPFD, 100)
    try:
        hanging = Hanging(pretend)
    finally:
        os.close(number)
    try:
        command, of_helper = streams_alone(hanging.command), opened(hanging.helper)
    finally:
        hanging.end()
    assert all(target.startswith("pipe:") for target in command.values())
    assert number not in of_helper
    assert not any(target.startswith("socket:") for target in of_helper.values())


def streams_alone(pid: int) -> dict[int, str]:
    """Wait until a command has nothing but its streams open: its loader and its locale open files as it begins."""
    found: dict[int, str] = {}

    def alone() -> bool:
        found.clear()
        found.update(opened(pid))
        return sorted(found) == [0, 1, 2]

    until(alone, "a command that has no file of ours", limit=10)
    return found


def opened(pid: int) -> dict[int, str]:
    """Return what a process has open, by its number there."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def test_the_real_os_brick_leaves_the_origin_one_thread(tmp_path: Path) -> None:
    """A fork beside a thread may inherit a lock that nobody will open."""
    host = BrickHost(Settings(lock_path=str(tmp_path), run_dir=str(tmp_path), host_name="node7"))
    host.connector()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (found,) = [
        number for number in children if b"adapters.host.origin" in Path(f"/proc/{number}/cmdline").read_bytes()
    ]
    assert len(list(Path(f"/proc/{found}/task").iterdir())) == 1


# the death of tether

PARENT = """
import os
import sys
import threading
import time
from pathlib import Path
from tether.adapters.cinder.model import Connection
from tether.adapters.host.brick import BrickHost
from tether.adapters.host.places import Places
from tether.sealed import Sealed
from tether.settings import Settings
root = Path(sys.argv[1])
places = Places(*(str(root / name) for name in ("sys", "dev", "proc", "etc", "var")))
host = BrickHost(Settings(run_dir=str(root / "run"), lock_path=str(root / "locks")), places)
if sys.argv[2] == "hang-fork":
    # A fork keeps the pipe to the helper open, so that its end of file never comes.
    def fork():
        while not (root / "calls").exists() or "pids" not in (root / "calls").read_text():
            time.sleep(0.02)
        if (child := os.fork()) == 0:
            time.sleep(600)
        (root / "forked").write_text(str(child))
    threading.Thread(target=fork).start()
data = {"target_iqn": "iqn.x", "target_portal": "p", "target_lun": 1}
host.connect("v1", Connection(protocol="iscsi", data=Sealed(data)))
"""


@pytest.mark.parametrize("how", ["hang", "deaf", "hang-fork", "hang-orphan"])
def test_the_death_of_the_parent_ends_helper_and_commands(how: str, pretend: PretendHost) -> None:
    """Told by its process's end or by that of standard input, whatever signals are ignored."""
    pretend.behave(connect=[how.partition("-")[0]])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])}
    forked = pretend.root / "forked"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(pretend.root), how], env=environment) as parent:
        until(lambda: bool(pids(pretend)), "the hanging call")
        if how == "hang-fork":
            until(lambda: forked.exists() and forked.read_text() != "", "the fork")
        if how == "hang-orphan":
            os.kill(the_origin(pretend), signal.SIGKILL)
            until(lambda: set(started(pretend)) <= set(pids(pretend)), "the end of the origin")
        assert all(runs(number) for number in pids(pretend))
        parent.kill()
    try:
        until(lambda: not any(runs(number) for number in pids(pretend)), "the end of helper and command", limit=20.0)
        until(lambda: not started(pretend), "the end of the origin", limit=20.0)
    finally:
        for number in [*started(pretend), *pids(pretend), *([int(forked.read_text())] if forked.exists() else [])]:
            if runs(number):
                os.kill(number, signal.SIGKILL)
