"""The map from the client libraries' exceptions to tether's tree."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import requests

from tether.adapters.cinder.errors import KINDS, Call, Kind, first_line, translate
from tether.errors import ConfigError, FinalError, NotFound, TetherError, UncertainError

ID = "8f3c0b7e-5d0c-4b39-9f5e-0a5bb2f1c9d1"
OTHER_ID = "11111111-2222-4333-8444-555555555555"
URL = "http://cinder.example:8776/v3"
GUARD = "ConflictNovaUsingAttachment: Detach volume from instance  using the Compute API"


def call(verb: str = "delete", kind: str = "attachment", *, service_token: bool = False) -> Call:
    return Call(verb, kind, ID, URL, service_token)


def modules() -> Iterator[ModuleType]:
    for name in ("cinderclient.exceptions", "requests.exceptions", "openstack.exceptions"):
        yield importlib.import_module(name)
    for package_name in ("keystoneauth1.exceptions", "openstack.config"):
        package = importlib.import_module(package_name)
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{package_name}."):
            yield importlib.import_module(info.name)


def exception_classes() -> list[type[Exception]]:
    return sorted(
        {
            item
            for module in modules()
            for item in vars(module).values()
            if isinstance(item, type)
            and issubclass(item, Exception)
            and not issubclass(item, Warning)
            and item.__module__ == module.__name__
        },
        key=lambda item: f"{item.__module__}.{item.__qualname__}",
    )


def an_instance(cls: type[Exception]) -> Exception:
    """Make one, whatever its constructor wants."""
    from cinderclient.api_versions import APIVersion

    response = requests.Response()
    response.status_code = 503
    response.url = URL
    receipt = {"receipt": {"methods": [], "expires_at": "2030-01-01T00:00:00Z"}, "required_auth_methods": []}
    particular: dict[str, tuple[object, ...]] = {
        "MissingAuthMethods": (SimpleNamespace(headers={}, json=lambda: receipt),),
        "MethodNotSupported": (object, "GET"),
        "UnsupportedAttribute": ("mode", APIVersion("3.54"), None),
        "JSONDecodeError": ("text", "document", 0),
        "InvalidResponse": (response,),
        "UnknownConnectionError": ("text", OSError()),
        "ImpliedMinVersionMismatch": ("text", "1", "2"),
        "ImpliedMaxVersionMismatch": ("text", "1", "2"),
        "ImpliedVersionMismatch": ("text", "1", "2"),
        "VersionNotFoundForAPIMethod": ("3.0", "create"),
        "MissingRequiredOptions": ([],),
    }
    if cls.__name__ in particular:
        return cls(*particular[cls.__name__])
    if KINDS.get(f"{cls.__module__}.{cls.__qualname__}") is Kind.CINDER:
        return cls(getattr(cls, "http_status", 500))
    try:
        return cls("text")
    except TypeError:
        return cls("text", "more")


@pytest.mark.parametrize("cls", exception_classes(), ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_every_exception_class_is_mapped(cls: type[Exception]) -> None:
    kind = KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
    assert kind is not None, "a class that the map does not name: decide what it means"
    known = translate(an_instance(cls), call())
    expected: dict[Kind, tuple[type[TetherError], ...]] = {
        Kind.CINDER: (NotFound, ConfigError, FinalError, UncertainError),
        Kind.KEYSTONE: (ConfigError, UncertainError),
        Kind.CONFIG: (ConfigError,),
        Kind.UNREACHABLE: (UncertainError,),
        Kind.UNCERTAIN: (UncertainError,),
    }
    assert type(known) in expected[kind]
    assert known.hint
    assert ID in known.message
    assert known.resource == f"attachment {ID}"


@pytest.mark.parametrize("code", range(400, 600))
def test_only_a_4xx_of_cinder_proves_that_nothing_happened(code: int) -> None:
    from cinderclient.exceptions import ClientException

    known = translate(ClientException(code, message="text"), call())
    if code in (401, 403, 404, 406, 407):
        assert type(known) is ConfigError  # a 404 that names no object is one of a whole API
    elif code < 500 and code != 408:
        assert type(known) is FinalError
    else:
        assert type(known) is UncertainError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Volume attachment could not be found with filter: attachment_id = {ID}.", NotFound),
        (f"Volume {OTHER_ID} could not be found.", FinalError),
        ("The resource could not be found.<br /><br />", ConfigError),
        ("Not Found", ConfigError),
        (None, ConfigError),
    ],
)
def test_a_404_is_not_found_only_if_it_names_the_object(text: str | None, expected: type[TetherError]) -> None:
    from cinderclient.exceptions import NotFound as ClientNotFound

    assert type(translate(ClientNotFound(404, message=text), call())) is expected


def test_a_404_of_keystone_is_never_a_missing_object() -> None:
    from keystoneauth1.exceptions.http import NotFound as KeystoneNotFound

    assert type(translate(KeystoneNotFound(f"user {ID}"), call())) is ConfigError


BACKEND = (
    "Unable to update attachment (Bad or unexpected response from the storage volume backend API: {} (error: x).)."
)


@pytest.mark.parametrize(
    ("verb", "text", "expected"),
    [
        ("update", BACKEND.format("Driver initialize connection failed"), FinalError),
        ("update", BACKEND.format("Create export for volume failed"), FinalError),
        ("update", BACKEND.format("Validate volume connection failed"), FinalError),
        ("update", BACKEND.format("something else"), UncertainError),
        ("update", "Unable to update the attachment.", UncertainError),
        ("delete", BACKEND.format("Driver initialize connection failed"), UncertainError),
        ("initialize the connection of", "Unable to fetch connection information from backend.", FinalError),
        ("initialize the connection of", "The server has either erred", UncertainError),
    ],
)
def test_a_500_that_passes_on_the_failure_of_the_backend(verb: str, text: str, expected: type[TetherError]) -> None:
    from cinderclient.exceptions import ClientException

    assert type(translate(ClientException(500, message=text), call(verb))) is expected


@pytest.mark.parametrize("code", [408, 413, 429, 500, 503])
def test_a_keystone_that_cannot_answer_now_is_uncertain(code: int) -> None:
    from keystoneauth1.exceptions.http import HttpError

    assert type(translate(HttpError("busy", http_status=code), call())) is UncertainError


def test_the_deletion_guard_asks_for_a_service_token() -> None:
    from cinderclient.exceptions import ClientException

    refused = translate(ClientException(409, message=GUARD), call())
    assert type(refused) is FinalError
    assert "service token" in refused.hint
    other = translate(ClientException(409, message=f"duplicate connectors detected on volume {ID}"), call("update"))
    assert type(other) is FinalError
    assert "service token" not in other.hint


@pytest.mark.parametrize(
    ("verb", "service_token", "hinted"), [("delete", False, True), ("delete", True, False), ("show", False, False)]
)
def test_a_500_of_the_deletion_guard(verb: str, service_token: bool, hinted: bool) -> None:
    from cinderclient.exceptions import ClientException

    known = translate(ClientException(500, message="erred"), call(verb, service_token=service_token))
    assert type(known) is UncertainError
    assert ("service token" in known.hint) is hinted


def test_no_connection_names_the_url() -> None:
    from keystoneauth1.exceptions.connection import ConnectFailure
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    inner = NewConnectionError(None, "refused")  # type: ignore[arg-type]
    wrapped = ConnectFailure("Unable to establish connection")
    wrapped.__cause__ = requests.ConnectionError(MaxRetryError(None, URL, inner))  # type: ignore[arg-type]
    known = translate(wrapped, call())
    assert type(known) is UncertainError
    assert f"unreachable at {URL}" in known.message
    assert "cinder-api" in known.hint


def _refused(url: str) -> Exception:
    from keystoneauth1.exceptions.connection import ConnectFailure
    from urllib3.exceptions import NewConnectionError

    caused = "Failed to establish a new connection: [Errno 111] Connection refused"
    error = ConnectFailure(
        f"Unable to establish connection to {url}: HTTPConnectionPool(host='h', port=1): Max retries exceeded with url:"
        f" /v3/ (Caused by NewConnectionError(\"HTTPConnection(host='h', port=1): {caused}\"))"
    )
    error.__cause__ = NewConnectionError(None, caused)  # type: ignore[arg-type]
    return error


def test_no_connection_says_why_in_a_few_words() -> None:
    known = translate(_refused(f"{URL}/"), call())
    assert known.message.endswith(f"Unable to establish connection to {URL}/: [Errno 111] Connection refused")
    assert "Pool" not in known.message


def test_a_keystone_that_is_unreachable_is_named() -> None:
    known = translate(_refused("http://keystone/v3/auth/tokens"), call())
    assert type(known) is UncertainError
    assert "Keystone is unreachable" in known.message
    assert "OS_AUTH_URL" in known.hint


@pytest.mark.parametrize("verb", ["ask for the versions of", "find", "show", "list attachments of"])
def test_a_read_without_an_answer_has_changed_nothing(verb: str) -> None:
    known = translate(TimeoutError("timed out"), call(verb))
    assert type(known) is UncertainError
    assert "may have happened" not in known.hint
    assert "may have happened" in translate(TimeoutError("timed out"), call("update")).hint


def test_a_lost_connection_is_not_called_unreachable() -> None:
    from keystoneauth1.exceptions.connection import ConnectFailure

    known = translate(ConnectFailure("('Connection aborted.', RemoteDisconnected())"), call())
    assert type(known) is UncertainError
    assert "unreachable" not in known.message
    assert "read the volume's state back" in known.hint


def test_a_wrapped_bad_url_is_a_configuration_error() -> None:
    from keystoneauth1.exceptions.connection import UnknownConnectionError

    wrapped = UnknownConnectionError("odd", requests.exceptions.InvalidURL("no host"))
    assert type(translate(wrapped, call())) is ConfigError


@pytest.mark.parametrize("error", [KeyError("attachment"), TypeError("None"), ValueError("json"), OSError("pipe")])
def test_an_answer_that_cannot_be_read_is_uncertain(error: Exception) -> None:
    assert type(translate(error, call())) is UncertainError


def test_only_the_first_line_is_told() -> None:
    from cinderclient.exceptions import BadRequest

    text = f"Invalid volume: no.\nTraceback (most recent call last):\n  File {ID!r}"
    known = translate(BadRequest(400, message=text), call())
    assert known.message.endswith("Invalid volume: no.")


def test_a_secret_in_cinders_text_is_masked() -> None:
    assert "hunter2" not in first_line(ValueError("bad data: {'auth_password': 'hunter2'}"))


def test_a_long_text_is_cut() -> None:
    assert len(first_line(ValueError("x" * 5000))) < 500
