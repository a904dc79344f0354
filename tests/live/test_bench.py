"""An attach can be measured here, against the script of the same calls; what it takes is no matter of a test."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.live.conftest import Live
from tests.live.world.layout import CHECKOUT

BARS = {"attach_vs_script_live", "attach_at_once_vs_script_live"}


def test_the_bench_ends_with_every_bar_and_leaves_nothing(live: Live) -> None:
    before = live.judge.snapshot()
    command = [sys.executable, "-P", "-m", "bench.attach", "--world", "live", "--quick", "--json"]
    environment = live.environment | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {item["name"] for item in found["bars"]} == BARS
    titles = [table["title"] for table in found["tables"]]
    assert f"{len(live.guests)} volumes to {len(live.guests)} guests at once" in titles[1]
    live.assert_books(before)
