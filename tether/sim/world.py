"""Makes an embedded world in a directory, and the settings that fit it."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from tether.adapters.guest.model import Definition
from tether.errors import ConfigError, FinalError
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


#: What a host beside another shares with it.
SHARED = ("cinder.json", "headers.json", "tether.sqlite", "keys")


def create(directory: Path, beside: Path | None = None) -> Store:
    """Make a world: a Cinder with a few volumes, a host, and a few servers.

    Args:
        beside: another world, whose Cinder and ledger this one shares: then it is a second host, without servers.

    Raises:
        ConfigError: the directory holds something else, or cannot be written; there is no other world.
    """
    # Only here: a command that opens a world which is there need not load all of this.
    from tether.sim.cinder.seed import seed_cinder
    from tether.sim.domains import seed_guests
    from tether.sim.host import seed_host

    if is_world(directory):
        raise ConfigError(f"{directory} holds an embedded world already", hint="use it, or give another directory")
    if beside is not None:
        _world(beside)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty", hint="give a new directory for an embedded world")
        store = Store(directory)
        if beside is None:
            seed_cinder(store)
            seed_host(store)
            seed_guests(store)
            with store.change("headers"):
                pass  # hosts beside this one link to it
        else:
            for name in SHARED:
                (directory / name).symlink_to(os.path.relpath(beside.resolve() / name, directory.resolve()))
            seed_host(store, name=f"sim-{directory.resolve().name}")
            (directory / "guests").mkdir()
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
    first = (directory / "cinder.json").resolve().parent  # of hosts beside each other; all real ones have one run_dir
    wanted = PACE | {
        "database": f"sqlite:///{first / 'tether.sqlite'}",
        "key_file": str(first / "keys"),
        "data_path": "host",
        "run_dir": str(first / "run"),
        "lock_path": str(directory.resolve() / "locks"),
    }
    changes = {name: value for name, value in wanted.items() if getattr(settings, name) == defaults[name]}
    return settings.but(**changes, endpoint_override=ENDPOINT, send_service_user_token=True)


def move(directory: Path, server: str, to: Path) -> None:
    """Move a server to another host, as libvirt's live migration: both must reach what its disks open.

    Raises:
        ConfigError: one of the directories holds no world.
        NotFound: there is no such server.
        FinalError: the other host lacks a device.
    """
    from tether.sim.domains import locked
    from tether.sim.guest import SimGuest

    here, there = Store(_world(directory)), Store(_world(to))
    found = SimGuest(here).find_server(server)
    links = there.read("host")["links"]
    for disk in (found.live or found.persistent or EMPTY).disks:
        if "/volumes/" in disk.source and Path(disk.source).name not in links:
            raise FinalError(
                f"Cannot access storage file '{disk.source}': No such file or directory",
                resource=f"server {found.name}",
                hint=f"prepare it there: tether --sim {to} migrate prepare {found.name} --to HOST",
            )
    with locked(here, found.uuid) as guest, locked(there) as guests:
        shutil.move(guest, guests / found.uuid)


def _world(directory: Path) -> Path:
    if not is_world(directory):
        raise ConfigError(f"{directory} holds no embedded world", hint=f"make one: tether sim create {directory}")
    return directory


def contents(directory: Path) -> list[tuple[str, str, str, str, str]]:
    """Return what is in a world, a row each: what, name, id, state, details.

    Raises:
        ConfigError: the directory holds no world.
    """
    from tether.sim.guest import SimGuest

    store = Store(_world(directory))
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
