"""Text for a terminal: names come from the cloud's users, and must not steer the operator's terminal."""

from __future__ import annotations

#: Control characters, C1 and the turns of writing direction included, but for tab and line feed.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" for code in _CONTROLS}  # noqa: PLR2004 - a byte


def printable(text: str) -> str:
    """Return the text with its control characters written out, so that they do nothing."""
    return text.translate(_SHOWN)
