"""From Cinder's JSON bodies to tether's types.

The bodies of create and update are stale: Cinder loads the row before the RPC and never again (``volume/api.py:
attachment_update``), so only their id and connection_info may be believed. Status and mode come from show and list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tether.adapters.cinder.model import ACCESS_MODES, Attachment, Connection, Encryption, ListedVolume, Volume
from tether.errors import ConfigError
from tether.sealed import Sealed

#: Cinder's ids are UUIDs, in one form or another.
_ID = re.compile("[0-9A-Za-z][0-9A-Za-z_-]{0,35}")
_UNHEARD = re.compile("[\ud800-\udfff\0]")


def volume(body: Mapping[str, Any]) -> Volume:
    """Return the volume of a ``GET /volumes/{id}`` body.

    Raises:
        KeyError, TypeError, ValueError: it is not such a body.
    """
    return Volume(
        id=_id(body, "id"),
        name=_text(body.get("name")),
        status=_said(body, "status"),
        size=int(body["size"]),
        availability_zone=_text(body.get("availability_zone")),
        project_id=_text(body.get("os-vol-tenant-attr:tenant_id")),
        volume_type=_text(body.get("volume_type")),
        multiattach=body.get("multiattach") is True,
        encrypted=body.get("encrypted") is True,
        metadata={str(key): _text(value) for key, value in (body.get("metadata") or {}).items()},
        shared_targets=body.get("shared_targets"),
        service_uuid=_text(body.get("service_uuid")),
        attached_to=tuple(
            (_text(row.get("server_id")), _text(row.get("attachment_id"))) for row in body.get("attachments") or ()
        ),
        origin=_origin(body),
    )


def _origin(body: Mapping[str, Any]) -> str:
    """Return what a volume's content was made from; empty for a volume that was made empty."""
    for key, what in (("snapshot_id", "snapshot"), ("source_volid", "volume"), ("backup_id", "backup")):
        if body.get(key):
            return f"{what} {_text(body[key])}"
    if body.get("volume_image_metadata") or body.get("bootable") in ("true", True):
        return "an image"
    return ""


def listed_volume(body: Mapping[str, Any]) -> ListedVolume:
    """Return the volume of a row of ``GET /volumes/detail``.

    Raises:
        KeyError, TypeError, ValueError: it is no such row.
    """
    return ListedVolume(
        volume=volume(body),
        updated_at=_text(body.get("updated_at") or body.get("created_at")),
        hosts={str(row["attachment_id"]): _text(row.get("host_name")) for row in body.get("attachments") or ()},
    )


def attachment(body: Mapping[str, Any]) -> Attachment:
    """Return the attachment of a show body, or of a row of a list.

    Raises:
        KeyError, TypeError, ValueError: it is not such a body.
    """
    mode = _text(body.get("attach_mode"))
    return Attachment(
        id=_id(body, "id"),
        volume_id=_id(body, "volume_id"),
        status=_said(body, "status"),
        owner=_text(body.get("instance")),
        mode="" if mode == "null" else mode,  # "null" is the column's default, as text
        attached_at=_text(body.get("attached_at")),
        connection=connection(body.get("connection_info")),
    )


def created(body: Mapping[str, Any]) -> str:
    """Return the id of an attachment that was just made.

    Raises:
        KeyError, TypeError, ValueError: the body has none.
    """
    return _id(body, "id")


def connection(body: Mapping[str, Any] | None) -> Connection | None:
    """Return the connection of a connection_info of either dialect; None where it is null or empty.

    The attachments API gives it flat, os-initialize_connection nests it under ``data``.

    Raises:
        KeyError, TypeError, ValueError: it is not a connection_info.
    """
    if not body:
        return None
    nested = body.get("data")
    data = dict(nested if isinstance(nested, Mapping) else body)
    protocol = _said(body, "driver_volume_type")
    for extra in ("driver_volume_type", "attachment_id"):  # the flat form's additions; os-brick wants neither
        data.pop(extra, None)
    return Connection(
        protocol=protocol,
        data=Sealed(data),
        access_mode=_access_mode(data.get("access_mode")),
        encrypted=data.get("encrypted") is True,
        discard=data.get("discard") is True,
        qos_specs={str(key): str(value) for key, value in (data.get("qos_specs") or {}).items()},
        logical_block_size=_number(data, "logical_block_size"),
        physical_block_size=_number(data, "physical_block_size"),
        auth=bool(data.get("auth_method")) or data.get("auth_enabled") is True,
    )


def dump(connection: Connection) -> Sealed[str]:
    """Return the whole connection as text, for the vault."""
    facts = {item.name: getattr(connection, item.name) for item in fields(connection)}
    return Sealed(json.dumps(facts | {"data": connection.data.open(), "qos_specs": dict(connection.qos_specs)}))


def load(text: Sealed[str]) -> Connection:
    """Return the connection that :func:`dump` wrote.

    Raises:
        ConfigError: it did not. The text is not shown.
    """
    try:
        facts = json.loads(text.open())
        return Connection(**(facts | {"data": Sealed(dict(facts["data"]))}))
    except (LookupError, TypeError, ValueError, RecursionError):
        raise ConfigError(
            "what is sealed in the ledger is no connection info", hint="restore the database from a backup"
        ) from None


def exported(body: Mapping[str, Any] | None) -> Connection:
    """Return the connection of an answer that must hold one.

    Raises:
        KeyError, TypeError, ValueError: it holds none, or it is not a connection_info.
    """
    found = connection(body)
    if found is None:
        raise ValueError("no connection_info")
    return found


def encryption(body: Mapping[str, Any]) -> Encryption | None:
    """Return how the volume is encrypted; None for the body of one that is not (it has no provider).

    Raises:
        KeyError, TypeError, ValueError: it is not such a body.
    """
    if not body.get("provider"):
        _ = body["encryption_key_id"]  # Cinder's answer for "not encrypted" has this key alone, null
        return None
    return Encryption(
        provider=str(body["provider"]),
        key_id=_text(body.get("encryption_key_id")),
        cipher=_text(body.get("cipher")),
        key_size=int(body.get("key_size") or 0),
        control_location=_text(body.get("control_location")) or "front-end",
    )


def front_end_limits(body: Mapping[str, Any], size: int) -> dict[str, str]:
    """Return the limits of QoS specs for a volume, as Cinder computes them for a connection.

    Source: ``volume/manager.py:_parse_connection_options``.

    Args:
        body: of ``GET /qos-specs/{id}``.
        size: the volume's, in GiB: the limits that the specs give per GiB go by it.

    Raises:
        KeyError, TypeError, ValueError: it is not such a body.
    """
    if body["consumer"] not in {"front-end", "both"}:
        return {}
    specs = {str(key): str(value) for key, value in body["specs"].items()}
    for limit in (f"{who}_{what}_sec" for who in ("read", "write", "total") for what in ("iops", "bytes")):
        if f"{limit}_per_gb" not in specs:
            continue
        least = int(specs.pop(f"{limit}_per_gb_min", 0))
        value = max(least, int(specs.pop(f"{limit}_per_gb")) * size)
        specs[limit] = str(min(value, int(specs.pop(f"{limit}_max", value))))
    return specs


def _text(value: object) -> str:
    # JSON can say what neither a database nor a terminal can hold: half a character, and NUL.
    return "" if value is None else _UNHEARD.sub("\ufffd", str(value))


def _id(body: Mapping[str, Any], name: str) -> str:
    """Return an id: it names files of the host, so it is not taken for one unread."""
    found = _said(body, name)
    if not _ID.fullmatch(found):
        raise ValueError(f"{name} is no id")
    return found


def _said(body: Mapping[str, Any], name: str) -> str:
    found = body[name]
    if not isinstance(found, str) or not found:
        raise ValueError(f"{name} is no text")
    return _text(found)


def _access_mode(value: object) -> str:
    """Return rw (also for none) or ro; *unknown* for what else it is, which stands among secrets."""
    return value if value in ACCESS_MODES else "unknown" if value else "rw"


def _number(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, bool) and re.fullmatch("[0-9]{1,10}", str(value)):
        return int(value)
    # Without the value: whatever it is, it stands among secrets.
    raise ValueError(f"{name} is no number")
