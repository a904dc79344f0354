"""What the simulated host reads of the other books: exports, and how a disk is named."""

from __future__ import annotations

import hashlib
from typing import Any

Book = dict[str, Any]


def export(cinder: Book, iqn: str) -> tuple[str, dict[str, Any]]:
    """Return the volume that is exported under this name, and its export; empty if there is none."""
    exports: dict[str, dict[str, Any]] = cinder.get("exports", {})
    return next(((volume_id, item) for volume_id, item in exports.items() if item["target_iqn"] == iqn), ("", {}))


def login_of(export: dict[str, Any]) -> tuple[object, object]:
    """Return the CHAP user and password of an export or of connection data."""
    return export.get("auth_username"), export.get("auth_password")


def free_path(book: Book) -> str:
    """Return the first free name of a SCSI disk; sdaa follows sdz."""
    taken = {device["path"] for device in book["devices"].values()}
    number = 0
    while (path := f"/dev/sd{letters(number)}") in taken:
        number += 1
    return path


def letters(number: int) -> str:
    """Return the end of a SCSI disk's name; aa follows z."""
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
