"""``tether reconnect``: a host has been started anew, and its guests are not running yet."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.crash.world import DONE, KILLED, SimWorld
from tests.integration import drifts
from tether.cli.demo import PROGRAM
from tether.matrix import wrecks

LEFT, USAGE = 7, 2
SERVER = "stopped1"


def reconnect(sim: SimWorld, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    done = sim.tether("reconnect", "-f", "json", *words)
    return done.code, json.loads(done.out or "[]"), done.err


def drift(sim: SimWorld) -> list[str]:
    return sorted(row["kind"] for row in json.loads(sim.tether("audit", "-f", "json").out or "[]"))


def attached(sim: SimWorld, name: str, server: str = SERVER) -> str:
    volume = drifts.new_volume(sim, name)
    done = sim.tether("attach", volume, server)
    assert done.code == DONE, done.err
    return volume


def test_all_that_is_attached_is_connected_again(sim: SimWorld) -> None:
    volumes = {attached(sim, "one"), attached(sim, "two"), attached(sim, "three", "guest1")}
    assert sim.tether("attach", "secret1", SERVER).code == DONE
    encrypted = next(volume for volume in sim.books()["host"]["crypt"])
    before = sim.books()
    for volume in (*volumes, encrypted):
        wrecks.rebooted(sim.directory, volume)
    code, rows, err = reconnect(sim, "--all")
    assert code == DONE, err
    assert {row["volume_id"] for row in rows} == volumes | {encrypted}
    assert {row["action"] for row in rows} == {"repair-connect"}
    assert "4 jobs run; what is attached is connected" in err
    after = sim.books()
    assert after["host"]["links"].keys() == before["host"]["links"].keys()
    assert after["host"]["crypt"].keys() == {encrypted}
    assert drift(sim) == []
    assert reconnect(sim, "--all")[:2] == (DONE, [])


def test_of_one_server(sim: SimWorld) -> None:
    mine, other = attached(sim, "mine"), attached(sim, "other", "guest1")
    for volume in (mine, other):
        wrecks.rebooted(sim.directory, volume)
    code, rows, err = reconnect(sim, "--server", SERVER)
    assert (code, [row["volume_id"] for row in rows]) == (DONE, [mine]), err
    assert drift(sim) == ["missing-device"]


def test_a_target_that_lets_nobody_in_is_left_and_said(sim: SimWorld) -> None:
    volume = attached(sim, "moved")
    wrecks.rebooted(sim.directory, volume)
    before = sim.books()
    wrecks.moved(sim.directory, volume)
    code, rows, err = reconnect(sim, "--all")
    assert code == LEFT, err
    assert rows[0]["result"].startswith("rolled-back: ")
    assert "authorization failure" in rows[0]["result"]
    assert "next: detach and attach again" in err
    assert sim.books()["host"] == before["host"]


@pytest.mark.parametrize(
    "point", ["connect-host.act.after", "plug-persistent.act.after", "complete-attachment.act.after"]
)
def test_a_job_that_the_reboot_interrupted_is_taken_up_first(sim: SimWorld, point: str) -> None:
    other, volume = attached(sim, "other"), drifts.new_volume(sim, "half")
    assert sim.tether("--fault", f"{point}=kill", "attach", volume, SERVER).code == KILLED
    for each in (other, volume):
        wrecks.rebooted(sim.directory, each)
    code, rows, err = reconnect(sim, "--all")
    assert code == DONE, err
    assert next(row["action"] for row in rows if row["volume_id"] == volume) == "resume"
    assert drift(sim) == []
    assert sim.books()["host"]["links"].keys() == {other, volume}
    for each in (other, volume):
        assert sim.tether("detach", each, SERVER).code == DONE
    assert drift(sim) == []


def test_what_cinder_no_longer_has_is_left_and_said(sim: SimWorld) -> None:
    kept, volume = attached(sim, "kept"), attached(sim, "lost")
    for each in (kept, volume):
        wrecks.rebooted(sim.directory, each)
    wrecks.lost(sim.directory, volume)
    code, rows, err = reconnect(sim, "--all")
    assert code == LEFT, err
    assert [row["volume_id"] for row in rows if row["action"] == "stays"] == [volume]
    assert sim.books()["host"]["links"].keys() == {kept}


def test_other_drift_is_not_touched(sim: SimWorld) -> None:
    drifts.DRIFTS[drifts.Kind.LIVE_ONLY_DISK](sim)
    before = sim.books()
    assert reconnect(sim, "--all")[:2] == (DONE, [])
    assert sim.books() == before


def test_the_words_say_of_what(sim: SimWorld) -> None:
    done = subprocess.run([*PROGRAM, "reconnect"], capture_output=True, text=True, check=False)
    assert done.returncode == USAGE
    assert "one of the arguments --server --all is required" in done.stderr
    assert sim.tether("reconnect", "--server", "nobody").code == 6
