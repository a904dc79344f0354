"""The state machine, with a seed that reproduces its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.crash.machine import Machine
from tests.report import counted

EXAMPLES, STEPS = counted(12, 150), counted(14, 25)


@pytest.mark.timeout(3600)
def test_the_five_books_hold_whatever_happens(
    template: Path, kill_seed: int, record_property: Callable[[str, object], None], pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--seed") is None:
        kill_seed = counted(5, kill_seed)  # a small run looks at the same each time
    machine = seed(kill_seed)(type("Machine", (Machine,), {"template": template}))
    Machine.counts.clear()
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=False,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=False,
            ),
        )
    finally:
        told = ", ".join(f"{count} {name}" for name, count in Machine.counts.items())
        record_property("machine", [f"{told}; seed {kill_seed}"])
