"""The fault matrix on the real Cinder, libvirt, QEMU and iSCSI target: a sample of its single faults."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.commands import PROGRAM
from tests.live.conftest import Live
from tests.report import counted

LIMIT = 3000


@pytest.mark.timeout(LIMIT)
def test_nothing_is_left_half_done(
    live: Live, tmp_path: Path, record_property: Callable[[str, object], None], pytestconfig: pytest.Config
) -> None:
    seed = pytestconfig.getoption("--seed")
    options = ["--cases", str(counted(10, 100)), "--seed", str(1 if seed is None else seed), "--report", str(tmp_path)]
    done = subprocess.run(
        [PROGRAM, "faults", "run", "--world", "live", "--json", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=live.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    record_property("matrix", done.stderr.splitlines()[:1])
    assert {bar["name"]: bar["value"] for bar in json.loads(done.stdout.splitlines()[-1])["bars"]} == {
        "violations": 0,
        "points_without_case": 0,
    }
