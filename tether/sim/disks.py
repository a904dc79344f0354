"""How the embedded world's machine names its disks, what they report and hold, and how large dm-crypt is."""

from __future__ import annotations

import hashlib
from typing import Any

from tether.adapters.host.model import Header
from tether.errors import FinalError, UncertainError

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


def header(book: Book, volume_id: str, row: dict[str, Any], written: str) -> Header:
    """Return what a connected volume holds.

    Args:
        row: Cinder's, with the ``content`` that a test has given it.
        written: what a host has written onto it since; empty if none has.

    Raises:
        UncertainError: its device cannot be read.
    """
    content = written or row.get("content", Header.LUKS)
    if content == "unreadable":
        path = book["devices"][volume_id]["path"]
        raise UncertainError(
            f"{path} of volume {volume_id} cannot be read: Input/output error; whether it is LUKS or blank is not"
            " known, so it is not formatted",
            resource=f"volume {volume_id}",
            hint="see the kernel's log for errors of the device; once it can be read, attach the volume again",
        )
    return Header(content)


def check_luks(volume_id: str, found: Header) -> None:
    """Raise FinalError if a volume holds anything but a whole LUKS header, so that dm-crypt cannot open it."""
    if found is not Header.LUKS:
        raise FinalError(
            f"volume {volume_id} has no LUKS header (it is {found})",
            resource=f"volume {volume_id}",
            hint="a new attach tells whether it may be formatted",
        )


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
