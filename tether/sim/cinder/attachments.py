"""The attachments API, after cinder/api/v3/attachments.py and cinder/volume/api.py."""

from __future__ import annotations

from tether.sim.cinder import views
from tether.sim.cinder.checks import bad_field, deletion_allowed, json_object, mode_field, uuid_field
from tether.sim.cinder.manager import Call, RpcTimeoutError
from tether.sim.cinder.rows import (
    Row,
    add_attachment,
    attachments_of,
    drop_attachment,
    find_attachment,
    find_volume,
    mark,
)
from tether.sim.cinder.wire import Answer, Fault, Route

_CREATE_FAILED = "Unable to create attachment for volume"
_UPDATE_FAILED = "Unable to update the attachment."

# Columns that an admin may filter a list by; ``status`` is none of them, and finds nothing.
_COLUMNS = ("id", "volume_id", "instance_uuid", "attach_status", "attach_mode", "attached_host", "mountpoint")

_SHAPING = ("all_tenants", "limit", "marker", "offset", "sort", "sort_key", "sort_dir")


def list_attachments(call: Call, route: Route) -> Answer:
    """GET /attachments and /attachments/detail; unlike volumes, their pages have no links."""
    rows = views.newest_first(row for row in call.book.get("attachments", {}).values() if _matches(call, row))
    rows, _more = views.page(call.request.query, rows, lambda marker: find_attachment(call.book, marker))
    shown = views.attachment_detail if route.detail else views.attachment_summary
    return Answer(200, {"attachments": [shown(row) for row in rows]})


def show_attachment(call: Call, route: Route) -> Answer:
    """GET /attachments/{id}, of any project."""
    return Answer(200, {"attachment": views.attachment_detail(find_attachment(call.book, route.target))})


def create_attachment(call: Call, _route: Route) -> Answer:
    """POST /attachments: reserve the volume, and connect it too if there is a connector.

    The body is stale: it has the connection_info, and the status of before. A connector that fails leaves
    the reserved row behind.
    """
    wanted = json_object(
        call.request.body,
        "attachment",
        required=("volume_uuid",),
        optional=("instance_uuid", "connector", *(("mode",) if call.version >= (3, 54) else ())),
    )
    uuid_field(wanted, "volume_uuid")
    uuid_field(wanted, "instance_uuid")
    mode_field(wanted)
    connector = wanted.get("connector")
    if connector is not None and not isinstance(connector, dict):
        raise bad_field("connector", connector, f"{connector!r} is not of type 'object', 'null'")
    volume = find_volume(call.book, wanted["volume_uuid"])
    row = _reserve(call, volume, wanted.get("instance_uuid"))
    stale = dict(row)
    info = {}
    if connector:
        try:
            info = call.rpc("attachment_update", volume_id=volume["id"], attachment_id=row["id"], connector=connector)
        except RpcTimeoutError:
            raise Fault(500, f"{_CREATE_FAILED}.") from None
        except Fault as fault:
            raise Fault(500, f"{_CREATE_FAILED} ({fault.message}).") from fault
    row["connection_info"] = info
    # Any value of the flag counts, also the text "False": Cinder's own bug.
    row["attach_mode"] = "ro" if volume["admin_metadata"].get("readonly") else wanted.get("mode", "null")
    body = {**stale, "connection_info": info, "attach_mode": row["attach_mode"]}
    return Answer(200, {"attachment": views.attachment_detail(body)})


def update_attachment(call: Call, route: Route) -> Answer:
    """PUT /attachments/{id}: connect it, also again and after complete; the body is stale."""
    wanted = json_object(call.request.body, "attachment", required=("connector",), optional=())
    connector = wanted["connector"]
    if not isinstance(connector, dict):
        raise bad_field("connector", connector, f"{connector!r} is not of type 'object'")
    if not connector:
        raise bad_field("connector", connector, "{} should be non-empty")
    row = find_attachment(call.book, route.target)
    if "host" not in connector:
        raise Fault(500, _UPDATE_FAILED)  # the host is part of the name of Cinder's lock
    volume = find_volume(call.book, row["volume_id"])
    if "error" in volume["status"]:
        raise Fault(409, _in_error("Resource conflict", "updated", volume))
    rows = attachments_of(call.book, volume["id"])
    if len(rows) > 1 and not volume["multiattach"] and any(other["connection_info"] for other in rows):
        raise Fault(409, f"Resource conflict: duplicate connectors detected on volume {volume['id']}")
    stale = dict(row)
    try:
        info = call.rpc("attachment_update", volume_id=volume["id"], attachment_id=row["id"], connector=connector)
    except RpcTimeoutError:
        raise Fault(500, _UPDATE_FAILED) from None
    row["connection_info"] = info
    return Answer(200, {"attachment": views.attachment_detail({**stale, "connection_info": info})})


def complete_attachment(call: Call, route: Route) -> Answer:
    """os-complete: write *attached* and *in-use*, whatever was there."""
    row = find_attachment(call.book, route.target)
    mark(find_volume(call.book, row["volume_id"]), row, status="in-use", attach_status="attached")
    return Answer(204)


def delete_attachment(call: Call, route: Route) -> Answer:
    """DELETE /attachments/{id}: answer the volume's other attachments. A reserved one asks no backend."""
    row = find_attachment(call.book, route.target)
    deletion_allowed(call, row)
    volume = find_volume(call.book, row["volume_id"])
    if row["attach_status"] != "reserved":
        call.rpc("attachment_delete", volume_id=volume["id"], attachment_id=row["id"])
    drop_attachment(call.book, volume, row["id"])
    rest = attachments_of(call.book, volume["id"])
    return Answer(200, {"attachments": [views.attachment_summary(other) for other in rest]})


def _reserve(call: Call, volume: Row, instance_uuid: str | None) -> Row:
    if "error" in volume["status"]:
        raise Fault(400, _in_error("Invalid volume", "created", volume))
    expected = ("available", "in-use", "downloading") if volume["multiattach"] else ("available", "downloading")
    if volume["status"] in expected:
        volume["status"] = "reserved"
    elif not _same_instance(call, volume, instance_uuid):
        raise Fault(
            400,
            f"Invalid volume: Volume {volume['id']} status must be {' or '.join(expected)} to reserve, "
            f"but the current status is {volume['status']}.",
        )
    return add_attachment(call.book, volume["id"], "reserved", instance_uuid)


def _same_instance(call: Call, volume: Row, instance_uuid: str | None) -> bool:
    """Return True for an instance's second row, which Cinder allows for live migration (bug 1694530)."""
    if not instance_uuid or volume["status"] not in ("in-use", "reserved"):
        return False
    return any(row["instance_uuid"] == instance_uuid for row in attachments_of(call.book, volume["id"]))


def _in_error(kind: str, what: str, volume: Row) -> str:
    return (
        f"{kind}: Volume attachments can not be {what} if the volume is in an error state. "
        f"The Volume {volume['id']} currently has a status of: {volume['status']} "
    )


def _matches(call: Call, row: Row) -> bool:
    query = call.request.query
    volume = call.book["volumes"].get(row["volume_id"], {})
    if "all_tenants" not in query and volume.get("project_id") != call.request.project:
        return False
    for key, value in query.items():
        column = "instance_uuid" if key == "instance_id" else key
        if column not in _SHAPING and (column not in _COLUMNS or row[column] != value):
            return False
    return True
