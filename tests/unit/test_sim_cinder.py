"""The simulated Cinder behaves as the real one was seen to: exact codes, texts and traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sim_cinder_api import GENERIC, OTHER_VM, VM, Api, connector, message, unknown_id
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


CONFLICT = "ConflictNovaUsingAttachment: Detach volume from instance {} using the Compute API"


def test_a_connected_attachment_of_an_instance_needs_a_service_or_nova(api: Api) -> None:
    volume = api.volume()
    attachment = api.attached(volume, instance_uuid=VM)
    calls = (
        lambda: api.delete(attachment),
        lambda: api.detach(volume),
        lambda: api.detach(volume, attachment),
        lambda: api.action(volume, "os-terminate_connection", {"connector": connector()}),
    )
    for call in calls:  # no Nova to ask
        answer = call()
        assert (answer.status_code, message(answer)) == (500, GENERIC)
    api.nova({VM: {volume: attachment}})
    for call in calls:
        answer = call()
        assert (answer.status_code, message(answer)) == (409, CONFLICT.format(VM))
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    assert api.exported(volume)
    assert api.delete(attachment, service=True).status_code == 200


@pytest.mark.parametrize("known", [{}, {VM: {"volume": "another"}}, {VM: {}}])
def test_nova_allows_it_if_it_knows_nothing_or_another_attachment(api: Api, known: dict[str, dict[str, str]]) -> None:
    volume = api.volume()
    attachment = api.attached(volume, instance_uuid=VM)
    api.nova({VM: {volume: "another"}} if known.get(VM) else known)
    assert api.delete(attachment).status_code == 200


def test_nova_is_not_asked_about_reserved_legacy_or_ownerless_attachments(api: Api) -> None:
    assert api.delete(api.created(api.volume(), instance_uuid=VM)).status_code == 200
    assert api.delete(api.attached(api.volume())).status_code == 200
    legacy = api.volume()
    api.attach(legacy)
    assert api.delete(api.rows(legacy)[0]["id"]).status_code == 200


def test_a_service_token_is_a_service_too(api: Api) -> None:
    attachment = api.attached(api.volume(), instance_uuid=VM)
    api.session.headers["X-Service-Token"] = "nova:service"
    assert api.delete(attachment).status_code == 200


def test_legacy_calls_need_a_service_where_the_attachment_is_not_clear(api: Api) -> None:
    volume = api.volume(multiattach=True)
    first, second = api.attached(volume), api.attached(volume, host="host-b")
    for answer in (
        api.detach(volume),
        api.detach(volume, unknown_id()),
        api.action(volume, "os-terminate_connection", {"connector": connector()}),
    ):
        assert (answer.status_code, message(answer)) == (409, CONFLICT.format(""))
    ambiguous = api.detach(volume, service=True)
    assert (ambiguous.status_code, message(ambiguous)) == (
        400,
        "Invalid volume: Detach volume failed: More than one attachment, but no attachment_id provided.",
    )
    assert api.detach(volume, first).status_code == 202
    assert [row["id"] for row in api.rows(volume)] == [second]
    mismatch = api.detach(api.volume(), second)
    assert (mismatch.status_code, message(mismatch)) == (
        400,
        "Invalid input received: Mismatched volume and attachment",
    )


def test_a_service_detaching_an_unknown_attachment_sets_the_status_right(api: Api) -> None:
    volume = api.volume()
    api.attached(volume)
    api.action(volume, "os-begin_detaching")
    assert api.detach(volume, unknown_id(), service=True).status_code == 202
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    assert api.exported(volume)


def test_legacy_attach_and_detach(api: Api) -> None:
    volume = api.volume()
    assert api.action(volume, "os-reserve").status_code == 202
    assert api.states(volume) == ("attaching", "detached", [])
    info = api.action(volume, "os-initialize_connection", {"connector": connector()}).json()["connection_info"]
    assert (info["driver_volume_type"], info["enforce_multipath"]) == ("iscsi", False)
    assert info["data"]["target_iqn"] == f"iqn.2010-10.org.openstack:volume-{volume}"
    assert (info["data"]["access_mode"], info["data"]["enforce_multipath"]) == ("rw", False)
    assert "attachment_id" not in info["data"]
    again = api.action(volume, "os-initialize_connection", {"connector": connector()}).json()["connection_info"]
    assert again == info
    assert api.attach(volume).status_code == 202
    assert api.attach(volume).status_code == 202
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    (row,) = api.rows(volume)
    assert (row["instance_uuid"], row["mountpoint"], row["connection_info"]) == (VM, "/dev/vdb", None)
    shown = api.shown(volume)
    assert shown["metadata"] == {"readonly": "False", "attached_mode": "rw"}
    assert shown["attachments"] == [
        {
            "id": volume,
            "attachment_id": row["id"],
            "volume_id": volume,
            "server_id": VM,
            "host_name": None,
            "device": "/dev/vdb",
            "attached_at": "2027-01-15T08:00:00.000000",
        }
    ]
    other = api.attach(volume, OTHER_VM)
    assert (other.status_code, message(other)) == (
        400,
        "Invalid volume: volume is already attached and multiple attachments are not enabled",
    )
    assert api.action(volume, "os-begin_detaching").status_code == 202
    assert api.action(volume, "os-terminate_connection", {"connector": connector()}).status_code == 202
    assert api.states(volume) == ("detaching", "attached", ["attached"])
    assert api.exported(volume)
    assert api.detach(volume).status_code == 202
    assert api.states(volume) == ("available", "detached", [])
    assert not api.exported(volume)
    assert api.shown(volume)["metadata"] == {"readonly": "False"}
    assert api.detach(volume).status_code == 202


def test_legacy_attach_for_a_host_finds_its_row_again(api: Api) -> None:
    volume = api.volume()
    for _ in range(2):
        wanted = {"mountpoint": "/dev/sdx", "host_name": "host-a"}
        assert api.action(volume, "os-attach", wanted).status_code == 202
    assert [row["attached_host"] for row in api.rows(volume)] == ["host-a"]


def test_legacy_attach_minds_the_readonly_flag_and_the_other_mode(api: Api) -> None:
    volume = api.volume()
    assert api.action(volume, "os-update_readonly_flag", {"readonly": True}).status_code == 202
    refused = api.attach(volume)
    assert (refused.status_code, message(refused)) == (400, f"Invalid attaching mode 'rw' for volume {volume}.")
    assert api.attach(volume, mode="ro").status_code == 202
    info = api.action(volume, "os-initialize_connection", {"connector": connector()}).json()["connection_info"]
    assert info["data"]["access_mode"] == "ro"
    shared = api.volume(multiattach=True)
    api.attach(shared)
    api.action(shared, "os-reserve")
    other = api.attach(shared, OTHER_VM, mode="ro")
    assert (other.status_code, message(other)) == (400, "Invalid volume: being attached by different mode")
    assert api.attach(shared, OTHER_VM).status_code == 202
    assert len(api.rows(shared)) == 2


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


def test_unreserve_and_roll_detaching_never_fail(api: Api) -> None:
    for status in ("available", "reserved", "error", "maintenance", "downloading"):
        volume = api.volume(status=status)
        for action in ("os-unreserve", "os-roll_detaching"):
            assert api.action(volume, action).status_code == 202
        assert api.states(volume) == (status, "detached", [])
    taken = api.volume()
    api.created(taken, host="host-a")
    assert api.action(taken, "os-unreserve").status_code == 202
    assert api.states(taken) == ("in-use", "attaching", ["attaching"])
    reserved = api.volume()
    api.action(reserved, "os-reserve")
    api.action(reserved, "os-initialize_connection", {"connector": connector()})
    assert api.action(reserved, "os-terminate_connection", {"connector": connector()}).status_code == 202
    assert api.states(reserved) == ("available", "detached", [])
    assert api.exported(reserved)


def test_reset_status_drops_rows_and_leaves_the_export(api: Api) -> None:
    volume = api.volume()
    api.attached(volume, instance_uuid=VM)
    wanted = {"status": "available", "attach_status": "detached"}
    assert api.action(volume, "os-reset_status", wanted).status_code == 202
    assert api.states(volume) == ("available", "detached", [])
    assert api.exported(volume)


def test_remote_tracebacks_can_be_switched_on(api: Api) -> None:
    with api.store.change("cinder") as book:
        book["remote_tracebacks"] = True
    volume = api.volume()
    api.attach(volume)
    refused = api.attach(volume, OTHER_VM)
    first, _, rest = message(refused).partition("\n")
    assert first == "Invalid volume: volume is already attached and multiple attachments are not enabled"
    assert rest.startswith("Traceback (most recent call last):")
    assert "\n" not in message(api.action(volume, "os-reserve"))


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
