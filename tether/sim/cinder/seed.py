"""Volumes to begin with."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from tether.clock import Clock, SystemClock
from tether.errors import ConflictError, UsageError
from tether.sim.cinder.rows import Book, Row, next_serial, timestamp
from tether.sim.store import Store

#: The project that the seeded volumes belong to; a noauth token for it is ``tether:`` and this.
PROJECT = "0123456789abcdef0123456789abcdef"

SERVICE_UUID = "5e5e5e5e-0000-4000-8000-5e5e5e5e5e5e"

_TYPE_NAMESPACE = uuid.UUID("7c0a9f0e-7c57-4d9e-9a3b-3a2f1d5b8e10")

#: What :func:`seed_cinder` creates: the id, and what differs from a plain volume of 1 GiB.
SEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "vol1": ("11111111-1111-4111-8111-111111111111", {}),
    "vol2": ("22222222-2222-4222-8222-222222222222", {}),
    "vol3": ("33333333-3333-4333-8333-333333333333", {}),
    "shared1": ("44444444-4444-4444-8444-444444444444", {"multiattach": True, "volume_type": "shared"}),
    "secret1": ("55555555-5555-4555-8555-555555555555", {"encrypted": True, "volume_type": "luks"}),
}


def seed_cinder(store: Store) -> None:
    """Create vol1, vol2, vol3 (plain), shared1 (multiattach) and secret1 (encrypted), 1 GiB each.

    Raises:
        ConflictError: they are there already.
    """
    for name, (volume_id, facts) in SEEDED.items():
        add_volume(store, id=volume_id, name=name, **facts)


def add_volume(store: Store, *, clock: Clock | None = None, **facts: Any) -> str:
    """Add an available volume and return its id.

    Args:
        store: the world.
        clock: the clock that its creation is dated by.
        facts: what differs from a plain volume, by the names of :func:`new_volume`.

    Raises:
        UsageError: there is no such fact.
        ConflictError: a volume with this id is there already.
    """
    now = (clock or SystemClock()).time()
    with store.change("cinder") as book:
        return str(new_volume(book, now, **facts)["id"])


def new_volume(book: Book, now: float, *, encrypted: bool = False, passphrase: str = "", **facts: Any) -> Row:
    """Add a volume's row.

    Args:
        book: the book, which is changed.
        now: seconds since the epoch.
        encrypted: encrypt it with LUKS, under a new key.
        passphrase: the key's, if not a random one.
        facts: any column: id, name, size (GiB), protocol (``iscsi`` or ``rbd``), multiattach, qos_specs,
            discard, logical_block_size, physical_block_size, wwn (the identity that a host reads from the
            disk), names_identity (True: connection_info names the wwn), shared_targets, service_uuid,
            availability_zone, project_id, status, …

    Raises:
        UsageError: there is no such column, or the id is not a UUID.
        ConflictError: a volume with this id is there already.
    """
    volume_id = _checked_id(str(facts.get("id") or uuid.uuid4()))
    for part in ("volumes", "attachments", "exports", "keys"):
        book.setdefault(part, {})
    if volume_id in book["volumes"]:
        raise ConflictError(
            f"a volume {volume_id} is there already",
            resource=f"volume {volume_id}",
            hint="leave its id out, or begin with an empty directory",
        )
    row: Row = {
        "id": volume_id,
        "name": None,
        "description": None,
        "status": "available",
        "attach_status": "detached",
        "size": 1,
        "availability_zone": "nova",
        "project_id": PROJECT,
        "user_id": "tether",
        "volume_type": "pretend",
        "bootable": False,
        "multiattach": False,
        "metadata": {},
        "admin_metadata": {},
        "protocol": "iscsi",
        "qos_specs": None,
        "discard": False,
        "logical_block_size": None,
        "physical_block_size": None,
        "wwn": f"6001405{uuid.UUID(volume_id).hex[:25]}",
        "names_identity": False,
        "shared_targets": True,
        "service_uuid": SERVICE_UUID,
        "encryption": None,
        "snapshot_id": None,
        "source_volid": None,
        "image": None,
        "content": "blank",
        "created_at": timestamp(now),
        "updated_at": timestamp(now),
    }
    unknown = sorted(set(facts) - set(row))
    if unknown:
        raise UsageError(
            f"a simulated volume has no {', '.join(unknown)}", hint=f"one of: encrypted, passphrase, {', '.join(row)}"
        )
    row |= facts
    row["id"] = volume_id
    row["serial"] = next_serial(book)
    row["volume_type_id"] = str(uuid.uuid5(_TYPE_NAMESPACE, row["volume_type"]))
    if encrypted:
        row["encryption"] = _new_key(book, volume_id, passphrase)
    book["volumes"][volume_id] = row
    return row


def _checked_id(volume_id: str) -> str:
    try:
        return str(uuid.UUID(volume_id))
    except ValueError as error:
        raise UsageError(f"{volume_id} is not a UUID", hint="leave the id out, or give one like uuidgen's") from error


def _new_key(book: Book, volume_id: str, passphrase: str) -> dict[str, Any]:
    key_id = str(uuid.uuid5(_TYPE_NAMESPACE, volume_id))
    book["keys"][key_id] = passphrase or secrets.token_hex(32)
    return {
        "encryption_key_id": key_id,
        "control_location": "front-end",
        "cipher": "aes-xts-plain64",
        "key_size": 256,
        "provider": "luks",
    }
