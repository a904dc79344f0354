"""A second lab as a compute host beside the first: it has no Cinder and no target of its own."""

from __future__ import annotations

import configparser
from pathlib import Path

from tests.lab.world.engines import NEIGHBOURS
from tests.lab.world.inside import services
from tests.lab.world.inside.services import PORTALS, call, works
from tests.live.world.layout import write
from tests.live.world.processes import wait_until

GATEWAY = "10.0.2.2"
INITIATOR = Path("/etc/iscsi/initiatorname.iscsi")
CONFIG = Path("/etc/tether/tether.conf")
LIBVIRTD = """\
listen_tls = 0
auth_tcp = "none"
host_uuid_source = "machine-id"
"""


def meet(own: str, other: str) -> None:
    """Have an address on the cable between two labs, know the way to the other, and let it move guests here."""
    call("ip", "addr", "replace", f"{own}/32", "dev", "eth0")
    call("ip", "route", "replace", other, "via", GATEWAY, "src", own)
    if write(Path("/etc/libvirt/libvirtd.conf"), LIBVIRTD):
        call("systemctl", "stop", "libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
        call("systemctl", "start", "libvirtd-tcp.socket", "libvirtd.socket", "libvirtd")
    wait_until("libvirt answers", lambda: works("virsh", "-q", "list"), 60)


def start_host(name: str) -> None:
    """Give up the image's portals for the other lab's, and be another initiator than that one."""
    for number, portal in enumerate(PORTALS, 1):
        if works("ip", "link", "show", f"portal{number}"):
            call("ip", "link", "del", f"portal{number}")
        call("ip", "route", "replace", portal, "via", GATEWAY, "src", _own_address())
    if write(INITIATOR, f"InitiatorName=iqn.1993-08.org.debian:01:{name}\n"):
        INITIATOR.chmod(0o600)
        call("systemctl", "restart", "iscsid")
    call("systemctl", "start", "iscsid", "multipathd", "libvirtd")


def _own_address() -> str:
    words = call("ip", "-4", "-o", "addr", "show", "dev", "eth0").split()
    return next(word.removesuffix("/32") for word in words if word.endswith("/32"))


def install_tether(name: str) -> None:
    """Install tether as in any lab, with the other lab's Cinder."""
    services.install_tether()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(CONFIG)
    parser["cinder"]["endpoint_override"] = parser["cinder"]["endpoint_override"].replace("127.0.0.1", NEIGHBOURS[0])
    parser["host"].update(host_name=name, my_ip=_own_address())
    with CONFIG.open("w") as stream:
        parser.write(stream)
