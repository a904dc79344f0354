"""A transport for requests that calls the app in this process, and makes scripted calls go wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

from tether import faults
from tether.clock import Clock, SystemClock
from tether.sim import script
from tether.sim.cinder.app import LATE, REFUSED, CinderApp, read_request
from tether.sim.cinder.wire import Fault, route
from tether.sim.store import Store

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOBODYS = "00000000-0000-4000-8000-000000000000"


class SimTransport(BaseAdapter):
    """Mount it on a ``requests.Session`` for the URL of the simulated Cinder, such as ``http://sim``.

    Args:
        store: the world: the books ``cinder`` and ``script``.
        clock: what a slow call waits by, and what a late one is due by.
    """

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        super().__init__()
        self.store = store
        self.clock = clock or SystemClock()
        self.app = CinderApp(store, self.clock)
        self._builder = HTTPAdapter()
        self._blind = False

    def send(  # noqa: PLR0917 - the signature is requests'
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Answer a request in this process.

        Raises:
            requests.exceptions.ReadTimeout: scripted as ``timeout`` (not done) or ``lost-reply`` (done).
        """
        environ = _environ(request)
        scripted = self._scripted(environ)
        action = scripted.action if scripted else ""
        if scripted and action == "timeout":
            raise requests.exceptions.ReadTimeout(f"{scripted.call} timed out", request=request)
        if scripted and action == "slow":
            self.clock.wait(scripted.seconds)
        if scripted and action == "late":
            environ[LATE] = scripted.seconds
        if scripted and action == "fail":
            environ[REFUSED] = scripted.status
        self._blind = self._blind or faults.taken(faults.TOKEN) is not None
        asked = _UUID.search(environ["PATH_INFO"]) if self._blind else None
        if self._blind:  # as to a token of another project: lists are empty, and what is asked for is not there
            for part in ("PATH_INFO", "QUERY_STRING"):
                environ[part] = _UUID.sub(_NOBODYS, environ[part])
            environ["wsgi.input"] = io.BytesIO(_UUID.sub(_NOBODYS, environ["wsgi.input"].read().decode()).encode())
        before = self.store.read("cinder") if action == "not-done" else {}
        response = self._call(request, environ, asked.group() if asked else _NOBODYS)
        if action == "not-done":
            with self.store.change("cinder") as book:
                book.clear()
                book.update(before)
        if scripted:
            scripted.sent()
        if scripted and action == "lost-reply":
            raise requests.exceptions.ReadTimeout(f"{scripted.call} timed out", request=request)
        return response

    def close(self) -> None:
        """Nothing is open."""

    def _scripted(self, environ: dict[str, Any]) -> script.Scripted | None:
        try:
            verb = route(read_request(environ)).verb
        except Fault:
            return None
        finally:
            environ["wsgi.input"].seek(0)
        return script.take(self.store, f"cinder.{verb}")

    def _call(self, request: requests.PreparedRequest, environ: dict[str, Any], asked: str) -> requests.Response:
        begun: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
            begun.append((status, headers))

        content = b"".join(self.app(environ, start_response)).replace(_NOBODYS.encode(), asked.encode())
        (status, headers), *_ = begun
        code, _, reason = status.partition(" ")
        raw = HTTPResponse(
            body=io.BytesIO(content), headers=dict(headers), status=int(code), reason=reason, preload_content=False
        )
        return self._builder.build_response(request, raw)


def _environ(request: requests.PreparedRequest) -> dict[str, Any]:
    """Return the WSGI environment of a request (PEP 3333)."""
    parts = urlsplit(str(request.url))
    body = request.body
    content = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": str(request.method),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path),
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname or "sim",
        "SERVER_PORT": str(parts.port or 80),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": parts.netloc,
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        key = name.upper().replace("-", "_")
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = text
    return environ
