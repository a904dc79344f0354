"""Volumes: list, show, create, delete, and how one is encrypted."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from tether.sim.cinder import backend, views
from tether.sim.cinder.checks import bad_field, json_object
from tether.sim.cinder.manager import Call
from tether.sim.cinder.rows import Row, attachments_of, find_volume
from tether.sim.cinder.seed import new_volume
from tether.sim.cinder.wire import Answer, Fault, Route

_DELETABLE = ("available", "error", "error_restoring", "error_extending", "error_managing")

# Query keys that shape a list rather than filter it.
_SHAPING = ("all_tenants", "limit", "marker", "offset", "sort", "sort_key", "sort_dir", "with_count")


def list_volumes(call: Call, route: Route) -> Answer:
    """GET /volumes and /volumes/detail; filters are exact, and an unknown one finds nothing."""
    query = call.request.query
    rows: list[Row] = [row for row in call.book.get("volumes", {}).values() if _matches(call, row)]
    rows, more = views.page(query, views.newest_first(rows), lambda marker: find_volume(call.book, marker))
    shown = views.volume_detail if route.detail else views.volume_summary
    body: dict[str, Any] = {"volumes": [shown(call, row) for row in rows]}
    if more:
        wanted = {**query, "marker": rows[-1]["id"]}
        href = f"{call.request.base}{call.request.path}?{urlencode(wanted)}"
        body["volumes_links"] = [{"rel": "next", "href": href}]
    return Answer(200, body)


def show_volume(call: Call, route: Route) -> Answer:
    """GET /volumes/{id}, of any project."""
    return Answer(200, {"volume": views.volume_detail(call, find_volume(call.book, route.target))})


def create_volume(call: Call, _route: Route) -> Answer:
    """POST /volumes: the answer says *creating*; the volume is available at once."""
    wanted = json_object(
        call.request.body,
        "volume",
        required=("size",),
        optional=(
            *("name", "description", "metadata", "volume_type", "availability_zone", "imageRef", "snapshot_id"),
            *("source_volid", "consistencygroup_id", "backup_id", "multiattach"),
        ),
    )
    size = wanted["size"]
    if not str(size).isdigit() or int(size) < 1:
        raise bad_field("size", size, f"{size!r} is not a positive integer")
    row = new_volume(
        call.book,
        call.now,
        size=int(size),
        name=wanted.get("name"),
        description=wanted.get("description"),
        metadata=wanted.get("metadata") or {},
        volume_type=wanted.get("volume_type") or "pretend",
        availability_zone=wanted.get("availability_zone") or "nova",
        project_id=call.request.project,
        user_id=call.request.user,
        snapshot_id=wanted.get("snapshot_id"),
        source_volid=wanted.get("source_volid"),
        image=wanted.get("imageRef"),
    )
    return Answer(202, {"volume": views.volume_detail(call, {**row, "status": "creating"})})


def delete_volume(call: Call, route: Route) -> Answer:
    """DELETE /volumes/{id}."""
    volume = find_volume(call.book, route.target)
    if volume["status"] not in _DELETABLE or attachments_of(call.book, volume["id"]):
        raise Fault(
            400,
            f"Invalid volume: Volume status must be {' or '.join(_DELETABLE)} and must not be migrating, attached, "
            "belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after "
            "volume transfer.",
        )
    backend.remove_export(call.book, volume)
    del call.book["volumes"][volume["id"]]
    return Answer(202)


def show_encryption(call: Call, route: Route) -> Answer:
    """GET /volumes/{id}/encryption; of an unencrypted volume, a null key."""
    volume = find_volume(call.book, route.target)
    return Answer(200, volume["encryption"] or {"encryption_key_id": None})


def list_types(call: Call, _route: Route) -> Answer:
    """GET /types: those of the volumes that are there; each has the QoS specs that its volumes have."""
    rows = call.book.get("volumes", {}).values()
    limited = {row["volume_type_id"] for row in rows if row["qos_specs"]}
    types = [
        {"id": type_id, "name": name, "is_public": True, "description": None, "extra_specs": {}}
        | {"qos_specs_id": type_id if type_id in limited else None}
        for type_id, name in sorted({(row["volume_type_id"], row["volume_type"]) for row in rows})
    ]
    return Answer(200, {"volume_types": types})


def show_qos(call: Call, route: Route) -> Answer:
    """GET /qos-specs/{id}."""
    for row in call.book.get("volumes", {}).values():
        if row["volume_type_id"] == route.target and row["qos_specs"]:
            name, specs = f"qos-{row['volume_type']}", row["qos_specs"]
            shown = {"id": route.target, "name": name, "consumer": "front-end", "specs": specs}
            return Answer(200, {"qos_specs": shown})
    raise Fault(404, f"QoS specs {route.target} could not be found.")


def _matches(call: Call, row: Row) -> bool:
    query = call.request.query
    if "all_tenants" not in query and row["project_id"] != call.request.project:
        return False
    return all(str(row.get(key)) == value for key, value in query.items() if key not in _SHAPING)
