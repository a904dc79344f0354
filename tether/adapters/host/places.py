"""Where the host keeps what tether reads of it, and who this host is."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from tether.adapters.host.model import HostIdentity
from tether.errors import ConfigError
from tether.settings import Settings


@dataclass(frozen=True, slots=True)
class Places:
    """The roots of a host's file systems; a test brings a tree of its own."""

    sys: str = "/sys"
    dev: str = "/dev"
    proc: str = "/proc"
    etc: str = "/etc"
    var: str = "/var/lib"
    iscsiadm: str = "/sbin/iscsiadm"


def read_identity(settings: Settings, places: Places) -> HostIdentity:
    """Return which machine this is, from its files.

    Raises:
        ConfigError: the machine has no id.
    """
    machine_id = _text(Path(places.etc) / "machine-id")
    boot_id = _text(Path(places.proc) / "sys/kernel/random/boot_id")
    if not machine_id or not boot_id:
        raise ConfigError(
            "this host has no machine id, so a job could not tell it from another",
            hint=f"run systemd-machine-id-setup, and check {places.etc}/machine-id",
        )
    return HostIdentity(
        name=settings.host_name or socket.gethostname(),
        machine_id=machine_id,
        boot_id=boot_id,
        initiator=settings.initiator_name or own_initiator(places),
        nqn=_text(Path(places.etc) / "nvme/hostnqn"),
    )


def own_initiator(places: Places) -> str:
    """Return the initiator name that iscsid logs in with, or empty where open-iscsi is not installed."""
    for line in _text(Path(places.etc) / "iscsi/initiatorname.iscsi").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "InitiatorName":
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
