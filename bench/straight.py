"""The script that an attach is measured against: the same calls, one after another, and nothing that outlives a crash.

It stands here call by call and does not follow tether: where tether comes to do without a call, the script still makes
it. Nothing is undone, nobody else is kept out, and a server's next disk is whatever is free just now.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tether.adapters.cinder.model import Connection, Connector, Volume
from tether.adapters.guest.disk import chap_secret, reaches_by_network, render, spec_for
from tether.adapters.guest.model import Scope, SecretUse, Server, Unplugged
from tether.adapters.guest.slots import choose_slot
from tether.adapters.host.model import Device
from tether.tasks.run import Toolbox

MODE = "rw"


@dataclass(frozen=True)
class Attached:
    """What a detach needs of an attach."""

    volume_id: str
    server_id: str
    attachment_id: str
    connection: Connection
    on_host: bool


def attach(tools: Toolbox, volume_name: str, server_name: str) -> Attached:
    """Attach a volume, and read back what was done, as tether does."""
    found, server = tools.cinder.find_volume(volume_name), tools.guest.find_server(server_name)
    tools.guest.identity()
    tools.host.identity()
    volume = tools.cinder.show_volume(found.id)
    tools.guest.show_server(server.uuid)
    if volume.shared_targets:
        tools.host.scans_manually()
    connector = tools.host.connector()
    tools.guest.show_server(server.uuid)  # to refuse what cannot be attached
    server = tools.guest.show_server(server.uuid)  # to choose the disk's place
    attachment_id = tools.cinder.create_attachment(volume.id, owner=_owner(tools), mode=MODE)
    tools.cinder.update_attachment(attachment_id, connector)
    connection = tools.cinder.show_attachment(attachment_id).connection
    if connection is None:
        raise RuntimeError(f"attachment {attachment_id} has no connection info")
    by_network = reaches_by_network(connection, tools.settings.data_path)
    device = None if by_network else tools.host.connect(volume.id, connection)
    if device is not None and tools.host.find(volume.id) is None:
        raise RuntimeError(f"{device.path} has gone")
    disk = _disk(tools, volume, server, connection, (connector, device))
    if by_network:
        _define_secret(tools, volume, connection)
    for scope in Scope:
        tools.guest.show_server(server.uuid)  # nobody else may have plugged it
        tools.guest.mark(server.uuid, scope, volume.id, str(uuid.uuid4()))
        tools.guest.plug(server.uuid, scope, disk)
        definition = tools.guest.show_server(server.uuid).definition(scope)
        if definition is None or definition.disk(volume.id) is None:
            raise RuntimeError(f"the {scope} definition of {server_name} has no disk of {volume_name}")
    tools.cinder.show_attachment(attachment_id)
    tools.cinder.complete_attachment(attachment_id)
    if tools.cinder.show_attachment(attachment_id).status != "attached":
        raise RuntimeError(f"attachment {attachment_id} is not attached")
    tools.cinder.show_volume(volume.id)
    tools.cinder.list_attachments(volume.id)
    return Attached(volume.id, server.uuid, attachment_id, connection, on_host=not by_network)


def attach_blindly(tools: Toolbox, volume: Volume, server_id: str) -> Attached:
    """Attach a volume by the bare effects: only what the next call needs is read."""
    connector = tools.host.connector()
    server = tools.guest.show_server(server_id)
    attachment_id = tools.cinder.create_attachment(volume.id, owner=_owner(tools), mode=MODE)
    connection = tools.cinder.update_attachment(attachment_id, connector)
    by_network = reaches_by_network(connection, tools.settings.data_path)
    device = None if by_network else tools.host.connect(volume.id, connection)
    disk = _disk(tools, volume, server, connection, (connector, device))
    if by_network:
        _define_secret(tools, volume, connection)
    for scope in Scope:
        tools.guest.mark(server_id, scope, volume.id, str(uuid.uuid4()))
        tools.guest.plug(server_id, scope, disk)
    tools.cinder.complete_attachment(attachment_id)
    return Attached(volume.id, server_id, attachment_id, connection, on_host=not by_network)


def detach(tools: Toolbox, attached: Attached) -> None:
    """Undo an attach of this script."""
    for scope in (Scope.LIVE, Scope.PERSISTENT):
        definition = tools.guest.show_server(attached.server_id).definition(scope)
        disk = definition.disk(attached.volume_id) if definition else None
        if disk is not None and tools.guest.unplug(attached.server_id, scope, disk.handle) is not Unplugged.REMOVED:
            raise RuntimeError(f"the guest does not let volume {attached.volume_id} go")
        tools.guest.unmark(attached.server_id, scope, attached.volume_id)
    if attached.on_host:
        tools.host.disconnect(attached.volume_id, attached.connection)
    else:
        tools.guest.undefine_secret(SecretUse("iscsi", attached.volume_id))
    tools.cinder.delete_attachment(attached.attachment_id)


def _owner(tools: Toolbox) -> str:
    """Return an owner mark, where tether would send one."""
    return str(uuid.uuid4()) if tools.cinder.identity().service_token else ""


def _define_secret(tools: Toolbox, volume: Volume, connection: Connection) -> None:
    password = chap_secret(connection)
    if password is not None:
        tools.guest.define_secret(SecretUse("iscsi", volume.id), password)


def _disk(
    tools: Toolbox, volume: Volume, server: Server, connection: Connection, reached: tuple[Connector, Device | None]
) -> str:
    """Return the disk's element; it is reached by the connector's initiator, or as a device."""
    connector, device = reached
    slot = choose_slot(server.live, server.persistent, bus=tools.settings.disk_bus, device="", taken=[], limit=-1)
    spec = spec_for(
        volume,
        connection,
        slot=slot,
        device=device,
        mode=MODE,
        settings=tools.settings,
        initiator=str(connector.get("initiator", "")),
        encryption=None,
        data_path=tools.settings.data_path,
    )
    return render(spec)
