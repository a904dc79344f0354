"""Makes an embedded world in a directory, and the settings that fit it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from tether.adapters.guest.model import Definition
from tether.errors import ConfigError
from tether.settings import Settings
from tether.sim.store import Store, write_whole

#: The host name never reaches a resolver: the transport answers in this process.
ENDPOINT = "http://cinder.sim/v3"

#: A server that is not there has no disks.
EMPTY = Definition(machine="", disks=(), controllers=(), addresses=())

#: The embedded world answers in milliseconds, so what is waited for is scaled to it.
PACE: dict[str, Any] = {
    "request_timeout": 5.0,
    "rpc_response_timeout": 1.0,
    "settle_margin": 0.2,
    "extend_timeout": 5.0,
    "libvirt_settle": 0.3,
    "host_settle": 0.3,
    "device_detach_attempts": 2,
    "device_detach_timeout": 1.0,
    "step_retry_time": 3.0,
    "retry_interval": 0.1,
}


def is_world(directory: Path) -> bool:
    """Return True if the directory holds an embedded world.

    Raises:
        ConfigError: this user may not look there.
    """
    try:
        return (directory / "world").is_file()
    except OSError as error:
        raise ConfigError(f"{directory} cannot be read: {error.strerror}", hint="use another directory") from error


def create(directory: Path) -> Store:
    """Make a world: a Cinder with a few volumes, a host, and a few servers.

    Raises:
        ConfigError: the directory holds something else, or cannot be written.
    """
    # Only here: a command that opens a world which is there need not load all of this.
    from tether.sim.cinder.seed import seed_cinder
    from tether.sim.domains import seed_guests
    from tether.sim.host import seed_host

    if is_world(directory):
        raise ConfigError(f"{directory} holds an embedded world already", hint="use it, or give another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty", hint="give a new directory for an embedded world")
        store = Store(directory)
        seed_cinder(store)
        seed_host(store)
        seed_guests(store)
        write_whole(directory / "world", "tether's embedded world, format 1\n")
    except OSError as error:
        raise ConfigError(
            f"no embedded world can be made in {directory}: {error.strerror}", hint="give another directory"
        ) from error
    return store


def ensure(directory: Path) -> Store:
    """Return the world's store; make the world first if the directory is absent or empty."""
    return Store(directory) if is_world(directory) else create(directory)


def fit(settings: Settings, directory: Path) -> Settings:
    """Return settings for the world: its endpoint, its database and its pace, unless they were set."""
    defaults = {item.name: item.default for item in fields(Settings)}
    wanted = PACE | {
        "database": f"sqlite:///{directory.resolve() / 'tether.sqlite'}",
        "key_file": str(directory.resolve() / "keys"),
        "data_path": "host",
        "run_dir": str(directory.resolve() / "run"),
        "lock_path": str(directory.resolve() / "locks"),
    }
    changes = {name: value for name, value in wanted.items() if getattr(settings, name) == defaults[name]}
    return settings.but(**changes, endpoint_override=ENDPOINT, send_service_user_token=True)


def contents(directory: Path) -> list[tuple[str, str, str, str, str]]:
    """Return what is in a world, a row each: what, name, id, state, details.

    Raises:
        ConfigError: the directory holds no world.
    """
    from tether.sim.guest import SimGuest

    if not is_world(directory):
        raise ConfigError(f"{directory} holds no embedded world", hint=f"make one: tether sim create {directory}")
    store = Store(directory)
    rows = []
    for volume in store.read("cinder")["volumes"].values():
        kinds = [word for word, key in (("multiattach", "multiattach"), ("encrypted", "encryption")) if volume.get(key)]
        details = " ".join([f"{volume['size']} GiB", *kinds])
        rows.append(("volume", volume["name"], volume["id"], volume["status"], details))
    for server in SimGuest(store).list_servers():
        disks = " ".join(disk.target for disk in (server.live or server.persistent or EMPTY).disks)
        rows.append(("server", server.name, server.uuid, str(server.power), disks))
    failures = store.read("script").get("failures", [])
    return rows + [("scripted", item["call"], "", item["action"], f"times {item['times']}") for item in failures]
