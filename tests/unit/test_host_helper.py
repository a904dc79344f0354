"""The helper process: limits, deaths, errors and secrets, over a pretend host."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.host import PASSPHRASE, PASSWORD, Hanging, PretendHost, pids, runs
from tether.adapters.cinder.model import Encryption
from tether.adapters.host import helper
from tether.adapters.host.brick import BrickHost, open_host
from tether.adapters.host.network import NetworkHost
from tether.adapters.host.places import Places
from tether.errors import ConfigError, FinalError, TetherError, UncertainError
from tether.sealed import Sealed
from tether.settings import Settings

ROOT = Path(__file__).parents[2]
LUKS = Encryption(provider="luks", key_id="k", cipher="aes-xts-plain64", key_size=256)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendHost:
    return PretendHost(tmp_path, monkeypatch)


@pytest.fixture
def hanging(pretend: PretendHost) -> Iterator[Hanging]:
    made = Hanging(pretend)
    yield made
    made.end()


# time limits and deaths


def test_the_time_limit_ends_the_whole_group(pretend: PretendHost) -> None:
    host = pretend.host(host_timeout=2.0)
    assert host.find("v1") is None
    pretend.behave(properties=["family"])
    with pytest.raises(UncertainError, match="did not answer within 2 s"):
        host.connector()
    assert len(pids(pretend)) == 3
    assert not any(runs(number) for number in pids(pretend))


def test_what_a_finished_helper_leaves_running_is_ended_and_reaped(pretend: PretendHost) -> None:
    pretend.behave(properties=["leave"])
    assert pretend.host().connector()["host"] == "pretend"
    assert len(pids(pretend)) == 3
    assert not any(Path(f"/proc/{number}").exists() for number in pids(pretend))


def test_a_long_request_and_a_long_answer_arrive_whole(pretend: PretendHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pretend.behave(properties=["long"])
    assert pretend.host(host_name="x" * 3_000_000).connector()["host"] == "x" * 3_000_000
    assert "y" * 3_000_000 in caplog.text


def test_a_verb_over_its_limit_is_uncertain(pretend: PretendHost) -> None:
    pretend.behave(connect=["hang"])
    volume_id, connection = pretend.exported()
    with pytest.raises(UncertainError, match="did not answer within 2 s") as caught:
        pretend.host(host_timeout=2.0).connect(volume_id, connection)
    assert volume_id in caught.value.message
    assert caught.value.hint
    assert not any(runs(number) for number in pids(pretend))


def test_a_flush_that_hangs_ends_with_the_helper_unless_it_is_forced(pretend: PretendHost) -> None:
    """os-brick gives it 300 s, three times over: then nothing would ever come after it."""
    volume_id, connection = pretend.exported()
    device = pretend.host().connect(volume_id, connection)
    pretend.flush("hang")
    with pytest.raises(UncertainError, match="did not answer within 3 s"):
        pretend.host(host_timeout=3.0).disconnect(volume_id, connection)
    assert pretend.host().find(volume_id) == device
    begun = len(pretend.calls())
    (failed,) = pretend.host(host_timeout=16.0).disconnect(volume_id, connection, force=True)
    assert "Time out after waiting 4.0 seconds when running blockdev" in failed
    assert [line.split()[0] for line in pretend.calls()[begun:]] == ["factory", "disconnect", "blockdev"]
    assert pretend.host().residue(volume_id, connection) == []


def test_a_killed_helper_is_uncertain_and_takes_its_commands_along(hanging: Hanging) -> None:
    os.kill(hanging.helper, signal.SIGKILL)
    hanging.thread.join()
    assert isinstance(hanging.error, UncertainError)
    assert "ended with status -9" in hanging.error.message
    assert not runs(hanging.command)


def test_a_helper_that_breaks_is_uncertain(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    (pretend.root / "sys/class/iscsi_session/s1").mkdir(parents=True)
    (pretend.root / "run").write_text("a file where the folder of links should be")
    with pytest.raises(UncertainError, match="ended with status 1"):
        pretend.host().connect(volume_id, connection)


# os-brick's arguments


def test_os_brick_never_handles_a_volume_as_encrypted(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    assert connection.data.open()["encrypted"] is True
    pretend.host().connect(volume_id, connection)
    assert [line for line in pretend.calls() if line.startswith("connect") and line.endswith("encrypted False")]


def test_what_os_brick_locks_stays_novas_to_lock(pretend: PretendHost) -> None:
    (pretend.root / "locks").mkdir()
    os.chown(pretend.root / "locks", 1234, 1234)
    lock = pretend.root / "locks/os-brick-connect_volume"
    lock.touch()
    pretend.host().find("v1")
    assert lock.stat().st_uid == 0
    pretend.host().connect(*pretend.exported())
    assert lock.stat().st_uid == 1234


def test_settings_reach_os_brick(pretend: PretendHost) -> None:
    host = pretend.host(
        volume_use_multipath=True, volume_enforce_multipath=True, num_volume_scan_tries=9, my_ip="10.9.8.7"
    )
    volume_id, connection = pretend.exported()
    assert host.connector()["ip"] == "10.9.8.7"
    host.connect(volume_id, connection)
    assert "properties 10.9.8.7 True True" in pretend.calls()
    assert "factory ISCSI True 9" in pretend.calls()


def test_another_initiator_name_than_iscsids_is_refused(pretend: PretendHost) -> None:
    with pytest.raises(ConfigError, match="iscsid logs in as"):
        pretend.host(initiator_name="iqn.other").connector()


def test_only_the_hosts_settings_go_to_the_helper() -> None:
    settings = Settings(database="postgresql://tether:db-Secret@db/tether", run_dir="/r", num_volume_scan_tries=9)
    asked = json.dumps(helper.request("find", settings, Places(), {"volume_id": "v1"}))
    assert "db-Secret" not in asked
    assert '"num_volume_scan_tries": 9' in asked
    assert '"run_dir": "/r"' in asked


# secrets


def test_no_secret_in_arguments_or_environment(pretend: PretendHost, hanging: Hanging) -> None:
    folder = Path(f"/proc/{hanging.helper}")
    assert b"tether.adapters.host.origin" in (folder / "cmdline").read_bytes()
    assert PASSWORD.encode() not in (folder / "cmdline").read_bytes()
    assert PASSWORD.encode() not in (folder / "environ").read_bytes()


def test_no_secret_in_the_log(pretend: PretendHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pretend.behave(connect=["noise", "fail", "crash"])
    volume_id, connection = pretend.exported()
    assert pretend.host().connect(volume_id, connection)
    pretend.host().disconnect(volume_id, connection)
    for _ in range(2):
        with pytest.raises(TetherError) as caught:
            pretend.host().connect(volume_id, connection)
        assert PASSWORD not in caught.value.message
    assert "on standard error ***" in caplog.text
    assert "on standard output ***" in caplog.text
    assert PASSWORD not in caplog.text


def test_the_passphrase_is_only_on_standard_input(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    pretend.host().connect(volume_id, connection)
    pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    calls = "\n".join(pretend.calls())
    assert "cryptsetup open --type luks --key-file=-" in calls
    assert PASSPHRASE not in calls


# the process itself

BACKEND = """
import sys
from tether.adapters.host import brick_calls
from tether.settings import Settings
brick_calls.set_up(Settings(lock_path=sys.argv[1]))
import os_brick.initiator.connector
from os_brick.initiator.connectors import fibre_channel
from oslo_service import backend, loopingcall
from oslo_config import cfg
print(sys.modules["eventlet"], backend.get_backend_type().name, loopingcall.FixedIntervalLoopingCall.__module__)
print(cfg.CONF.os_brick.lock_path, os_brick.__file__)
"""


def with_the_real_os_brick(script: str, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that does not have the stand-in.

    Args:
        changes: of the environment.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | changes
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def test_the_real_os_brick_is_set_up_without_eventlet(tmp_path: Path) -> None:
    ended = with_the_real_os_brick(BACKEND, tmp_path / "locks")
    first, second = ended.stdout.splitlines()
    assert first == "None THREADING oslo_service.backend._threading.loopingcall"
    assert second.startswith(f"{tmp_path}/locks ")
    assert "fakes" not in second
    assert "eventlet" not in ended.stderr.lower()


FLUSH = """
import sys, time
from tether.adapters.host import brick_calls
from tether.settings import Settings
settings = Settings(lock_path=sys.argv[1])
brick_calls.set_up(settings)
for protocol in ("iscsi", "fibre_channel", "nvmeof"):
    for limit in (0.5, 300.0):
        connector = brick_calls._connector(settings, protocol, execute=brick_calls._in_time(limit))
        begun = time.monotonic()
        try:
            connector._linuxscsi.flush_multipath_device("hang" if limit < 1 else "fail")
        except Exception as error:
            print(protocol, type(error).__name__, time.monotonic() - begun < 5)
"""


def test_the_real_os_brick_gives_up_a_flush_in_time(tmp_path: Path) -> None:
    """Each way of flushing goes through what the connector is given; it is tried once."""
    (tmp_path / "multipath").write_text('#!/bin/sh\n[ "$2" = hang ] && exec sleep 600\nexit 1\n')
    (tmp_path / "multipath").chmod(0o755)
    ended = with_the_real_os_brick(FLUSH, tmp_path / "locks", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert ended.stdout.splitlines() == [
        f"{protocol} {error} True"
        for protocol in ("iscsi", "fibre_channel", "nvmeof")
        for error in ("ExecutionTimeout", "ProcessExecutionError")
    ]


def test_the_real_os_brick_gives_the_connector(tmp_path: Path) -> None:
    """What can be proven on any Linux machine: without open-iscsi, multipath-tools and nvme-cli too."""
    host = BrickHost(Settings(lock_path=str(tmp_path), run_dir=str(tmp_path), host_name="node7", my_ip="10.1.2.3"))
    connector = host.connector()
    assert (connector["host"], connector["ip"]) == ("node7", "10.1.2.3")
    assert connector["multipath"] is False
    assert connector["os_type"] == "linux"


def test_importing_the_adapter_brings_no_os_brick_and_no_eventlet() -> None:
    code = (
        "import sys, tether.adapters.host.brick, tether.adapters.host.origin;"
        "print([name for name in sys.modules if name in ('eventlet', 'os_brick', 'oslo_service', 'oslo_config')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_the_helper_imports_nothing_from_the_callers_directory(
    pretend: PretendHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/ctypes.py").write_text("raise SystemExit('imported from here')")
    monkeypatch.chdir(tmp_path / "here")
    assert pretend.host().find("v1") is None


# the network data path


def test_the_data_path_chooses_the_host() -> None:
    assert isinstance(open_host(Settings(data_path="network")), NetworkHost)
    assert isinstance(open_host(Settings(data_path="host")), BrickHost)


def test_the_network_host_names_itself_and_has_no_devices(pretend: PretendHost) -> None:
    host = NetworkHost(pretend.settings.but(my_ip="10.1.2.3"), pretend.places)
    connector = host.connector()
    assert connector["initiator"] == "iqn.1993-08.org.debian:01:abc" == host.identity().initiator
    assert (connector["host"], connector["ip"], connector["multipath"]) == ("pretend", "10.1.2.3", False)
    volume_id, connection = pretend.exported()
    assert host.find(volume_id) is None
    assert host.residue(volume_id, connection) == []
    assert not host.encryption_open(volume_id)
    for call in (
        lambda: host.connect(volume_id, connection),
        lambda: host.disconnect(volume_id, connection),
        lambda: host.open_encryption(volume_id, LUKS, Sealed(PASSPHRASE)),
        lambda: host.close_encryption(volume_id),
    ):
        with pytest.raises(FinalError, match="not on the network data path"):
            call()
    named = NetworkHost(pretend.settings.but(initiator_name="iqn.mine"), pretend.places)
    assert named.connector()["initiator"] == "iqn.mine"


def test_a_network_host_without_a_name_says_so(pretend: PretendHost) -> None:
    (pretend.root / "etc/iscsi/initiatorname.iscsi").unlink()
    with pytest.raises(ConfigError, match="initiator name"):
        NetworkHost(pretend.settings, pretend.places).connector()


def test_a_host_without_machine_id_says_so(pretend: PretendHost) -> None:
    (pretend.root / "etc/machine-id").unlink()
    with pytest.raises(ConfigError, match="machine id"):
        pretend.host().identity()
