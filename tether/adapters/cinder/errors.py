"""The one map from the client libraries' exceptions to tether's tree.

Two questions decide: *who* answered (Cinder, Keystone, nobody), and *could the request have been carried out*.
Only an answer of Cinder's with a 4xx code proves that it was not.

The libraries' classes are named by text, so that this module imports none of them.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tether.errors import ConfigError, FinalError, NotFound, TetherError, UncertainError

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TAG = re.compile(r"<[^<>]+>")  # webob puts <br /> into its own messages
_LONGEST = 400
_NO_SUCH_ROUTE = "The resource could not be found."  # webob's text for a URL or a microversion that has no route
#: Calls that the deletion check of bug 2004555 guards: Cinder answers 500 where it cannot ask Nova.
_GUARDED = ("delete", "detach", "terminate the connection of")
#: Call -> how the text of a 500 begins that passes on cinder-volume's own answer: its driver failed, and the export
#: was taken back. An RPC that timed out has another text ("Unable to update the attachment." and the generic one).
#: Sources: Cinder's ``api/v3/attachments.py:update``, ``api/contrib/volume_actions.py`` and
#: ``volume/manager.py:_connection_create``.
_BACKEND_FAILED = {
    "update": re.compile(
        r"Unable to update attachment \(Bad or unexpected response from the storage volume backend API:"
        r" (Driver initialize connection|Create export for volume|Validate volume connection) failed"
    ),
    "initialize the connection of": re.compile(r"Unable to fetch connection information from backend"),
}
_BUSY = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS)
_NOT_ALLOWED = {
    HTTPStatus.UNAUTHORIZED: "check the credentials (clouds.yaml or OS_*)",
    HTTPStatus.FORBIDDEN: "Cinder's policy does not allow it: check the user's roles and project",
    HTTPStatus.NOT_ACCEPTABLE: "Cinder does not speak the microversion: check that the endpoint is Cinder's v3 API",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "check the proxy settings",
}

_GUARD_HINT = (
    "Cinder wants a service token for this (CVE-2023-2088): set [cinder] send_service_user_token and service_cloud"
)
#: Calls that change nothing: after one without an answer there is nothing to find out.
_READS = (
    *("ask for the versions of", "find", "show", "list", "list attachments of"),
    *("show the encryption of", "show the QoS of"),
)
_READ_BACK_HINT = "it may have happened, or may still: read the volume's state back before deciding"
_ANSWER_HINT = "check that cinder-api and its database answer: openstack volume service list"
#: What Keystone is asked for first.
_TOKENS = "/auth/tokens"
#: Where requests' own words begin, and the system's in them.
_POOL = re.compile(r": HTTPS?ConnectionPool\(.*")
_SYSTEM = re.compile(r"\[Errno -?\d+\] [^\"')]+")


class Kind(enum.Enum):
    """What an exception class of a client library tells."""

    CINDER = "Cinder answered: its HTTP code decides"
    KEYSTONE = "Keystone answered: its HTTP code decides, and Cinder was not asked"
    CONFIG = "the request was never sent, and will not be until somebody changes the configuration"
    UNREACHABLE = "no answer, perhaps no connection"
    UNCERTAIN = "something was sent, and no usable answer came back"


def _names(kind: Kind, module: str, names: str) -> dict[str, Kind]:
    return {f"{module}.{name}": kind for name in names.split()}


#: Exception class -> kind; subclasses that are not named here go with their nearest ancestor.
KINDS: dict[str, Kind] = {
    **_names(
        Kind.CINDER,
        "cinderclient.exceptions",
        "ClientException BadRequest Unauthorized Forbidden NotFound NotAcceptable OverLimit HTTPNotImplemented",
    ),
    **_names(
        Kind.CONFIG,
        "cinderclient.exceptions",
        "UnsupportedVersion UnsupportedAttribute InvalidAPIVersion CommandError AuthorizationFailure NoUniqueMatch"
        " AuthSystemNotFound NoTokenLookupException EndpointNotFound AmbiguousEndpoints VersionNotFoundForAPIMethod",
    ),
    **_names(Kind.UNREACHABLE, "cinderclient.exceptions", "ConnectionError"),
    **_names(Kind.UNCERTAIN, "cinderclient.exceptions", "ResourceInErrorState TimeoutException"),
    **_names(
        Kind.KEYSTONE,
        "keystoneauth1.exceptions.http",
        "HttpError HTTPClientError HttpServerError BadRequest Unauthorized PaymentRequired Forbidden NotFound"
        " MethodNotAllowed NotAcceptable ProxyAuthenticationRequired RequestTimeout Conflict Gone LengthRequired"
        " PreconditionFailed RequestEntityTooLarge RequestUriTooLong UnsupportedMediaType"
        " RequestedRangeNotSatisfiable ExpectationFailed UnprocessableEntity TooManyRequests InternalServerError"
        " HttpNotImplemented BadGateway ServiceUnavailable GatewayTimeout HttpVersionNotSupported",
    ),
    **_names(Kind.UNCERTAIN, "keystoneauth1.exceptions.base", "ClientException"),
    **_names(Kind.CONFIG, "keystoneauth1.exceptions.auth", "AuthorizationFailure MissingAuthMethods"),
    **_names(
        Kind.CONFIG,
        "keystoneauth1.exceptions.auth_plugins",
        "AuthPluginException MissingAuthPlugin NoMatchingPlugin UnsupportedParameters OptionError"
        " MissingRequiredOptions",
    ),
    **_names(Kind.CONFIG, "keystoneauth1.exceptions.catalog", "CatalogException EndpointNotFound EmptyCatalog"),
    **_names(
        Kind.UNREACHABLE,
        "keystoneauth1.exceptions.connection",
        "RetriableConnectionFailure ConnectionError ConnectTimeout ConnectFailure SSLError UnknownConnectionError",
    ),
    **_names(Kind.UNCERTAIN, "keystoneauth1.exceptions.discovery", "DiscoveryFailure"),
    **_names(
        Kind.CONFIG,
        "keystoneauth1.exceptions.discovery",
        "VersionNotAvailable ImpliedVersionMismatch ImpliedMinVersionMismatch ImpliedMaxVersionMismatch",
    ),
    **_names(
        Kind.CONFIG,
        "keystoneauth1.exceptions.oidc",
        "InvalidDiscoveryEndpoint InvalidOidcDiscoveryDocument OidcAccessTokenEndpointNotFound"
        " OidcAuthorizationEndpointNotFound OidcDeviceAuthorizationEndpointNotFound"
        " OidcDeviceAuthorizationTimeOut OidcInvalidCodeChallengeMethod OidcPluginNotSupported",
    ),
    **_names(Kind.UNCERTAIN, "keystoneauth1.exceptions.response", "InvalidResponse"),
    **_names(Kind.CONFIG, "keystoneauth1.exceptions.service_providers", "ServiceProviderNotFound"),
    **_names(
        Kind.UNREACHABLE,
        "requests.exceptions",
        "ConnectionError ProxyError SSLError Timeout ConnectTimeout ReadTimeout",
    ),
    **_names(
        Kind.CONFIG,
        "requests.exceptions",
        "URLRequired MissingSchema InvalidSchema InvalidURL InvalidHeader InvalidProxyURL",
    ),
    **_names(
        Kind.UNCERTAIN,
        "requests.exceptions",
        "RequestException InvalidJSONError JSONDecodeError HTTPError TooManyRedirects ChunkedEncodingError"
        " ContentDecodingError StreamConsumedError RetryError UnrewindableBodyError",
    ),
    # openstacksdk is used for its configuration alone, before anything is sent.
    **_names(
        Kind.CONFIG,
        "openstack.exceptions",
        "SDKException EndpointNotFound InvalidResponse InvalidRequest HttpException BadRequestException"
        " NotFoundException ForbiddenException ConflictException PreconditionFailedException MethodNotSupported"
        " DuplicateResource ResourceTimeout ResourceFailure InvalidResourceQuery ConfigException NotSupported"
        " ValidationException ServiceDisabledException ServiceDiscoveryException",
    ),
}


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked of Cinder: for messages, for the log line, and for telling one 404 from another.

    Args:
        verb: such as ``delete``.
        kind: ``volume`` or ``attachment``; the one that a 404 is about.
        id: its id.
        endpoint: Cinder's URL, or what it was configured as.
        service_token: True if the request carries a service token.
    """

    verb: str
    kind: str
    id: str
    endpoint: str
    service_token: bool

    @property
    def hint(self) -> str:
        """What to do where no usable answer came."""
        return _ANSWER_HINT if self.verb in _READS else _READ_BACK_HINT

    @property
    def resource(self) -> str:
        """The object, as errors name it."""
        return f"{self.kind} {self.id}".rstrip()

    @property
    def words(self) -> str:
        """The call in words, as messages name it."""
        return f"{self.verb} {self.resource}"


def kind_of(error: BaseException) -> Kind | None:
    """Return what the error's class tells; None if no library of ours declares it."""
    for cls in type(error).__mro__:
        kind = KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is not None:
            return kind
    return None


def translate(error: Exception, call: Call) -> TetherError:
    """Return the tether error that an exception of a client library means.

    Whatever is not known is uncertain: an undecodable answer reaches us as KeyError, TypeError or ValueError
    out of cinderclient.
    """
    kind = kind_of(error)
    if kind is Kind.CINDER:
        return _from_cinder(error, call)
    if kind is Kind.KEYSTONE:
        return _from_keystone(error, call)
    original = getattr(error, "original", None)  # keystoneauth's UnknownConnectionError wraps even InvalidURL
    if isinstance(original, Exception) and kind_of(original) is Kind.CONFIG:
        kind, error = Kind.CONFIG, original
    if kind is Kind.CONFIG:
        return unusable_configuration(error, call)
    if kind is Kind.UNREACHABLE:
        return _unreachable(error, call)
    return UncertainError(
        f"cannot {call.words}: Cinder at {call.endpoint} gave no usable answer"
        f" ({type(error).__name__}: {first_line(error)})",
        resource=call.resource,
        hint=call.hint,
    )


def unusable_configuration(error: Exception, call: Call) -> ConfigError:
    """Return the error for whatever went wrong before anything was sent."""
    return ConfigError(
        f"cannot {call.words}: {first_line(error)}",
        resource=call.resource,
        hint="check [cinder] in tether.conf, clouds.yaml and the OS_* variables",
    )


def first_line(error: object) -> str:
    """Return the first line of an error's text, masked and of bounded length.

    With a real message broker Cinder's 400 texts end with the remote traceback.
    """
    from oslo_utils import strutils

    text = getattr(error, "message", None)
    lines = str(text if isinstance(text, str) and text.strip() else error).strip().splitlines()
    line = _TAG.sub("", strutils.mask_password(lines[0])).strip() if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _from_cinder(error: Any, call: Call) -> TetherError:
    code = error.code if isinstance(error.code, int) else 0
    text = first_line(error)
    if code == HTTPStatus.NOT_FOUND:
        return _not_found(text, call)
    said = f"cannot {call.words}: Cinder says {code}: {text}"
    if code in _NOT_ALLOWED:
        return ConfigError(said, resource=call.resource, hint=_NOT_ALLOWED[HTTPStatus(code)])
    if _is_refusal(code):
        if code == HTTPStatus.CONFLICT and "using the Compute API" in text:
            hint = _GUARD_HINT
        elif code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and call.verb == "extend":
            hint = "the project's quota does not allow it: openstack quota show; ask for a smaller size, or for more"
        elif code in _BUSY:
            hint = "Cinder limits the rate of requests: try again later"
        else:
            hint = "look at the volume with 'openstack volume show' and at its attachments"
        return FinalError(said, resource=call.resource, hint=hint)
    failed = _BACKEND_FAILED.get(call.verb)
    if failed is not None and failed.match(text):
        return FinalError(said, resource=call.resource, hint="see why the backend failed in cinder-volume's log")
    hint = call.hint
    if code == HTTPStatus.INTERNAL_SERVER_ERROR and call.verb in _GUARDED and not call.service_token:
        hint = f"{_READ_BACK_HINT}; if it stays: {_GUARD_HINT}"
    return UncertainError(said, resource=call.resource, hint=hint)


def _is_refusal(code: int) -> bool:
    """Return True for a code that says that nothing was done (408 does not)."""
    return HTTPStatus.BAD_REQUEST <= code < HTTPStatus.INTERNAL_SERVER_ERROR and code != HTTPStatus.REQUEST_TIMEOUT


def _not_found(text: str, call: Call) -> TetherError:
    if call.id and call.id in text and text != _NO_SUCH_ROUTE:
        return NotFound(
            f"cannot {call.words}: Cinder has no such {call.kind}: {text}",
            resource=call.resource,
            hint="check the id, and that it belongs to the project whose credentials are in use",
        )
    if "could not be found" in text and _UUID.search(text):
        return FinalError(
            f"cannot {call.words}: Cinder misses another object: {text}",
            resource=call.resource,
            hint="look at the object that it names with the openstack client",
        )
    return ConfigError(
        f"cannot {call.words}: {call.endpoint} has no such API: Cinder says 404: {text}",
        resource=call.resource,
        hint="check the endpoint, the project in its URL (hexadecimal), and Cinder's microversion",
    )


def _from_keystone(error: Any, call: Call) -> TetherError:
    code = error.http_status if isinstance(error.http_status, int) else 0
    said = f"cannot {call.words}: no token from Keystone, which says {code}: {first_line(error)}"
    if _is_refusal(code) and code not in _BUSY:
        return ConfigError(said, resource=call.resource, hint="check the credentials (clouds.yaml or OS_*)")
    return UncertainError(said, resource=call.resource, hint="try again when Keystone answers")


def _unreachable(error: Exception, call: Call) -> UncertainError:
    if _never_connected(error):
        text = first_line(error)
        reason = _SYSTEM.search(text)
        if reason is not None:
            text = _POOL.sub("", text) + f": {reason[0]}" * (_POOL.search(text) is not None)
        if _TOKENS in text:
            return UncertainError(
                f"cannot {call.words}: no token, Keystone is unreachable: {text}",
                resource=call.resource,
                hint="check that Keystone runs, and the auth_url of clouds.yaml or OS_AUTH_URL",
            )
        return UncertainError(
            f"cannot {call.words}: Cinder is unreachable at {call.endpoint}: {text}",
            resource=call.resource,
            hint=f"check that cinder-api runs, and that this host reaches {call.endpoint}",
        )
    return UncertainError(
        f"cannot {call.words}: no answer from Cinder at {call.endpoint}: {first_line(error)}",
        resource=call.resource,
        hint=call.hint,
    )


def _never_connected(error: BaseException) -> bool:
    """Return True if urllib3 says, somewhere in the chain, that there was no connection to send on."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        if type(item).__name__ in ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError"):
            return True
        if isinstance(item, ConnectionRefusedError):
            return True
        waiting += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return False
