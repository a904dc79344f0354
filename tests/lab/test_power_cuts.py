"""The power goes at a random moment of an attach or a detach; the host boots, and ``reconnect`` brings all together.

What was not synced is gone with it, below the ledger as well: an effect whose intent was not durable would be left
over, with no job that knows of it. ``bin/test lab --cuts N --seed S`` says how many.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.conftest import LabHost
from tests.lab.test_random_kills import BEGUN
from tests.lab.test_reconnect import cut_and_boot
from tests.live.commands import DONE
from tests.report import counted
from tether.matrix.live_judge import diff

SMALL, FULL = 1, 100
VERBS = ("attach", "detach")
#: Seconds from a command's first effect until it has ended for sure, on a lab that has nothing else to do.
LONGEST = {"attach": 30.0, "detach": 15.0}
MULTIPATH = {"host__volume_use_multipath": True}
BEGAN = "/run/has-begun"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Attach and detach in turn."""
    total = metafunc.config.getoption("--cuts")
    cuts = range(counted(SMALL, FULL) if total is None else total)
    metafunc.parametrize("number", cuts, ids=[f"{number}-{VERBS[number % 2]}" for number in cuts])


def cut_during(lab: LabHost, verb: str, volume_id: str, seconds: float) -> None:
    """Begin a command, cut the power so many seconds after its first effect, and boot."""
    with ThreadPoolExecutor(1) as aside:
        aside.submit(lab.tether_halted, BEGUN[verb], f"touch {BEGAN}", verb, volume_id, lab.guest, **MULTIPATH)
        lab.run(f"until [ -e {BEGAN} ]; do sleep .1; done")
        time.sleep(seconds)
        cut_and_boot(lab)


@pytest.fixture(scope="module", autouse=True)
def guest_afterwards(lab: LabHost) -> Iterator[None]:
    """Other tests find the guest running."""
    yield
    lab.inside("boot")


def test_no_effect_is_left_that_no_job_knows_of(
    lab: LabHost,
    new_volume: Callable[..., str],
    number: int,
    kill_seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    told: dict[str, object] = {"seed": kill_seed, "ends": ["cut"]}
    record_property("lab_cuts", told)
    verb = VERBS[number % 2]
    volume_id = new_volume()
    before = lab.books()
    if verb == "detach":
        done = lab.tether("attach", volume_id, lab.guest, **MULTIPATH)
        assert done.code == DONE, done.err
    moment = random.Random(f"{kill_seed}/{number}").random()
    cut_during(lab, verb, volume_id, moment * LONGEST[verb])

    # The guest is off: what it has is connected before it starts.
    done = lab.tether("reconnect", "--all", **MULTIPATH)
    assert done.code == DONE, f"{verb} cut at {moment:.3f}: {done.err}"
    boots = number % 4 < len(VERBS)  # half of them: it takes as long as an attach
    if boots:
        lab.inside("boot")
    (job, *_) = json.loads(lab.tether("job", "list", "-f", "json").out)
    assert job["state"] in {"attached", "detached", "rolled-back"}, job
    told["ends"] = [f"{verb} {job['state']}"]
    audit = lab.tether("audit", **MULTIPATH)
    assert audit.code == DONE, audit.out
    if lab.run(f"virsh domblklist --inactive {lab.guest}").count(volume_id):
        assert not boots or lab.wait_for_disk(volume_id)
        done = lab.tether("detach", volume_id, lab.guest, **MULTIPATH)
        assert done.code == DONE, done.err
    assert diff(before, lab.books()) == []
