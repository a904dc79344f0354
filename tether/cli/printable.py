"""Text for a terminal: names come from the cloud's users, and must not steer the operator's terminal."""

from __future__ import annotations

#: Control characters, C1, other ends of lines and all turns of writing direction included, but for tab and line feed.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_CONTROLS += [0x061C, 0x200E, 0x200F]
_SHOWN = {code: f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" for code in _CONTROLS}  # noqa: PLR2004 - a byte


def printable(text: str) -> str:
    """Return the text with its control characters written out, so that they do nothing."""
    return text.translate(_SHOWN)


class Lines(str):
    """A text of several lines that a command has made itself, for a table's cell."""

    __slots__ = ()


def one_line(text: str) -> str:
    """Return the printable text as one line: a name with a line feed in it must not look like a row of its own."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
