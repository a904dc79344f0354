"""The simulated Cinder's legacy dialect, and who may disconnect an attachment (CVE-2023-2088)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sim_cinder_api import GENERIC, OTHER_VM, VM, Api, connector, message, unknown_id


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


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


def test_begin_detaching_minds_attach_status_too(api: Api) -> None:
    volume = api.volume()
    api.created(volume, host="host-a")
    api.action(volume, "os-unreserve")
    assert api.states(volume) == ("in-use", "attaching", ["attaching"])
    assert api.action(volume, "os-begin_detaching").status_code == 400


def test_access_mode_follows_the_legacy_mode(api: Api) -> None:
    volume = api.volume()
    api.attach(volume, mode="ro")
    info = api.action(volume, "os-initialize_connection", {"connector": connector()}).json()["connection_info"]
    assert info["data"]["access_mode"] == "ro"
