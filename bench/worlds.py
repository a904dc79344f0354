"""The worlds that an attach can be measured in: ``bin/live``'s, ``bin/lab``'s from inside, and the embedded one."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.lab.world.layout import MOUNT_POINT
from tests.live.world import libvirt_part
from tests.live.world.cinder_part import Api
from tests.live.world.guest_image import guest_image
from tests.live.world.layout import GUESTS, World
from tests.live.world.processes import wait_until
from tether.settings import Settings, load

LIVE, LAB, SIM = WORLDS = ("live", "lab", "sim")
#: Seconds for one volume to be made or deleted.
LIMIT = 120
#: Where a lab keeps tether's configuration, and its guest and volume type.
LAB_CONFIG, LAB_GUEST, LAB_TYPE = Path("/etc/tether/tether.conf"), "guest1", "lvm"
SIM_GUEST = "guest1"


@dataclass(frozen=True)
class Place:
    """One world, with its volumes.

    Args:
        words: the options by which a command finds it.
        environment: what a command needs besides.
        guests: running servers that volumes may be attached to.
        volumes: ids of plain volumes of 1 GiB, made for the bench.
        sim: the directory of an embedded world.
    """

    settings: Settings
    words: Sequence[str]
    environment: dict[str, str]
    guests: Sequence[str]
    volumes: Sequence[str]
    sim: Path | None = None


@contextmanager
def opened(name: str, most: int) -> Iterator[Place]:
    """Find the world that runs, and make a volume for each guest.

    Args:
        most: guests to use; the live world gets as many.

    Raises:
        SystemExit: there is none.
    """
    with ExitStack() as stack:
        yield {LIVE: _live, LAB: _lab, SIM: _sim}[name](stack, most)


def _live(stack: ExitStack, most: int) -> Place:
    world = World.of_environment()
    if not world.exists():
        raise SystemExit("no live world runs here: start one with bin/live up")
    own = [_guest(stack, world, f"bench{number}") for number in range(most - len(GUESTS))]
    for name in own:
        wait_until(f"{name} boots", libvirt_part.console(world, name).is_up, LIMIT)
    guests = (*GUESTS, *own)[:most]
    volumes = _volumes(stack, Api(world), "iscsi", len(guests))
    words = ("--config-file", str(world.config_file))
    return Place(load(str(world.config_file)), words, world.environment, guests, volumes)


def _guest(stack: ExitStack, world: World, name: str) -> str:
    """Start a guest, which is gone when the stack is left."""
    libvirt_part.define_guest(world, guest_image(), name)
    stack.callback(libvirt_part.virsh, world, "undefine", name)
    libvirt_part.virsh(world, "start", name)
    stack.callback(libvirt_part.virsh, world, "destroy", name)
    return name


@dataclass(frozen=True)
class _LabCinder:
    endpoint: str


def _lab(stack: ExitStack, _most: int) -> Place:
    if not LAB_CONFIG.exists() or not Path(MOUNT_POINT).exists():
        raise SystemExit("this is no lab: start one with bin/lab up; bench/attach --world lab goes into it by itself")
    settings = load(str(LAB_CONFIG))
    volumes = _volumes(stack, Api(_LabCinder(settings.endpoint_override)), LAB_TYPE, 1)
    return Place(settings, ("--config-file", str(LAB_CONFIG)), dict(os.environ), (LAB_GUEST,), volumes)


def _sim(stack: ExitStack, _most: int) -> Place:
    from tether.sim.cinder.seed import add_volume
    from tether.sim.world import create, fit

    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tether-bench-"))) / "world"
    volume_id = add_volume(create(directory), name="bench")
    words = ("--sim", str(directory))
    return Place(fit(Settings(), directory), words, dict(os.environ), (SIM_GUEST,), (volume_id,), directory)


def _volumes(stack: ExitStack, api: Any, kind: str, count: int) -> list[str]:
    """Make volumes, which are deleted when the stack is left."""
    made = [_make(api, kind) for _ in range(count)]
    for volume_id in made:
        stack.callback(_delete, api, volume_id)
        wait_until(f"volume {volume_id} is made", partial(_is_there, api, volume_id), LIMIT)
    return made


def _make(api: Any, kind: str) -> str:
    body = {"volume": {"name": f"bench-{uuid.uuid4().hex[:8]}", "size": 1, "volume_type": kind}}
    return str(api.call("POST", "/volumes", body)["volume"]["id"])


def _is_there(api: Any, volume_id: str) -> bool:
    status = api.call("GET", f"/volumes/{volume_id}")["volume"]["status"]
    if status == "error":
        raise RuntimeError(f"Cinder could not make volume {volume_id}: see its log")
    return bool(status == "available")


def _delete(api: Any, volume_id: str) -> None:
    api.call("DELETE", f"/volumes/{volume_id}")
    wait_until(
        f"volume {volume_id} is deleted",
        lambda: all(row["id"] != volume_id for row in api.call("GET", "/volumes")["volumes"]),
        LIMIT,
    )
