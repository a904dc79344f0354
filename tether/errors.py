"""The one tree of errors.

::

    TetherError
     ├─ UsageError            exit 2   the words of the command are wrong
     ├─ ConfigError           exit 2   the settings are wrong or incomplete
     ├─ ConflictError         exit 2   the ledger already holds something else
     ├─ NotFound              exit 6   no such volume, server, job or mapping
     ├─ HeldError             exit 5   another runner holds it
     ├─ FinalError            exit 3   surely did not happen, and will not
     │   ├─ AttachmentLost    exit 3   Cinder has provably dropped the attachment
     │   └─ Unchanged         exit 3   refused, and proven that the job has changed nothing
     ├─ UncertainError        exit 3   may have happened, or may still happen
     └─ OperatorNeeded        exit 4   cannot be proven; a person must look
    Unwind (BaseException)             leaves the engine with the step resumable
     ├─ Blocked                        a step or an undo could not be proven
     ├─ Interrupted                    asked to stop here (SIGTERM, second Ctrl-C)
     └─ LostLease                      another runner has taken the job over

The exit code is what a command returns when the error reaches it *before* a job has had an effect; once a
job runs, the job's own outcome decides (see :mod:`tether.runner`).
"""

from __future__ import annotations

from typing import ClassVar


class TetherError(Exception):
    """Something went wrong that an operator can be told about.

    Args:
        message: what happened, to which object, in one sentence.
        resource: the object it happened to, as ``kind id`` (``volume 7f3a…``).
        hint: what to do next: a command or an action, in one sentence.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, resource: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.resource = resource
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(TetherError):
    """The words of the command cannot be carried out as they stand."""

    code = "usage"
    exit_code = 2


class ConfigError(TetherError):
    """A setting is wrong, missing, or does not fit this machine."""

    code = "config"
    exit_code = 2


class ConflictError(TetherError):
    """The ledger already holds something that contradicts the request."""

    code = "conflict"
    exit_code = 2


class NotFound(TetherError):
    """There is no such volume, server, attachment, job or mapping."""

    code = "not-found"
    exit_code = 6


class HeldError(TetherError):
    """Another runner holds the job, the volume or the server right now."""

    code = "held"
    exit_code = 5


class FinalError(TetherError):
    """The effect surely did not happen, and will not happen later."""

    code = "final"
    exit_code = 3


class AttachmentLost(FinalError):
    """Cinder has provably lost the attachment that this job made: the one reason to undo past the pivot."""

    code = "attachment-lost"


class Unchanged(FinalError):
    """Refused, and proven that this job has changed nothing: a flow that only goes forward may end here.

    Raised only by the first effect of a job, in a flow of its own.
    """

    code = "unchanged"


class UncertainError(TetherError):
    """The effect may have happened, or may still happen: only a probe can tell."""

    code = "uncertain"
    exit_code = 3


class OperatorNeeded(TetherError):
    """Something cannot be proven from here; a person has to decide."""

    code = "operator-needed"
    exit_code = 4


class Unwind(BaseException):
    """Leaves a running flow at once, with its steps as they are, so that the job can be resumed.

    Derived from BaseException so that no ``except Exception`` on the way, TaskFlow's included, turns it
    into a failed step, which would start a roll-back.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class Blocked(Unwind):
    """A step past its pivot, or an undo, could not be carried out and proven.

    Args:
        step: the step's name, such as ``export-volume/1``.
        cause: the error that it ended with.
        undoing: True if it was the compensation that failed.
    """

    def __init__(self, step: str, cause: BaseException, *, undoing: bool) -> None:
        super().__init__(str(cause))
        self.step = step
        self.cause = cause
        self.undoing = undoing


class Interrupted(Unwind):
    """The runner was asked to stop; the job stays resumable."""


class LostLease(Unwind):
    """Another runner has taken the job over: write nothing more, start nothing more."""
