"""Cinder's bodies to tether's types; the bodies are what Cinder 29 sends."""

from __future__ import annotations

from typing import Any

import pytest

from tether.adapters.cinder import wire

TARGET = {
    "target_portal": "10.0.0.1:3260",
    "target_iqn": "iqn.x:volume-1",
    "target_lun": 1,
    "auth_method": "CHAP",
    "auth_username": "u",
    "auth_password": "p",
    "qos_specs": None,
    "access_mode": "rw",
    "encrypted": False,
    "cacheable": False,
}
FLAT = {**TARGET, "driver_volume_type": "iscsi", "attachment_id": "37e134fd"}
NESTED = {"driver_volume_type": "iscsi", "data": TARGET}


def test_both_dialects_give_the_same_connection() -> None:
    flat, nested = wire.connection(FLAT), wire.connection(NESTED)
    assert flat == nested
    assert flat is not None
    assert flat.data.open() == TARGET
    assert (flat.protocol, flat.access_mode, flat.auth, flat.discard) == ("iscsi", "rw", True, False)
    assert "attachment_id" in FLAT  # the body itself is left alone


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_connection(nothing: dict[str, Any] | None) -> None:
    assert wire.connection(nothing) is None


@pytest.mark.parametrize("body", [{"data": TARGET}, {"target_iqn": "no type"}, "text", ["list"]])
def test_what_is_no_connection_info(body: Any) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError)):
        wire.connection(body)


@pytest.mark.parametrize(
    ("extra", "field", "value"),
    [
        ({"qos_specs": {"total_iops_sec": "500"}}, "qos_specs", {"total_iops_sec": "500"}),
        ({"qos_specs": {"total_iops_sec": 500}}, "qos_specs", {"total_iops_sec": "500"}),
        ({"access_mode": "ro"}, "access_mode", "ro"),
        ({"encrypted": True}, "encrypted", True),
        ({"discard": True}, "discard", True),
        ({"logical_block_size": "4096"}, "logical_block_size", 4096),
        ({"physical_block_size": 4096}, "physical_block_size", 4096),
        ({"auth_method": None}, "auth", False),
        ({"auth_method": None, "auth_enabled": True}, "auth", True),
        ({"auth_method": None, "auth_enabled": False}, "auth", False),
    ],
)
def test_fields_of_a_connection(extra: dict[str, Any], field: str, value: object) -> None:
    for body in ({**FLAT, **extra}, {**NESTED, "data": {**TARGET, **extra}}):
        assert getattr(wire.connection(body), field) == value


@pytest.mark.parametrize(("sent", "mode"), [("null", ""), (None, ""), ("rw", "rw"), ("ro", "ro")])
def test_the_mode_of_an_attachment(sent: str | None, mode: str) -> None:
    body = {"id": "a", "volume_id": "v", "status": "reserved", "instance": None, "attach_mode": sent}
    found = wire.attachment(body | {"attached_at": "", "connection_info": {}})
    assert (found.mode, found.owner, found.attached_at, found.connection) == (mode, "", "", None)


def test_a_row_of_a_list_has_no_details() -> None:
    found = wire.attachment({"id": "a", "volume_id": "v", "status": "attached", "instance": "i"})
    assert (found.mode, found.owner, found.connection) == ("", "i", None)


def test_a_volume() -> None:
    found = wire.volume(
        {
            "id": "v",
            "name": None,
            "status": "in-use",
            "size": 3,
            "availability_zone": "nova",
            "os-vol-tenant-attr:tenant_id": "p",
            "volume_type": "fast",
            "multiattach": True,
            "encrypted": True,
            "metadata": {"readonly": "True"},
            "shared_targets": None,
            "service_uuid": "s",
            "attachments": [
                {"server_id": "i", "attachment_id": "a"},
                {"server_id": None, "attachment_id": "b", "host_name": "h"},
            ],
        }
    )
    assert (found.name, found.size, found.project_id, found.readonly) == ("", 3, "p", True)
    assert (found.shared_targets, found.service_uuid) == (None, "s")
    assert list(found.attached_to) == [("i", "a"), ("", "b")]


@pytest.mark.parametrize("shared", [True, False, None])
def test_shared_targets_keeps_its_three_states(shared: bool | None) -> None:
    assert wire.volume({"id": "v", "status": "s", "size": 1, "shared_targets": shared}).shared_targets is shared


def test_encryption() -> None:
    assert wire.encryption({"encryption_key_id": None}) is None
    found = wire.encryption(
        {
            "encryption_key_id": "k",
            "provider": "luks",
            "cipher": "aes-xts-plain64",
            "key_size": 256,
            "control_location": "front-end",
        }
    )
    assert found is not None
    assert (found.provider, found.key_id, found.key_size) == ("luks", "k", 256)
    with pytest.raises(KeyError):
        wire.encryption({})
