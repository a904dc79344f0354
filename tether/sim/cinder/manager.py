"""What cinder-volume does behind the API, and the hop to it, which may time out while the work goes on.

Each function takes JSON data only, so that it can be written down and done later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tether.sim.cinder import backend
from tether.sim.cinder.rows import (
    Book,
    Row,
    add_attachment,
    attachments_of,
    drop_attachment,
    find_attachment,
    find_volume,
    mark,
    timestamp,
)
from tether.sim.cinder.wire import Fault, Request

# What a broker appends to the text of an exception raised in cinder-volume.
_TRACEBACK = (
    '\nTraceback (most recent call last):\n\n  File "oslo_messaging/rpc/server.py", line 176, in _process_incoming\n'
)


class RpcTimeoutError(Exception):
    """The API has waited ``rpc_response_timeout`` for cinder-volume, which will finish on its own."""


@dataclass(slots=True)
class Call:
    """One request being carried out.

    Args:
        now: seconds since the epoch.
        version: the microversion asked for.
        late: if not None, cinder-volume answers too late, and finishes that many seconds from now.
    """

    book: Book
    request: Request
    now: float
    version: tuple[int, int]
    late: float | None = None

    def rpc(self, work: str, **arguments: Any) -> Any:
        """Have cinder-volume do a piece of work, one of :data:`WORK`.

        Raises:
            Fault: it refuses.
            RpcTimeoutError: no answer in time; the work is pending.
        """
        if self.late is not None:
            pending = {"due": self.now + self.late, "work": work, "arguments": arguments}
            self.book.setdefault("pending", []).append(pending)
            raise RpcTimeoutError(work)
        try:
            return WORK[work](self.book, self.now, **arguments)
        except Fault as fault:
            if fault.status < HTTPStatus.INTERNAL_SERVER_ERROR and self.book.get("remote_tracebacks"):
                raise Fault(fault.status, fault.message + _TRACEBACK) from fault
            raise


def initialize_connection(book: Book, _now: float, *, volume_id: str, connector: Mapping[str, Any]) -> dict[str, Any]:
    """Export the volume for the legacy dialect; nothing is kept of who asked."""
    volume = find_volume(book, volume_id)
    backend.validate_connector(volume, connector)
    backend.create_export(book, volume)
    return backend.connection_info(book, volume, connector)


def terminate_connection(book: Book, _now: float, *, volume_id: str) -> None:
    """Close a legacy connection; the export stays."""
    backend.terminate_connection(book, find_volume(book, volume_id))


def attach_volume(
    book: Book,
    now: float,
    *,
    volume_id: str,
    instance_uuid: str | None,
    host_name: str | None,
    mountpoint: str,
    mode: str,
) -> None:
    """Add an *attached* row, or find the one of the same instance or host.

    Raises:
        Fault: 400, attached elsewhere or being attached with another mode.
    """
    volume = find_volume(book, volume_id)
    admin = volume["admin_metadata"]
    if volume["status"] == "attaching" and admin.get("attached_mode", mode) != mode:
        raise Fault(400, "Invalid volume: being attached by different mode")
    key, value = ("instance_uuid", instance_uuid) if instance_uuid else ("attached_host", host_name)
    if any(row[key] == value for row in attachments_of(book, volume_id)):
        volume["status"] = "in-use"
        return
    if volume["status"] == "in-use" and not volume["multiattach"]:
        raise Fault(400, "Invalid volume: volume is already attached and multiple attachments are not enabled")
    row = add_attachment(book, volume_id, "attaching", instance_uuid)
    admin["attached_mode"] = mode
    row.update(attached_host=host_name, mountpoint=mountpoint, attach_mode=mode, attach_time=timestamp(now))
    mark(volume, row, status="in-use", attach_status="attached")


def detach_volume(book: Book, _now: float, *, volume_id: str, attachment_id: str | None) -> None:
    """Remove the export and drop the row.

    Raises:
        Fault: 400, several rows and no id.
    """
    volume = find_volume(book, volume_id)
    if not attachment_id:
        rows = attachments_of(book, volume_id)
        if len(rows) > 1:
            raise Fault(
                400,
                "Invalid volume: Detach volume failed: More than one attachment, but no attachment_id provided.",
            )
        if not rows:
            volume.update(status="available", attach_status="detached")
            return
        attachment_id = str(rows[0]["id"])
    if attachment_id in book["attachments"]:
        backend.remove_export(book, volume)
    drop_attachment(book, volume, attachment_id)


def attachment_update(
    book: Book, now: float, *, volume_id: str, attachment_id: str, connector: Mapping[str, Any]
) -> dict[str, Any]:
    """Export the volume and make the attachment *attaching*; return the flat connection_info.

    The API keeps the connection_info, so work that ends too late loses it. A row that was deleted
    meanwhile is noticed only after the export is up: the export then stays behind.

    Raises:
        Fault: 400, the connector lacks something; 404, the row has gone.
    """
    volume = find_volume(book, volume_id)
    known = book["attachments"].get(attachment_id)
    mode = connector.get("mode", "rw")
    if known is not None and known["attach_mode"] != "null":
        mode = known["attach_mode"]
        connector = {**connector, "mode": mode}
    backend.validate_connector(volume, connector)
    backend.create_export(book, volume)
    nested = backend.connection_info(book, volume, connector)
    row = find_attachment(book, attachment_id)
    row.update(
        connector=dict(connector),
        attached_host=connector.get("host", ""),
        mountpoint=connector.get("mountpoint", "na"),
        attach_mode=mode,
        attach_time=timestamp(now),
    )
    mark(volume, row, status="attaching", attach_status="attaching")
    return {**nested["data"], "driver_volume_type": nested["driver_volume_type"], "attachment_id": attachment_id}


def attachment_delete(book: Book, _now: float, *, volume_id: str, attachment_id: str) -> None:
    """Close the connection, and remove the export unless another attachment shares it; the row is the API's.

    A volume that a test has made ``needs_export`` cannot be terminated without one, as by Cinder's LVM driver over LIO.
    """
    volume: Row = find_volume(book, volume_id)
    row = find_attachment(book, attachment_id)
    if volume.get("needs_export") and volume_id not in book["exports"]:
        raise Fault(500, "The server has either erred or is incapable of performing the requested operation.")
    if row["connector"] and not backend.terminate_connection(book, volume):
        backend.remove_export(book, volume)


def extend_volume(book: Book, _now: float, *, volume_id: str, size: int) -> None:
    """Make the volume larger, unless a test has it fail (``extends`` of its row).

    ``no-space``: the scheduler finds no backend and gives the volume its former status back; ``driver-fails``: the
    volume is *error_extending* (cinder/scheduler/manager.py:extend_volume, cinder/volume/manager.py).
    """
    volume = find_volume(book, volume_id)
    if volume["status"] != "extending":
        return
    before = "in-use" if attachments_of(book, volume_id) else "available"
    fails = volume.get("extends", "")
    volume["status"] = "error_extending" if fails == "driver-fails" else before
    if not fails:
        volume["size"] = size


#: The work that can be asked for by name.
WORK: dict[str, Callable[..., Any]] = {
    "initialize_connection": initialize_connection,
    "terminate_connection": terminate_connection,
    "attach_volume": attach_volume,
    "detach_volume": detach_volume,
    "attachment_update": attachment_update,
    "attachment_delete": attachment_delete,
    "extend_volume": extend_volume,
}
