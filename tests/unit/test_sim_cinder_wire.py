"""The simulated Cinder's wire format: versions, schemas, filters, faults, and the clients that speak it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests
from cinderclient import client as cinder_client
from cinderclient import exceptions as cinder_errors
from cinderclient.contrib import noauth
from keystoneauth1 import discover, session, token_endpoint

from tests.unit.sim_cinder_api import GENERIC, OTHER_VM, VM, Api, connector, message, unknown_id
from tether.sim.cinder.seed import PROJECT


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


NO_RESOURCE = "The resource could not be found."


@pytest.mark.parametrize(("url", "status"), [("http://sim/", 300), ("http://sim", 300), ("http://sim/v3/", 200)])
def test_discovery(api: Api, url: str, status: int) -> None:
    answer = api.session.get(url)
    assert answer.status_code == status
    (version,) = answer.json()["versions"]
    assert (version["id"], version["status"]) == ("v3.0", "CURRENT")
    assert (version["min_version"], version["version"]) == ("3.0", "3.71")
    assert {"rel": "self", "href": "http://sim/v3/"} in version["links"]


def test_v3_redirects_to_its_discovery(api: Api) -> None:
    answer = api.session.get("http://sim/v3")
    assert (answer.status_code, answer.url) == (200, "http://sim/v3/")


@pytest.mark.parametrize(
    ("version", "shown"), [("3.26", "volume 3.26"), (None, "volume 3.0"), ("3.27", "volume 3.27"), ("latest", "3.71")]
)
def test_attachments_begin_at_3_27(api: Api, version: str | None, shown: str) -> None:
    answer = api.call("GET", "/attachments", version=version)
    if version in {"3.27", "latest"}:
        assert (answer.status_code, answer.json()) == (200, {"attachments": []})
    else:
        assert (answer.status_code, message(answer)) == (404, NO_RESOURCE)
    assert answer.headers["OpenStack-API-Version"].endswith(shown)
    assert answer.headers["Vary"] == "OpenStack-API-Version"


def test_complete_begins_at_3_44(api: Api) -> None:
    attachment = unknown_id()
    body = {"os-complete": None}
    early = api.call("POST", f"/attachments/{attachment}/action", body, version="3.43")
    assert (early.status_code, message(early)) == (404, NO_RESOURCE)
    then = api.call("POST", f"/attachments/{attachment}/action", body, version="3.44")
    text = f"Volume attachment could not be found with filter: attachment_id = {attachment}."
    assert (then.status_code, message(then)) == (404, text)


@pytest.mark.parametrize(("version", "header"), [("3.99", "volume 3.99"), ("3.72", "volume 3.72"), ("2.0", None)])
def test_an_unknown_microversion(api: Api, version: str, header: str | None) -> None:
    answer = api.call("GET", "/attachments", version=version)
    text = f"Version {version} is not supported by the API. Minimum is 3.0 and maximum is 3.71."
    assert (answer.status_code, answer.json()) == (406, {"computeFault": {"code": 406, "message": text}})
    assert answer.headers.get("OpenStack-API-Version") == header


def test_volume_fields_by_microversion(api: Api) -> None:
    volume = api.volume(shared_targets=None)
    asked = ("shared_targets", "service_uuid", "volume_type_id", "consumes_quota", "group_id", "provider_id")
    seen = {}
    for version in ("3.0", "3.47", "3.48", "3.63", "3.65", "3.69"):
        shown = api.shown(volume, version)
        seen[version] = [key for key in asked if key in shown]
    assert seen == {
        "3.0": [],
        "3.47": ["group_id", "provider_id"],
        "3.48": ["shared_targets", "service_uuid", "group_id", "provider_id"],
        "3.63": ["shared_targets", "service_uuid", "volume_type_id", "group_id", "provider_id"],
        "3.65": list(asked),
        "3.69": list(asked),
    }
    assert api.shown(volume, "3.68")["shared_targets"] is True
    assert api.shown(volume, "3.69")["shared_targets"] is None
    assert api.shown(api.volume(shared_targets=False), "3.48")["shared_targets"] is False


MODE = "Invalid input for field/attribute mode. Value: {}. {}"
INSTANCE = "Invalid input for field/attribute instance_uuid. Value: {}. {}"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"mode": None}, MODE.format(None, "None is not of type 'string'")),
        ({"mode": "bogus"}, MODE.format("bogus", "'bogus' is not one of ['rw', 'ro']")),
        ({"instance_uuid": None}, INSTANCE.format(None, "None is not of type 'string'")),
        ({"instance_uuid": "vm-1"}, INSTANCE.format("vm-1", "'vm-1' is not a 'uuid'")),
        (
            {"connector": "str"},
            "Invalid input for field/attribute connector. Value: str. 'str' is not of type 'object', 'null'",
        ),
    ],
)
def test_what_the_schema_refuses(api: Api, more: dict[str, Any], text: str) -> None:
    volume = api.volume()
    answer = api.call("POST", "/attachments", {"attachment": {"volume_uuid": volume, **more}})
    assert (answer.status_code, message(answer)) == (400, text)
    assert api.states(volume) == ("available", "detached", [])


def test_mode_begins_at_3_54(api: Api) -> None:
    volume = api.volume()
    wanted = {"volume_uuid": volume, "mode": "ro"}
    early = api.call("POST", "/attachments", {"attachment": wanted}, version="3.53")
    assert (early.status_code, message(early)) == (
        400,
        (
            f"Invalid input for field/attribute attachment. Value: {wanted}. Additional properties are not allowed "
            "('mode' was unexpected)"
        ),
    )
    then = api.call("POST", "/attachments", {"attachment": wanted}, version="3.54")
    assert then.json()["attachment"]["attach_mode"] == "ro"


def test_an_empty_connector_in_create_is_none(api: Api) -> None:
    volume = api.volume()
    assert api.create(volume, connector={}).status_code == 200
    assert api.states(volume) == ("reserved", "detached", ["reserved"])


def test_what_is_not_there(api: Api) -> None:
    volume = unknown_id()
    text = f"Volume {volume} could not be found."
    for answer in (
        api.call("GET", f"/volumes/{volume}"),
        api.call("GET", f"/volumes/{volume}/encryption"),
        api.call("DELETE", f"/volumes/{volume}"),
        api.create(volume),
        api.action(volume, "os-reserve"),
        api.attach(volume),
    ):
        assert (answer.status_code, answer.json()) == (404, {"itemNotFound": {"code": 404, "message": text}})
    text = "Volume attachment could not be found with filter: attachment_id = abc."
    for answer in (
        api.call("GET", "/attachments/abc"),
        api.update("abc"),
        api.complete("abc"),
        api.delete("abc"),
    ):
        assert (answer.status_code, message(answer)) == (404, text)
    for path in ("/demo/volumes", "/snapshots", "/volumes/x/y/z"):
        answer = api.call("GET", path)
        assert (answer.status_code, message(answer)) == (404, NO_RESOURCE)


def test_malformed_requests(api: Api) -> None:
    volume = api.volume()
    unknown = api.action(volume, "os-bogus")
    text = "There is no such action: os-bogus. Verify the request body and Content-Type header and try again."
    assert (unknown.status_code, message(unknown)) == (400, text)
    foreign = api.call("GET", f"/ffff/volumes/{volume}")
    assert (foreign.status_code, message(foreign)) == (400, "Malformed request url")
    assert api.call("GET", f"/{PROJECT}/volumes/{volume}").status_code == 200
    headers = {"X-Auth-Token": "a:b", "OpenStack-API-Version": "volume 3.71"}
    broken = api.session.post("http://sim/v3/attachments", data=b"{", headers=headers)
    assert (broken.status_code, message(broken)) == (400, "Malformed request body")
    assert api.session.get("http://sim/v3/volumes").status_code == 401


def test_every_answer_has_a_request_id(api: Api) -> None:
    seen = set()
    for answer in (api.call("GET", "/volumes"), api.call("GET", "/volumes/x"), api.delete("abc")):
        assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["x-openstack-request-id"])
        assert answer.headers["x-compute-request-id"] == answer.headers["x-openstack-request-id"]
        seen.add(answer.headers["x-openstack-request-id"])
    assert len(seen) == 3


def test_attachment_filters(api: Api) -> None:
    first, second, third = api.volume(), api.volume(), api.volume()
    one = api.created(first, instance_uuid=VM)
    two = api.created(second, host="host-a", instance_uuid=OTHER_VM)
    three = api.created(third)

    def listed(query: str, **more: Any) -> list[str]:
        answer = api.call("GET", f"/attachments{query}", **more)
        assert answer.status_code == 200
        return [row["id"] for row in answer.json()["attachments"]]

    assert listed("") == [three, two, one]
    assert listed("?all_tenants=1&limit=1") == [three]
    assert listed(f"?volume_id={first}") == [one]
    assert listed(f"?instance_id={OTHER_VM}") == [two]
    assert listed(f"?instance_uuid={OTHER_VM}") == [two]
    assert listed(f"?instance_id={OTHER_VM}&volume_id={first}") == []
    assert listed("?attach_status=reserved") == [three, one]
    assert listed("?status=reserved") == []
    assert listed("?bogus=x") == []
    assert listed("?volume_id=not-a-uuid") == []
    assert listed(f"?volume_id={first}", project="ffff") == []
    assert listed(f"?all_tenants=1&volume_id={first}", project="ffff") == [one]
    assert api.call("GET", f"/attachments/{one}", project="ffff").status_code == 200
    detail = api.call("GET", f"/attachments/detail?volume_id={second}").json()["attachments"]
    assert detail == [api.show(two)]
    summary = api.call("GET", f"/attachments?volume_id={first}").json()["attachments"]
    assert summary == [{"id": one, "status": "reserved", "instance": VM, "volume_id": first}]


def test_volume_filters_and_the_life_of_a_volume(api: Api) -> None:
    answer = api.call("POST", "/volumes", {"volume": {"size": 2, "name": "data"}})
    assert answer.status_code == 202
    body = answer.json()["volume"]
    assert (body["status"], body["size"], body["os-vol-tenant-attr:tenant_id"]) == ("creating", 2, PROJECT)
    assert api.shown(body["id"])["status"] == "available"
    other = api.volume(name="other", project_id="ffff")
    assert [row["id"] for row in api.call("GET", "/volumes?name=data").json()["volumes"]] == [body["id"]]
    assert api.call("GET", "/volumes/detail?name=other").json() == {"volumes": []}
    found = api.call("GET", "/volumes/detail?name=other&all_tenants=1").json()["volumes"]
    assert [row["id"] for row in found] == [other]
    assert set(api.call("GET", "/volumes").json()["volumes"][0]) == {"id", "name", "links"}
    api.created(body["id"])
    refused = api.call("DELETE", f"/volumes/{body['id']}")
    assert refused.status_code == 400
    assert message(refused) == (
        "Invalid volume: Volume status must be available or error or error_restoring or error_extending or "
        "error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, "
        "or be disassociated from snapshots after volume transfer."
    )
    assert api.call("DELETE", f"/volumes/{other}", project="ffff").status_code == 202
    assert api.call("GET", f"/volumes/{other}").status_code == 404


def test_facts_of_a_volume_reach_its_connection(api: Api) -> None:
    volume = api.volume(discard=True, logical_block_size=512, physical_block_size=4096, names_identity=True)
    info = api.create(volume, host="host-a").json()["attachment"]["connection_info"]
    assert (info["discard"], info["logical_block_size"], info["physical_block_size"]) == (True, "512", "4096")
    assert info["wwn"] == api.book()["volumes"][volume]["wwn"]
    rbd = api.volume(protocol="rbd")
    info = api.create(rbd, host="host-a").json()["attachment"]["connection_info"]
    assert (info["name"], info["auth_username"], info["driver_volume_type"]) == (
        f"volumes/volume-{rbd}",
        "cinder",
        "rbd",
    )
    assert len(info["hosts"]) == len(info["ports"]) == 3
    assert not api.exported(rbd)


def python_client(api: Api, version: str = "3.71") -> Any:
    auth = noauth.CinderNoAuthPlugin("tester", PROJECT, endpoint="http://sim/v3")
    return cinder_client.Client(version, session=session.Session(auth=auth, session=api.session))


def test_cinderclient_attaches_and_detaches(api: Api) -> None:
    volume = api.volume(name="data")
    client = python_client(api)
    assert [row.id for row in client.volumes.list(search_opts={"name": "data", "all_tenants": 1})] == [volume]
    created = client.attachments.create(volume, None, VM, "rw")
    assert created["status"] == "reserved"
    updated = client.attachments.update(created["id"], connector())
    assert updated.connection_info["driver_volume_type"] == "iscsi"
    assert client.attachments.complete(created["id"]).status_code == 204
    listed = client.attachments.list(search_opts={"volume_id": volume, "all_tenants": 1})
    assert [(row.id, row.status) for row in listed] == [(created["id"], "attached")]
    assert client.volumes.get(volume).attachments[0]["server_id"] == VM
    with pytest.raises(cinder_errors.ClientException, match=re.escape(GENERIC)) as caught:
        client.attachments.delete(created["id"])
    assert caught.value.code == 500
    assert caught.value.request_id.startswith("req-")
    api.session.headers["X-Service-Roles"] = "service"
    client.attachments.delete(created["id"])
    with pytest.raises(cinder_errors.NotFound):
        client.attachments.show(created["id"])


def test_cinderclient_legacy(api: Api) -> None:
    volume = api.volume()
    client = python_client(api)
    client.volumes.reserve(volume)
    with pytest.raises(cinder_errors.BadRequest, match="the status is attaching"):
        client.volumes.reserve(volume)
    info = client.volumes.initialize_connection(volume, connector())
    assert info["driver_volume_type"] == "iscsi"
    client.volumes.attach(volume, VM, "/dev/vdb", mode="rw")
    client.volumes.begin_detaching(volume)
    client.volumes.roll_detaching(volume)
    client.volumes.begin_detaching(volume)
    client.volumes.terminate_connection(volume, connector())
    client.volumes.detach(volume, api.rows(volume)[0]["id"])
    client.volumes.unreserve(volume)
    assert api.states(volume) == ("available", "detached", [])
    assert client.volumes.get_encryption_metadata(volume)["encryption_key_id"] is None


@pytest.mark.parametrize("url", ["http://sim/", "http://sim/v3/"])
def test_keystoneauth_discovers_the_microversions(api: Api, url: str) -> None:
    auth = token_endpoint.Token(endpoint="http://sim/v3", token=f"tester:{PROJECT}")
    found = discover.Discover(session.Session(auth=auth, session=api.session), url)
    (version,) = found.version_data()
    assert (version["url"], version["min_microversion"], version["max_microversion"]) == (
        "http://sim/v3/",
        (3, 0),
        (3, 71),
    )


def test_the_client_asks_the_server_for_its_version(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(url: str, **_: Any) -> requests.Response:
        return api.session.get(url)

    monkeypatch.setattr("cinderclient.client.requests.get", get)
    for url in ("http://sim/v3", f"http://sim/v3/{PROJECT}", "http://sim/"):
        lowest, highest = cinder_client.get_server_version(url)
        assert (lowest.get_string(), highest.get_string()) == ("3.0", "3.71")
