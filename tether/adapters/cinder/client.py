"""Cinder over python-cinderclient: one method per verb, one log line and one error map for all of them."""

from __future__ import annotations

import copy
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tether.adapters.cinder import wire
from tether.adapters.cinder.errors import Call, translate
from tether.adapters.cinder.model import (
    Attachment,
    Cinder,
    CinderIdentity,
    Connection,
    Connector,
    Encryption,
    ListedVolume,
    Volume,
)
from tether.clock import Clock
from tether.errors import ConfigError, NotFound, UncertainError, UsageError

T = TypeVar("T")
Found = TypeVar("Found", Volume, Attachment)

logger = logging.getLogger(__name__)

#: The highest microversion whose bodies this adapter knows.
HIGHEST_MICROVERSION = "3.71"
#: Where a server's own version is not known: no microversion header is sent.
BASE_MICROVERSION = "3.0"
#: Seconds between two tries of a read.
READ_PAUSES = (0.2, 0.5, 1.0)
#: Rows of a page: Cinder's osapi_max_limit, unless it is set lower; then pages are shorter.
PAGE = 1000
#: How often a list is begun anew because a row was deleted that its next page was to begin after.
LISTINGS = 5


class RequestIds(threading.local):
    """Remembers the request id of this thread's last answer, for the log line."""

    last = ""

    def note(self, response: Any, *_args: Any, **_kwargs: Any) -> None:
        """Take the id from an answer; a response hook of ``requests``."""
        self.last = response.headers.get("x-openstack-request-id", "")


class CinderClient(Cinder):
    """Cinder's block-storage API, v3.

    Made by :func:`tether.adapters.cinder.session.open_cinder`. It may be used from several threads.

    Args:
        build: makes a ``cinderclient.v3.client.Client`` for a microversion and a request id.
        request_id: ``req-<uuid>``, which Cinder writes into its logs with every call.
        endpoint: what the endpoint was configured as, for messages until it is known.
        service_token: True if requests carry a service token.
        request_ids: what the session's response hook writes to.
        clock: for the pauses between two tries of a read.
        patience: a read is not begun again this many seconds after its first try.
    """

    def __init__(
        self,
        build: Callable[[str, str], Any],
        *,
        request_id: str,
        endpoint: str,
        service_token: bool,
        request_ids: RequestIds,
        clock: Clock,
        patience: float,
    ) -> None:
        self._build = build
        self._request_id = request_id
        self._endpoint = endpoint
        self._service_token = service_token
        self._request_ids = request_ids
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._identity: CinderIdentity | None = None
        self._client: Any = None

    def identity(self) -> CinderIdentity:
        return self._open()[0]

    def for_job(self, request_id: str) -> CinderClient:
        if request_id == self._request_id:
            return self
        # It shares the session, and what is known of the server: nothing is asked anew.
        client = copy.copy(self)
        vars(client).update(_request_id=request_id, _lock=threading.Lock(), _client=None)
        return client

    def find_volume(self, name_or_id: str) -> Volume:
        if _is_uuid(name_or_id):
            try:
                return self.show_volume(name_or_id)
            except NotFound:  # a name may look like a UUID
                pass
        found = self._read(
            "find",
            "volume",
            name_or_id,
            lambda client: [
                wire.volume(item.to_dict()) for item in client.volumes.list(search_opts={"name": name_or_id})
            ],
        )
        # A deployment may have redefined the name filter as a substring match (resource_filters.json).
        found = [item for item in found if item.name == name_or_id]
        if not found:
            raise NotFound(
                f"there is no volume {name_or_id} in project {self.identity().project_id}",
                resource=f"volume {name_or_id}",
                hint="list the volumes with 'openstack volume list'",
            )
        if len(found) > 1:
            ids = ", ".join(sorted(item.id for item in found))
            raise UsageError(
                f"{len(found)} volumes are named {name_or_id}: {ids}",
                resource=f"volume {name_or_id}",
                hint="give the id instead of the name",
            )
        return found[0]

    def show_volume(self, volume_id: str) -> Volume:
        return self._read(
            "show",
            "volume",
            volume_id,
            lambda client: _asked(volume_id, wire.volume(client.volumes.get(volume_id).to_dict())),
        )

    def list_attachments(self, volume_id: str) -> list[Attachment]:
        # Cinder ignores all_tenants for a caller who is not an administrator: it then sees its own project.
        rows: list[Attachment] = self._read(
            "list attachments of",
            "volume",
            volume_id,
            lambda client: [
                wire.attachment(item.to_dict())
                for item in client.attachments.list(search_opts={"volume_id": volume_id, "all_tenants": 1})
            ],
        )
        # A filter that Cinder does not know is ignored or gives nothing, without an error.
        return [row for row in rows if row.volume_id == volume_id]

    def list_volumes(self) -> list[ListedVolume]:
        return self._list_all(
            "volumes",
            lambda client, marker: [
                wire.listed_volume(item.to_dict()) for item in client.volumes.list(limit=PAGE, marker=marker)
            ],
            lambda row: row.volume.id,
        )

    def list_project_attachments(self) -> list[Attachment]:
        return self._list_all(
            "attachments",
            lambda client, marker: [
                wire.attachment(item.to_dict())
                for item in client.attachments.list(detailed=True, limit=PAGE, marker=marker)
            ],
            lambda row: row.id,
        )

    def show_attachment(self, attachment_id: str) -> Attachment:
        return self._read(
            "show",
            "attachment",
            attachment_id,
            lambda client: _asked(attachment_id, wire.attachment(client.attachments.show(attachment_id).to_dict())),
        )

    def create_attachment(self, volume_id: str, *, owner: str, mode: str, connector: Connector | None = None) -> str:
        return self._write(
            "create an attachment of",
            "volume",
            volume_id,
            lambda client: wire.created(
                client.attachments.create(
                    volume_id, connector and dict(connector), instance_id=owner or None, mode=mode or "null"
                )
            ),
        )

    def update_attachment(self, attachment_id: str, connector: Connector) -> Connection:
        return self._write(
            "update",
            "attachment",
            attachment_id,
            lambda client: wire.exported(
                client.attachments.update(attachment_id, dict(connector)).to_dict()["connection_info"]
            ),
        )

    def complete_attachment(self, attachment_id: str) -> None:
        self._write("complete", "attachment", attachment_id, lambda client: client.attachments.complete(attachment_id))

    def delete_attachment(self, attachment_id: str) -> None:
        # Cinder answers with the volume's other attachments; an answer without them is somebody else's.
        self._write(
            "delete",
            "attachment",
            attachment_id,
            lambda client: client.attachments.delete(attachment_id)[1]["attachments"],
        )

    def extend(self, volume_id: str, size: int) -> None:
        self._write("extend", "volume", volume_id, lambda client: client.volumes.extend(volume_id, size))

    def show_encryption(self, volume_id: str) -> Encryption | None:
        return self._read(
            "show the encryption of",
            "volume",
            volume_id,
            lambda client: wire.encryption(client.volumes.get_encryption_metadata(volume_id)),
        )

    def show_qos(self, volume_id: str) -> Mapping[str, str]:
        return self._read("show the QoS of", "volume", volume_id, lambda client: _qos(client, volume_id))

    def reserve(self, volume_id: str) -> None:
        self._write("reserve", "volume", volume_id, lambda client: client.volumes.reserve(volume_id))

    def unreserve(self, volume_id: str) -> None:
        self._write("unreserve", "volume", volume_id, lambda client: client.volumes.unreserve(volume_id))

    def initialize_connection(self, volume_id: str, connector: Connector) -> Connection:
        return self._write(
            "initialize the connection of",
            "volume",
            volume_id,
            lambda client: wire.exported(client.volumes.initialize_connection(volume_id, dict(connector))),
        )

    def terminate_connection(self, volume_id: str, connector: Connector) -> None:
        self._write(
            "terminate the connection of",
            "volume",
            volume_id,
            lambda client: client.volumes.terminate_connection(volume_id, dict(connector)),
        )

    def attach(self, volume_id: str, *, owner: str, mountpoint: str, mode: str) -> None:
        self._write(
            "attach", "volume", volume_id, lambda client: client.volumes.attach(volume_id, owner, mountpoint, mode=mode)
        )

    def detach(self, volume_id: str, attachment_id: str) -> None:
        self._write("detach", "volume", volume_id, lambda client: client.volumes.detach(volume_id, attachment_id))

    def begin_detaching(self, volume_id: str) -> None:
        self._write("begin detaching", "volume", volume_id, lambda client: client.volumes.begin_detaching(volume_id))

    def roll_detaching(self, volume_id: str) -> None:
        self._write("roll detaching", "volume", volume_id, lambda client: client.volumes.roll_detaching(volume_id))

    def _list_all(self, kind: str, page: Callable[[Any, str | None], list[T]], id_of: Callable[[T], str]) -> list[T]:
        """Return all rows of a list.

        The last page is the one that is empty: a page may be shorter than what was asked for, and attachments come
        without links.
        """
        for _ in range(LISTINGS):
            rows: list[T] = []
            try:
                while found := self._page(kind, id_of(rows[-1]) if rows else "", page):
                    rows += found
            except NotFound:  # the row that the next page was to begin after is gone
                continue
            return rows
        raise UncertainError(
            f"the list of {kind} cannot be read: they are deleted while its pages are read",
            resource="Cinder",
            hint="read the list again when fewer are being deleted",
        )

    def _page(self, kind: str, marker: str, page: Callable[[Any, str | None], list[T]]) -> list[T]:
        what = f"{kind} after" if marker else kind
        return self._read("list", what, marker, lambda client: page(client, marker or None))

    def _read(self, verb: str, kind: str, id: str, ask: Callable[[Any], T]) -> T:
        """Ask, and ask again a few times where no usable answer comes."""
        _, client = self._open()
        return self._repeat(lambda: self._send(self._call(verb, kind, id), lambda: ask(client)))

    def _write(self, verb: str, kind: str, id: str, ask: Callable[[Any], T]) -> T:
        """Send one request, once."""
        _, client = self._open()
        return self._send(self._call(verb, kind, id), lambda: ask(client))

    def _repeat(self, send: Callable[[], T]) -> T:
        end = self._clock.time() + self._patience
        for pause in READ_PAUSES:
            try:
                return send()
            except UncertainError:
                if self._clock.time() >= end:
                    raise
            self._clock.wait(pause)
        return send()

    def _call(self, verb: str, kind: str, id: str) -> Call:
        return Call(verb, kind, id, self._endpoint, self._service_token)

    def _send(self, call: Call, ask: Callable[[], T]) -> T:
        """Send one request: the adapter's one log line and its one broad handler."""
        self._request_ids.last = ""
        begin = time.monotonic()
        outcome = "interrupted"
        try:
            answer = ask()
            outcome = "ok"
        except ConfigError as error:
            outcome = error.code
            raise
        except Exception as error:
            known = translate(error, call)
            outcome = known.code
            raise known from error
        else:
            return answer
        finally:
            logger.info(
                "cinder: %s: %s in %.0f ms (%s)",
                call.words,
                outcome,
                (time.monotonic() - begin) * 1000,
                self._request_ids.last or "no request id",
            )

    def _open(self) -> tuple[CinderIdentity, Any]:
        """Return the identity and the client; ask the server for its versions the first time."""
        with self._lock:
            if self._identity is None:
                call = self._call("ask for the versions of", "Cinder", "")
                probe = self._build(BASE_MICROVERSION, self._request_id).client
                identity = self._repeat(lambda: self._send(call, lambda: self._ask_identity(probe)))
                self._identity = identity
            if self._client is None:
                self._client = self._build(self._identity.microversion, self._request_id)
            return self._identity, self._client

    def _ask_identity(self, probe: Any) -> CinderIdentity:
        """Find the endpoint, and what it speaks, from ``GET /v3/``."""
        url = probe.get_endpoint() or ""
        matched = re.match(r"(.*/v3)(/|$)", url)
        if matched is None:
            raise ConfigError(
                f"{url or 'the service catalog'} is no endpoint of Cinder's v3 API",
                resource="Cinder",
                hint="correct the catalog's block-storage endpoint, or [cinder] endpoint_override; it holds /v3",
            )
        self._endpoint = matched[1]
        _, body = probe.get(f"{self._endpoint}/")
        newest = next(row["version"] for row in body["versions"] if row["id"].startswith("v3"))
        return CinderIdentity(
            endpoint=self._endpoint,
            project_id=probe.get_project_id() or "",
            microversion=min(newest or BASE_MICROVERSION, HIGHEST_MICROVERSION, key=_numbers),
            service_token=self._service_token,
        )


def _qos(client: Any, volume_id: str) -> Mapping[str, str]:
    """Ask for a volume, its type and the type's QoS specs."""
    volume = client.volumes.get(volume_id)
    # By its name, which is unique: a volume shows its type's id only from 3.63.
    kind = next((each for each in client.volume_types.list() if each.name == volume.volume_type), None)
    if volume.volume_type and not hasattr(kind, "qos_specs_id"):
        raise ConfigError(
            f"Cinder does not show which QoS specs volume type {volume.volume_type} has",
            resource=f"volume {volume_id}",
            hint="its policy volume_extension:access_types_qos_specs_id wants an administrator",
        )
    if kind is None or not kind.qos_specs_id:
        return {}
    return wire.front_end_limits(client.qos_specs.get(kind.qos_specs_id).to_dict(), int(volume.size))


def _asked(id: str, found: Found) -> Found:
    """Return what an answer shows, if it is what was asked for.

    Raises:
        ValueError: it is another; a proxy that answers from a cache may do that.
    """
    if found.id.lower() != id.lower():
        raise ValueError(f"it shows {found.id}")
    return found


def _numbers(microversion: str) -> tuple[int, ...]:
    return tuple(int(part) for part in microversion.split("."))


def _is_uuid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text.lower()) is not None
