"""Secrets that cannot be printed, and the net under them: a mask over every text that leaves the process."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")

MASK = "***"
#: What is shorter is too likely a part of other words to be looked for in every text.
SHORTEST = 6

_SECRET_WORDS = ("password", "passwd", "pwd", "secret", "passphrase", "keyring", "token", "credential", "dhchap")
#: Fields whose names sound like it, and whose values are none: an operator needs them to find the ceph secret.
_PUBLIC = frozenset({"secret_uuid", "secret_type"})

_alive: weakref.WeakValueDictionary[int, Sealed[Any]] = weakref.WeakValueDictionary()
_alive_lock = threading.RLock()  # a log line may come in the middle of one


class Sealed(Generic[T]):
    """Holds a secret so that it cannot reach a log, an error, JSON, a pickle or a database by accident.

    Its text is always a mask. :meth:`open` is called only inside the adapter that hands the secret to a
    foreign library, and by the vault, which encrypts it. As long as it lives, :func:`mask` knows its value.

    Args:
        value: the secret itself: a CHAP password, a passphrase, or a whole connection_info.
    """

    __slots__ = ("__weakref__", "_texts", "_value")

    def __init__(self, value: T) -> None:
        self._value = value
        self._texts: tuple[str, ...] | None = None
        with _alive_lock:
            _alive[id(self)] = self

    def open(self) -> T:
        """Return the secret. Only adapters and the vault may call this, at the call that needs it."""
        return self._value

    @property
    def texts(self) -> tuple[str, ...]:
        """Every form in which a text may hold it, for :func:`mask` alone; what is too short is left out."""
        if self._texts is None:
            found = [self._value] if isinstance(self._value, str) else secrets_in(self._value)
            self._texts = tuple(form for text in found if len(text) >= SHORTEST for form in _forms(text))
        return self._texts

    def __repr__(self) -> str:
        return f"Sealed({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a sealed secret cannot be pickled or copied into a message")


def secrets_in(data: Any) -> list[str]:
    """Return every text in connection data that is a secret, the longest first."""
    found: set[str] = set()

    def walk(value: Any, secret: bool) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                name = str(key).lower()
                walk(inner, name not in _PUBLIC and (secret or any(word in name for word in _SECRET_WORDS)))
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner, secret)
        elif secret and isinstance(value, str | int) and not isinstance(value, bool) and value:
            found.add(str(value))  # a password of digits alone may come as a number

    walk(data, False)
    return sorted(found, key=len, reverse=True)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every secret masked."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def mask(text: str) -> str:
    """Return the text with every secret masked that is sealed in this process right now.

    The net under everything else: nothing should be left for it to catch. It stands where texts leave the process:
    in the log's handlers, in what the logbook keeps of a failure, in a job's error.
    """
    with _alive_lock:
        alive = list(_alive.values())
    forms = {form for sealed in alive for form in sealed.texts}
    return scrub(text, sorted(forms, key=len, reverse=True))


def _forms(secret: str) -> set[str]:
    """Return the secret as it stands in a text, in an argument's repr, and as either stands in JSON."""
    plain = {secret, repr(secret)[1:-1]}
    return plain | {json.dumps(form, ensure_ascii=flag)[1:-1] for form in plain for flag in (True, False)}


def masked(value: Any) -> Any:
    """Return JSON-ready data with :func:`mask` over every text in it."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: masked(inner) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, (list, tuple)) else value
