"""The host adapter's one map of errors: os-brick's, oslo's and the system's, to tether's tree.

os-brick's exceptions say little about what is left behind: a connect that raised may have logged in.
So the verdict has two parts: what the exception is, and whether the helper has proven since that nothing
is left (``clean``). Without that proof everything is uncertain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum

from tether.errors import ConfigError, FinalError, NotFound, TetherError, UncertainError


class Verdict(StrEnum):
    """What an exception means once nothing is left of the attempt."""

    REFUSED = "refused"
    LACKING = "lacking"
    UNCERTAIN = "uncertain"


_LOGIN = "check that the target is exported and that this host reaches its portals: iscsiadm -m session -P 1"
_PATHS = "check the paths to the storage (multipath -ll, lsblk)"
_USER = "find out what uses the device (lsof, lsblk)"
_SETTINGS = "this volume type cannot take the host's data path; use another volume type"
_LOOK = "look at the host's log of os-brick"

#: Name of the class -> verdict and hint. The nearest class of the exception's MRO wins.
MEANINGS: dict[str, tuple[Verdict, str]] = {
    "VolumeDeviceNotFound": (Verdict.REFUSED, _LOGIN),
    "VolumePathsNotFound": (Verdict.REFUSED, _PATHS),
    "TargetPortalNotFound": (Verdict.REFUSED, _LOGIN),
    "TargetPortalsNotFound": (Verdict.REFUSED, _LOGIN),
    "FailedISCSITargetPortalLogin": (Verdict.REFUSED, _LOGIN),
    "NoFibreChannelVolumeDeviceFound": (Verdict.REFUSED, _PATHS),
    "NoFibreChannelHostsFound": (Verdict.LACKING, "this host has no Fibre Channel adapter; check systool -c fc_host"),
    "BlockDeviceReadOnly": (Verdict.REFUSED, "the backend gives the device read-only; attach it with --mode ro"),
    "NotFound": (Verdict.REFUSED, _PATHS),
    "Invalid": (Verdict.REFUSED, _SETTINGS),
    "InvalidParameterValue": (Verdict.REFUSED, _SETTINGS),
    "ProtocolNotSupported": (Verdict.REFUSED, _SETTINGS),
    "InvalidConnectorProtocol": (Verdict.REFUSED, _SETTINGS),
    "InvalidIOHandleObject": (Verdict.REFUSED, _SETTINGS),
    "VolumeEncryptionNotSupported": (Verdict.REFUSED, _SETTINGS),
    "VolumeLocalCacheNotSupported": (Verdict.REFUSED, _SETTINGS),
    "VolumeGroupNotFound": (Verdict.REFUSED, _PATHS),
    "VolumeGroupCreationFailed": (Verdict.REFUSED, _PATHS),
    "VolumeDriverException": (Verdict.REFUSED, _LOOK),
    "CommandExecutionFailed": (Verdict.REFUSED, _LOOK),
    "VolumeNotDeactivated": (Verdict.UNCERTAIN, _USER),
    "VolumePathNotRemoved": (Verdict.UNCERTAIN, _USER),
    "MultipathdPathsNotRemoved": (Verdict.UNCERTAIN, _USER),
    "ExceptionChainer": (Verdict.UNCERTAIN, _LOOK),
    "BrickException": (Verdict.REFUSED, _LOOK),
    # oslo.concurrency; a command that ran out of time may still be at work
    "ExecutionTimeout": (Verdict.UNCERTAIN, _LOOK),
    "ProcessExecutionError": (Verdict.REFUSED, _LOOK),
    "UnknownArgumentError": (Verdict.REFUSED, _LOOK),
    "InvalidArgumentError": (Verdict.REFUSED, _LOOK),
    "NoRootWrapSpecified": (Verdict.LACKING, "run tether as root"),
    # the system
    "FileNotFoundError": (
        Verdict.LACKING,
        "install what is missing: open-iscsi, multipath-tools, nvme-cli, cryptsetup",
    ),
    "PermissionError": (Verdict.LACKING, "run tether as root"),
    "ImportError": (Verdict.LACKING, "install os-brick and oslo.service[threading] beside tether"),
    "TimeoutError": (Verdict.UNCERTAIN, _LOOK),
    "OSError": (Verdict.REFUSED, _LOOK),
}

#: The errors that cross the pipe, by their code.
_KINDS: dict[str, type[TetherError]] = {
    kind.code: kind for kind in (FinalError, UncertainError, ConfigError, NotFound, TetherError)
}

_LONGEST = 300


def translate(error: Exception, *, doing: str, volume_id: str, clean: bool) -> TetherError:
    """Return what a foreign exception means.

    Args:
        error: os-brick's, oslo.concurrency's or the system's exception.
        doing: what was tried, as in ``connecting``.
        clean: True if it has been proven that nothing is left of the attempt.
    """
    if isinstance(error, TetherError):
        return error
    name = type(error).__name__
    verdict, hint = next(
        (MEANINGS[base.__name__] for base in type(error).__mro__ if base.__name__ in MEANINGS),
        (Verdict.UNCERTAIN, _LOOK),
    )
    subject = f"volume {volume_id}" if volume_id else "this host"
    message = f"{doing} {subject} failed: {name}: {_first_words(error)}"
    resource = subject if volume_id else ""
    if not clean:
        return UncertainError(message, resource=resource, hint=hint)
    if verdict is Verdict.REFUSED:
        return FinalError(message, resource=resource, hint=hint)
    if verdict is Verdict.LACKING:
        return ConfigError(message, resource=resource, hint=hint)
    return UncertainError(message, resource=resource, hint=hint)


def _never() -> bool:
    return False


@contextmanager
def mapped(doing: str, volume_id: str = "", *, clean: Callable[[], bool] = _never) -> Iterator[None]:
    """Run calls of os-brick, and raise what they raise in tether's tree.

    Args:
        doing: as for :func:`translate`.
        clean: asked after a failure: removes what is left, and returns True if that is proven.

    Raises:
        FinalError, ConfigError: only where ``clean`` has returned True.
        UncertainError: otherwise.
    """
    try:
        yield
    except Exception as error:
        raise translate(error, doing=doing, volume_id=volume_id, clean=clean()) from error


def _first_words(error: Exception) -> str:
    """Return the telling part of an exception's text: not a command line, which may carry a password."""
    # os-brick's ExceptionChainer: its own text is all the tracebacks.
    if chained := getattr(error, "_exceptions", None):
        return "; ".join(_first_words(each) for _kind, each, _trace in chained)
    exit_code = getattr(error, "exit_code", None)
    if exit_code is not None:
        told = str(getattr(error, "stderr", "") or getattr(error, "description", "") or "").strip()
        text = f"exit status {exit_code}: {told}"
    elif isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
    else:
        text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].strip()[:_LONGEST] if lines else "no reason given"


def as_json(error: TetherError) -> dict[str, str]:
    """Return an error as it crosses the pipe."""
    kind = next((base for base in type(error).__mro__ if base in _KINDS.values()), TetherError)
    return {
        "code": kind.code,  # type: ignore[attr-defined]
        "message": error.message,
        "resource": error.resource,
        "hint": error.hint,
    }


def from_json(data: Mapping[str, str]) -> TetherError:
    """Return the error that :func:`as_json` wrote; one of an unknown code is uncertain."""
    kind = _KINDS.get(data["code"], UncertainError)
    return kind(data["message"], resource=data["resource"], hint=data["hint"])
