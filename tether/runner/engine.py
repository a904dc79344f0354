"""TaskFlow's engine as a job needs it: flows are compiled once, and a step's failure is judged in one place.

Private names of TaskFlow are used here and nowhere else; a test holds them against the installed release:
``_task_executor``, which its own engines set likewise, ``_compiler`` and ``_validated``, so that a flow is compiled and
checked once and not once a job, and ``Storage._lock`` (ADR 10).
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from taskflow.engines.action_engine import compiler
from taskflow.engines.action_engine.engine import ActionEngine
from taskflow.engines.action_engine.executor import EXECUTED, REVERTED, TaskExecutor
from taskflow.persistence import models
from taskflow.storage import Storage
from taskflow.types.failure import Failure

from tether.errors import AttachmentLost, Blocked, OperatorNeeded, UncertainError, Unchanged
from tether.flows.registry import Part
from tether.persistence.logbook import JobBackend
from tether.persistence.params import Params
from tether.tasks.run import Run
from tether.tasks.step import Step


@dataclass
class Plan:
    """One flow, compiled.

    Args:
        steps: names of the steps.
        effects: names of the steps that have an effect: their start is durable before it.
        alone: names of the steps beside which no other can be under way; they need no thread of their own.
        revertible: False past the job's pivot: what fails there, be it a read, blocks the job and undoes nothing.
        valid: an engine has found that every step gets what it needs; it is the same for every job.
    """

    flow: Any
    compiler: Any
    steps: frozenset[str]
    effects: frozenset[str]
    alone: frozenset[str]
    revertible: bool
    valid: bool = False


def plan_of(part: Part, params: Params) -> Plan:
    """Return the plan of a job's flow; jobs of one case share it."""
    return _plan(
        part, replace(Params(), dialect=params.dialect, data_path=params.data_path, encrypted=params.encrypted)
    )


@functools.lru_cache(maxsize=256)
def _plan(part: Part, case: Params) -> Plan:
    flow = part.build(case)
    compiled = compiler.PatternCompiler(flow)
    compiled.compile()
    graph = nx.DiGraph((before, after) for before, after, _data in flow.iter_links())
    graph.add_nodes_from(step for step, _data in flow.iter_nodes())
    alone = {
        step.name
        for step in graph
        if len(nx.ancestors(graph, step)) + len(nx.descendants(graph, step)) + 1 == len(graph)
    }
    steps = frozenset(step.name for step in graph)
    effects = frozenset(step.name for step in graph if step.book)
    return Plan(flow, compiled, steps, effects, frozenset(alone), part.revertible)


class StepEngine(ActionEngine):  # type: ignore[misc]  # taskflow has no types
    """An engine for one flow of one run."""

    def __init__(self, plan: Plan, run: Run, detail: models.FlowDetail, backend: JobBackend, pool: Executor) -> None:
        super().__init__(plan.flow, detail, backend, {"gather_statistics": False})
        self._plan = plan
        self._compiler = plan.compiler
        self._validated = plan.valid
        self._task_executor = StepExecutor(run, plan, pool)

    def validate(self) -> None:
        if not self._plan.valid:
            super().validate()
            self._plan.valid = True

    @functools.cached_property
    def storage(self) -> StepStorage:
        return StepStorage(self._flow_detail, self._backend, lambda step: self._runtime.fetch_scopes_for(step))  # noqa: PLW0108 - made later


class StepExecutor(TaskExecutor):  # type: ignore[misc]  # taskflow has no types
    """Runs the steps of one run: in the engine's own thread where nothing can run beside them, else in the pool.

    TaskFlow turns every failed step into an undo of the flow, and every failed undo into REVERT_FAILURE, after which a
    second run reports a false *reverted*. Here such failures leave the engine as :class:`Blocked`, which keeps the step
    as it is, to be taken up again.
    """

    def __init__(self, run: Run, plan: Plan, pool: Executor) -> None:
        self._run = run
        self._plan = plan
        self._pool = pool
        self._steps: dict[str, Step] = {}

    def execute_task(
        self, task: Step, task_uuid: str, arguments: dict[str, Any], progress_callback: Any = None
    ) -> Future[Any]:
        self._run.begun.add(task.name)
        return self._start(task, EXECUTED, lambda step: step.execute(**arguments))

    def revert_task(  # noqa: PLR0917 - as TaskFlow calls it
        self,
        task: Step,
        task_uuid: str,
        arguments: dict[str, Any],
        result: Any,
        failures: Any,
        progress_callback: Any = None,
    ) -> Future[Any]:
        if task.name not in self._run.begun:
            # TaskFlow also reverts, and all at once, what was about to begin when a step beside it failed: an undo of
            # what never was, beside or after that of what it needs.
            return self._start(task, REVERTED, lambda _step: None, at_once=True)
        return self._start(task, REVERTED, lambda step: step.revert(result, failures, **arguments))

    def _start(self, task: Step, outcome: str, work: Callable[[Step], Any], *, at_once: bool = False) -> Future[Any]:
        step = self._steps.get(task.name)
        if step is None:
            step = self._steps[task.name] = task.bound(self._run)
        future: Future[Any]
        if at_once or task.name in self._plan.alone:
            future = Future()
            future.set_result((outcome, self._judged(step, outcome, work)))
        else:
            future = self._pool.submit(lambda: (outcome, self._judged(step, outcome, work)))
            self._run.futures.append(future)
        future.atom = task  # type: ignore[attr-defined]  # by which the engine knows it
        return future

    def _judged(self, step: Step, outcome: str, work: Callable[[Step], Any]) -> Any:
        try:
            return work(step)
        except Exception as error:  # the border of a step, as TaskFlow's own executors draw it
            if outcome == REVERTED:
                raise Blocked(step.code, error, undoing=True) from error
            step.run.failed(step.code, error)
            lost = isinstance(error, AttachmentLost)
            waiting = step.pending_blocks and isinstance(error, UncertainError)
            forward = not self._plan.revertible or (step.forward_only and not lost)
            if isinstance(error, Unchanged):
                forward = False
            if isinstance(error, OperatorNeeded) or waiting or forward:
                raise Blocked(step.code, error, undoing=False) from error
            return Failure()


class StepStorage(Storage):  # type: ignore[misc]  # taskflow has no types
    """What the engine knows of its flow, without what neither our steps nor our backend have a use for.

    Only the engine's own thread uses it, so that no method needs a lock; the backend is not asked again after a failure
    (it buffers, and what it cannot write leaves the engine); there is no progress inside a step. Together that is half
    of what TaskFlow's engine takes.
    """

    def __init__(self, detail: models.FlowDetail, backend: JobBackend, scopes: Callable[[str], Any]) -> None:
        super().__init__(detail, backend, scopes)
        self._lock = _StorageLock()

    def set_task_progress(self, task_name: str, progress: float, details: Any = None) -> None:
        """There is none."""


# What TaskFlow has wrapped in a lock or in retries is taken as it was before.
for _name, _method in vars(Storage).items():
    if inspect.isfunction(_method) and hasattr(_method, "__wrapped__"):
        setattr(StepStorage, _name, _method.__wrapped__)


class _StorageLock:
    """A plain lock, where the engine takes one by itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def read_lock(self) -> Any:
        return self._lock

    write_lock = read_lock
