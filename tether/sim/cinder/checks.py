"""The checks that Cinder makes before a call is looked at: JSON schemas, and who may delete an attachment."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from tether.sim.cinder.manager import Call
from tether.sim.cinder.rows import Row, attachments_of
from tether.sim.cinder.wire import GENERIC_500, Fault


def bad_field(name: str, value: Any, why: str) -> Fault:
    """Return the 400 of a JSON schema (cinder/api/validation/validators.py)."""
    return Fault(400, f"Invalid input for field/attribute {name}. Value: {value}. {why}")


def json_object(body: Any, name: str, *, required: Collection[str], optional: Collection[str]) -> dict[str, Any]:
    """Return ``body[name]``, an object with the keys that are allowed.

    Raises:
        Fault: 400.
    """
    if not isinstance(body, dict) or name not in body:
        raise Fault(400, f"'{name}' is a required property")
    value = body[name]
    if not isinstance(value, dict):
        raise bad_field(name, value, f"{value!r} is not of type 'object'")
    for key in required:
        if key not in value:
            raise bad_field(name, value, f"'{key}' is a required property")
    for key in value:
        if key not in required and key not in optional:
            why = f"Additional properties are not allowed ('{key}' was unexpected)"
            raise bad_field(name, value, why)
    return value


def uuid_field(holder: Mapping[str, Any], name: str) -> None:
    """Refuse a field that is there and not a UUID: null is not allowed either.

    Raises:
        Fault: 400.
    """
    if name not in holder:
        return
    value = holder[name]
    if not isinstance(value, str):
        raise bad_field(name, value, f"{value!r} is not of type 'string'")
    try:
        uuid.UUID(value)
    except ValueError:
        raise bad_field(name, value, f"{value!r} is not a 'uuid'") from None


def mode_field(holder: Mapping[str, Any]) -> None:
    """Refuse a mode that is there and neither ``rw`` nor ``ro``.

    Raises:
        Fault: 400.
    """
    mode = holder.get("mode", "rw")
    if not isinstance(mode, str):
        raise bad_field("mode", mode, f"{mode!r} is not of type 'string'")
    if mode not in ("rw", "ro"):
        raise bad_field("mode", mode, f"{mode!r} is not one of ['rw', 'ro']")


def deletion_allowed(call: Call, attachment: Row | None, volume: Row | None = None, *, named: bool = True) -> None:
    """Refuse to disconnect what Nova still uses (CVE-2023-2088, bug 2004555).

    Follows cinder/volume/api.py:attachment_deletion_allowed. The book's ``nova`` answers for Nova.

    Args:
        attachment: the attachment asked for, None if there is no such one.
        volume: the volume, for the legacy calls, which go by it.
        named: False if a legacy call named no attachment: a single one is then meant.

    Raises:
        Fault: 409, Nova uses it or it cannot be told; 500, there is no Nova to ask; 400, it is another
            volume's.
    """
    if call.request.is_service:
        return
    if volume is not None and not named:
        rows = attachments_of(call.book, volume["id"])
        if not rows:
            return
        attachment = rows[0] if len(rows) == 1 else None
    if attachment is None:
        raise _in_use("")
    if volume is not None and volume["id"] != attachment["volume_id"]:
        raise Fault(400, "Invalid input received: Mismatched volume and attachment")
    server = attachment["instance_uuid"]
    if not server or not attachment["connection_info"]:
        return
    nova = call.book.get("nova")
    if nova is None:
        raise Fault(500, GENERIC_500)
    if nova.get(server, {}).get(attachment["volume_id"]) == attachment["id"]:
        raise _in_use(server)


def _in_use(server: str) -> Fault:
    return Fault(409, f"ConflictNovaUsingAttachment: Detach volume from instance {server} using the Compute API")
