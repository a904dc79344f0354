"""The fixture ``live``: the world of ``bin/live``, started for the session unless it runs already."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cinderclient import client as cinder_client
from cinderclient import exceptions as cinder_exceptions
from cinderclient.contrib.noauth import CinderNoAuthPlugin
from keystoneauth1 import session

from tests.live import commands
from tests.live.commands import Outcome
from tests.live.world.console import Console
from tests.live.world.layout import CHECKOUT, GUESTS, INITIATOR, PROJECT, STOPPED, World
from tests.live.world.libvirt_part import console, virsh
from tether.matrix.live_judge import Judge, diff

BIN_LIVE = str(CHECKOUT / "bin/live")
UP_LIMIT = 1500  # seconds; the first start on a machine installs packages and builds Cinder's environment
TEST_LIMIT = 120  # seconds for one test by itself
#: Cinder's rpc_response_timeout: what finishes late does so after it, and tether waits for that.
RPC_TIMEOUT = "3"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory, and let its time begin after the world's start."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.live)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_LIMIT, func_only=True))


class Live:
    """One running world, and what a test needs of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoint = world.endpoint
        self.config_file = world.config_file
        self.libvirt_uri = world.libvirt_uri
        self.initiator = INITIATOR
        self.guests = GUESTS
        self.stopped = STOPPED
        self.consoles: dict[str, Console] = {name: console(world, name) for name in GUESTS}
        self.judge = Judge(world)
        plugin = CinderNoAuthPlugin("admin", PROJECT, endpoint=world.endpoint)
        # noauth takes the service role from this header, so that Cinder lets attachments with an owner be deleted
        http = session.Session(auth=plugin, additional_headers={"X-Service-Roles": "service"})
        self.cinder = cinder_client.Client("3.60", session=http)

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a tether command on this world."""
        return self.world.environment | {"TETHER_CONFIG_FILE": str(self.config_file)}

    @property
    def rpc_timeout(self) -> float:
        """Cinder's rpc_response_timeout in seconds."""
        return float(self.world.memory["rpc_response_timeout"])

    def tether(self, *words: str, **changes: object) -> Outcome:
        """Run a tether command on this world, quickly.

        Args:
            changes: settings, as ``section__option``.
        """
        return commands.forked(self.world, words, {name.replace("__", "."): value for name, value in changes.items()})

    def installed_tether(self, *words: str) -> Outcome:
        """Run the installed program on this world."""
        return commands.installed(self.world, words, {})

    def assert_books(self, before: dict[str, Any]) -> None:
        """Fail unless the judge sees now what was seen before."""
        assert diff(before, self.judge.snapshot()) == []

    def virsh(self, *arguments: str) -> str:
        """Run a virsh command on this world."""
        return virsh(self.world, *arguments)

    def new_volume(self, type: str = "iscsi", size: int = 1) -> str:
        """Make a volume and return its id.

        Args:
            type: ``iscsi``, ``multiattach``, ``bound`` (its target lets in only the connected initiators), ``qos``,
                ``luks`` or ``luks2``.
            size: GiB.
        """
        volume = self.cinder.volumes.create(size, name=f"test-{uuid.uuid4().hex[:8]}", volume_type=type)
        wait_for(lambda: self.cinder.volumes.get(volume.id).status != "creating")
        assert self.cinder.volumes.get(volume.id).status == "available"
        return str(volume.id)

    def remove(self, volume_id: str) -> None:
        """Delete a volume whatever state a test has left it in, with the attachments that Cinder lists."""
        for row in self.cinder.attachments.list(search_opts={"volume_id": volume_id}):
            self.cinder.attachments.delete(row.id)
        self.cinder.volumes.reset_state(volume_id, "available", attach_status="detached")
        self.delete_volume(volume_id)

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume, and wait until it is gone."""
        self.cinder.volumes.delete(volume_id)

        def gone() -> bool:
            try:
                return self.cinder.volumes.get(volume_id).status == "error_deleting"
            except cinder_exceptions.NotFound:
                return True

        wait_for(gone)

    def limits(self) -> dict[str, str]:
        """Return the QoS specs of the volume type ``qos``."""
        return dict(self.cinder.qos_specs.find(name="limited").specs)

    def limit(self, specs: dict[str, str]) -> None:
        """Give the volume type ``qos`` these QoS specs, and no other."""
        there = self.cinder.qos_specs.find(name="limited")
        gone = [key for key in there.specs if key not in specs]
        if gone:
            self.cinder.qos_specs.unset_keys(there.id, gone)
        if specs:
            self.cinder.qos_specs.set_keys(there.id, specs)

    def volume_id(self, name: str) -> str:
        """Return the id of ``vol1``, ``vol2`` or ``shared1``."""
        return str(self.cinder.volumes.find(name=name).id)

    def backing_file(self, volume_id: str) -> Path:
        """Return the file behind a volume."""
        return self.world.volumes / f"volume-{volume_id}"

    def chap_user(self, volume_id: str) -> str:
        """Return the CHAP user that Cinder has for a volume."""
        return self._chap(volume_id)[1]

    def chap_password(self, volume_id: str) -> str:
        """Return the CHAP password that Cinder has for a volume."""
        return self._chap(volume_id)[2]

    def _chap(self, volume_id: str) -> list[str]:
        with sqlite3.connect(f"file:{self.world.cinder_database}?mode=ro", uri=True, timeout=30) as database:
            (text,) = database.execute("SELECT provider_auth FROM volumes WHERE id = ?", [volume_id]).fetchone()
        return str(text).split()

    def fault(self, method: str, text: str, volume_id: str | None = None) -> Path:
        """Make a method of Cinder's driver ``fail``, ``boom`` or ``sleep N``; unlink the returned file to end it.

        Args:
            method: such as ``initialize_connection``.
            text: what it does.
            volume_id: only for this volume; ``validate_connector`` knows none.
        """
        path = self.world.faults / (f"{volume_id}.{method}" if volume_id else method)
        path.write_text(text)
        return path


def wait_for(check: Callable[[], Any], timeout: float = 60) -> None:
    """Look every 50 ms until the check holds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)


def _bin_live(verb: str) -> subprocess.CompletedProcess[str]:
    environment = {"LIVE_RPC_TIMEOUT": RPC_TIMEOUT} | os.environ
    return subprocess.run(
        [BIN_LIVE, verb], check=False, capture_output=True, text=True, timeout=UP_LIMIT, env=environment
    )


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The world that TETHER_LIVE_DIR names, or the checkout's own; ended afterwards only if it was started here.

    Its Cinder has a short rpc_response_timeout, also where it ran already with another one.
    """
    ours = not World.of_environment().exists()
    done = _bin_live("up")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Live(World.of_environment())
    if ours:
        done = _bin_live("down")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def new_volume(live: Live) -> Iterator[Callable[..., str]]:
    """Make volumes as ``live.new_volume`` does; they are gone after the test."""
    made: list[str] = []

    def make(type: str = "iscsi") -> str:
        made.append(live.new_volume(type))
        return made[-1]

    yield make
    for volume_id in made:
        live.remove(volume_id)
