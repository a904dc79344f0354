"""Cinder's wire format: requests, answers, faults, microversions and the one table of routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIN_VERSION = (3, 0)
MAX_VERSION = (3, 71)

VERSION_HEADER = "OpenStack-API-Version"

#: The text of a 500 that Cinder does not explain.
GENERIC_500 = "The server has either erred or is incapable of performing the requested operation."

NOT_FOUND = "The resource could not be found."

#: The key of a fault's JSON body, by status (cinder/api/openstack/wsgi.py:Fault).
_FAULT_NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    501: "notImplemented",
    503: "serviceUnavailable",
}


class Fault(Exception):
    """An error answer of Cinder's API.

    Args:
        status: the HTTP status.
        message: Cinder's own text.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """One request, taken out of its transport.

    Args:
        path: the URL's path, such as ``/v3/volumes``.
        query: the query's first value of each key.
        body: the decoded JSON, or None.
        headers: by lower-case name.
        base: scheme and host, for links.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    base: str = "http://sim"

    @property
    def user(self) -> str:
        """The user of a noauth token ``user:project``."""
        return self.headers.get("x-auth-token", "").partition(":")[0]

    @property
    def project(self) -> str:
        """The project of a noauth token; a token without one names the user's own."""
        return self.headers.get("x-auth-token", "").partition(":")[2] or self.user

    @property
    def is_service(self) -> bool:
        """True if the request carries a service token, or the service role that Keystone would make of one."""
        roles = {role.strip() for role in self.headers.get("x-service-roles", "").split(",")}
        return "service" in roles or bool(self.headers.get("x-service-token"))

    def frozen(self) -> dict[str, Any]:
        """Return it as JSON data, so that it can be carried out later."""
        return {
            "method": self.method,
            "path": self.path,
            "query": dict(self.query),
            "body": self.body,
            "headers": dict(self.headers),
            "base": self.base,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; ``body`` None is an empty one."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def fault_answer(status: int, message: str) -> Answer:
    """Return an error in the JSON form of its status."""
    return Answer(status, {_FAULT_NAMES.get(status, "computeFault"): {"code": status, "message": message}})


@dataclass(frozen=True, slots=True)
class Route:
    """What a request asks for.

    Args:
        verb: the name of the call, as it is scripted (``tether.sim.script.CALLS``).
        target: the id in the URL, or empty.
        detail: True for the ``/detail`` form of a list.
        project: the project in the URL, or empty.
    """

    verb: str
    target: str = ""
    detail: bool = False
    project: str = ""


_VOLUME_ACTIONS = {
    "os-reserve": "reserve",
    "os-unreserve": "unreserve",
    "os-initialize_connection": "initialize_connection",
    "os-terminate_connection": "terminate_connection",
    "os-attach": "attach",
    "os-detach": "detach",
    "os-begin_detaching": "begin_detaching",
    "os-roll_detaching": "roll_detaching",
    "os-update_readonly_flag": "update_readonly_flag",
    "os-reset_status": "reset_status",
    "os-extend": "extend",
}

_ATTACHMENT_ACTIONS = {"os-complete": "complete_attachment"}

# A project in the URL is hexadecimal (cinder's project_id_regex), or absent.
_PATH = re.compile(
    r"/v3(?:/(?P<project>[0-9a-f-]+))?/(?P<kind>volumes|attachments|types|qos-specs)(?:/(?P<target>[^/]+)(?:/(?P<leaf>[^/]+))?)?/?"
)

_VERBS = {
    ("GET", "volumes", False, ""): "list_volumes",
    ("POST", "volumes", False, ""): "create_volume",
    ("GET", "volumes", True, ""): "show_volume",
    ("DELETE", "volumes", True, ""): "delete_volume",
    ("GET", "volumes", True, "encryption"): "show_encryption",
    ("GET", "types", False, ""): "list_types",
    ("GET", "qos-specs", True, ""): "show_qos",
    ("GET", "attachments", False, ""): "list_attachments",
    ("POST", "attachments", False, ""): "create_attachment",
    ("GET", "attachments", True, ""): "show_attachment",
    ("PUT", "attachments", True, ""): "update_attachment",
    ("DELETE", "attachments", True, ""): "delete_attachment",
}

#: The verbs that change nothing.
READS = frozenset(
    {"list_volumes", "show_volume", "show_encryption", "list_types", "show_qos", "list_attachments", "show_attachment"}
)


def route(request: Request) -> Route:
    """Return what a request asks for.

    Raises:
        Fault: 404, there is no such path; 400, there is no such action.
    """
    match = _PATH.fullmatch(request.path)
    if not match:
        raise Fault(404, NOT_FOUND)
    kind, target, leaf = match["kind"], match["target"] or "", match["leaf"] or ""
    project = match["project"] or ""
    if request.method == "POST" and leaf == "action":
        return Route(_action(kind, request.body), target, project=project)
    detail = request.method == "GET" and target == "detail" and not leaf
    if detail:
        target = ""
    verb = _VERBS.get((request.method, kind, bool(target), leaf))
    if verb is None:
        raise Fault(404, NOT_FOUND)
    return Route(verb, target, detail, project)


def _action(kind: str, body: Any) -> str:
    known = _VOLUME_ACTIONS if kind == "volumes" else _ATTACHMENT_ACTIONS
    if not isinstance(body, dict) or len(body) != 1:
        raise Fault(400, "Malformed request body")
    name = next(iter(body))
    if name not in known:
        raise Fault(
            400,
            f"There is no such action: {name}. Verify the request body and Content-Type header and try again.",
        )
    return known[name]


def asked_version(request: Request) -> tuple[int, int]:
    """Return the microversion that a request asks for; 3.0 if it asks for none.

    Raises:
        Fault: 400, it is not a version.
    """
    for part in request.headers.get(VERSION_HEADER.lower(), "").split(","):
        service, _, text = part.strip().partition(" ")
        if service != "volume":
            continue
        if text == "latest":
            return MAX_VERSION
        found = re.fullmatch(r"([1-9]\d*)\.(0|[1-9]\d*)", text)
        if not found:
            raise Fault(400, f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum.")
        return int(found[1]), int(found[2])
    return MIN_VERSION


def check_version(version: tuple[int, int], verb: str) -> None:
    """Refuse a microversion that the API does not speak, and a call that it does not know yet.

    Raises:
        Fault: 406 or 404.
    """
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise Fault(
            406,
            f"Version {dotted(version)} is not supported by the API. "
            f"Minimum is {dotted(MIN_VERSION)} and maximum is {dotted(MAX_VERSION)}.",
        )
    since = (
        (3, 44) if verb == "complete_attachment" else (3, 27) if verb.endswith(("attachment", "attachments")) else ()
    )
    if version < since:
        raise Fault(404, NOT_FOUND)


def dotted(version: tuple[int, int]) -> str:
    """Return a microversion as text."""
    return f"{version[0]}.{version[1]}"
