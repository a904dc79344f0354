"""The calls to os-brick. Only the helper processes and their origin load it.

os-brick reads oslo.config's global CONF, takes its looping calls from oslo.service, and runs its
privileged calls through oslo.privsep: all three are set up here, once for the process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tether.settings import Settings

#: Beginnings of the commands that wait for a device to take what was written to it: os_brick.initiator.linuxscsi gives
#: each 300 s, three times over.
_FLUSHES = (("multipath", "-f"), ("blockdev", "--flushbufs"))
#: How much of a helper's time one command of a forced disconnect may take: the rest of the work must fit in, too.
_SHARE = 0.25


def load() -> None:
    """Import os-brick, without eventlet; :func:`set_up` does it where it has not been done.

    ``init_backend`` comes before anything that imports os_brick: oslo.service's default backend is
    eventlet, even in a process that never asked for it. Nor is eventlet imported by those who only probe
    for it (futurist, oslo.utils).
    """
    if "eventlet" not in sys.modules:
        sys.modules["eventlet"] = None  # type: ignore[assignment]

    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)

    # Which imports every connector.
    importlib.import_module("os_brick.initiator.connector")


def set_up(settings: Settings) -> None:
    """Prepare this process for os-brick, as root and without a privsep daemon or sudo."""
    load()

    import os_brick
    from os_brick import privileged
    from oslo_concurrency import lockutils
    from oslo_config import cfg

    cfg.CONF([], project="tether", default_config_files=[])
    Path(settings.lock_path).mkdir(parents=True, exist_ok=True)
    lockutils.set_defaults(settings.lock_path)
    os_brick.setup(cfg.CONF)
    cfg.CONF.set_override("lock_path", settings.lock_path, "os_brick")
    # Privileged calls run in this process, which is root already.
    privileged.default.set_client_mode(False)
    privileged.brick_privsep_hide_output.set_client_mode(False)


def connector_properties(settings: Settings) -> dict[str, Any]:
    """Return what Cinder exports a volume to."""
    from os_brick.initiator import connector

    found: dict[str, Any] = connector.get_connector_properties(
        None,
        settings.my_ip,
        settings.volume_use_multipath,
        settings.volume_enforce_multipath,
        host=settings.host_name or None,
    )
    return found


def connect(settings: Settings, protocol: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Log in and return os-brick's device info, with its path as text."""
    info = dict(_connector(settings, protocol).connect_volume(_properties(data)))
    path = info["path"]
    info["path"] = path.decode() if isinstance(path, bytes) else str(path)
    return info


def disconnect(
    settings: Settings, protocol: str, data: Mapping[str, Any], info: Mapping[str, Any] | None, *, force: bool = False
) -> None:
    """Log out.

    Args:
        info: what :func:`connect` returned. iSCSI and Fibre Channel do without it; for NVMe os-brick then
            says OK and leaves the volume connected.
        force: try to flush, then go on without; what failed is raised once all has been tried.
    """
    more = {"execute": _in_time(settings.host_timeout * _SHARE)} if force else {}
    # Errors are not ignored: os-brick would go on all the same, and say nothing of what was lost.
    _connector(settings, protocol, **more).disconnect_volume(
        _properties(data), dict(info) if info else None, force=force, ignore_errors=False
    )


def _in_time(limit: float) -> Callable[..., Any]:
    """Return os-brick's way of running a command, of which none takes longer, and a flush is tried once.

    A flush of a device that does not answer would outlast the helper, and nothing would ever come after it.

    Args:
        limit: in seconds.
    """

    def execute(*words: str, **options: Any) -> Any:
        from os_brick.privileged import rootwrap

        options["timeout"] = min(limit, options.get("timeout", limit))
        if words[:2] in _FLUSHES:
            options["attempts"] = 1
        return rootwrap.execute(*words, **options)

    return execute


def extend(settings: Settings, protocol: str, data: Mapping[str, Any]) -> None:
    """Rescan the volume's paths and resize their multipath map."""
    _connector(settings, protocol).extend_volume(_properties(data))


def _connector(settings: Settings, protocol: str, **more: Any) -> Any:
    from os_brick.initiator import connector

    return connector.InitiatorConnector.factory(
        protocol.upper(),
        None,
        **_options(settings, protocol),
        **more,
    )


def _options(settings: Settings, protocol: str) -> dict[str, Any]:
    """Return what Nova gives the connector of a protocol (nova/virt/libvirt/volume: iscsi.py, iser.py, nvme.py, …)."""
    match protocol:
        case "iser":
            return {"use_multipath": settings.iser_use_multipath, "device_scan_attempts": settings.num_iser_scan_tries}
        case "nvmeof" | "nvme" | "lightos":
            tries = settings.num_nvme_discover_tries
            return {"use_multipath": settings.volume_use_multipath, "device_scan_attempts": tries}
        case "nfs":
            return {
                "conn": {"mount_point_base": settings.nfs_mount_point_base},
                "nfs_mount_options": settings.nfs_mount_options or None,
            }
    return {
        "use_multipath": settings.volume_use_multipath,
        "device_scan_attempts": settings.num_volume_scan_tries,
        **({"transport": settings.iscsi_iface or "default"} if protocol == "iscsi" else {}),
    }


def _properties(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data for os-brick.

    ``encrypted`` is for its own encryptors, whose links under /dev/disk/by-id it would make and leave
    behind; tether opens dm-crypt itself, over its own link, so os-brick handles every volume as plain.
    """
    return {**data, "encrypted": False}
