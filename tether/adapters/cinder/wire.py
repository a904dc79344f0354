"""From Cinder's JSON bodies to tether's types.

The bodies of create and update are stale: Cinder loads the row before the RPC and never again (``volume/api.py:
attachment_update``), so only their id and connection_info may be believed. Status and mode come from show and list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tether.adapters.cinder.model import Attachment, Connection, Encryption, ListedVolume, Volume
from tether.sealed import Sealed


def volume(body: Mapping[str, Any]) -> Volume:
    """Return the volume of a ``GET /volumes/{id}`` body.

    Raises:
        KeyError, TypeError, ValueError: it is not such a body.
    """
    return Volume(
        id=str(body["id"]),
        name=_text(body.get("name")),
        status=str(body["status"]),
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
    )


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
        id=str(body["id"]),
        volume_id=str(body["volume_id"]),
        status=str(body["status"]),
        owner=_text(body.get("instance")),
        mode="" if mode == "null" else mode,  # "null" is the column's default, as text
        attached_at=_text(body.get("attached_at")),
        connection=connection(body.get("connection_info")),
    )


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
    protocol = str(body["driver_volume_type"])
    for extra in ("driver_volume_type", "attachment_id"):  # the flat form's additions; os-brick wants neither
        data.pop(extra, None)
    return Connection(
        protocol=protocol,
        data=Sealed(data),
        access_mode=_text(data.get("access_mode")) or "rw",
        encrypted=data.get("encrypted") is True,
        discard=data.get("discard") is True,
        qos_specs={str(key): str(value) for key, value in (data.get("qos_specs") or {}).items()},
        logical_block_size=_number(data.get("logical_block_size")),
        physical_block_size=_number(data.get("physical_block_size")),
        auth=bool(data.get("auth_method")) or data.get("auth_enabled") is True,
    )


def dump(connection: Connection) -> Sealed[str]:
    """Return the whole connection as text, for the vault."""
    facts = {item.name: getattr(connection, item.name) for item in fields(connection)}
    return Sealed(json.dumps(facts | {"data": connection.data.open(), "qos_specs": dict(connection.qos_specs)}))


def load(text: Sealed[str]) -> Connection:
    """Return the connection that :func:`dump` wrote."""
    facts = json.loads(text.open())
    return Connection(**(facts | {"data": Sealed(facts["data"])}))


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


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
