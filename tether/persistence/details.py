"""TaskFlow's details as JSON, and back as they were.

TaskFlow's own ``to_dict`` loses what it cannot say in JSON, and its decode of a retry's history puts a failure where
a value was (``RetryDetail.from_dict`` uses one name for both). Nothing is lost here: what cannot be stored as it is, is
refused.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from taskflow import states
from taskflow.persistence import models
from taskflow.storage import META_PROGRESS
from taskflow.types.failure import Failure

from tether.errors import FinalError
from tether.sealed import masked

#: TaskFlow's kinds of atoms, as they are stored.
KINDS = {"task": models.TaskDetail, "retry": models.RetryDetail}
#: States that an atom may have; None before its first one.
STATES = frozenset(
    {
        None,
        states.PENDING,
        states.RUNNING,
        states.SUCCESS,
        states.FAILURE,
        states.REVERTING,
        states.REVERTED,
        states.REVERT_FAILURE,
        states.RETRYING,
        states.IGNORE,
    }
)
#: Bits of the largest integer that is stored; Python refuses to read much longer ones.
LONGEST = 10_000
#: Shows what cannot be stored: at a bounded length, and even what raises when it is shown.
SHOWN = reprlib.Repr()
SHOWN.maxother = 1000


def is_untouched(atom: models.AtomDetail) -> bool:
    """Return True for an atom that has never run: it is not stored, since TaskFlow makes it anew."""
    return bool(
        atom.state == states.PENDING and atom.intention == states.EXECUTE and not atom.results and not atom.meta
    )


def check_storable(atom: models.AtomDetail) -> None:
    """Refuse a result that would not be read back as it is: a tuple comes back as a list, a set not at all.

    Raises:
        FinalError: it would not.
    """
    values = [value for value, _failures in atom.results] if isinstance(atom, models.RetryDetail) else atom.results
    if not (_is_plain(values) and _is_plain(atom.revert_results)):
        raise FinalError(
            f"the result of {atom.name} cannot be stored as it is",
            resource=f"step {atom.name}",
            hint="a step returns JSON: objects with texts as keys, lists, texts, numbers, true, false and null",
        )


def encode_atom(atom: models.AtomDetail, history: Iterable[tuple[str, float]]) -> str:
    """Return an atom as JSON.

    Args:
        atom: an atom that :func:`check_storable` has let pass.
        history: its states and since when, oldest first; seconds since the epoch.
    """
    is_retry = isinstance(atom, models.RetryDetail)
    data = {
        "name": atom.name,
        "uuid": atom.uuid,
        "kind": "retry" if is_retry else "task",
        "state": atom.state,
        "intention": atom.intention,
        "history": list(history),
    }
    if atom.results is not None:
        data["results"] = _history(atom.results) if is_retry else atom.results
    if atom.revert_results is not None:
        data["revert_results"] = atom.revert_results
    if atom.failure is not None:
        data["failure"] = _failure(atom.failure)
    if atom.revert_failure is not None:
        data["revert_failure"] = _failure(atom.revert_failure)
    meta = {name: value for name, value in atom.meta.items() if name != META_PROGRESS}  # the state says it
    if meta:
        data["meta"] = meta
    if atom.version is not None:
        data["version"] = atom.version
    return json.dumps(data, separators=(",", ":"))


def decode_atom(data: Mapping[str, Any]) -> models.AtomDetail:
    """Return the atom that :func:`encode_atom` stored.

    Raises:
        LookupError, TypeError, ValueError: it did not.
    """
    if data["state"] not in STATES or data["intention"] not in states.INTENTIONS:
        raise ValueError(f"step {data['name']} is in state {data['state']}, intention {data['intention']}")
    atom = KINDS[data["kind"]](data["name"], data["uuid"])
    atom.state, atom.intention = data["state"], data["intention"]
    atom.meta = data.get("meta") or {}
    version = data.get("version")
    atom.version = tuple(version) if isinstance(version, list) else version
    atom.revert_results = data.get("revert_results")
    if data["kind"] == "retry":
        atom.results = [
            (value, {name: Failure.from_dict(failure) for name, failure in failures.items()})
            for value, failures in data.get("results", [])
        ]
    else:
        atom.results = data.get("results")
    for name in ("failure", "revert_failure"):
        if name in data:
            setattr(atom, name, Failure.from_dict(data[name]))
    return atom


def _history(results: Iterable[tuple[Any, Mapping[str, Failure]]]) -> list[Any]:
    return [[value, {name: _failure(failure) for name, failure in failures.items()}] for value, failures in results]


def _failure(failure: Failure) -> dict[str, Any]:
    """Return a failure as JSON-ready data.

    An exception's arguments may be anything; they must never make the flow unsavable, which would leave the failed
    step running for ever. Their text is kept instead.
    """
    data: dict[str, Any] = failure.to_dict(include_args=False)
    data["exc_args"] = [
        argument if _is_plain(argument) else SHOWN.repr_instance(argument, 0) for argument in failure.exception_args
    ]
    data["causes"] = [_failure(cause) for cause in failure.causes]
    found: dict[str, Any] = masked(data)
    return found


def _is_plain(value: Any) -> bool:
    """Return True if JSON gives the value back as it was, in kind too."""
    try:
        return _walk(value)
    except RecursionError:  # inside itself, or too deep to be written
        return False


def _walk(value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(_walk(item) for item in value)
    if kind is dict:
        return all(type(key) is str and _walk(item) for key, item in value.items())
    if kind is float:
        return math.isfinite(value)
    return kind in {str, bool, type(None)} or (kind is int and value.bit_length() <= LONGEST)
