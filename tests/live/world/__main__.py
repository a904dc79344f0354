"""``bin/live``: up, down, shell, status."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.live.world import cinder_part, libvirt_part, packages
from tests.live.world.guest_image import guest_image
from tests.live.world.layout import CHECKOUT, GUESTS, INITIATOR, PROJECT, STOPPED, World, WorldError, cache_lock, write

T = TypeVar("T")
TETHER_CONF = """\
# Written by bin/live up.
[DEFAULT]
database = sqlite:///{world.ledger}
run_dir = {world.directory}/run
data_path = network

[cinder]
endpoint_override = {world.endpoint}
noauth_project = {project}
send_service_user_token = true
rpc_response_timeout = {timeout}

[libvirt]
libvirt_uri = {world.libvirt_uri}

[host]
initiator_name = {initiator}
my_ip = 127.0.0.1
host_name = live
lock_path = {world.directory}/locks

[secrets]
key_file = {world.directory}/keys
"""


def stage(name: str, work: Callable[[], T]) -> T:
    """Do one thing, and print its line with the seconds that it took."""
    started = time.monotonic()
    result = work()
    print(f"{name:<34} {time.monotonic() - started:6.1f} s", flush=True)
    return result


def up(world: World) -> int:
    """Start what is missing of the world."""
    if os.geteuid() != 0:
        raise WorldError("bin/live up needs root: it starts libvirt in a mount namespace of its own")
    started = time.monotonic()
    with world.lock():
        world.remember()
        with cache_lock():
            stage("packages", packages.install_packages)
            environment = stage("Cinder's virtual environment", packages.cinder_environment)
            image = stage("guest image", guest_image)
        with ThreadPoolExecutor() as pool:  # two chains that do not need each other
            guests = pool.submit(_up_with_guests, world, image)
            volumes = pool.submit(_up_with_volumes, world, environment)
            guests.result(), volumes.result()
        write(
            world.config_file,
            TETHER_CONF.format(
                world=world, project=PROJECT, timeout=world.memory["rpc_response_timeout"], initiator=INITIATOR
            ),
        )
        stage("tether's database", lambda: upgrade_database(world))
    print(f'up in {time.monotonic() - started:.1f} s; next: eval "$(bin/live shell)"')
    return 0


def upgrade_database(world: World) -> None:
    """Let the checkout's tether make its tables, or bring them up to date.

    Raises:
        WorldError: it does not.
    """
    command = [str(CHECKOUT / ".venv/bin/tether"), "--config-file", str(world.config_file), "db", "upgrade"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=world.environment)
    if done.returncode != 0:
        raise WorldError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _up_with_guests(world: World, image: Path) -> None:
    stage("libvirt", lambda: libvirt_part.start_libvirt(world))
    stage("guests started", lambda: libvirt_part.start_guests(world, image))
    stage("guests booted", lambda: libvirt_part.wait_for_guests(world))


def _up_with_volumes(world: World, environment: Path) -> None:
    stage("iSCSI target", lambda: cinder_part.start_tgt(world))
    stage("Cinder", lambda: cinder_part.start_cinder(world, environment))
    stage("volume types and volumes", lambda: cinder_part.fill_cinder(world))


def down(world: World) -> int:
    """End the world's processes and remove its directory."""
    if not world.exists():
        print(f"there is no live world in {world.directory}")
        return 0
    with world.lock():
        if world.exists():
            stage("guests and libvirt", lambda: libvirt_part.stop_libvirt(world))
            stage("Cinder", lambda: cinder_part.cinder_daemon(world).stop())
            stage("iSCSI target", lambda: cinder_part.stop_tgt(world))
            shutil.rmtree(world.directory)
    return 0


def status(world: World) -> int:
    """Print the parts and whether they run."""
    rows: list[tuple[str, int | None, str]] = []
    for part in (cinder_part.tgt_daemon(world), cinder_part.cinder_daemon(world), libvirt_part.daemon(world)):
        pid = part.pid()
        rows.append((part.name, pid, "up" if pid else "down"))
    for name in GUESTS:
        pid = libvirt_part.guest_pid(world, name)
        booted = pid is not None and libvirt_part.console(world, name).is_up()
        rows.append((name, pid, "up" if booted else "booting" if pid else "down"))
    pid = libvirt_part.guest_pid(world, STOPPED)
    rows.append((STOPPED, pid, "running, though it is meant to be shut off" if pid else "shut off"))
    for name, number, state in rows:
        print(f"{name:<10} {number or '-':>8}  {state}")
    return 0 if all(state in ("up", "shut off") for _name, _pid, state in rows) else 1


def shell(world: World) -> int:
    """Print what makes a shell use this world."""
    if not world.config_file.exists():
        raise WorldError(f"the live world in {world.directory} is not up: run bin/live up")
    print(f"export PATH={shlex.quote(str(CHECKOUT / '.venv/bin'))}:$PATH")
    print(f"export TETHER_CONFIG_FILE={shlex.quote(str(world.config_file))}")
    print(f"export TETHER_LIVE_DIR={shlex.quote(str(world.directory))}")
    return 0


def main() -> int:
    """Do what the command line says."""
    verbs = {"up": up, "down": down, "status": status, "shell": shell}
    parser = argparse.ArgumentParser(prog="bin/live", description=__doc__)
    parser.add_argument("verb", choices=verbs)
    verb = parser.parse_args().verb
    try:
        return verbs[verb](World.of_environment())
    except WorldError as error:
        print(f"bin/live {verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
