"""The simulated Cinder behaves as the real one was seen to: exact codes, texts and traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sim_cinder_api import OTHER_VM, VM, Api, connector, message
from tether.errors import ConflictError, UsageError
from tether.sim.cinder import seed_cinder
from tether.sim.cinder.seed import SEEDED


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_create_without_connector_only_reserves(api: Api) -> None:
    volume = api.volume()
    answer = api.create(volume, instance_uuid=VM)
    assert answer.status_code == 200
    body = answer.json()["attachment"]
    assert body.pop("id") == api.rows(volume)[0]["id"]
    assert body == {
        "status": "reserved",
        "instance": VM,
        "volume_id": volume,
        "attached_at": "",
        "detached_at": "",
        "attach_mode": "null",
        "connection_info": {},
    }
    assert api.states(volume) == ("reserved", "detached", ["reserved"])
    assert not api.exported(volume)
    assert api.rows(volume)[0]["connector"] is None


def test_only_one_may_reserve_but_the_same_instance_may_again(api: Api) -> None:
    volume = api.volume()
    api.created(volume, instance_uuid=VM)
    refused = api.create(volume, instance_uuid=OTHER_VM)
    assert (refused.status_code, message(refused)) == (
        400,
        (
            f"Invalid volume: Volume {volume} status must be available or downloading to reserve, "
            "but the current status is reserved."
        ),
    )
    assert api.create(volume).status_code == 400
    api.created(volume, instance_uuid=VM)
    assert api.states(volume) == ("reserved", "detached", ["reserved", "reserved"])
    in_use = api.volume()
    api.attached(in_use, instance_uuid=VM)
    api.created(in_use, instance_uuid=VM)
    assert api.states(in_use) == ("in-use", "attached", ["attached", "reserved"])


@pytest.mark.parametrize("status", ["creating", "maintenance", "attaching", "detaching"])
def test_create_is_refused_by_status(api: Api, status: str) -> None:
    volume = api.volume(status=status)
    refused = api.create(volume, host="host-a")
    assert (refused.status_code, message(refused)) == (
        400,
        (
            f"Invalid volume: Volume {volume} status must be available or downloading to reserve, "
            f"but the current status is {status}."
        ),
    )
    assert api.states(volume) == (status, "detached", [])


@pytest.mark.parametrize("status", ["error", "error_extending"])
def test_create_is_refused_in_error(api: Api, status: str) -> None:
    volume = api.volume(status=status)
    refused = api.create(volume)
    assert (refused.status_code, message(refused)) == (
        400,
        (
            "Invalid volume: Volume attachments can not be created if the volume is in an error state. "
            f"The Volume {volume} currently has a status of: {status} "
        ),
    )


def test_create_is_allowed_while_downloading(api: Api) -> None:
    volume = api.volume(status="downloading")
    api.created(volume)
    assert api.states(volume) == ("reserved", "detached", ["reserved"])


def test_multiattach_may_be_created_in_use_but_not_while_another_is_in_flight(api: Api) -> None:
    volume = api.volume(multiattach=True)
    api.attached(volume)
    second = api.created(volume)
    assert api.states(volume) == ("reserved", "attached", ["attached", "reserved"])
    refused = api.create(volume)
    assert (refused.status_code, message(refused)) == (
        400,
        (
            f"Invalid volume: Volume {volume} status must be available or in-use or downloading to reserve, "
            "but the current status is reserved."
        ),
    )
    assert api.update(second, "host-b").status_code == 200
    assert api.create(volume).status_code == 400


def test_update_connects_and_answers_a_stale_body(api: Api) -> None:
    volume = api.volume(qos_specs={"total_iops_sec": "100"})
    attachment = api.created(volume)
    answer = api.update(attachment, enforce_multipath=True)
    assert answer.status_code == 200
    body = answer.json()["attachment"]
    assert (body["status"], body["attached_at"], body["attach_mode"]) == ("reserved", "", "null")
    export = api.book()["exports"][volume]
    assert export["auth_method"] == "CHAP"
    assert export["auth_username"]
    assert export["auth_password"]
    assert body["connection_info"] == {
        **export,
        "target_iqn": f"iqn.2010-10.org.openstack:volume-{volume}",
        "target_lun": 1,
        "target_discovered": False,
        "driver_volume_type": "iscsi",
        "attachment_id": attachment,
        "volume_id": volume,
        "qos_specs": {"total_iops_sec": "100"},
        "access_mode": "rw",
        "encrypted": False,
        "cacheable": False,
        "enforce_multipath": True,
    }
    assert api.states(volume) == ("attaching", "attaching", ["attaching"])
    row = api.rows(volume)[0]
    assert (row["attached_host"], row["mountpoint"], row["attach_mode"]) == ("host-a", "na", "rw")
    shown = api.show(attachment)
    assert (shown["status"], shown["attached_at"]) == ("attaching", "2027-01-15T08:00:00.000000")
    assert shown["connection_info"] == body["connection_info"]


def test_update_may_be_repeated_and_falls_back_after_complete(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    first = api.update(attachment).json()["attachment"]["connection_info"]
    assert api.update(attachment).json()["attachment"]["connection_info"] == first
    api.complete(attachment)
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    again = api.update(attachment, "host-b", mountpoint="/dev/vdc")
    assert again.json()["attachment"]["status"] == "attached"
    assert api.states(volume) == ("attaching", "attaching", ["attaching"])
    row = api.rows(volume)[0]
    assert (row["attached_host"], row["mountpoint"]) == ("host-b", "/dev/vdc")


def test_update_is_refused_in_error(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.set(volume, status="error")
    refused = api.update(attachment)
    assert (refused.status_code, message(refused)) == (
        409,
        (
            "Resource conflict: Volume attachments can not be updated if the volume is in an error state. "
            f"The Volume {volume} currently has a status of: error "
        ),
    )
    assert not api.exported(volume)


def test_update_is_refused_beside_a_connected_attachment(api: Api) -> None:
    volume = api.volume()
    api.attached(volume, instance_uuid=VM)
    second = api.created(volume, instance_uuid=VM)
    refused = api.update(second, "host-b")
    assert (refused.status_code, message(refused)) == (
        409,
        f"Resource conflict: duplicate connectors detected on volume {volume}",
    )
    assert api.states(volume) == ("in-use", "attached", ["attached", "reserved"])


def test_a_connector_must_have_what_the_protocol_needs(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    path = f"/attachments/{attachment}"
    refused = api.call("PUT", path, {"attachment": {"connector": {"host": "x"}}})
    text = "Invalid input received: Connector doesn't have required information: initiator"
    assert (refused.status_code, message(refused)) == (400, text)
    no_host = api.call("PUT", path, {"attachment": {"connector": {"initiator": "x"}}})
    assert (no_host.status_code, message(no_host)) == (500, "Unable to update the attachment.")
    empty = api.call("PUT", path, {"attachment": {"connector": {}}})
    assert (empty.status_code, message(empty)) == (
        400,
        "Invalid input for field/attribute connector. Value: {}. {} should be non-empty",
    )
    legacy = api.action(volume, "os-initialize_connection", {"connector": {"host": "x"}})
    assert (legacy.status_code, message(legacy)) == (400, text)
    rbd = api.created(api.volume(protocol="rbd"))
    ceph = api.call("PUT", f"/attachments/{rbd}", {"attachment": {"connector": {"host": "x"}}})
    assert ceph.status_code == 200
    assert ceph.json()["attachment"]["connection_info"]["driver_volume_type"] == "rbd"


def test_create_with_a_connector_is_stale_too_and_never_takes_its_mode(api: Api) -> None:
    volume = api.volume()
    body = api.create(volume, host="host-a", connector=connector(mode="ro")).json()["attachment"]
    assert (body["status"], body["attached_at"], body["attach_mode"]) == ("reserved", "", "null")
    assert body["connection_info"]["target_lun"] == 1
    assert api.show(body["id"])["attach_mode"] == "null"
    assert api.states(volume) == ("attaching", "attaching", ["attaching"])


def test_complete_is_a_blind_write(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.set(volume, status="error")
    for _ in range(2):
        answer = api.complete(attachment)
        assert (answer.status_code, answer.content) == (204, b"")
        assert api.states(volume) == ("in-use", "attached", ["attached"])
    assert api.show(attachment)["connection_info"] == {}


def test_deleting_a_reserved_attachment_asks_no_backend(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.action(volume, "os-initialize_connection", {"connector": connector()})
    answer = api.delete(attachment)
    assert (answer.status_code, answer.json()) == (200, {"attachments": []})
    assert api.states(volume) == ("available", "detached", [])
    assert api.exported(volume)
    gone = api.delete(attachment)
    assert (gone.status_code, message(gone)) == (
        404,
        f"Volume attachment could not be found with filter: attachment_id = {attachment}.",
    )


def test_the_export_stays_until_the_last_attachment_and_the_status_follows_the_rest(api: Api) -> None:
    volume = api.volume(multiattach=True)
    first = api.attached(volume)
    second = api.created(volume, host="host-b")
    api.set(volume, status="error")
    assert api.delete(second).json() == {
        "attachments": [{"id": first, "status": "attached", "instance": None, "volume_id": volume}]
    }
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    assert api.exported(volume)
    assert api.delete(first).json() == {"attachments": []}
    assert api.states(volume) == ("available", "detached", [])
    assert not api.exported(volume)


def test_deleting_what_was_completed_without_a_connector_leaves_the_export(api: Api) -> None:
    volume = api.volume()
    api.action(volume, "os-initialize_connection", {"connector": connector()})
    attachment = api.created(volume)
    api.complete(attachment)
    assert api.delete(attachment).status_code == 200
    assert api.exported(volume)


@pytest.mark.parametrize(("flag", "access"), [("True", "ro"), ("False", "rw")])
def test_any_readonly_flag_makes_attach_mode_ro(api: Api, flag: str, access: str) -> None:
    volume = api.volume(admin_metadata={"readonly": flag})
    body = api.create(volume, host="host-a", mode="rw").json()["attachment"]
    assert (body["attach_mode"], body["connection_info"]["access_mode"]) == ("ro", access)
    assert api.shown(volume)["metadata"] == {"readonly": flag}


def test_mode_is_taken_from_create_or_else_from_the_connector(api: Api) -> None:
    chosen = api.created(api.volume(), mode="ro")
    info = api.update(chosen, mode="rw").json()["attachment"]["connection_info"]
    assert (api.show(chosen)["attach_mode"], info["access_mode"]) == ("ro", "rw")
    left_open = api.created(api.volume())
    api.update(left_open, mode="ro")
    assert api.show(left_open)["attach_mode"] == "ro"


def test_a_failing_connect_in_create_leaks_the_reserved_row(api: Api) -> None:
    volume = api.volume()
    wanted = {"volume_uuid": volume, "connector": {"host": "x"}}
    answer = api.call("POST", "/attachments", {"attachment": wanted})
    assert (answer.status_code, message(answer)) == (
        500,
        (
            "Unable to create attachment for volume (Invalid input received: Connector doesn't have required "
            "information: initiator)."
        ),
    )
    assert api.states(volume) == ("reserved", "detached", ["reserved"])
    leaked = api.show(api.rows(volume)[0]["id"])
    assert (leaked["attach_mode"], leaked["connection_info"]) == (None, None)
    assert api.update(leaked["id"]).status_code == 200


def test_the_seeded_volumes(api: Api) -> None:
    seed_cinder(api.store)
    listed = api.call("GET", "/volumes/detail").json()["volumes"]
    assert {row["name"]: row["id"] for row in listed} == {name: volume for name, (volume, _) in SEEDED.items()}
    assert [row["name"] for row in listed if row["multiattach"]] == ["shared1"]
    assert [row["name"] for row in listed if row["encrypted"]] == ["secret1"]
    secret = SEEDED["secret1"][0]
    found = api.call("GET", f"/volumes/{secret}/encryption").json()
    assert api.book()["keys"][found.pop("encryption_key_id")]
    assert found == {
        "provider": "luks",
        "cipher": "aes-xts-plain64",
        "key_size": 256,
        "control_location": "front-end",
    }
    assert api.create(secret, host="host-a").json()["attachment"]["connection_info"]["encrypted"] is True
    plain = api.call("GET", f"/volumes/{SEEDED['vol1'][0]}/encryption")
    assert plain.json() == {"encryption_key_id": None}


def test_what_cannot_be_added(api: Api) -> None:
    volume = api.volume()
    with pytest.raises(ConflictError, match=volume):
        api.volume(id=volume)
    with pytest.raises(UsageError, match="colour") as caught:
        api.volume(colour="red")
    assert "multiattach" in caught.value.hint
    with pytest.raises(UsageError, match="not a UUID"):
        api.volume(id="vol1")
    assert list(api.book()["volumes"]) == [volume]


def test_the_volume_follows_the_furthest_of_the_remaining_attachments(api: Api) -> None:
    volume = api.volume(multiattach=True)
    api.attached(volume)
    second = api.created(volume, instance_uuid=VM)
    third = api.created(volume, instance_uuid=VM)
    api.update(second)
    assert api.states(volume) == ("attaching", "attaching", ["attached", "attaching", "reserved"])
    api.delete(third)
    assert api.states(volume) == ("in-use", "attached", ["attached", "attaching"])


def test_a_volume_shows_only_what_is_attached(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    assert api.shown(volume)["attachments"] == []
    api.update(attachment)
    assert api.shown(volume)["attachments"] == []
    api.complete(attachment)
    (shown,) = api.shown(volume)["attachments"]
    assert (shown["attachment_id"], shown["host_name"], shown["device"]) == (attachment, "host-a", "na")


def test_a_volume_in_error_with_an_attachment_is_not_deleted(api: Api) -> None:
    volume = api.volume()
    api.attached(volume)
    api.set(volume, status="error")
    assert api.call("DELETE", f"/volumes/{volume}").status_code == 400
