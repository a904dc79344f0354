"""Answers of whatever stands where Cinder should: any status, type and body is an error with a hint, never a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st
from requests.adapters import BaseAdapter

from tests.report import counted
from tether.adapters.cinder.client import CinderClient
from tether.adapters.cinder.session import open_cinder
from tether.clock import SystemClock
from tether.errors import TetherError
from tether.settings import Settings

VOLUME = "5b7e2d1c-0000-4000-8000-000000000001"
VERSIONS = {"versions": [{"id": "v3.0", "version": "3.71"}]}
GOOD = {
    "volume": {"id": VOLUME, "name": "v", "status": "available", "size": 1, "attachments": []},
    "attachment": {"id": VOLUME, "volume_id": VOLUME, "status": "attached", "connection_info": {}},
}


class Still(SystemClock):
    """Waits for nothing."""

    def wait(self, seconds: float, wake: Any = None) -> None:
        """Return at once."""


class Answers(BaseAdapter):
    """Gives one answer to everything but the question for the versions."""

    def __init__(self, status: int, kind: str, body: bytes) -> None:
        super().__init__()
        self.answer = status, kind, body

    def send(self, request: requests.PreparedRequest, **_more: Any) -> requests.Response:
        versions = str(request.url).endswith("/v3/")
        found = requests.Response()
        status, kind, body = (200, "application/json", json.dumps(VERSIONS).encode()) if versions else self.answer
        found.status_code, found.headers["content-type"], found._content = status, kind, body
        found.request, found.url, found.reason = request, str(request.url), "said"
        return found

    def close(self) -> None:
        """Nothing is open."""


def client(status: int, kind: str, body: bytes) -> CinderClient:
    settings = Settings(endpoint_override="http://cinder/v3")
    return open_cinder(settings, transport=Answers(status, kind, body), clock=Still())


VERBS = {
    "show_volume": lambda c: c.show_volume(VOLUME),
    "find_volume": lambda c: c.find_volume("v"),
    "list_attachments": lambda c: c.list_attachments(VOLUME),
    "show_attachment": lambda c: c.show_attachment(VOLUME),
    "create_attachment": lambda c: c.create_attachment(VOLUME, owner="", mode="rw"),
    "update_attachment": lambda c: c.update_attachment(VOLUME, {"host": "h"}),
    "delete_attachment": lambda c: c.delete_attachment(VOLUME),
    "show_encryption": lambda c: c.show_encryption(VOLUME),
    "initialize_connection": lambda c: c.initialize_connection(VOLUME, {"host": "h"}),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(VOLUME),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "status", "volume", "volumes", "attachment", "attachments"]), inner)
    ),
    max_leaves=8,
)
bodies = st.one_of(
    st.binary(max_size=40),
    values.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda name, key, value: json.dumps({name: GOOD[name] | {key: value}, f"{name}s": [GOOD[name]]}).encode(),
        st.sampled_from(sorted(GOOD)),
        st.sampled_from(["id", "status", "size", "name", "attachments", "connection_info", "metadata", "volume_id"]),
        values,
    ),
    st.integers(0, 60).map(lambda size: json.dumps(GOOD).encode()[:size]),
    st.just(json.dumps({"volumes": [None] * 2000, "attachments": [{}] * 2000}).encode()),
    st.just(b"[" * 20_000),
)


@settings(max_examples=counted(200, 10_000), deadline=None, print_blob=True)
@given(
    verb=st.sampled_from(sorted(VERBS)),
    status=st.sampled_from([200, 202, 204, 300, 400, 401, 403, 404, 409, 413, 418, 429, 500, 502, 503, 504, 599, 999]),
    kind=st.sampled_from(["application/json", "text/html", "", "application/json; charset=nope", "image/png"]),
    body=bodies,
)
@example("show_volume", 200, "application/json", b"[" * 20_000)
@example("create_attachment", 200, "application/json", b'{"attachment": {"id": null}}')
@example("show_volume", 200, "application/json", json.dumps({"volume": GOOD["volume"] | {"id": "another"}}).encode())
def test_any_answer_is_a_value_or_an_error_that_says_what_to_do(verb: str, status: int, kind: str, body: bytes) -> None:
    try:
        found = VERBS[verb](client(status, kind, body))
    except TetherError as error:
        told(error)
        return
    if verb == "show_volume":
        assert found.id == VOLUME
    if verb == "create_attachment":
        assert found not in {"None", ""}


def told(error: TetherError) -> None:
    assert error.exit_code in (2, 3, 6)
    assert error.hint
    assert "\n" not in error.message
    assert len(error.message) < 1000


@pytest.mark.parametrize("kind", ["volume", "attachment"])
def test_another_object_than_the_one_that_was_asked_for_is_no_answer(kind: str) -> None:
    other = GOOD[kind] | {"id": VOLUME.replace("1c", "2d")}
    with pytest.raises(TetherError, match="gave no usable answer") as caught:
        VERBS[f"show_{kind}"](client(200, "application/json", json.dumps({kind: other}).encode()))
    assert caught.value.code == "uncertain"
