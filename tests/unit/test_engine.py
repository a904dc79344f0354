"""The engine: what it uses of TaskFlow's inside, and which steps need a thread."""

from __future__ import annotations

import inspect

import pytest
from taskflow.engines.action_engine.engine import SerialActionEngine
from taskflow.persistence import models
from taskflow.storage import Storage

from tether.flows.registry import CURRENT, parts
from tether.persistence.params import Params
from tether.runner.engine import StepStorage, plan_of


def test_taskflow_has_the_names_that_are_used_of_its_inside() -> None:
    flow = parts("attach", CURRENT["attach"])[0].build(Params())
    engine = SerialActionEngine(flow, models.FlowDetail("attach", "f"), None, {})
    for name in ("_compiler", "_validated", "_task_executor", "_runtime", "_flow_detail", "_backend"):
        assert name in vars(engine), f"TaskFlow's engine has no {name} any more"
    assert engine.storage._lock is engine.storage.lock
    compiled = engine._compiler.compile()
    assert engine._compiler.compile() is compiled, "it is compiled once"


def test_the_storage_has_neither_locks_nor_retries() -> None:
    wrapped = {
        name for name, method in vars(Storage).items() if inspect.isfunction(method) and hasattr(method, "__wrapped__")
    }
    assert {"save", "set_atom_state", "get_atom_state", "_save_atom_detail", "_save_flow_detail"} <= wrapped
    for name in wrapped:
        assert getattr(StepStorage, name) is getattr(Storage, name).__wrapped__


READS = {"read-volume", "read-server", "read-connector"}
BESIDE = {
    "attach": READS,
    "adopt": READS,
    "migrate-prepare": {"read-volume", "read-connector"},
    "repair-connect": {"read-volume", "read-connector"},
    "repair-attach": {"read-connector", "read-attachment"},
}


@pytest.mark.parametrize("kind", sorted(CURRENT))
def test_only_steps_that_can_be_under_way_beside_others_need_a_thread(kind: str) -> None:
    beside = set()
    for part in parts(kind, CURRENT[kind]):
        plan = plan_of(part, Params())
        beside |= {step.label for step, _data in plan.flow.iter_nodes() if step.name not in plan.alone}
    assert beside == BESIDE.get(kind, set())


def test_jobs_of_one_case_share_a_plan() -> None:
    part = parts("attach", CURRENT["attach"])[0]
    plan = plan_of(part, Params(device="vdx", mode="ro", owner_mark=False))
    assert plan_of(part, Params()) is plan
    assert plan_of(part, Params(dialect="legacy")) is not plan
