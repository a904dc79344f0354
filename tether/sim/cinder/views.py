"""Rows as Cinder's API shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tether.sim.cinder.manager import Call
from tether.sim.cinder.rows import Row, attachments_of
from tether.sim.cinder.wire import Fault

#: Cinder's osapi_max_limit: a list is never longer, whatever was asked for.
MAX_LIMIT = 1000

# The admin metadata that an admin sees among a volume's metadata.
_VISIBLE_ADMIN_METADATA = ("readonly", "attached_mode")

# Fields that newer microversions add to a volume.
_SINCE: tuple[tuple[tuple[int, int], str, Any], ...] = (
    ((3, 13), "group_id", None),
    ((3, 21), "provider_id", None),
    ((3, 61), "cluster_name", None),
    ((3, 65), "consumes_quota", True),
)


def volume_summary(call: Call, volume: Row) -> dict[str, Any]:
    """Return a volume as a plain list shows it."""
    return {"id": volume["id"], "name": volume["name"], "links": _links(call, volume)}


def volume_detail(call: Call, volume: Row) -> dict[str, Any]:
    """Return a volume as ``GET /volumes/{id}`` shows it: of its attachments, only the attached ones."""
    admin = {key: value for key, value in volume["admin_metadata"].items() if key in _VISIBLE_ADMIN_METADATA}
    body = {
        "id": volume["id"],
        "status": volume["status"],
        "size": volume["size"],
        "availability_zone": volume["availability_zone"],
        "created_at": volume["created_at"],
        "updated_at": volume["updated_at"],
        "name": volume["name"],
        "description": volume["description"],
        "volume_type": volume["volume_type"],
        "snapshot_id": volume.get("snapshot_id"),
        "source_volid": volume.get("source_volid"),
        "metadata": {**volume["metadata"], **admin},
        "links": _links(call, volume),
        "user_id": volume["user_id"],
        "bootable": "true" if volume["bootable"] else "false",
        "encrypted": volume["encryption"] is not None,
        "replication_status": None,
        "consistencygroup_id": None,
        "multiattach": volume["multiattach"],
        "attachments": [
            _volume_attachment(row)
            for row in attachments_of(call.book, volume["id"])
            if row["attach_status"] == "attached"
        ],
        "migration_status": None,
        "os-vol-host-attr:host": "sim@pretend#pool",
        "os-vol-mig-status-attr:migstat": None,
        "os-vol-mig-status-attr:name_id": None,
        "os-vol-tenant-attr:tenant_id": volume["project_id"],
    }
    if volume.get("image"):
        body["volume_image_metadata"] = {"image_id": volume["image"]}
    body.update((name, value) for since, name, value in _SINCE if call.version >= since)
    if call.version >= (3, 48):
        shared = volume["shared_targets"]
        body["shared_targets"] = True if shared is None and call.version < (3, 69) else shared
        body["service_uuid"] = volume["service_uuid"]
    if call.version >= (3, 63):
        body["volume_type_id"] = volume["volume_type_id"]
    if call.version >= (3, 64) and volume["encryption"]:
        body["encryption_key_id"] = volume["encryption"]["encryption_key_id"]
    return body


def attachment_summary(row: Row) -> dict[str, Any]:
    """Return an attachment as a plain list shows it."""
    return {
        "id": row["id"],
        "status": row["attach_status"],
        "instance": row["instance_uuid"],
        "volume_id": row["volume_id"],
    }


def attachment_detail(row: Row) -> dict[str, Any]:
    """Return an attachment with its connection_info, passwords in clear."""
    return {
        **attachment_summary(row),
        "attached_at": row["attach_time"] or "",
        "detached_at": "",
        "attach_mode": row["attach_mode"],
        "connection_info": row["connection_info"],
    }


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order of Cinder's lists."""
    return sorted(rows, key=lambda row: -int(row["serial"]))


def page(query: Mapping[str, str], rows: list[Row], find: Callable[[str], Row]) -> tuple[list[Row], bool]:
    """Return a page of a list, and whether Cinder would link to a next one: it does so after every full page.

    Args:
        rows: the whole list, in its order.
        find: returns the row of a marker, which need not be in the list.

    Raises:
        Fault: 404, there is no such row; 400, the limit is no number.
    """
    limit = query.get("limit", str(MAX_LIMIT))
    if not limit.isdecimal():
        raise Fault(400, "limit param must be an integer")
    if "marker" in query:
        serial = int(find(query["marker"])["serial"])
        rows = [row for row in rows if int(row["serial"]) < serial]
    found = rows[: min(int(limit), MAX_LIMIT)]
    return found, bool(found) and len(found) == min(int(limit), MAX_LIMIT)


def _volume_attachment(row: Row) -> dict[str, Any]:
    return {
        "id": row["volume_id"],
        "attachment_id": row["id"],
        "volume_id": row["volume_id"],
        "server_id": row["instance_uuid"],
        "host_name": row["attached_host"],
        "device": row["mountpoint"],
        "attached_at": row["attach_time"],
    }


def _links(call: Call, volume: Row) -> list[dict[str, str]]:
    base, project = call.request.base, volume["project_id"]
    return [
        {"rel": "self", "href": f"{base}/v3/{project}/volumes/{volume['id']}"},
        {"rel": "bookmark", "href": f"{base}/{project}/volumes/{volume['id']}"},
    ]
