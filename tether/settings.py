"""Settings: oslo.config at the edge, one frozen dataclass inside.

Names and defaults are Nova's or os-brick's where they have one (see each option's help). ``oslo_config``
is imported only when a file or an option list is needed, so that ``tether --help`` stays quick.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

DEFAULT_DATABASE = "sqlite:////var/lib/tether/tether.sqlite"
DEFAULT_CONFIG_FILE = Path("/etc/tether/tether.conf")
#: Seconds that a setting may be at most: a day. What is longer is a slip, or nothing that one could wait for.
LONGEST = 86_400.0
#: Of settings that are counts.
LARGEST = 1_000_000


def _option(section: str, default: Any, help: str, **extra: Any) -> Any:
    """Declare one setting: where it lives in the file, its default, and what it is for."""
    return field(default=default, metadata={"section": section, "help": help, **extra})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Times are seconds."""

    database: str = _option(
        "DEFAULT", DEFAULT_DATABASE, "Where jobs and mappings are kept: an SQLAlchemy URL, SQLite or PostgreSQL."
    )
    run_dir: str = _option("DEFAULT", "/run/tether", "Where links to connected volumes are made.")
    data_path: str = _option(
        "DEFAULT",
        "host",
        "How data reach the guest: 'host' (os-brick gives a device) or 'network' (QEMU connects by itself).",
        choices=("host", "network"),
    )
    wait: float = _option(
        "DEFAULT", 30.0, "How long to wait for another runner's lease on a server, or for the lock of shared targets."
    )
    lease_ttl: float = _option("DEFAULT", 30.0, "A lease is renewed every third of this, and lapses after it.")
    step_retry_time: float = _option(
        "DEFAULT", 60.0, "How long a step past its pivot, or an undo, is tried again before the job is blocked."
    )
    retry_interval: float = _option("DEFAULT", 1.0, "The pause between two tries; it doubles up to ten times.")

    os_cloud: str = _option("cinder", "", "The cloud in clouds.yaml; empty: OS_CLOUD and OS_* of the environment.")
    endpoint_override: str = _option(
        "cinder",
        "",
        "Cinder's URL for a lab without Keystone (auth_strategy noauth), such as http://127.0.0.1:8776/v3.",
    )
    noauth_user: str = _option("cinder", "admin", "The user of the noauth token.")
    noauth_project: str = _option(
        "cinder", "0123456789abcdef0123456789abcdef", "The project of the noauth token: hexadecimal."
    )
    send_service_user_token: bool = _option(
        "cinder",
        False,
        "Send a service token with every call (Nova's [service_user] option), so that Cinder lets tether delete an"
        " attachment that has an owner (CVE-2023-2088).",
    )
    service_cloud: str = _option("cinder", "", "The cloud in clouds.yaml whose user has the 'service' role.")
    owner_mark: str = _option(
        "cinder",
        "auto",
        "Whether attachments carry tether's owner mark: 'auto' (only with a service token), 'on' (a Nova answers 404"
        " for unknown servers), 'off'.",
        choices=("auto", "on", "off"),
    )
    dialect: str = _option(
        "cinder",
        "auto",
        "The API dialect: 'attachments' (3.44 and later), 'legacy', or 'auto'.",
        choices=("auto", "attachments", "legacy"),
    )
    request_timeout: float = _option("cinder", 90.0, "A call to Cinder without an answer is uncertain after this.")
    rpc_response_timeout: float = _option(
        "cinder", 60.0, "Cinder's own rpc_response_timeout: it may finish a call by itself until then."
    )
    extend_timeout: float = _option(
        "cinder", 600.0, "How long a volume may be 'extending' before the job is blocked, to be resumed later."
    )
    settle_margin: float = _option("cinder", 10.0, "Added to rpc_response_timeout: the settle time.")
    availability_zone: str = _option("cinder", "", "This host's zone; used where cross_az_attach is off.")
    cross_az_attach: bool = _option("cinder", True, "Allow volumes of another zone (Nova's [cinder] option).")

    libvirt_uri: str = _option("libvirt", "qemu:///system", "The libvirt connection.")
    libvirt_timeout: float = _option("libvirt", 60.0, "A libvirt call without an answer is uncertain after this.")
    libvirt_settle: float = _option(
        "libvirt", 3.0, "How long a call of a runner that was killed may still be carried out by libvirtd."
    )
    device_detach_attempts: int = _option("libvirt", 8, "Live unplug requests before giving up (Nova's option).", min=1)
    device_detach_timeout: float = _option("libvirt", 20.0, "The wait for each of them (Nova's option).")
    disk_bus: str = _option(
        "libvirt", "virtio", "The bus unless --bus says otherwise.", choices=("virtio", "scsi", "sata")
    )
    max_disk_devices_to_attach: int = _option(
        "libvirt", -1, "Most disks of one guest; -1: no limit (Nova's option).", min=-1
    )
    disk_cachemode: str = _option(
        "libvirt",
        "none",
        "cache= of the driver element; multiattach is always none.",
        choices=("default", "none", "writethrough", "writeback", "directsync", "unsafe"),
    )
    rbd_user: str = _option("libvirt", "", "Overrides the rbd user of the connection info (Nova's option).")
    rbd_secret_uuid: str = _option("libvirt", "", "The host's libvirt secret for ceph (Nova's option).")

    initiator_name: str = _option(
        "host", "", "The iSCSI initiator name; empty: /etc/iscsi/initiatorname.iscsi. Names this host to Cinder."
    )
    my_ip: str = _option("host", "127.0.0.1", "This host's address on the storage network (Nova's my_ip).")
    host_name: str = _option("host", "", "This host's name to Cinder; empty: the machine's.")
    volume_use_multipath: bool = _option("host", False, "Connect over all portals (Nova's [libvirt] option).")
    volume_enforce_multipath: bool = _option("host", False, "Refuse to connect without multipathd (Nova's option).")
    volume_min_paths: int = _option(
        "host",
        1,
        "With multipath: the fewest paths, of those that the backend has; an attach over fewer is rolled back.",
        min=1,
    )
    num_volume_scan_tries: int = _option("host", 5, "Scan attempts for a new device (Nova's [libvirt] option).", min=1)
    iscsi_iface: str = _option(
        "host",
        "",
        "The iface of open-iscsi to log in by, for offload cards; empty: plain TCP (Nova's [libvirt] option).",
    )
    iser_use_multipath: bool = _option("host", False, "The same for iSER (Nova's [libvirt] option).")
    num_iser_scan_tries: int = _option("host", 5, "Scan attempts over iSER (Nova's [libvirt] option).", min=1)
    num_nvme_discover_tries: int = _option(
        "host", 5, "Scan attempts over NVMe-oF and LightOS (Nova's [libvirt] option).", min=1
    )
    nfs_mount_point_base: str = _option(
        "host",
        "/var/lib/tether/mnt",
        "Where NFS shares are mounted (Nova's [libvirt] option). With Nova's own folder both use one mount of a share.",
    )
    nfs_mount_options: str = _option("host", "", "Options of such a mount (Nova's [libvirt] option).")
    host_timeout: float = _option("host", 180.0, "os-brick's helper is ended after this.")
    host_settle: float = _option("host", 5.0, "How long a killed helper's child commands may still act.")
    lock_path: str = _option("host", "/var/lib/tether/locks", "os-brick's lock_path: Nova's and Cinder's on this host.")

    key_source: str = _option(
        "secrets",
        "file",
        "Where the keys are that connection info is sealed with in the database: 'file', or 'castellan' (a key manager"
        " such as Barbican; pip install 'tether[castellan]').",
        choices=("file", "castellan"),
    )
    key_file: str = _option(
        "secrets",
        "/var/lib/tether/keys",
        "The key file, made with mode 0600 on first use. Every host that works with one database needs the same one;"
        " keep a backup apart from the database's.",
    )
    castellan_key_id: str = _option(
        "secrets", "", "The id of a symmetric key of 256 bits in the key manager; several, the newest first: ID,ID."
    )
    castellan_config: str = _option(
        "secrets",
        str(DEFAULT_CONFIG_FILE),
        "The file with castellan's own settings: its [key_manager] section, [barbican] or [vault].",
    )
    volume_keys: str = _option(
        "secrets",
        "castellan",
        "Where the keys of encrypted volumes are: 'castellan' (the key manager that Cinder makes them in), or 'file'"
        " (for labs).",
        choices=("castellan", "file"),
    )
    volume_key_file: str = _option(
        "secrets",
        "/etc/tether/volume-keys",
        "With 'file': a line for each key, its id and the key in hexadecimal. Cinder's fixed key has the id"
        " 00000000-0000-0000-0000-000000000000.",
    )

    @property
    def settle_time(self) -> float:
        """How long after an uncertain call Cinder may still carry it out."""
        return self.rpc_response_timeout + self.settle_margin

    def but(self, **changes: Any) -> Settings:
        """Return a copy with some settings changed."""
        return replace(self, **changes)


def config_options() -> dict[str, list[cfg.Opt]]:
    """Return every option by section, for oslo.config and its sample generator."""
    from oslo_config import cfg

    kinds: dict[type, Any] = {bool: cfg.BoolOpt, int: cfg.IntOpt, float: cfg.FloatOpt, str: cfg.StrOpt}
    result: dict[str, list[cfg.Opt]] = {}
    for item in fields(Settings):
        extra: dict[str, Any] = {"choices": list(item.metadata["choices"])} if "choices" in item.metadata else {}
        if type(item.default) in {int, float}:
            extra["min"] = item.metadata.get("min", 0)
            extra["max"] = LONGEST if type(item.default) is float else LARGEST
        option = kinds[type(item.default)](item.name, default=item.default, help=item.metadata["help"], **extra)
        result.setdefault(item.metadata["section"], []).append(option)
    return result


def list_options() -> list[tuple[str, list[cfg.Opt]]]:
    """Return what ``oslo-config-generator --namespace tether`` prints."""
    return list(config_options().items())


def load(config_file: str | None = None) -> Settings:
    """Read the settings from a file, then from the environment (``OS_<SECTION>__<OPTION>``).

    Args:
        config_file: a path; None reads ``/etc/tether/tether.conf`` if that exists.

    Raises:
        ConfigError: the file is absent or broken, names a setting that does not exist, or a value does not fit.
    """
    from oslo_config import cfg

    if config_file is not None and not os.path.isfile(config_file):  # noqa: PTH113 - false, too, where we may not look
        raise ConfigError(
            f"there is no configuration file {config_file}",
            hint="give --config-file a file that exists, and that this user may read",
        )
    files = [config_file] if config_file else [str(DEFAULT_CONFIG_FILE)] if os.path.isfile(DEFAULT_CONFIG_FILE) else []  # noqa: PTH113
    conf = cfg.ConfigOpts()
    options = config_options()
    for section, members in options.items():
        conf.register_opts(members, group=None if section == "DEFAULT" else section)
    try:
        conf([], project="tether", default_config_files=files)
        values = {
            option.name: conf[option.name] if section == "DEFAULT" else conf[section][option.name]
            for section, members in options.items()
            for option in members
        }
        unknown = [name for file in files for name in _unknown(file, options)]
    except (cfg.Error, ValueError) as error:
        text = re.sub(r"LocationInfo\(.*?detail='(.*?)'\)", r"\1", str(error))
        raise ConfigError(
            f"the configuration {' '.join(files)} cannot be read: {text}".replace("  ", " "),
            hint="correct the file that it names",
        ) from error
    for name, value in values.items():
        # Empty numbers are None to oslo.config, and "nan" is within every bound.
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"the setting {name} is {'empty' if value is None else value}", hint="give it a number")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"the setting {name} has a NUL character", hint="correct the configuration file")
    if unknown:
        raise ConfigError(
            f"the configuration {files[0]} has settings that do not exist: {', '.join(unknown)}",
            hint="correct their names or sections; etc/tether.conf.sample has them all",
        )
    return Settings(**values)


def _unknown(file: str, options: Mapping[str, list[cfg.Opt]]) -> list[str]:
    """Return what a file sets that is no setting, as ``[section] name``: oslo.config would pass over a misspelt one."""
    from oslo_config import cfg

    sections: dict[str, dict[str, Any]] = {}
    cfg.ConfigParser(file, sections).parse()
    known = {(section, option.dest) for section, members in options.items() for option in members}
    return [
        f"[{section}] {name}"
        for section, entries in sections.items()
        for name in entries
        if (section, name.replace("-", "_")) not in known
    ]
