"""Cinder's bodies and connection info of every kind: what can be believed, or a clear error without a secret."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.report import counted
from tether.adapters.cinder import wire
from tether.adapters.cinder.errors import Call, translate
from tether.adapters.cinder.model import Attachment, Connection, Volume
from tether.adapters.guest.disk import DiskSpec, chap_secret, render, spec_for
from tether.adapters.guest.slots import Slot
from tether.adapters.host import wwid
from tether.adapters.host.model import Device
from tether.errors import ConfigError, FinalError, TetherError, UncertainError
from tether.sealed import SHORTEST, Sealed, mask
from tether.settings import Settings

COUNT = counted(200, 20_000)
SECRET = "hunter2-Secret"
VOLUME = "5b7e2d1c-0000-4000-8000-000000000001"
CALL = Call("show", "volume", VOLUME, "http://cinder/v3", False)
#: One connection info of each of os-brick's and Nova's protocols, with what is secret in it.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "iscsi": {"target_portal": "192.0.2.1:3260", "target_iqn": "iqn.x", "target_lun": 1, "auth_method": "CHAP",
              "auth_username": "u", "auth_password": SECRET, "discovery_auth_password": SECRET},
    "iser": {"target_portals": ["192.0.2.1:3260"], "target_iqns": ["iqn.x"], "target_luns": [1]},
    "fibre_channel": {"target_wwn": ["5000"], "target_lun": 0, "initiator_target_map": {"a": ["b"]}},
    "nvmeof": {"nqn": "nqn.x", "portals": [["192.0.2.1", "4420", "tcp"]], "volume_nguid": "a" * 32,
               "dhchap_key": SECRET},
    "rbd": {"name": "volumes/v", "hosts": ["192.0.2.1"], "ports": ["6789"], "auth_enabled": True, "auth_username": "c",
            "secret_uuid": "457eb676-33da-42ec-9a8c-9293d545c337", "keyring": SECRET},
    "nfs": {"export": "h:/e", "name": "volume-1", "options": "-o vers=4"},
    "smbfs": {"export": "//h/s", "name": "volume-1", "credentials": SECRET},
    "scaleio": {"scaleIO_volname": "v", "serverPassword": SECRET, "serverToken": SECRET},
    "lightos": {"uuid": "a" * 32, "lightos_nodes": {}, "auth_token": SECRET},
    "vmdk": {"volume_id": "v", "config": {"vmware_host_password": SECRET}},
    "storpool": {"volume": "v", "client_id": 1, "access_mode": "rw"},
    "gpfs": {"name": "v", "device_path": "/gpfs/v"},
    "local": {"device_path": "/dev/vg/v"},
    "huaweisdshypervisor": {"id": "v"},
    "veritas_hyperscale": {"name": "v"},
}  # fmt: skip
odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=10), st.just(SECRET),
    st.just("9" * 5000),
    st.lists(st.text(max_size=3), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.just("../../etc/passwd"), st.just("\ud800\0"),
)  # fmt: skip
odder = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner), max_leaves=10
)


def no_answer(error: Exception) -> None:
    assert isinstance(translate(error, CALL), UncertainError)
    assert SECRET not in "".join(traceback.format_exception_only(error))


def silent_refusal(error: FinalError) -> None:
    assert error.hint
    assert SECRET not in f"{error}{error.hint}{error.__cause__}"


@st.composite
def broken(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """Return a body with a few fields missing, odd or new."""
    body = json.loads(json.dumps(whole))
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=3, unique=True)):
        if draw(st.booleans()):
            del body[name]
        else:
            body[name] = draw(odder)
    return body | draw(st.dictionaries(st.text(max_size=5), odder, max_size=1))


connections = st.sampled_from(sorted(PROTOCOLS)).flatmap(
    lambda name: broken({"driver_volume_type": name, "access_mode": "rw", "qos_specs": None, **PROTOCOLS[name]})
)


def spec_of(connection: Connection, data_path: str) -> DiskSpec:
    device = (
        None if data_path == "network" or connection.protocol == "rbd" else Device("/run/tether/volumes/v", "/dev/sda")
    )
    return spec_for(
        Volume(VOLUME, "v", "attaching", 1), connection, slot=Slot("vdb", "virtio", {"type": "pci"}), device=device,
        mode="rw", settings=Settings(), initiator="iqn.host", encryption=None, data_path=data_path,
    )  # fmt: skip


@settings(max_examples=COUNT * 2, deadline=None, print_blob=True)
@given(body=connections, data_path=st.sampled_from(["host", "network"]))
@example({"driver_volume_type": "iscsi", "target_portal": "a", "target_iqn": "b", "target_lun": SECRET}, "network")
@example({"driver_volume_type": "iscsi", "target_portal": None, "target_iqn": "b", "target_lun": 1}, "network")
@example({"driver_volume_type": "iscsi", "target_portal": "a", "target_iqn": "b\x01", "target_lun": 1}, "network")
@example({"driver_volume_type": "iscsi", "logical_block_size": SECRET}, "host")
@example({"driver_volume_type": "rbd", "hosts": "192", "ports": ["1", "2", "3"], "name": "v"}, "network")
def test_connection_info_is_a_disk_or_a_refusal_that_tells_no_secret(body: dict[str, Any], data_path: str) -> None:
    try:
        connection = wire.exported(body)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        no_answer(error)
        return
    assume(SECRET not in connection.protocol)  # a protocol is shown
    assert SECRET not in f"{connection!r}{connection}"
    assert wire.load(wire.dump(connection)) == connection
    try:
        secret = chap_secret(connection)
        spec = spec_of(connection, data_path)
    except FinalError as error:
        silent_refusal(error)
        return
    assert secret is None or len(secret.open()) > 0
    text = render(spec)
    assert "None" not in (spec.source, *(part for host in spec.hosts for part in host), spec.auth_user)
    assert parse_ok(text)
    assert isinstance(wwid.named_by(connection.protocol, connection.data.open()), str)


def parse_ok(text: str) -> bool:
    from xml.etree import ElementTree as ET

    return ET.fromstring(text).tag == "disk"


@pytest.mark.parametrize("mode", ["RO", "r", "rw ", "readonly"])
def test_an_access_mode_that_is_neither_is_refused_and_not_taken_for_rw(mode: str) -> None:
    connection = wire.exported({"driver_volume_type": "iscsi", "access_mode": mode})
    with pytest.raises(FinalError, match="neither rw nor ro"):
        spec_of(connection, "host")


VOLUME_BODY = {
    "id": VOLUME, "name": "v", "status": "available", "size": 1, "metadata": {"a": "b"}, "multiattach": False,
    "attachments": [{"server_id": "s", "attachment_id": "a"}], "shared_targets": None, "encrypted": False,
}  # fmt: skip
ATTACHMENT_BODY = {
    "id": VOLUME,
    "volume_id": VOLUME,
    "status": "attached",
    "instance": None,
    "attach_mode": "rw",
    "connection_info": {},
}


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(st.one_of(broken(VOLUME_BODY), odder))
@example(VOLUME_BODY | {"id": None})
@example(VOLUME_BODY | {"id": "../../etc/passwd"})
@example(VOLUME_BODY | {"status": None})
@example(VOLUME_BODY | {"name": "\ud800\0"})
def test_a_volume_that_can_be_believed_or_no_usable_answer(body: Any) -> None:
    try:
        found = wire.volume(body)
    except Exception as error:  # noqa: BLE001 - as the adapter's own border catches it
        no_answer(error)
        return
    believed(found.id, found.status, found.name)


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(st.one_of(broken(ATTACHMENT_BODY), odder))
def test_an_attachment_likewise(body: Any) -> None:
    try:
        found: Attachment = wire.attachment(body)
    except Exception as error:  # noqa: BLE001 - as above
        no_answer(error)
        return
    believed(found.id, found.status, found.owner)
    assert "/" not in found.volume_id


def believed(id: str, status: str, name: str) -> None:
    assert id
    assert id != "None"
    assert "/" not in id
    assert "." not in id
    assert status
    assert status != "None"
    for text in (id, status, name):
        text.encode()
        assert "\0" not in text


@settings(max_examples=COUNT, deadline=None, print_blob=True)
@given(
    name=st.sampled_from(["auth_password", "Passwd", "x_pwd", "dhchap_ctrlr_key", "credentials", "keyring", "token"]),
    secret=st.one_of(st.text(min_size=SHORTEST, max_size=20), st.integers(10**SHORTEST, 10**12)),
    depth=st.integers(0, 5),
)
def test_a_secret_at_any_depth_is_masked_in_any_text(name: str, secret: str | int, depth: int) -> None:
    data: Any = {name: secret}
    for level in range(depth):
        data = {"a": [data]} if level % 2 else {"inner": data}
    sealed = Sealed(data)
    for text in (f"failed with {secret}", repr(data), json.dumps(data)):
        assert str(secret) not in mask(text).replace("***", "") or str(secret) in "failed with ***"
    assert str(secret) not in f"{sealed!r}{sealed}{sealed:>9}" or str(secret) in "Sealed(***) "


@pytest.mark.parametrize("text", ["junk", "{}", "[]", '{"data": 1}', '{"data": {}, "nope": 1}', "null", "[" * 100_000])
def test_sealed_text_that_is_no_connection_is_an_error_without_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wire.load(Sealed(text))
    assert isinstance(caught.value, TetherError)
    assert caught.value.__cause__ is None
