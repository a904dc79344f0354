"""The Cinder client over a scripted transport: versions, retries, headers, time-outs, logs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter

from tether.adapters.cinder.session import open_cinder
from tether.errors import ConfigError, FinalError, UncertainError
from tether.settings import Settings

PROJECT = "0123456789abcdef0123456789abcdef"
VOLUME = "8f3c0b7e-5d0c-4b39-9f5e-0a5bb2f1c9d1"
ATTACHMENT = "37e134fd-47bc-4de0-8ebd-0ae835e98f6d"
SETTINGS = Settings(endpoint_override="http://cinder.example/v3/", noauth_project=PROJECT, request_timeout=7.0)
SHOWN = {"volume": {"id": VOLUME, "status": "available", "size": 1}}

# openstacksdk warns of its own default, whatever is configured.
pytestmark = pytest.mark.filterwarnings("ignore:Support for InfluxDB")

Answer = tuple[int, Any] | Exception


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Script(BaseAdapter):
    """Answers GET /v3/ with one version, and every other request with the next of its answers."""

    def __init__(self, *answers: Answer, version: str = "3.71") -> None:
        super().__init__()
        self.answers = list(answers)
        self.versions: Answer = (200, {"versions": [{"id": "v2.0", "version": ""}, {"id": "v3.0", "version": version}]})
        self.asked: list[requests.PreparedRequest] = []
        self.timeouts: list[object] = []

    def send(self, request: requests.PreparedRequest, *_args: Any, **options: Any) -> requests.Response:
        self.timeouts.append(options["timeout"])
        if request.path_url == "/v3/":
            answer = self.versions
        else:
            self.asked.append(request)
            answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code, body = answer
        text = body if isinstance(body, str) else json.dumps(body)
        response.raw = io.BytesIO(text.encode())
        response.headers["Content-Type"] = "application/json"
        response.headers["x-openstack-request-id"] = f"req-{len(self.asked)}"
        response.request, response.url = request, request.url or ""
        return response

    def close(self) -> None:
        pass

    @property
    def last(self) -> requests.PreparedRequest:
        return self.asked[-1]


def connection_info(**extra: Any) -> dict[str, Any]:
    info = {"driver_volume_type": "iscsi", "target_portal": "10.0.0.1:3260", **extra}
    return {"attachment": {"id": ATTACHMENT, "status": "reserved", "connection_info": info}}


@pytest.mark.parametrize(("server", "spoken"), [("3.44", "3.44"), ("3.71", "3.71"), ("3.100", "3.71"), ("3.9", "3.9")])
def test_the_highest_common_microversion_is_asked_for_once(server: str, spoken: str) -> None:
    script = Script((200, SHOWN), (200, SHOWN), version=server)
    cinder = open_cinder(SETTINGS, transport=script)
    assert cinder.identity().microversion == spoken
    cinder.show_volume(VOLUME)
    cinder.show_volume(VOLUME)
    assert len(script.timeouts) == 3
    assert script.last.headers["OpenStack-API-Version"] == f"volume {spoken}"
    assert script.last.path_url == f"/v3/{PROJECT}/volumes/{VOLUME}"
    assert (cinder.identity().endpoint, cinder.identity().project_id) == ("http://cinder.example/v3", PROJECT)


def test_the_versions_are_asked_for_again_after_a_failure() -> None:
    script = Script((200, SHOWN))
    versions, script.versions = script.versions, (503, "")
    cinder = open_cinder(SETTINGS, transport=script, clock=FakeClock())
    with pytest.raises(UncertainError):
        cinder.identity()
    script.versions = versions
    assert cinder.show_volume(VOLUME).id == VOLUME


def test_every_request_has_the_timeout_and_the_request_id() -> None:
    script = Script((200, SHOWN), (202, ""))
    cinder = open_cinder(SETTINGS, global_request_id="req-of-the-job", transport=script)
    cinder.show_volume(VOLUME)
    cinder.reserve(VOLUME)
    assert script.timeouts == [7.0, 7.0, 7.0]
    assert [request.headers["X-OpenStack-Request-ID"] for request in script.asked] == ["req-of-the-job"] * 2


def test_cinders_own_request_id_is_never_sent_back() -> None:
    script = Script((200, SHOWN), (200, SHOWN))
    cinder = open_cinder(SETTINGS, transport=script)
    cinder.show_volume(VOLUME)
    cinder.show_volume(VOLUME)
    first, second = (request.headers["X-OpenStack-Request-ID"] for request in script.asked)
    assert first == second
    assert len(first) == len("req-") + 36


@pytest.mark.parametrize("service_token", [True, False])
def test_noauth_sends_the_service_role_only_if_asked_to(service_token: bool) -> None:
    script = Script((200, SHOWN))
    cinder = open_cinder(SETTINGS.but(send_service_user_token=service_token), transport=script)
    cinder.show_volume(VOLUME)
    assert script.last.headers.get("X-Service-Roles") == ("service" if service_token else None)
    assert script.last.headers["X-Auth-Token"] == f"admin:{PROJECT}"
    assert cinder.identity().service_token is service_token


UNUSABLE: list[Answer] = [
    (500, {"computeFault": {"code": 500, "message": "erred"}}),
    (503, "<html>busy</html>"),
    (200, ""),
]
BROKEN: list[Answer] = [
    requests.ConnectionError("('Connection aborted.', RemoteDisconnected())"),
    requests.ReadTimeout("read timed out"),
    requests.exceptions.ChunkedEncodingError("cut"),
]


@pytest.mark.parametrize("answer", UNUSABLE + BROKEN)
def test_a_read_is_repeated(answer: Answer) -> None:
    clock = FakeClock()
    script = Script(answer, answer, (200, SHOWN))
    assert open_cinder(SETTINGS, transport=script, clock=clock).show_volume(VOLUME).id == VOLUME
    assert clock.waits == [0.2, 0.5]


def test_a_read_is_given_up_after_four_tries() -> None:
    script = Script(*UNUSABLE[:1] * 9)
    with pytest.raises(UncertainError):
        open_cinder(SETTINGS, transport=script, clock=FakeClock()).show_volume(VOLUME)
    assert len(script.asked) == 4


def test_a_slow_read_is_not_repeated_past_the_timeout() -> None:
    clock = FakeClock()

    class Slow(Script):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
            if request.path_url != "/v3/":
                clock.now += 7.0
            return super().send(request, *args, **options)

    script = Slow(requests.ReadTimeout("slow"), (200, SHOWN))
    with pytest.raises(UncertainError):
        open_cinder(SETTINGS, transport=script, clock=clock).show_volume(VOLUME)
    assert len(script.asked) == 1


def test_a_refusal_is_not_repeated() -> None:
    script = Script((400, {"badRequest": {"code": 400, "message": "no"}}))
    with pytest.raises(FinalError):
        open_cinder(SETTINGS, transport=script).show_volume(VOLUME)
    assert len(script.asked) == 1


WRITES: list[Callable[[Any], object]] = [
    lambda cinder: cinder.create_attachment(VOLUME, owner="", mode="rw"),
    lambda cinder: cinder.update_attachment(ATTACHMENT, {}),
    lambda cinder: cinder.complete_attachment(ATTACHMENT),
    lambda cinder: cinder.delete_attachment(ATTACHMENT),
    lambda cinder: cinder.reserve(VOLUME),
    lambda cinder: cinder.unreserve(VOLUME),
    lambda cinder: cinder.initialize_connection(VOLUME, {}),
    lambda cinder: cinder.terminate_connection(VOLUME, {}),
    lambda cinder: cinder.attach(VOLUME, owner=VOLUME, mountpoint="/dev/vdb", mode="rw"),
    lambda cinder: cinder.detach(VOLUME, ATTACHMENT),
    lambda cinder: cinder.begin_detaching(VOLUME),
    lambda cinder: cinder.roll_detaching(VOLUME),
]


@pytest.mark.parametrize("write", range(len(WRITES)))
@pytest.mark.parametrize("answer", UNUSABLE[:2] + BROKEN)
def test_a_write_is_sent_once(write: int, answer: Answer) -> None:
    script = Script(answer, (200, {}))
    with pytest.raises(UncertainError):
        WRITES[write](open_cinder(SETTINGS, transport=script))
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("write", "answer"),
    [
        (0, (200, "")),
        (0, (200, {"attachment": {}})),
        (1, (200, "")),
        (1, (200, connection_info() | {"attachment": {"id": ATTACHMENT, "connection_info": {}}})),
        (1, (200, {"attachment": {"id": ATTACHMENT, "connection_info": None}})),
        (1, (200, {"attachment": {"id": ATTACHMENT, "connection_info": {"target_portal": "no protocol"}}})),
        (3, (200, "<html>welcome</html>")),
        (3, (200, "")),
        (6, (200, "")),
        (6, (200, {"connection_info": {}})),
    ],
)
def test_a_success_without_its_content_is_uncertain(write: int, answer: Answer) -> None:
    with pytest.raises(UncertainError):
        WRITES[write](open_cinder(SETTINGS, transport=Script(answer)))


@pytest.mark.parametrize(("version", "sent"), [("3.53", None), ("3.54", "ro")])
def test_the_mode_is_sent_where_cinder_knows_it(version: str, sent: str | None) -> None:
    script = Script((200, {"attachment": {"id": ATTACHMENT}}), version=version)
    cinder = open_cinder(SETTINGS, transport=script)
    assert cinder.create_attachment(VOLUME, owner="", mode="ro") == ATTACHMENT
    body = json.loads(script.last.body or "")["attachment"]
    assert body.get("mode") == sent
    assert body["connector"] is None
    assert "instance_uuid" not in body


@pytest.mark.parametrize("version", ["3.0", "3.26"])
def test_a_cinder_too_old_for_attachments_is_a_configuration_error(version: str) -> None:
    script = Script(version=version)
    with pytest.raises(ConfigError):
        open_cinder(SETTINGS, transport=script).list_attachments(VOLUME)
    assert script.asked == []


def test_a_list_is_asked_for_every_project_and_filtered_again() -> None:
    row = {"id": ATTACHMENT, "volume_id": VOLUME, "status": "reserved", "instance": None}
    script = Script((200, {"attachments": [row, row | {"id": "other", "volume_id": "another"}]}))
    (found,) = open_cinder(SETTINGS, transport=script).list_attachments(VOLUME)
    assert (found.id, found.owner, found.mode, found.connection) == (ATTACHMENT, "", "", None)
    assert script.last.path_url == f"/v3/{PROJECT}/attachments?all_tenants=1&volume_id={VOLUME}"


def test_a_name_must_be_the_whole_name() -> None:
    """A deployment may let the name filter match parts (resource_filters.json)."""
    named = [
        {"id": key, "name": name, "status": "available", "size": 1} for key, name in (("a", "disk"), ("b", "disk2"))
    ]
    script = Script((200, {"volumes": named}))
    assert open_cinder(SETTINGS, transport=script).find_volume("disk").id == "a"
    assert script.last.path_url == f"/v3/{PROJECT}/volumes/detail?name=disk"


def test_an_endpoint_of_another_api() -> None:
    with pytest.raises(ConfigError, match="/v2"):
        open_cinder(SETTINGS.but(endpoint_override="http://cinder.example/v2"), transport=Script()).identity()


@pytest.mark.parametrize("body", ["<html>Welcome to nginx</html>", '{"versions": []}', "[]"])
def test_a_server_that_is_no_cinder(body: str) -> None:
    script = Script()
    script.versions = (200, body)
    with pytest.raises(UncertainError):
        open_cinder(SETTINGS, transport=script, clock=FakeClock()).identity()


def test_one_log_line_a_call_and_no_secret_in_any(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "correct-horse-battery"
    script = Script(
        (200, connection_info(auth_method="CHAP", auth_username="u", auth_password=secret)),
        (409, {"conflictingRequest": {"code": 409, "message": f"no: 'auth_password': '{secret}'"}}),
    )
    cinder = open_cinder(SETTINGS, transport=script)
    cinder.identity()
    caplog.clear()
    connection = cinder.update_attachment(ATTACHMENT, {"initiator": "iqn.a", "auth_password": secret})
    with pytest.raises(FinalError) as caught:
        cinder.delete_attachment(ATTACHMENT)
    lines = [item.getMessage() for item in caplog.records if item.name == "tether.adapters.cinder.client"]
    assert len(lines) == 2
    assert lines[0].startswith(f"cinder: update attachment {ATTACHMENT}: ok in ")
    assert lines[0].endswith("(req-1)")
    assert lines[1].startswith(f"cinder: delete attachment {ATTACHMENT}: final in ")
    assert connection.auth
    assert secret not in caplog.text + repr(connection) + str(caught.value)


def test_a_success_without_its_content_is_logged_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cinder = open_cinder(SETTINGS, transport=Script((200, {"attachment": {"id": ATTACHMENT, "connection_info": {}}})))
    with pytest.raises(UncertainError, match="no connection_info"):
        cinder.update_attachment(ATTACHMENT, {})
    assert f"update attachment {ATTACHMENT}: uncertain in" in caplog.text


def test_a_call_that_is_interrupted_is_not_logged_as_ok(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    class Interrupting(Script):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
            if request.path_url != "/v3/":
                raise KeyboardInterrupt
            return super().send(request, *args, **options)

    with pytest.raises(KeyboardInterrupt):
        open_cinder(SETTINGS, transport=Interrupting()).reserve(VOLUME)
    assert f"reserve volume {VOLUME}: interrupted in" in caplog.text


KEYSTONE = "http://keystone.example/v3"
CLOUDS = """
clouds:
  mine: &cloud
    region_name: R1
    auth_type: v3token
    auth: {auth_url: %(url)s, token: user-secret, project_id: %(project)s}
  service:
    <<: *cloud
    auth: {auth_url: %(url)s, token: service-secret, project_id: %(project)s}
"""


class Keystone(Script):
    """The same, and Keystone's part before it: each login gets a token named after what was shown."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        if "keystone.example" not in (request.url or ""):
            return super().send(request, *args, **options)
        response = requests.Response()
        response.status_code = 200
        response.request, response.url = request, request.url or ""
        response.headers["Content-Type"] = "application/json"
        version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": f"{KEYSTONE}/"}]}
        body: dict[str, Any] = {"version": version}
        if request.method == "POST":
            shown = json.loads(request.body or "")["auth"]["identity"]["token"]["id"]
            response.status_code = 201
            response.headers["X-Subject-Token"] = f"token-for-{shown}"
            endpoints = [
                {"id": region, "interface": "public", "region": region, "region_id": region, "url": url}
                for region, url in (("R0", "http://wrong.example/v3"), ("R1", f"http://cinder.example/v3/{PROJECT}"))
            ]
            body = {
                "token": {
                    "methods": ["token"],
                    "expires_at": "2999-01-01T00:00:00.000000Z",
                    "issued_at": "2020-01-01T00:00:00.000000Z",
                    "user": {"id": "u", "name": "u", "domain": {"id": "default", "name": "Default"}},
                    "project": {"id": PROJECT, "name": "p", "domain": {"id": "default", "name": "Default"}},
                    "roles": [],
                    "catalog": [{"id": "c", "type": "volumev3", "name": "cinderv3", "endpoints": endpoints}],
                }
            }
        response.raw = io.BytesIO(json.dumps(body).encode())
        return response


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(CLOUDS % {"url": KEYSTONE, "project": PROJECT})
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    monkeypatch.delenv("OS_CLOUD", raising=False)


@pytest.mark.usefixtures("clouds")
def test_keystone_with_a_service_token() -> None:
    script = Keystone((200, SHOWN))
    settings = Settings(os_cloud="mine", send_service_user_token=True, service_cloud="service", request_timeout=7.0)
    cinder = open_cinder(settings, transport=script)
    assert cinder.show_volume(VOLUME).id == VOLUME
    assert script.last.url == f"http://cinder.example/v3/{PROJECT}/volumes/{VOLUME}"
    assert script.last.headers["X-Auth-Token"] == "token-for-user-secret"
    assert script.last.headers["X-Service-Token"] == "token-for-service-secret"
    assert script.timeouts == [7.0, 7.0]
    assert (cinder.identity().project_id, cinder.identity().service_token) == (PROJECT, True)


@pytest.mark.usefixtures("clouds")
def test_keystone_without_a_service_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLOUD", "mine")
    script = Keystone((200, SHOWN))
    open_cinder(Settings(), transport=script).show_volume(VOLUME)
    assert script.last.headers["X-Auth-Token"] == "token-for-user-secret"
    assert "X-Service-Token" not in script.last.headers


@pytest.mark.usefixtures("clouds")
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(os_cloud="nowhere"), "nowhere"),
        (Settings(), "auth"),
        (Settings(os_cloud="mine", send_service_user_token=True), "service_cloud"),
        (Settings(os_cloud="mine", send_service_user_token=True, service_cloud="nowhere"), "nowhere"),
    ],
)
def test_incomplete_credentials(settings: Settings, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        open_cinder(settings)
    assert caught.value.hint


def test_a_broken_clouds_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Openstacksdk skips such a file with a warning, so the cloud is what is missing."""
    path = tmp_path / "clouds.yaml"
    path.write_text("clouds: [")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match="mine"):
        open_cinder(Settings(os_cloud="mine"))


def test_importing_it_imports_no_client_library() -> None:
    program = (
        "import sys, tether.adapters.cinder.session\n"
        "heavy = {'cinderclient', 'keystoneauth1', 'openstack', 'requests', 'oslo_utils'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_noauth_imports_no_openstacksdk() -> None:
    program = (
        "import sys\n"
        "from tether.adapters.cinder.session import open_cinder\n"
        "from tether.settings import Settings\n"
        "open_cinder(Settings(endpoint_override='http://cinder.example/v3'))\n"
        "assert 'openstack' not in sys.modules and 'eventlet' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
