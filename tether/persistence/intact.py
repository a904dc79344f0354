"""Believes a row only if it can be what tether wrote: a ledger that was damaged must not be acted upon.

SQLite keeps any value in any column, and a restored, hand-edited or half-copied database may hold anything. What cannot
be is an OperatorNeeded: nothing can be proven from such a row, and a job that meets one is blocked, not rolled back.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import sqlalchemy as sa

from tether.errors import OperatorNeeded
from tether.persistence.schema import jobs, mappings

T = TypeVar("T")
#: Is told of a row that cannot be read.
Damaged = Callable[[OperatorNeeded], None]

#: Times are seconds from the epoch to the end of the year 9999, beyond which none can be shown.
LATEST = 253_402_300_799.0
#: Seconds from a row's last change within which what it waits for must be over: no setting is longer than a day.
LONGEST_WAIT = 3 * 86_400.0
#: No count in a row comes near this.
LARGEST = 2**31 - 1
#: What a row may say where another word would make another flow, which leaves things behind.
CHOICES = {"mode": ("rw", "ro"), "dialect": ("attachments", "legacy"), "data_path": ("host", "network")}
#: The same of what was asked for, and noted of it.
PARAMS = CHOICES | {"header": ("", "none", "format", "open"), "force": ("", "request", "resume")}

_KINDS: dict[type, type | tuple[type, ...]] = {str: str, bool: bool, int: int, float: (int, float)}


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what goes wrong inside the block, where a row is decoded, into the row's damage.

    Args:
        what: the row, as ``job 7f3a…``.

    Raises:
        OperatorNeeded: it is damaged.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise OperatorNeeded(
            f"the ledger's row of {what} is damaged: {said}",
            resource=what,
            hint="correct the row, or restore the database from a backup",
        ) from error


def intact(table: sa.Table, row: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return a row whose every value is of its column's type.

    Raises:
        ValueError: one is not.
    """
    for name, kinds, optional, is_time in _columns(table):
        value = row[name]
        if value is None and optional:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ValueError(f"{name} is {_shown(value)}")
        if kinds is not bool and not isinstance(value, str) and not 0 <= value <= (LATEST if is_time else LARGEST):
            raise ValueError(f"{name} is {_shown(value)}")
    return row


@functools.cache
def _columns(table: sa.Table) -> list[tuple[str, Any, bool, bool]]:
    """Return of every column its name, what Python has for its type, whether it may be null or is a time."""
    kinds = [(column, column.type.python_type) for column in table.columns]
    return [(column.name, _KINDS[kind], bool(column.nullable), kind is float) for column, kind in kinds]


def legible(read: Callable[[Any], T], rows: Iterable[Any], damaged: Damaged | None) -> list[T]:
    """Return the rows as ``read`` makes them; without those that are damaged, if somebody is told of them.

    Raises:
        OperatorNeeded: one is damaged, and nobody is to be told.
    """
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except OperatorNeeded as error:
            if damaged is None:
                raise
            damaged(error)
    return found


def check_job(row: Mapping[Any, Any], *, is_open: bool) -> dict[str, Any]:
    """Return ``error``, ``quiet_at`` and ``settled`` of a job's row that does not contradict itself.

    Raises:
        LookupError, TypeError, ValueError: it does.
    """
    intact(jobs, row)
    if row["open_volume"] != (row["volume_id"] if is_open else None):
        raise ValueError(f"its state is {row['state']}, and open_volume is {_shown(row['open_volume'])}")
    latest = row["updated_at"] + LONGEST_WAIT
    moments({"expires_at": row["expires_at"] or 0.0}, latest)
    error, settled = parsed(row, "error"), parsed(row, "settled")
    for told in (error, error.get("reason") or error):
        if error:
            texts(told, "message", *(told.keys() & {"step", "code", "hint"}))
    if settled:
        texts(settled, "as", "by", "reason")
        moments({"at": settled["at"]}, LATEST)
    return {
        "error": error or None,
        "quiet_at": moments(parsed(row, "quiet_at"), latest),
        "settled": settled or None,
    }


def check_mapping(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the address of a mapping's row that can be believed.

    Raises:
        LookupError, TypeError, ValueError: it cannot.
    """
    intact(mappings, row)
    for name, values in CHOICES.items():
        if row[name] not in values:
            raise ValueError(f"{name} is {_shown(row[name])}")
    address = parsed(row, "address")
    texts(address, *address)
    return address


def parsed(row: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Return a column that is a JSON object; an empty one for null.

    Raises:
        ValueError: it is something else.
    """
    if row[name] is None:
        return {}
    found = loaded(row[name], name)
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {_shown(row[name])}")  # noqa: TRY004 - of the row, not of an argument
    return found


def loaded(text: str, name: str) -> Any:
    """Return what a column's JSON says.

    Raises:
        ValueError: it is none, or holds a number that is none.
    """
    try:
        return json.loads(text, parse_constant=_refused)
    except ValueError as error:
        raise ValueError(f"{name} is {_shown(text)}") from error


def typed(cls: Callable[..., T], data: Mapping[str, Any], choices: Mapping[str, Collection[Any]] | None = None) -> T:
    """Return a dataclass of plain fields from a JSON object that must have them all, or their defaults.

    Args:
        choices: what a field must be one of, by its name.

    Raises:
        TypeError, ValueError: it does not.
    """
    for item in fields(cls):  # type: ignore[arg-type]  # a dataclass
        kind: Any = {"str": str, "bool": bool, "int": int}[str(item.type)]
        value = data.get(item.name, None if item.default is MISSING else item.default)
        if type(value) is not kind or value not in (choices or {}).get(item.name, (value,)):
            raise ValueError(f"{item.name} is {_shown(value)}")
    return cls(**data)


def texts(data: Mapping[str, Any], *names: str) -> None:
    """Refuse an object in which one of these is no text.

    Raises:
        KeyError, ValueError: one is not.
    """
    for name in names:
        if not isinstance(data[name], str):
            raise ValueError(f"{name} is {_shown(data[name])}")  # noqa: TRY004 - as above


def moments(data: Mapping[str, Any], latest: float) -> dict[str, float]:
    """Return an object whose values are times up to ``latest``: what is waited for is never further away.

    Raises:
        ValueError: one is not.
    """
    for name, value in data.items():
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= latest:
            raise ValueError(f"{name} is {_shown(value)}, for which nobody can wait")
    return dict(data)


def _refused(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _shown(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - enough to find it by
