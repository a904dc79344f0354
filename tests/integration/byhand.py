"""Attaches a volume in an embedded world as a person or another tool would: without tether's ledger, link and mark."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tests.crash.world import SimWorld
from tether.adapters.cinder.model import Cinder, Connection
from tether.adapters.cinder.session import open_cinder
from tether.settings import Settings
from tether.sim.cinder.transport import SimTransport
from tether.sim.domains import SEEDED as SERVERS
from tether.sim.host import SimHost
from tether.sim.store import Store
from tether.sim.world import fit

VOLUMES = {
    "vol1": "11111111-1111-4111-8111-111111111111",
    "vol2": "22222222-2222-4222-8222-222222222222",
    "shared1": "44444444-4444-4444-8444-444444444444",
    "secret1": "55555555-5555-4555-8555-555555555555",
}
SCOPES = ("live", "persistent")
STRANGER = "0ddba11e-0000-4000-8000-000000000001"


def cinder_of(sim: SimWorld) -> Cinder:
    return open_cinder(
        fit(Settings(), sim.directory), global_request_id="req-by-hand", transport=SimTransport(Store(sim.directory))
    )


def exported(sim: SimWorld, volume: str = "vol1", *, owner: str = STRANGER, dialect: str = "attachments") -> Connection:
    """Attach it in Cinder, to this host; return its connection."""
    cinder, connector, volume_id = cinder_of(sim), SimHost(Store(sim.directory)).connector(), VOLUMES[volume]
    if dialect == "legacy":
        cinder.reserve(volume_id)
        connection = cinder.initialize_connection(volume_id, connector)
        cinder.attach(volume_id, owner=owner, mountpoint="/dev/vdq", mode="rw")
        return connection
    attachment = cinder.create_attachment(volume_id, owner=owner, mode="rw")
    connection = cinder.update_attachment(attachment, connector)
    cinder.complete_attachment(attachment)
    return connection


def connected(sim: SimWorld, connection: Connection, volume: str = "vol1") -> str:
    """Log the host in, without tether's link; return the device."""
    host = SimHost(Store(sim.directory))
    path = host.connect(VOLUMES[volume], connection).path
    host.unlink(VOLUMES[volume])
    return path


def disk(
    volume: str = "vol1", *, serial: str | None = None, source: str = "/dev/sda", alias: str = "", slot: int = 7
) -> str:
    """Return a disk as virsh attach-device has it; libvirt names a running one by itself."""
    serial = VOLUMES[volume] if serial is None else serial
    return (
        f'<disk type="block" device="disk"><source dev="{source}"/><target dev="vdq" bus="virtio"/>'
        + (f"<serial>{serial}</serial>" if serial else "")
        + (f'<alias name="{alias}"/>' if alias else "")
        + f'<address type="pci" domain="0x0000" bus="0x0{slot}" slot="0x00" function="0x0"/></disk>'
    )


def plugged(sim: SimWorld, element: str, server: str = "guest1", scopes: tuple[str, ...] = SCOPES) -> None:
    """Put a disk into the definitions that are named, where the server has them."""
    for scope in scopes:
        path = sim.directory / "guests" / SERVERS[server] / f"{scope}.xml"
        if not path.exists():
            continue
        root = ET.fromstring(path.read_text())
        new = ET.fromstring(element)
        if scope == "live" and new.find("alias") is None:
            ET.SubElement(new, "alias", {"name": "virtio-disk9"})
        devices = root.find("devices")
        assert devices is not None
        devices.append(new)
        path.write_text(ET.tostring(root, encoding="unicode"))


def attached_by_hand(sim: SimWorld, volume: str = "vol1", server: str = "guest1", **facts: str) -> None:
    """Do all of it."""
    cinder = {name: facts.pop(name) for name in ("owner", "dialect") if name in facts}
    path = connected(sim, exported(sim, volume, **cinder), volume)
    plugged(sim, disk(volume, source=path, **facts), server)
