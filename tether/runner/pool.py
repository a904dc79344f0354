"""The threads that steps run in, and the one place where a step's failure is judged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from taskflow.engines.action_engine.executor import REVERTED
from taskflow.types.failure import Failure

from tether.errors import AttachmentLost, Blocked, OperatorNeeded, UncertainError
from tether.tasks.step import Step


class StepPool(ThreadPoolExecutor):
    """A thread pool shared by all jobs of a runner.

    TaskFlow turns every failed step into an undo of the flow, and every failed undo into REVERT_FAILURE, after
    which a second run reports a false *reverted*. Here such failures leave the engine as :class:`Blocked`, which
    keeps the step as it is, to be taken up again.

    Args:
        workers: how many steps may run at a time, over all jobs.
    """

    def __init__(self, workers: int = 16) -> None:
        super().__init__(max_workers=workers, thread_name_prefix="step")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(step, …)`` of TaskFlow's in a thread, and judge how it ended."""
        step: Step = args[0]
        future = super().submit(_judge, fn, *args, **kwargs)
        step.run.futures.append(future)
        return future


def _judge(fn: Callable[..., Any], step: Step, *args: Any, **kwargs: Any) -> Any:
    outcome, result = fn(step, *args, **kwargs)
    if isinstance(result, Failure):
        error = result.exception
        if outcome == REVERTED:
            raise Blocked(step.code, error, undoing=True)
        step.run.failed(step.code, error)
        lost = isinstance(error, AttachmentLost)
        waiting = step.pending_blocks and isinstance(error, UncertainError)
        if isinstance(error, OperatorNeeded) or waiting or (step.forward_only and not lost):
            raise Blocked(step.code, error, undoing=False)
    return outcome, result
