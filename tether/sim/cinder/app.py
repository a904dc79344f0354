"""Cinder as a WSGI app over a book: one request is one locked change, saved whole."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from tether.clock import Clock, SystemClock
from tether.sim.cinder import actions, attachments, volumes
from tether.sim.cinder.manager import WORK, Call, RpcTimeoutError
from tether.sim.cinder.rows import Book, timestamp
from tether.sim.cinder.wire import (
    GENERIC_500,
    MAX_VERSION,
    MIN_VERSION,
    READS,
    VERSION_HEADER,
    Answer,
    Fault,
    Request,
    Route,
    asked_version,
    check_version,
    dotted,
    fault_answer,
    route,
)
from tether.sim.store import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: What Cinder says where its driver has failed, and not the way to it.
_BACKEND_FAILED = {
    "update_attachment": "Unable to update attachment (Bad or unexpected response from the storage volume backend"
    " API: Driver initialize connection failed (error: scripted).).",
    "initialize_connection": "Unable to fetch connection information from backend.",
}
#: Keys of the WSGI environment that a script sets: how many seconds late it is done, and a status to refuse with.
LATE = "tether.late"
REFUSED = "tether.refused"

_HANDLERS: dict[str, Callable[[Call, Route], Answer]] = {
    handler.__name__: handler
    for handler in (
        volumes.list_volumes,
        volumes.show_volume,
        volumes.create_volume,
        volumes.delete_volume,
        volumes.show_encryption,
        volumes.list_types,
        volumes.show_qos,
        attachments.list_attachments,
        attachments.show_attachment,
        attachments.create_attachment,
        attachments.update_attachment,
        attachments.complete_attachment,
        attachments.delete_attachment,
        actions.reserve,
        actions.unreserve,
        actions.initialize_connection,
        actions.terminate_connection,
        actions.attach,
        actions.detach,
        actions.begin_detaching,
        actions.roll_detaching,
        actions.update_readonly_flag,
        actions.reset_status,
        actions.extend,
    )
}


class CinderApp:
    """A block-storage API v3, microversions 3.0 to 3.71, for noauth tokens ``user:project`` (always admin).

    Args:
        store: the world; its book is ``cinder``.
        clock: dates the rows, and tells what is due.
    """

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        self.store = store
        self.clock = clock or SystemClock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        try:
            answer = self.answer(read_request(environ), late=environ.get(LATE), refused=environ.get(REFUSED))
        except Fault as fault:
            answer = fault_answer(fault.status, fault.message)
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        request_id = f"req-{uuid.uuid4()}"
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "x-openstack-request-id": request_id,
            "x-compute-request-id": request_id,
            **answer.headers,
        }
        if answer.status == HTTPStatus.NO_CONTENT:
            del headers["Content-Type"], headers["Content-Length"]
        start_response(f"{answer.status} {responses.get(answer.status, 'Unknown')}", list(headers.items()))
        return [content]

    def answer(self, request: Request, *, late: float | None = None, refused: int | None = None) -> Answer:
        """Carry out one request.

        Args:
            request: the request.
            late: if not None, answer a 500 at once where the request is accepted, and carry it out that
                many seconds later. Work of cinder-volume then ends as after an RPC time-out: an update
                without its connection_info, a delete with its row left. The rest is done whole.
            refused: if not None, refuse with this status, and do nothing.
        """
        if re.fullmatch(r"/?|/v3/", request.path):
            return _versions(request)
        if request.path == "/v3":
            return Answer(302, headers={"Location": f"{request.base}/v3/"})
        headers: dict[str, str] = {}
        try:
            way = route(request)
            version = asked_version(request)
            if version[0] >= MIN_VERSION[0]:
                headers = {VERSION_HEADER: f"volume {dotted(version)}", "Vary": VERSION_HEADER}
            check_version(version, way.verb)
            _check_project(request, way)
        except Fault as fault:
            answer = fault_answer(fault.status, fault.message)
        else:
            if refused is None:
                answer = self._carry_out(request, way, version, late)
            else:
                answer = fault_answer(refused, _refusal(refused, way.verb))
        return Answer(answer.status, answer.body, {**headers, **answer.headers})

    def settle(self) -> None:
        """Do what has come due of the work that late answers left pending.

        Every request does so by itself. Who reads the book directly, to see which volumes are exported, asks
        for it first.
        """
        now = self.clock.time()
        if any(item["due"] <= now for item in self.store.read("cinder").get("pending", ())):
            with self.store.change("cinder") as book:
                _settle(book, now)

    def _carry_out(self, request: Request, way: Route, version: tuple[int, int], late: float | None) -> Answer:
        now = self.clock.time()
        if way.verb in READS:
            book = self.store.read("cinder")
            if not any(item["due"] <= now for item in book.get("pending", ())):
                answer, _ = _handle(Call(book, request, now, version), way)
                return answer if late is None else fault_answer(500, GENERIC_500)
        with self.store.change("cinder") as book:
            before = _states(book)
            _settle(book, now)
            if late is None:
                answer, _ = _handle(Call(book, request, now, version), way)
            else:
                answer = _handle_late(book, Call(copy.deepcopy(book), request, now, version, late), way)
            for volume_id, _state in _states(book) - before:
                book["volumes"][volume_id]["updated_at"] = timestamp(now)
            return answer


def _states(book: Book) -> set[tuple[str, tuple[str, str]]]:
    """Return each volume's status, as Cinder dates a row's last change by it."""
    return {(row["id"], (row["status"], row["attach_status"])) for row in book.get("volumes", {}).values()}


def _refusal(status: int, verb: str) -> str:
    """Return the text of a scripted refusal; a 500 of a call that exports is the backend's own failure."""
    if status == HTTPStatus.INTERNAL_SERVER_ERROR and verb in _BACKEND_FAILED:
        return _BACKEND_FAILED[verb]
    return GENERIC_500 if status >= HTTPStatus.INTERNAL_SERVER_ERROR else f"Refused by the script: {verb}."


def _check_project(request: Request, way: Route) -> None:
    if "x-auth-token" not in request.headers:
        raise Fault(401, "This server could not verify that you are authorized to access the document.")
    if way.project and way.project != request.project:
        raise Fault(400, "Malformed request url")


def read_request(environ: WSGIEnvironment) -> Request:
    """Take a request out of its WSGI environment.

    Raises:
        Fault: 400, the body is not JSON.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    content = environ["wsgi.input"].read(length) if length else b""
    try:
        body = json.loads(content) if content else None
    except ValueError:
        raise Fault(400, "Malformed request body") from None
    headers = {
        key[5:].lower().replace("_", "-"): str(value) for key, value in environ.items() if key.startswith("HTTP_")
    }
    query: dict[str, str] = {}
    for key, value in parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True):
        query.setdefault(key, value)
    host = headers.get("host") or environ["SERVER_NAME"]
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return Request(environ["REQUEST_METHOD"], path, query, body, headers, f"{environ['wsgi.url_scheme']}://{host}")


def _handle(call: Call, way: Route) -> tuple[Answer, bool]:
    """Return the answer, and whether the request was accepted."""
    try:
        return _HANDLERS[way.verb](call, way), True
    except Fault as fault:
        return fault_answer(fault.status, fault.message), False
    except RpcTimeoutError:
        return fault_answer(500, GENERIC_500), False


def _handle_late(book: Book, trial: Call, way: Route) -> Answer:
    """Answer a 500 at once; what reaches cinder-volume is pending there, the rest is put off whole."""
    answer, accepted = _handle(trial, way)
    if not accepted:
        book.clear()
        book.update(trial.book)
        return answer
    if way.verb not in READS:
        due = trial.now + (trial.late or 0.0)
        book.setdefault("pending", []).append({"due": due, "request": trial.request.frozen()})
    return fault_answer(500, GENERIC_500)


def _settle(book: Book, now: float) -> None:
    """Do what has come due, in its order; a refusal by then is nobody's to hear."""
    due = [item for item in book.get("pending", ()) if item["due"] <= now]
    if not due:
        return
    book["pending"] = [item for item in book["pending"] if item["due"] > now]
    for item in sorted(due, key=lambda item: float(item["due"])):
        if "request" in item:
            request = Request(**item["request"])
            _handle(Call(book, request, item["due"], asked_version(request)), route(request))
        else:
            with contextlib.suppress(Fault):
                WORK[item["work"]](book, item["due"], **item["arguments"])


def _versions(request: Request) -> Answer:
    known: dict[str, Any] = {
        "id": "v3.0",
        "status": "CURRENT",
        "version": dotted(MAX_VERSION),
        "min_version": dotted(MIN_VERSION),
        "updated": "2023-08-31T00:00:00Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": f"{request.base}/v3/"},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    }
    return Answer(300 if request.path in ("", "/") else 200, {"versions": [known]})
