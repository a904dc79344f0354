"""The pretend storage backend: one export per volume, and the connection_info that leads to it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from tether.adapters.cinder.wire import front_end_limits
from tether.sim.cinder.rows import Book, Row, attachments_of
from tether.sim.cinder.wire import Fault

PORTAL = "192.0.2.10:3260"
MONITORS = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
IQN_PREFIX = "iqn.2010-10.org.openstack:volume-"


def validate_connector(volume: Row, connector: Mapping[str, Any]) -> None:
    """Refuse a connector that lacks what the protocol needs.

    Raises:
        Fault: 400.
    """
    if volume["protocol"] == "iscsi" and not connector.get("initiator"):
        raise Fault(400, "Invalid input received: Connector doesn't have required information: initiator")


def create_export(book: Book, volume: Row) -> None:
    """Export the volume; an export that is there stays as it is, its password included.

    RBD has none: a client needs only its cephx key.
    """
    if volume["protocol"] == "rbd" or volume["id"] in book["exports"]:
        return
    book["exports"][volume["id"]] = {
        "target_portal": PORTAL,
        "target_iqn": IQN_PREFIX + volume["id"],
        "target_lun": 1,
        "auth_method": "CHAP",
        "auth_username": secrets.token_hex(10),
        "auth_password": secrets.token_hex(8),
    }


def remove_export(book: Book, volume: Row) -> None:
    """Take the export down, if it is there."""
    book["exports"].pop(volume["id"], None)


def terminate_connection(book: Book, volume: Row) -> bool:
    """Close a connection; return True if another attachment shares the export.

    The export has no access list, so nothing is closed (as Cinder's LVM driver over tgt).
    """
    return len(attachments_of(book, volume["id"])) > 1


def connection_info(book: Book, volume: Row, connector: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested connection_info of the legacy call, with what cinder-volume adds to a driver's data.

    ``access_mode`` follows the volume's admin metadata alone, whatever mode an attachment asks for
    (cinder/volume/manager.py:_parse_connection_options).
    """
    data = _rbd_data(volume) if volume["protocol"] == "rbd" else _iscsi_data(book, volume)
    admin = volume["admin_metadata"]
    data |= {
        "volume_id": volume["id"],
        "qos_specs": _limits(volume),
        "access_mode": admin.get("attached_mode") or ("ro" if admin.get("readonly") == "True" else "rw"),
        "encrypted": volume["encryption"] is not None,
        "cacheable": False,
        "enforce_multipath": connector.get("enforce_multipath", False),
    }
    if volume["discard"]:
        data["discard"] = True
    for name in ("logical_block_size", "physical_block_size"):
        if volume[name] is not None:
            data[name] = str(volume[name])
    if volume["names_identity"]:
        data["wwn"] = volume["wwn"]
    return {"driver_volume_type": volume["protocol"], "data": data}


def _limits(volume: Row) -> dict[str, str] | None:
    specs = volume["qos_specs"]
    return specs and front_end_limits({"consumer": "front-end", "specs": specs}, volume["size"])


def _iscsi_data(book: Book, volume: Row) -> dict[str, Any]:
    return {"target_discovered": False, **book["exports"][volume["id"]]}


def _rbd_data(volume: Row) -> dict[str, Any]:
    return {
        "name": f"volumes/volume-{volume['id']}",
        "hosts": list(MONITORS),
        "ports": ["6789"] * len(MONITORS),
        "cluster_name": "ceph",
        "auth_enabled": True,
        "auth_username": "cinder",
        "secret_type": "ceph",
        "secret_uuid": "5ec4e7c0-0000-4000-8000-00000000ceff",
    }
