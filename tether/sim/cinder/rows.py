"""Cinder's rows: looking them up and keeping a volume's status in step with its attachments.

The book ``cinder`` holds::

    volumes      {id: row}            attachments  {id: row}
    exports      {volume id: target}  keys         {key id: passphrase}
    quota        GiB that a project may have in all; absent: no limit
    pending      what cinder-volume has still to finish, each with the time when it is due
    nova         {server: {volume: attachment}}: what Nova would answer; absent: there is no Nova
    remote_tracebacks  true: refusals of cinder-volume carry its traceback, as over a real broker
    serial       the number of the last row, which orders lists
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from tether.sim.cinder.wire import Fault

Book = dict[str, Any]
Row = dict[str, Any]


def timestamp(now: float) -> str:
    """Return Cinder's form of a time."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def next_serial(book: Book) -> int:
    """Return the number of a new row."""
    book["serial"] = int(book.get("serial", 0)) + 1
    return int(book["serial"])


def find_volume(book: Book, volume_id: str) -> Row:
    """Return a volume.

    Raises:
        Fault: 404.
    """
    row: Row | None = book.get("volumes", {}).get(volume_id)
    if row is None:
        raise Fault(404, f"Volume {volume_id} could not be found.")
    return row


def find_attachment(book: Book, attachment_id: str) -> Row:
    """Return an attachment.

    Raises:
        Fault: 404.
    """
    row: Row | None = book.get("attachments", {}).get(attachment_id)
    if row is None:
        raise Fault(404, f"Volume attachment could not be found with filter: attachment_id = {attachment_id}.")
    return row


def attachments_of(book: Book, volume_id: str) -> list[Row]:
    """Return a volume's attachments, oldest first."""
    rows = [row for row in book["attachments"].values() if row["volume_id"] == volume_id]
    return sorted(rows, key=lambda row: int(row["serial"]))


def add_attachment(book: Book, volume_id: str, attach_status: str, instance_uuid: str | None) -> Row:
    """Add an attachment row; what is unset is null, as in the database."""
    row = {
        "id": str(uuid.uuid4()),
        "serial": next_serial(book),
        "volume_id": volume_id,
        "attach_status": attach_status,
        "instance_uuid": instance_uuid,
        "attached_host": None,
        "mountpoint": None,
        "attach_time": None,
        "attach_mode": None,
        "connector": None,
        "connection_info": None,
    }
    book["attachments"][row["id"]] = row
    return row


def drop_attachment(book: Book, volume: Row, attachment_id: str) -> None:
    """Delete an attachment, if it is there, and set the volume's status from the rest.

    The first of the rest's states in alphabetical order wins (attached, attaching, detaching, reserved),
    whatever the volume's status was (cinder/db/api.py:volume_detached).
    """
    book["attachments"].pop(attachment_id, None)
    states = sorted(row["attach_status"] for row in attachments_of(book, volume["id"]))
    attach_status = next((state for state in states if not state.startswith("error_")), "detached")
    volume["attach_status"] = attach_status
    volume["status"] = {"attached": "in-use", "detached": "available"}.get(attach_status, attach_status)
    volume["admin_metadata"].pop("attached_mode", None)


def mark(volume: Row, row: Row, *, status: str, attach_status: str) -> None:
    """Set the status of a volume and of one of its attachments together."""
    row["attach_status"] = attach_status
    volume["status"] = status
    volume["attach_status"] = attach_status
