"""Secrets that cannot be printed."""

from __future__ import annotations

from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

MASK = "***"


class Sealed(Generic[T]):
    """Holds a secret so that it cannot reach a log, an error, JSON, a pickle or a database by accident.

    Its text is always a mask. :meth:`open` is called only inside the adapter that hands the secret to a
    foreign library.

    Args:
        value: the secret itself: a CHAP password, a passphrase, or a whole connection_info.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def open(self) -> T:
        """Return the secret. Only adapters may call this, at the call that needs it."""
        return self._value

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
