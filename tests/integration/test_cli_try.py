"""``tether try`` in a pipe: it shows four scenes, and fails if one of them goes wrong."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import ROOT
from tether.cli import demo
from tether.cli.main import Tether

#: The limit for the four scenes, in seconds of a processor: what else the machine does is not theirs.
SCENES = 20.0


def test_the_scenes(tmp_path: Path, at_most: Callable[[str, float, str, float], None]) -> None:
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TETHER_CONFIG_FILE": "/nowhere",  # what this machine is set to is not what the scenes are about
        "OS_CINDER__DIALECT": "legacy",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody who tries tether compiles it for each command
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*demo.PROGRAM, "try"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    found = re.search(r"All 4 scenes ended as they should, in ([\d.]+) s\.$", done.stderr)
    assert found, done.stderr
    assert re.findall(r"^\[exit (\d+)", done.stdout, re.MULTILINE) == ["0", "0", "3", "137", "0", "0", "0"]
    assert [line for line in done.stdout.splitlines() if line.startswith("# ")] == [
        "# 1. Attach volume vol1 to the running server guest1.",
        "# 2. The guest refuses the next disk: every step before it is undone, exit 3.",
        "# 3. An attach is killed with SIGKILL in the middle; `job resume` finishes it.",
        "# 4. Detach.",
    ]
    assert "\x1b" not in done.stdout
    for state in ("attached", "rolled-back", "interrupted", "detached"):
        assert f" {state} " in done.stdout
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert float(found[1]) > 0
    at_most("the scenes of tether try, processor time", used, "s", SCENES)


def test_a_scene_that_ends_otherwise_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "PROGRAM", (sys.executable, "-c", "import sys; sys.exit(7)"))
    app = Tether()
    app.stdout, app.stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(demo, "SCENES", (lambda stage: stage.run("attach", "vol1", "guest1"),))
    command = demo.Try(app, None)
    assert command.run(command.get_parser("try").parse_args([])) == 1
    assert app.stdout.getvalue().splitlines() == ["$ tether --sim world attach vol1 guest1", "[exit 7]"]
    assert "`tether --sim world attach vol1 guest1` ended with 7 instead of 0" in app.stderr.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_a_volume_in_another_state_is_a_failure(tmp_path: Path) -> None:
    from tether.sim.world import create

    create(tmp_path / "world")
    stage = demo.Stage(tmp_path / "world", io.StringIO())
    stage.expect("vol1", "available")
    assert stage.wrong == []
    stage.expect("vol1", "in-use")
    assert stage.wrong == ["volume vol1 is available, not in-use"]
