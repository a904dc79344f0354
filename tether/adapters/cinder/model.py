"""What tether asks of Cinder, in tether's words: the types and the protocol.

Names are Cinder's own (status, attach_status, attachment, connector, connection_info). The wire facts
behind every remark here are in the block-storage API reference and in Cinder's ``volume/api.py`` and
``volume/manager.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tether.sealed import Sealed

#: What Cinder may say of how a volume may be used; Nova refuses any other, too.
ACCESS_MODES = ("rw", "ro")

#: A connector as os-brick's ``get_connector_properties`` returns it: host, ip, initiator, multipath, …
Connector = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CinderIdentity:
    """Which Cinder this is; a job keeps it, and is only resumed under the same one.

    Args:
        endpoint: the endpoint's URL without the project.
        project_id: the project that the session is scoped to.
        microversion: the highest microversion that both sides speak, such as ``3.71``.
        service_token: True if requests carry a service token (or its lab equivalent), so that an
            attachment with an owner may be deleted (CVE-2023-2088, bug 2004555).
    """

    endpoint: str
    project_id: str
    microversion: str
    service_token: bool

    def speaks(self, microversion: str) -> bool:
        """Return True if ``microversion`` is at most the one that both sides speak."""

        def key(text: str) -> tuple[int, ...]:
            return tuple(int(part) for part in text.split("."))

        return key(self.microversion) >= key(microversion)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as ``GET /volumes/{id}`` shows it.

    Args:
        size: in GiB.
        metadata: includes the admin metadata ``readonly`` and ``attached_mode`` where set.
        shared_targets: tri-state from 3.69 (None: always lock), bool from 3.48, None below.
        service_uuid: the lock name for shared targets; from 3.48.
        attached_to: (server or instance UUID, attachment id) of every *attached* row; reserved and
            attaching rows are not in a volume's body.
        origin: what its content was made from, as people would say it (``snapshot …``, ``an image``); empty for a
            volume that was made empty.
    """

    id: str
    name: str
    status: str
    size: int
    availability_zone: str = ""
    project_id: str = ""
    volume_type: str = ""
    multiattach: bool = False
    encrypted: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    shared_targets: bool | None = None
    service_uuid: str = ""
    attached_to: Sequence[tuple[str, str]] = ()
    origin: str = ""

    @property
    def readonly(self) -> bool:
        """True if the volume's own ``readonly`` flag is set (the text ``True``; ``False`` is Cinder's trap)."""
        return self.metadata.get("readonly", "") == "True"


@dataclass(frozen=True, slots=True)
class ListedVolume:
    """A volume as ``GET /volumes/detail`` lists it.

    Args:
        updated_at: when Cinder last wrote its row, which each change of its status does; UTC, ISO 8601.
        hosts: attachment id -> the name of the host it is connected to; of *attached* rows, and for administrators.
    """

    volume: Volume
    updated_at: str = ""
    hosts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a host or QEMU reaches the exported volume: a flattened connection_info.

    Both API dialects give the same value: ``data`` is what os-brick's ``connect_volume`` wants.

    Args:
        protocol: Cinder's ``driver_volume_type``: iscsi, rbd, nvmeof, nfs, …
        access_mode: ``rw`` or ``ro`` as Cinder says it (it follows the volume's flag, not the mode asked for).
        encrypted: True if the data on the volume are encrypted.
        discard: True if the backend reports discard support.
        qos_specs: front-end limits, or empty.
        auth: True if the data carry credentials (CHAP, cephx) that need a libvirt secret.
        data: the whole of it, secrets included.
    """

    protocol: str
    data: Sealed[dict[str, Any]]
    access_mode: str = "rw"
    encrypted: bool = False
    discard: bool = False
    qos_specs: Mapping[str, str] = field(default_factory=dict, repr=False)
    logical_block_size: int | None = None
    physical_block_size: int | None = None
    auth: bool = False


@dataclass(frozen=True, slots=True)
class Attachment:
    """One row of a volume's attachments, as ``GET /attachments`` shows it.

    Args:
        status: reserved, attaching, attached or detaching.
        owner: Cinder's ``instance``: a server's UUID, tether's owner mark, or empty.
        mode: ``rw``, ``ro``, or empty where Cinder says null.
        connection: None while nothing is exported, and where Cinder has lost it.
    """

    id: str
    volume_id: str
    status: str
    owner: str = ""
    mode: str = ""
    attached_at: str = ""
    connection: Connection | None = None


@dataclass(frozen=True, slots=True)
class Encryption:
    """``GET /volumes/{id}/encryption`` of an encrypted volume.

    Args:
        provider: ``luks``, ``luks2`` or ``plain``.
        key_size: in bits.
        control_location: ``front-end`` (we open it) or ``back-end`` (the backend does).
    """

    provider: str
    key_id: str
    cipher: str = ""
    key_size: int = 0
    control_location: str = "front-end"


class Cinder(Protocol):
    """The verbs tether needs.

    Every method may raise ``UncertainError`` (time-out, connection lost, 5xx: it may have happened or may
    still happen), ``NotFound`` (404 of the object named), ``FinalError`` (400, 409, 413: refused),
    ``ConfigError`` (401, 403, no endpoint) unless it says otherwise. Reads are repeated a few times on
    UncertainError; calls that change something never are.
    """

    def identity(self) -> CinderIdentity:
        """Return which Cinder this is (one request, then remembered)."""

    def for_job(self, request_id: str) -> Cinder:
        """Return the same Cinder, sending this ``req-<uuid>`` with every call, so that its logs can be searched."""

    def find_volume(self, name_or_id: str) -> Volume:
        """Return the volume with this id, or the only one with this name.

        Raises:
            NotFound: there is none.
            UsageError: several volumes have this name.
        """

    def show_volume(self, volume_id: str) -> Volume:
        """Return the volume."""

    def list_attachments(self, volume_id: str) -> list[Attachment]:
        """Return the volume's attachments of every status and project, without connections."""

    def list_volumes(self) -> list[ListedVolume]:
        """Return every volume of the project, read in pages.

        Raises:
            UncertainError: also if volumes keep being deleted while the pages are read.
        """

    def list_project_attachments(self) -> list[Attachment]:
        """Return every attachment of the project with its connection, read in pages; see :meth:`list_volumes`.

        Legacy attachments have no connection: Cinder keeps none of theirs.
        """

    def show_attachment(self, attachment_id: str) -> Attachment:
        """Return the attachment with its connection; ``NotFound`` if it is gone."""

    def create_attachment(self, volume_id: str, *, owner: str, mode: str, connector: Connector | None = None) -> str:
        """Reserve the volume: POST /attachments; return the attachment's id.

        Args:
            owner: tether's owner mark (a UUID), or empty to leave ``instance_uuid`` out. The same owner may have a
                second attachment of a plain volume: a live migration's.
            mode: ``rw`` or ``ro``; sent from microversion 3.54.
            connector: export the volume to it, too. The only way to a second attachment while another is connected:
                Cinder refuses to update one then.
        """

    def update_attachment(self, attachment_id: str, connector: Connector) -> Connection:
        """Export the volume to the connector: PUT /attachments/{id}; return the connection. May be repeated."""

    def complete_attachment(self, attachment_id: str) -> None:
        """Make the volume *in-use*: os-complete (3.44). A blind write in Cinder: check before and after."""

    def delete_attachment(self, attachment_id: str) -> None:
        """Terminate, unexport and drop the attachment. May be repeated; ``NotFound`` once it is gone."""

    def extend(self, volume_id: str, size: int) -> None:
        """os-extend: have the volume made larger; it is *extending*, and Cinder says later what came of that.

        An *in-use* volume needs 3.42. Cinder then has it *in-use* again, with the new size or, where no backend has
        the space, with the old one; *error_extending* where the driver has failed. Asked for again it is refused.

        Args:
            size: the new size, in GiB.
        """

    def show_encryption(self, volume_id: str) -> Encryption | None:
        """Return how the volume is encrypted, or None if it is not."""

    def show_qos(self, volume_id: str) -> Mapping[str, str]:
        """Return the front-end limits that a connection made now would have; empty if its type has none.

        Reads the volume's type and its QoS specs, which Cinder shows to administrators alone by default.

        Raises:
            ConfigError: also if Cinder does not show the type's QoS specs.
        """

    def reserve(self, volume_id: str) -> None:
        """os-reserve (legacy): available -> attaching, with no row and no owner."""

    def unreserve(self, volume_id: str) -> None:
        """os-unreserve (legacy): attaching -> available or in-use. Never fails; a no-op elsewhere."""

    def initialize_connection(self, volume_id: str, connector: Connector) -> Connection:
        """os-initialize_connection (legacy): export and return the connection. May be repeated."""

    def terminate_connection(self, volume_id: str, connector: Connector) -> None:
        """os-terminate_connection (legacy): close the export to the connector; unreserves too. May be repeated."""

    def attach(self, volume_id: str, *, owner: str, mountpoint: str, mode: str) -> None:
        """os-attach (legacy): row *attached*, volume in-use. The same owner again returns the same row."""

    def detach(self, volume_id: str, attachment_id: str) -> None:
        """os-detach (legacy) by attachment id: drop the row."""

    def begin_detaching(self, volume_id: str) -> None:
        """os-begin_detaching: in-use -> detaching."""

    def roll_detaching(self, volume_id: str) -> None:
        """os-roll_detaching: detaching -> in-use. Never fails; a no-op elsewhere."""
