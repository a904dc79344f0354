"""The legacy dialect, POST /volumes/{id}/action, after cinder/api/contrib/volume_actions.py."""

from __future__ import annotations

from typing import Any

from tether.sim.cinder.checks import bad_field, deletion_allowed, json_object, mode_field, uuid_field
from tether.sim.cinder.manager import Call
from tether.sim.cinder.rows import Row, attachments_of, drop_attachment, find_volume
from tether.sim.cinder.wire import Answer, Fault, Route

#: The microversion from which an *in-use* volume is extended.
EXTEND_IN_USE = (3, 42)
#: Seconds that cinder-volume takes for it: long enough to be seen *extending*.
EXTEND_TIME = 0.05


def reserve(call: Call, route: Route) -> Answer:
    """os-reserve: available (multiattach: or in-use) -> attaching, without a row."""
    volume = find_volume(call.book, route.target)
    expected = ("available", "in-use") if volume["multiattach"] else ("available",)
    if volume["status"] not in expected:
        raise Fault(
            400,
            f"Invalid volume: Volume status must be {' or '.join(expected)} to reserve, "
            f"but the status is {volume['status']}.",
        )
    volume["status"] = "attaching"
    return Answer(202)


def unreserve(call: Call, route: Route) -> Answer:
    """os-unreserve: attaching -> in-use or available; otherwise nothing, and never a refusal."""
    _unreserve(call, route.target)
    return Answer(202)


def begin_detaching(call: Call, route: Route) -> Answer:
    """os-begin_detaching: in-use -> detaching."""
    volume = find_volume(call.book, route.target)
    if (volume["status"], volume["attach_status"]) != ("in-use", "attached"):
        raise Fault(
            400,
            "Invalid volume: Unable to detach volume. Volume status must be 'in-use' and attach_status must be "
            "'attached' to detach.",
        )
    volume["status"] = "detaching"
    return Answer(202)


def roll_detaching(call: Call, route: Route) -> Answer:
    """os-roll_detaching: detaching -> in-use; otherwise nothing, and never a refusal."""
    volume = find_volume(call.book, route.target)
    if volume["status"] == "detaching":
        volume["status"] = "in-use"
    return Answer(202)


def initialize_connection(call: Call, route: Route) -> Answer:
    """os-initialize_connection: export and return the nested connection_info; no row, and no status changes."""
    connector = _connector(call, "os-initialize_connection")
    volume = find_volume(call.book, route.target)
    if volume["status"] == "maintenance":
        raise Fault(400, "Invalid volume: The volume connection cannot be initialized in maintenance mode.")
    info = call.rpc("initialize_connection", volume_id=volume["id"], connector=connector)
    enforce = connector.get("enforce_multipath", False)
    return Answer(200, {"connection_info": {**info, "enforce_multipath": enforce}})


def terminate_connection(call: Call, route: Route) -> Answer:
    """os-terminate_connection: close the connection and unreserve; the export stays."""
    _connector(call, "os-terminate_connection")
    volume = find_volume(call.book, route.target)
    deletion_allowed(call, None, volume, named=False)
    call.rpc("terminate_connection", volume_id=volume["id"])
    _unreserve(call, volume["id"])
    return Answer(202)


def attach(call: Call, route: Route) -> Answer:
    """os-attach: add an *attached* row; leaves ``readonly`` = "False" in the admin metadata for good."""
    wanted = json_object(
        call.request.body, "os-attach", required=("mountpoint",), optional=("instance_uuid", "host_name", "mode")
    )
    uuid_field(wanted, "instance_uuid")
    mode_field(wanted)
    if "instance_uuid" not in wanted and "host_name" not in wanted:
        raise bad_field("os-attach", wanted, f"{wanted} is not valid under any of the given schemas")
    volume = find_volume(call.book, route.target)
    if volume["status"] == "maintenance":
        raise Fault(400, "Invalid volume: The volume cannot be attached in maintenance mode.")
    mode = wanted.get("mode", "rw")
    if volume["admin_metadata"].setdefault("readonly", "False") == "True" and mode != "ro":
        raise Fault(400, f"Invalid attaching mode '{mode}' for volume {volume['id']}.")
    call.rpc(
        "attach_volume",
        volume_id=volume["id"],
        instance_uuid=wanted.get("instance_uuid"),
        host_name=wanted.get("host_name"),
        mountpoint=wanted["mountpoint"],
        mode=mode,
    )
    return Answer(202)


def detach(call: Call, route: Route) -> Answer:
    """os-detach, by attachment id or, where there is only one, without."""
    wanted = call.request.body["os-detach"]
    if wanted is not None:
        json_object(call.request.body, "os-detach", required=(), optional=("attachment_id",))
    attachment_id = (wanted or {}).get("attachment_id")
    if attachment_id is not None:
        uuid_field(wanted, "attachment_id")
    volume = find_volume(call.book, route.target)
    row = call.book["attachments"].get(attachment_id)
    deletion_allowed(call, row, volume, named=bool(attachment_id))
    if volume["status"] == "maintenance":
        raise Fault(400, "Invalid volume: The volume cannot be detached in maintenance mode.")
    call.rpc("detach_volume", volume_id=volume["id"], attachment_id=attachment_id)
    return Answer(202)


def update_readonly_flag(call: Call, route: Route) -> Answer:
    """os-update_readonly_flag: kept as the text ``True`` or ``False``."""
    wanted = json_object(call.request.body, "os-update_readonly_flag", required=("readonly",), optional=())
    flag = wanted["readonly"]
    if not isinstance(flag, bool):
        raise bad_field("readonly", flag, f"{flag!r} is not of type 'boolean'")
    volume = find_volume(call.book, route.target)
    if volume["status"] != "available":
        raise Fault(
            400,
            f"Invalid volume: Volume {volume['id']} status must be available to update readonly flag, "
            f"but current status is: {volume['status']}.",
        )
    volume["admin_metadata"]["readonly"] = str(flag)
    return Answer(202)


def extend(call: Call, route: Route) -> Answer:
    """os-extend: *extending* until cinder-volume is done; of an *in-use* volume from 3.42.

    Follows cinder/volume/api.py:_extend: the size first, then the status, then the quota.
    """
    wanted = json_object(call.request.body, "os-extend", required=("new_size",), optional=())
    size = wanted["new_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise bad_field("new_size", size, f"{size!r} is not a positive integer")
    volume = find_volume(call.book, route.target)
    attached = call.version >= EXTEND_IN_USE and volume["status"] == "in-use"
    expected = "in-use" if attached else "available"
    if size <= volume["size"]:
        raise Fault(
            400,
            "Invalid input received: New size for extend must be greater than current size. "
            f"(current: {volume['size']}, extended: {size}).",
        )
    if volume["status"] != expected:
        raise Fault(
            400,
            f"Invalid volume: Volume {volume['id']} status must be '{{'status': '{expected}'}}' to extend, "
            f"currently {volume['status']}.",
        )
    _check_quota(call, volume, size - volume["size"])
    volume["status"] = "extending"
    work = {"work": "extend_volume", "arguments": {"volume_id": volume["id"], "size": size}}
    call.book.setdefault("pending", []).append({"due": call.now + EXTEND_TIME, **work})
    return Answer(202)


def _check_quota(call: Call, volume: Row, more: int) -> None:
    """Refuse what the book's ``quota`` does not allow.

    Raises:
        Fault: 413.
    """
    quota = call.book.get("quota")
    rows = call.book["volumes"].values()
    used = sum(row["size"] for row in rows if row["project_id"] == volume["project_id"])
    if quota is not None and used + more > quota:
        raise Fault(
            413,
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. "
            f"Requested {more}G, quota is {quota}G and {used}G has been consumed.",
        )


def reset_status(call: Call, route: Route) -> Answer:
    """os-reset_status: attach_status *detached* drops the rows, and the backend hears nothing of it."""
    wanted = json_object(call.request.body, "os-reset_status", required=(), optional=("status", "attach_status"))
    volume = find_volume(call.book, route.target)
    rows = attachments_of(call.book, volume["id"])
    if wanted.get("status") == "in-use" and not rows:
        raise Fault(400, "Cannot reset-state to in-use because volume does not have any attachments.")
    volume.update({key: value.lower() for key, value in wanted.items() if value})
    if volume["attach_status"] == "detached":
        volume["admin_metadata"].pop("attached_mode", None)
        for row in rows:
            drop_attachment(call.book, volume, row["id"])
    return Answer(202)


def _connector(call: Call, action: str) -> dict[str, Any]:
    wanted = json_object(call.request.body, action, required=("connector",), optional=())
    connector = wanted["connector"]
    if not isinstance(connector, dict):
        raise bad_field("connector", connector, f"{connector!r} is not of type 'object'")
    return connector


def _unreserve(call: Call, volume_id: str) -> None:
    volume = find_volume(call.book, volume_id)
    if volume["status"] == "attaching":
        volume["status"] = "in-use" if attachments_of(call.book, volume_id) else "available"
