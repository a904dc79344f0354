"""The rules that every step keeps, and the shape of every flow."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_type_hints

import networkx as nx
import pytest
from taskflow import engines
from taskflow.patterns import graph_flow
from taskflow.types.failure import Failure

import tether.tasks
from tether import faults
from tether.clock import SystemClock
from tether.errors import FinalError, Interrupted, UncertainError
from tether.flows import attach, detach
from tether.flows.registry import CURRENT, parts
from tether.persistence.ledger import Job, Place
from tether.persistence.params import Params
from tether.settings import Settings
from tether.tasks.run import Run
from tether.tasks.step import Step

LINES = ("Effect", "Key", "Compensation", "Uncertain", "Crash windows")


def _step_classes() -> list[type[Step]]:
    found = {
        value
        for module in pkgutil.iter_modules(tether.tasks.__path__, "tether.tasks.")
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, type) and issubclass(value, Step) and not inspect.isabstract(value)
    }
    return sorted(found, key=lambda step: step.code)


STEPS = _step_classes()
each_step = pytest.mark.parametrize("step", STEPS, ids=[step.code for step in STEPS])

CASES = [
    Params(dialect=dialect, data_path=data_path, encrypted=encrypted)
    for dialect, data_path, encrypted in itertools.product(
        ("attachments", "legacy"), ("host", "network"), (False, True)
    )
]
each_case = pytest.mark.parametrize(
    "params",
    CASES,
    ids=[f"{case.dialect}-{case.data_path}-{'encrypted' if case.encrypted else 'plain'}" for case in CASES],
)


def a_run(params: Params, settings: Settings | None = None) -> Any:
    """Return a run without any adapter: flows are built and steps are run over it."""
    place = Place("http://cinder.test", "p", "test:///", "m", "iqn.test", "", "b")
    names = ("volume-id", "vol", "server-id", "guest")
    job = Job("j", "attach", 1, "running", *names, request_id="req-j", params=params, place=place)
    tools: Any = SimpleNamespace(clock=SystemClock(), settings=settings or Settings())
    return Run(tools=tools, job=job, note=lambda **_values: None)


def flows_of(params: Params) -> Iterator[graph_flow.Flow]:
    for kind, version in CURRENT.items():
        for part in parts(kind, version):
            yield part.build(params)


# -- the rules of a step -------------------------------------------------------------------------------------


def test_the_walk_finds_the_steps() -> None:
    """A walk that finds nothing would make every rule below hold."""
    used = {task.code for params in CASES for flow in flows_of(params) for task, _data in flow.iter_nodes()}
    assert used == {step.code for step in STEPS}, "a step that no flow uses, or one outside tether.tasks"
    assert len(STEPS) > 25


@each_step
def test_the_docstring_says_what_an_operator_must_know(step: type[Step]) -> None:
    text = inspect.getdoc(step) or ""
    missing = [line for line in LINES if not re.search(rf"\b{line}: \S", text)]
    assert missing == []
    assert re.match(r"[A-Z].*\.", text), "the first sentence says what the step is for"


@each_step
def test_a_step_is_named_and_versioned_in_the_database(step: type[Step]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*/[1-9][0-9]*", step.code)
    assert len(step.code) <= 64, "the width of its column"
    assert [other for other in STEPS if other.code == step.code] == [step]


@each_step
def test_a_step_has_a_book_exactly_if_it_has_an_effect(step: type[Step]) -> None:
    has_effect = not re.search(r"Effect: none\b", inspect.getdoc(step) or "")
    assert bool(step.book) == has_effect
    assert step.book in {"", "cinder", "guest", "host", "ledger"}


@each_step
def test_a_step_has_an_undo_exactly_if_it_can_be_undone(step: type[Step]) -> None:
    has_undo = step.undo is not Step.undo
    says_so = not re.search(r"Compensation: none\b", inspect.getdoc(step) or "")
    assert has_undo == says_so
    assert has_undo == (bool(step.book) and not step.forward_only)


@each_step
def test_every_input_has_a_type_that_it_can_be_read_back_into(step: type[Step]) -> None:
    for method in ("act", "look", "undo"):
        function = getattr(step, method)
        if function is getattr(Step, method):
            continue
        named = set(inspect.signature(function).parameters) - {"self"}
        assert named <= set(get_type_hints(function))


@each_step
def test_what_looks_before_it_acts_asks_for_the_same(step: type[Step]) -> None:
    """``look`` is called with what ``act`` was given."""
    if step.look is not Step.look:
        assert inspect.signature(step.look).parameters == inspect.signature(step.act).parameters


# -- the flows -----------------------------------------------------------------------------------------------


@each_case
def test_every_flow_compiles_and_has_what_its_steps_need(params: Params) -> None:
    for flow in flows_of(params):
        engine = engines.load(flow)
        engine.compile()
        engine.prepare()
        engine.validate()
        assert {task.name for task, _data in flow.iter_nodes()} == {task.code for task, _data in flow.iter_nodes()}


@each_case
def test_every_input_is_an_earlier_result_of_the_same_type(params: Params) -> None:
    for flow in flows_of(params):
        given: dict[str, Any] = {}
        for task in _in_order(flow):
            for method in ("act", "undo"):
                for name, hint in _inputs(task, method).items():
                    assert name in given or name in task.inject, f"{task.name}.{method} needs {name}"
                    assert given.get(name, hint) == hint, f"{task.name}.{method} reads {name} as another type"
            if task.gives:
                assert task.gives not in given, f"two steps give {task.gives}"
                given[task.gives] = get_type_hints(type(task).act)["return"]


def test_a_missing_result_is_found_before_anything_runs() -> None:
    """The check above would be worth nothing if TaskFlow accepted such a flow."""
    reads, chain = attach.steps(Params())
    flow = attach.link("attach", [step() for step in reads], [step() for step in chain if step.gives != "export"])
    engine = engines.load(flow)
    engine.compile()
    engine.prepare()
    with pytest.raises(Exception, match="export"):
        engine.validate()


def _in_order(flow: graph_flow.Flow) -> list[Step]:
    """Return the steps so that each comes after those that it has an edge from."""
    edges = [(before.name, after.name) for before, after, _data in flow.iter_links()]
    left = {task.name: task for task, _data in flow.iter_nodes()}
    ordered: list[Step] = []
    while left:
        ready = sorted(name for name in left if not any(after == name and before in left for before, after in edges))
        assert ready, "the graph has a circle"
        ordered += [left.pop(name) for name in ready]
    return ordered


def _inputs(task: Step, method: str) -> Mapping[str, Any]:
    function = getattr(type(task), method)
    if function is getattr(Step, method):
        return {}
    return {name: hint for name, hint in get_type_hints(function).items() if name not in {"return", "result"}}


READS = ["read-volume", "read-server", "read-connector"]
ATTACH = {
    "attachments": "check-attachable create-mapping reserve-volume export-volume HOST define-secret plug-persistent"
    " plug-live complete-attachment finish-mapping",
    "legacy": "check-attachable create-mapping reserve-volume-legacy export-volume-legacy HOST define-secret"
    " plug-persistent plug-live complete-attachment-legacy finish-mapping-legacy",
}
RELEASE = {"attachments": "release-attachment", "legacy": "release-attachment-legacy"}


def _edges(flow: graph_flow.Flow) -> set[tuple[str, str]]:
    """Return the edges that decide the order: TaskFlow adds one from each result's giver to each of its readers."""
    graph = nx.DiGraph((before.label, after.label) for before, after, _data in flow.iter_links())
    return set(nx.transitive_reduction(graph).edges)


def _chain(words: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(words.split()))


@each_case
def test_the_graph_of_an_attach(params: Params) -> None:
    host = "connect-host verify-device" + " open-encryption" * params.encrypted if params.data_path == "host" else ""
    words = ATTACH[params.dialect].replace("HOST", host)
    flow = attach.build(params)
    assert _edges(flow) == _chain(words) | {(read, "check-attachable") for read in READS}
    assert {task.label for task, _data in flow.iter_nodes()} == {*READS, *words.split()}


@each_case
def test_the_two_graphs_of_a_detach(params: Params) -> None:
    assert _edges(detach.build_guest(params)) == _chain(
        "check-detachable begin-detaching unplug-persistent unplug-live"
    )
    on_host = params.data_path == "host"
    words = f"undefine-secret {'close-encryption' * (on_host and params.encrypted)} {'disconnect-host' * on_host}"
    assert _edges(detach.build_release(params)) == _chain(f"{words} {RELEASE[params.dialect]} delete-mapping")


@each_case
def test_past_the_pivot_nothing_can_be_undone_and_before_it_everything(params: Params) -> None:
    chain = [step for group in attach.steps(params) for step in group]
    pivot = next(index for index, step in enumerate(chain) if step.code == "plug-live/1")
    assert [step.code for step in chain[: pivot + 1] if step.forward_only] == []
    assert [step.code for step in chain[pivot + 1 :] if not step.forward_only] == []
    assert not any(step.forward_only for step in detach.guest_steps())
    assert all(step.forward_only for step in detach.release_steps(params))
    assert [part.revertible for part in parts("detach", CURRENT["detach"])] == [True, False]
    assert len(list(attach.build(params).iter_nodes())) == len(chain)


# -- how a step behaves --------------------------------------------------------------------------------------


class Effect(Step):
    """A step over a list."""

    code = "try-it/1"
    book = "cinder"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.fails: list[BaseException] = []

    def act(self) -> str:
        self.calls.append("act")
        if self.fails:
            raise self.fails.pop(0)
        return "done"

    def look(self) -> str | None:
        self.calls.append("look")
        return None

    def undo(self, result: str | None) -> None:
        self.calls.append(f"undo {result}")
        if self.fails:
            raise self.fails.pop(0)


QUICK = replace(
    Settings(), rpc_response_timeout=0.05, settle_margin=0.0, retry_interval=0.01, step_retry_time=0.2, host_settle=0.0
)


@pytest.fixture
def effect() -> Effect:
    return Effect().bound(a_run(Params(), QUICK))


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fault points in the order in which they are passed."""
    names: list[str] = []
    monkeypatch.setattr(faults, "point", names.append)
    return names


def test_fault_points_stand_before_and_after_every_effect_and_every_undo(effect: Effect, passed: list[str]) -> None:
    effect.execute()
    effect.revert("done", {})
    assert passed == ["try-it.act.before", "try-it.act.after", "try-it.undo.before", "try-it.undo.after"]


def test_no_step_goes_round_the_base(effect: Effect) -> None:
    """Fault points, the lease's check and the decision about uncertain ends are the base's alone."""
    for step in STEPS:
        for name in ("execute", "revert", "_act", "_undo", "_settle", "_encode"):
            assert getattr(step, name) is getattr(Step, name), f"{step.code} has its own {name}"


def test_a_first_run_does_not_look(effect: Effect) -> None:
    assert effect.execute() == "done"
    assert effect.calls == ["act"]


def test_a_run_after_an_interruption_looks_first(effect: Effect) -> None:
    effect.run.in_flight = frozenset({effect.code})
    assert effect.execute() == "done"
    assert effect.calls == ["look", "act"]


def test_what_was_cut_off_a_moment_ago_may_still_come(effect: Effect) -> None:
    effect.run.in_flight = frozenset({effect.code})
    effect.run.ended_at = effect.run.tools.clock.time()
    assert effect.execute() == "done"
    assert effect.calls == ["look", "look", "act"]
    assert effect.run.tools.clock.time() - effect.run.ended_at >= QUICK.settle_time


def test_a_job_ends_only_when_nothing_of_it_can_come_any_more(effect: Effect) -> None:
    effect.run.uncertain("cinder")
    before = effect.run.tools.clock.time()
    effect.run.let_end()
    assert effect.run.tools.clock.time() - before >= QUICK.settle_time


def test_a_clock_that_was_ahead_is_not_waited_for(effect: Effect) -> None:
    now = effect.run.tools.clock.time()
    job = replace(effect.run.job, quiet_at={"cinder": now + 3600})
    run = Run(tools=effect.run.tools, job=job)
    run.let_end()
    assert run.tools.clock.time() - now <= QUICK.settle_time + 1


def test_an_uncertain_call_is_looked_for_twice_before_it_counts_as_not_done(effect: Effect) -> None:
    effect.fails = [UncertainError("no answer")]
    before = effect.run.tools.clock.time()
    with pytest.raises(FinalError, match="did not happen"):
        effect.execute()
    assert effect.calls == ["act", "look", "look"]
    assert effect.run.tools.clock.time() - before >= QUICK.settle_time


def test_a_final_error_is_not_looked_for(effect: Effect) -> None:
    effect.fails = [FinalError("refused")]
    with pytest.raises(FinalError, match="refused"):
        effect.execute()
    assert effect.calls == ["act"]


def test_an_undo_is_repeated_while_it_is_uncertain_and_once_more_when_all_is_quiet(effect: Effect) -> None:
    effect.fails = [UncertainError("no answer")]
    effect.revert("done", {})
    assert effect.calls == ["undo done"] * 3


def test_an_undo_is_not_repeated_for_ever(effect: Effect) -> None:
    effect.fails = [UncertainError("no answer") for _ in range(1000)]
    with pytest.raises(UncertainError):
        effect.revert("done", {})
    assert 1 < len(effect.calls) < 1000


def test_an_undo_gets_no_failure_for_a_result(effect: Effect) -> None:
    effect.revert(Failure.from_exception(FinalError("refused")), {})
    assert effect.calls == ["undo None"]


@pytest.mark.parametrize("name", ["execute", "revert"])
def test_a_run_that_was_asked_to_stop_starts_nothing(effect: Effect, name: str) -> None:
    effect.run.stop()
    with pytest.raises(Interrupted):
        effect.execute() if name == "execute" else effect.revert("done", {})
    assert effect.calls == []


def test_a_cancelled_run_refuses_to_start_the_next_step_but_undoes(effect: Effect) -> None:
    effect.run.cancel()
    with pytest.raises(FinalError, match="cancelled"):
        effect.execute()
    effect.revert("done", {})
    assert effect.calls == ["undo done"]


def test_a_cancelled_run_goes_on_past_its_pivot(effect: Effect) -> None:
    effect.run.pivoted = True
    effect.run.cancel()
    assert effect.execute() == "done"
