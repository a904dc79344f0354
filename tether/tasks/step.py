"""The base of every step: act, then look; after an interruption look first; undo until it is proven."""

from __future__ import annotations

import abc
import copy
import functools
import json
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from taskflow import task
from taskflow.types.failure import Failure

from tether import faults
from tether.errors import AttachmentLost, FinalError, HeldError, TetherError, UncertainError, Unchanged
from tether.persistence.ledger import Job
from tether.tasks.run import Run, Toolbox

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Step(task.Task):  # type: ignore[misc]  # taskflow has no types
    """One effect with its compensation.

    A step is written as up to three methods, whose parameters name the results of earlier steps and whose
    annotations give their types:

    * ``act`` has the effect and returns the step's result: JSON-ready data or a flat dataclass, without secrets;
    * ``look`` is the probe: it returns the result if the effect is there, None if it is proven absent, and
      raises UncertainError where neither can be shown;
    * ``undo`` makes the effect absent and proves it. It works from the job's inputs and the books, also when
      ``act`` never ran, half ran, or ran twice. Its parameter ``result`` is what ``act`` returned, or None.

    Attributes:
        code: the step's durable name with its version.
        gives: the name under which later steps find the result.
        book: which book its calls go to: cinder, guest, host or ledger; empty for a step without an effect.
        repeatable: ``act`` may simply be called again after an uncertain answer.
        forward_only: past the pivot: it is retried, then the job is blocked; it is never a reason to undo.
        pending_blocks: an uncertain end blocks the job where it stands, although a final one undoes it.
        meets: of several volumes of one request, none begins this step before all have come as far.
        in_turn: they do it in their order.
        on_targets: no other volume of the same shared targets may come or go on this host meanwhile.
    """

    code: ClassVar[str]
    gives: ClassVar[str | None] = None
    book: ClassVar[str] = ""
    repeatable: ClassVar[bool] = False
    forward_only: ClassVar[bool] = False
    pending_blocks: ClassVar[bool] = False
    meets: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False
    on_targets: ClassVar[bool] = False

    #: TaskFlow's events of a task; progress inside a step is not one of ours.
    TASK_EVENTS = ()

    run: Run
    tools: Toolbox
    job: Job

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        """Make the step as a part of a flow, which belongs to no job: it runs only as what :meth:`bound` returns.

        Args:
            given: inputs that no step of this flow gives, by name.
        """
        #: True if ``act`` may have had its effect although no result says so.
        self.in_doubt = False
        #: How often in this run ``act``, or else ``undo``, has had no usable answer.
        self.failures = 0
        #: True while ``act`` waits to be called for the first time: there is nothing to undo then.
        self.waiting = False
        acts, undoes = list(_inputs(type(self), "act")), list(_inputs(type(self), "undo"))
        super().__init__(
            name=self.code,
            provides=self.gives,
            requires=acts,
            revert_requires=undoes,
            inject={name: value for name, value in (given or {}).items() if name in acts or name in undoes},
            auto_extract=False,
        )

    def __init_subclass__(cls) -> None:
        """Refuse a step whose result could not be stored, before it can have any effect."""
        super().__init_subclass__()
        result = cls.__dict__.get("act") and get_type_hints(cls.act).get("return", type(None))
        if result and (not _storable(result) or get_origin(result) is tuple):  # it would be read back as a list
            raise TypeError(f"{cls.__name__}.act returns {result}, which is not JSON and no flat dataclass of JSON")

    def bound(self, run: Run) -> Self:
        """Return the step for one run of one job."""
        step = copy.copy(self)
        step.run, step.tools, step.job = run, run.tools, run.job
        return step

    @property
    def label(self) -> str:
        """The step's name without its version."""
        return self.code.partition("/")[0]

    @abc.abstractmethod
    def act(self, *args: Any, **kwargs: Any) -> Any:
        """Have the effect."""

    def look(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result if the effect is there, None if it is proven absent. Default: no probe but acting."""
        return None

    def undo(self, *args: Any, **kwargs: Any) -> None:
        """Make the effect absent and prove it. Default: there is nothing to undo."""

    # -- what TaskFlow calls ---------------------------------------------------------------------------------

    def execute(self, **raw: Any) -> Any:
        """Run the step forward. TaskFlow runs it again if an earlier run was cut off inside it."""
        self.run.check()
        if self.meets:
            self.run.meet()
        with self.run.in_turn(self.code) if self.in_turn else nullcontext():
            return self._execute(raw)

    def _execute(self, raw: Mapping[str, Any]) -> Any:
        inputs = _decode(type(self), "act", raw)
        if self.code in self.run.in_flight and self.book:
            self.in_doubt = True
            self.run.cut_off(self.book)
            quiet = self.run.is_quiet(self.book)
            found = self.look(**inputs)
            if found is None and not self.repeatable and not quiet:
                self.run.wait_quiet(self.book)  # it may still come, and would be in the way of a second one
                found = self.look(**inputs)
            if found is not None:
                LOG.info("%s: found done", self.label)
                return self._encode(found)
        if self.run.cancelled and not self.forward_only and not self.run.pivoted:
            raise FinalError("cancelled", hint="nothing is left; run the command again when you want it")
        return self._encode(self._act(inputs))

    def _act(self, inputs: dict[str, Any]) -> Any:
        def attempt() -> Any:
            self.waiting = self.on_targets and not self.in_doubt
            with self._targets():
                self.waiting = False
                faults.point(f"{self.label}.act.before")
                result = self.act(**inputs)
                self.in_doubt = True  # until the result is stored: whatever fails from here on, the effect is there
                faults.point(f"{self.label}.act.after")
                return result

        if not self.book or self.pending_blocks:
            return attempt()
        if self.forward_only:
            return self._insist(attempt, (UncertainError, FinalError, HeldError))
        if self.repeatable:
            return self._insist(attempt, (UncertainError,))
        try:
            return attempt()
        except UncertainError as error:
            LOG.warning("%s: uncertain: %s", self.label, error)
            self.in_doubt = True
            self.run.uncertain(self.book)
            return self._settle(inputs, error)

    def _insist(self, attempt: Callable[[], T], on: tuple[type[TetherError], ...]) -> T:
        """Call ``attempt`` until it succeeds, or the time for retries is over: then its last error is raised."""
        deadline = self.tools.clock.time() + self.tools.settings.step_retry_time
        pause = self.tools.settings.retry_interval
        while True:
            try:
                return attempt()
            except on as error:
                LOG.warning("%s: %s", self.label, error)
                if isinstance(error, UncertainError):
                    self.in_doubt = True
                    self.failures += 1
                    self.run.uncertain(self.book)
                if isinstance(error, AttachmentLost | Unchanged) or self.tools.clock.time() >= deadline:
                    raise
            self.run.pause(pause)
            pause = min(pause * 2, self.tools.settings.retry_interval * 10)

    def _settle(self, inputs: dict[str, Any], error: UncertainError) -> Any:
        """Decide an uncertain call by probes: now, and once more when it can no longer be carried out."""
        found = self.look(**inputs)
        if found is None:
            self.run.wait_quiet(self.book)
            found = self.look(**inputs)
        if found is None:
            raise FinalError(f"{error.message} (and it did not happen)", resource=error.resource, hint=error.hint)
        return found

    def revert(self, result: Any, flow_failures: Any, **raw: Any) -> None:
        """Undo the step: until it is proven, or the time for retries is over."""
        if self.book and self.code in self.run.in_flight:
            self.in_doubt = True
            self.run.cut_off(self.book)
        inputs = _decode(type(self), "undo", raw)
        if "result" in _inputs(type(self), "undo", own=True):
            inputs["result"] = None if isinstance(result, Failure) else result
        self.run.check()
        if self.waiting:
            return
        self.failures = 0
        self._insist(lambda: self._undo(inputs), (UncertainError, FinalError, HeldError))

    def _targets(self) -> AbstractContextManager[None]:
        return self.run.targets() if self.on_targets else nullcontext()

    def _undo(self, inputs: dict[str, Any]) -> None:
        with self._targets():
            faults.point(f"{self.label}.undo.before")
            self.undo(**inputs)
            faults.point(f"{self.label}.undo.after")
        if self.book and not self.run.is_quiet(self.book):
            # A call without an answer may still be carried out; only then is "not there" a proof.
            self.run.wait_quiet(self.book)
            self.undo(**inputs)

    def _encode(self, result: Any) -> Any:
        data = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        # A result that cannot be stored would leave the step running for ever with its effect done.
        if not _has_text_keys(data):
            raise TypeError(f"the result of {self.code} is not JSON serializable: a key of it is no text")
        return json.loads(json.dumps(data, allow_nan=False))


def _has_text_keys(value: Any) -> bool:
    """Return False where JSON would silently make a text of a key."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    return not isinstance(value, (list, tuple)) or all(_has_text_keys(item) for item in value)


def _inputs(step: type[Step], method: str, *, own: bool = False) -> Mapping[str, Any]:
    """Return the parameters of a step's method and their types; ``own`` includes ``result``."""
    function = getattr(step, method)
    return {} if function is getattr(Step, method) else _hints(function, own=own)


@functools.cache
def _hints(function: Callable[..., Any], *, own: bool) -> Mapping[str, Any]:
    hints = get_type_hints(function)
    hints.pop("return", None)
    if not own:
        hints.pop("result", None)
    return hints


def _decode(step: type[Step], method: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {}
    for name, hint in _inputs(step, method).items():
        value = raw[name]
        inputs[name] = hint(**value) if is_dataclass(hint) and isinstance(value, dict) else value  # type: ignore[operator]
    return inputs


def _storable(hint: Any) -> bool:
    """Return True if values of this type are JSON, or a dataclass of such; what a foreign dict holds is trusted."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return all(_storable(item) for item in inner)
    if origin in (dict, Mapping):
        return inner[0] is str and _storable(inner[1])
    if origin in (list, tuple, Sequence):
        return all(item is Ellipsis or _storable(item) for item in inner)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return all(_storable(hints[item.name]) for item in fields(hint))
    return hint in (Any, object, str, int, float, bool, type(None)) or (
        isinstance(hint, type) and issubclass(hint, str)
    )
