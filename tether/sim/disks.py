"""How the embedded world's machine names its disks, what they report of themselves, and how large dm-crypt is."""

from __future__ import annotations

import hashlib
from typing import Any

Book = dict[str, Any]

#: Bytes that a LUKS1 header takes from its device.
LUKS_HEADER = 2 * 1024**2


def usable(book: Book, volume_id: str) -> int:
    """Return the bytes that whoever opens tether's link gets; ``size`` of a mapping: it is behind its device."""
    size = int(book["devices"][volume_id]["size"])
    crypt = book["crypt"].get(volume_id)
    return size if crypt is None else int(crypt.get("size", size - LUKS_HEADER))


def grow(book: Book, volume_id: str, size: int) -> None:
    """Give a device its new size; an open mapping keeps what it has."""
    before = usable(book, volume_id)
    device, crypt = book["devices"][volume_id], book["crypt"].get(volume_id)
    if size > device["size"] and crypt is not None:
        crypt["size"] = before
    device["size"] = size


def free_path(book: Book) -> str:
    """Return the first free name of a SCSI disk; sdaa follows sdz."""
    taken = {device["path"] for device in book["devices"].values()}
    number = 0
    while (path := f"/dev/sd{_letters(number)}") in taken:
        number += 1
    return path


def _letters(number: int) -> str:
    text = ""
    while number >= 0:
        text = chr(ord("a") + number % 26) + text
        number = number // 26 - 1
    return text


def derived_identity(volume_id: str) -> str:
    """Return the NAA that LIO would give: its vendor digits, then digits made from the volume's id."""
    return "naa.6001405" + hashlib.sha256(volume_id.encode()).hexdigest()[:25]


def text_or_empty(path: Any) -> str:
    """Return a guest's live XML; it may vanish while the book is read."""
    try:
        return str(path.read_text())
    except FileNotFoundError:
        return ""
